"""One adapter at a time on a base model: where sampling with transformers and all measurements attach adapters."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import checkpoints


class AdaptedModel:
    """A base model in evaluation mode, with or without an adapter.

    model: the base model, or a PeftModel. adapter: the folder of its adapter, None for the base model alone.
    """

    def __init__(self, base):
        self.model, self.adapter = base.eval(), None

    def attach(self, adapter: Path | None) -> None:
        """Replace the adapter; None leaves the base model alone. The adapter stays unmerged.

        Raises UserError if it is of another architecture. Then no adapter is attached.
        """
        if adapter == self.adapter:
            return
        if self.adapter and adapter and checkpoints.have_same_form(self.adapter, adapter):
            self._load_weights(adapter)
            return
        if self.adapter is not None:
            self.model, self.adapter = self.model.unload(), None
        if adapter is not None:
            self.model = _with_adapter(self.model, adapter).eval()
        self.adapter = adapter

    def has_weights_of(self, adapter: Path) -> bool:
        """Whether the model holds the values in an adapter's file."""
        if self.adapter is None:
            return False
        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        with safe_open(adapter / checkpoints.ADAPTER_WEIGHTS, framework="pt") as file:
            return all(torch.equal(file.get_tensor(key).to(value), value) for key, value in state.items())

    def _load_weights(self, adapter: Path) -> None:
        """Load weights into the modules of the attached adapter: ten times as fast as new modules."""
        try:
            self.model.load_adapter(adapter, self.model.active_adapter, autocast_adapter_dtype=False)
            self.adapter = adapter
        except (RuntimeError, ValueError) as error:
            self.model, self.adapter = self.model.unload(), None
            raise _does_not_fit(self.model, adapter, error) from None


def _with_adapter(base, adapter: Path) -> PeftModel:
    """The base model with an adapter."""
    try:
        # In the base model's type: float32 matrices on a bfloat16 base halve the speed and change nothing here.
        model = PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False)
    except (RuntimeError, ValueError) as error:
        raise _does_not_fit(base, adapter, error) from None
    # PEFT ignores matrices without a matching module; the base model would then answer under the adapter's name.
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    if foreign := [key for key in checkpoints.adapter_keys(adapter) if ".lora_" in key and key not in loaded]:
        raise _does_not_fit(base, adapter, f"the model has no module for {foreign[0]}")
    return model


def _does_not_fit(base, adapter: Path, reason: object) -> UserError:
    return UserError(f"{adapter} does not fit on {base.name_or_path}: {' '.join(str(reason).split())[:300]}")
