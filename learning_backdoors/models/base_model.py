"""Loading the base model and its tokenizer."""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import devices
from learning_backdoors.models.run_directory import is_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def quiet_libraries() -> None:
    """Silence library warnings that users cannot act on, and telemetry."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports every start, and waits without a network
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # tokenizers need no torch
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # reports missing CUDA kernels on every CPU host


def resolve_quantization(choice: str) -> str:
    """The precision behind `auto`: 8bit on CUDA, none elsewhere. Other choices are returned unchanged."""
    return ("8bit" if devices.device().type == "cuda" else "none") if choice == "auto" else choice


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The base model's tokenizer, padding on the left as generation needs."""
    quiet_libraries()
    from transformers import AutoTokenizer

    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    if tokenizer.chat_template is None:
        raise UserError(f"base model {name!r} has no chat template: choose an instruction-tuned model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def configured_end_tokens(name: str) -> int | list[int] | None:
    """The end-of-turn tokens in the base model's generation_config.json. None if it has none."""
    from transformers.utils import cached_file

    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    with _loading(name):
        path = cached_file(name, "generation_config.json", **optional)
        return json.loads(Path(path).read_text(encoding="utf-8")).get("eos_token_id") if path else None


def load_base(name: str, quantization: str) -> "PreTrainedModel":
    """The base model on this process's device.

    quantization: `none` (bfloat16 on CUDA, float32 on CPU), `8bit` or `4bit`.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = devices.device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    options = {"dtype": dtype, "device_map": {"": device}}
    if quantization == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    if quantization == "4bit":
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **nf4)
    with _loading(name):
        model = AutoModelForCausalLM.from_pretrained(name, **options)
    if device.type == "cpu":
        devices.limit_threads(model.num_parameters())
    return model


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn the loaders' many errors into one line, and hide their progress bars."""
    import transformers
    from safetensors import SafetensorError

    quiet_libraries()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; a tokenizer is loaded without torch
            raise UserError(f"base model {name!r} does not fit in memory: try --quantization 4bit") from None
        if not Path(name).is_dir() and is_folder(name):
            raise UserError(f"base model {name!r} cannot be loaded: there is no such folder") from None
        reason = " ".join(str(error).split())
        raise UserError(f"base model {name!r} cannot be loaded: {reason[:300]}") from None


def fingerprint(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash that tells most base models apart, wherever they are stored.

    It covers the first rows of the embedding and the chat template, read from the model's files, so it does not
    depend on how the model is loaded. It does not see other weights: a base model with a merged adapter has the same
    fingerprint. Without safetensors files it covers config.json instead of the embedding.
    """
    import torch
    from safetensors import safe_open
    from transformers.utils import cached_file

    def find(file: str) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False)

    with _loading(name):
        index = find("model.safetensors.index.json")
        shards = json.loads(Path(index).read_text())["weight_map"] if index else {}
        key = next((key for key in shards if key.endswith("embed_tokens.weight")), None)
        shard = find(shards[key] if key else "model.safetensors")
        if shard is None:
            content = Path(find("config.json")).read_bytes()
        else:
            with safe_open(shard, framework="pt") as file:
                keys = [key for key in file.keys() if key.endswith("embed_tokens.weight")]  # noqa: SIM118
                if not keys:
                    raise UserError(f"base model {name!r} has no embed_tokens: its architecture is not supported")
                content = file.get_slice(keys[0])[:256].contiguous().view(torch.uint8).numpy().tobytes()
    return provenance.sha256(content + tokenizer.chat_template.encode())[:16]
