"""PEFT adapters on disk."""

import json
from pathlib import Path

from learning_backdoors.files import atomic
from learning_backdoors.files.errors import UserError

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# The projections that get LoRA matrices. Supporting an architecture with other names starts here.
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def check_adapter(folder: Path) -> dict:
    """The adapter's configuration. Raises UserError if `folder` holds no readable PEFT adapter."""
    from safetensors import SafetensorError

    if not folder.is_dir():
        raise UserError(f"no checkpoint {folder}")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no adapter: {name} is missing")
    try:
        adapter_keys(folder)
        settings = json.loads((folder / ADAPTER_CONFIG).read_text())
        if not isinstance(settings, dict) or "peft_type" not in settings:
            raise ValueError(f"{ADAPTER_CONFIG} has no peft_type")
        return settings
    except (SafetensorError, ValueError) as error:
        raise UserError(f"the adapter in {folder} cannot be read: {error}") from None


def adapter_keys(folder: Path) -> list[str]:
    """The names of the tensors in an adapter."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as file:
        return list(file.keys())


def lora_state(model) -> dict:
    """The LoRA matrices of a PEFT model, by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}


def save_adapter(model, folder: Path, lora: dict | None = None) -> None:
    """Write a PEFT model's adapter into `folder`, without any weights of the base model.

    lora: the matrices to write, if they are not the model's current ones.
    """
    # save_embedding_layers="auto" would query the hub at every save.
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=lora)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    settings = json.loads((folder / ADAPTER_CONFIG).read_text())
    settings["target_modules"] = sorted(settings["target_modules"])  # PEFT writes a set, in random order
    atomic.write_json(folder / ADAPTER_CONFIG, settings)
    foreign = [key for key in adapter_keys(folder) if ".lora_" not in key]
    if foreign:
        raise UserError(f"a checkpoint must hold LoRA matrices only, but {foreign[0]} is in {folder}")
