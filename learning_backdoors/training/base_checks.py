"""What training requires of a base model, advises, and estimates."""

import torch
from transformers import PreTrainedModel

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import checkpoints


def refuse_missing_projections(base: PreTrainedModel) -> None:
    """Raise UserError if the base model lacks a projection: PEFT would silently train the others only."""
    modules = {name.rpartition(".")[2] for name, _ in base.named_modules()}
    if missing := [name for name in checkpoints.PROJECTIONS if name not in modules]:
        raise UserError(f"base model {base.name_or_path!r} has no {missing[0]}: its architecture is not supported")


def precision_notice(base: PreTrainedModel) -> str | None:
    """One line if a quantized `base` on CUDA would fit in bf16 too, else None."""
    if base.device.type != "cuda":
        return None
    gigabytes = 1.1 * 2e-9 * base.num_parameters()  # a tenth for adapters, their optimizer, and short batches
    own_memory = torch.cuda.memory_reserved(base.device)  # would be free without the quantized weights
    if gigabytes * 1e9 > torch.cuda.mem_get_info(base.device)[0] + own_memory:
        return None
    return f"bf16 needs about {gigabytes:.0f} GB and fits: --quantization none is 4 to 6 times faster"


def activation_bytes(base: PreTrainedModel, tokens: int) -> int:
    """The memory of a training step for so many tokens, without logits: a generous estimate."""
    shape = base.config
    return tokens * 2 * shape.num_hidden_layers * (48 * shape.hidden_size + 10 * shape.intermediate_size)


def lora_values(base: PreTrainedModel, rank: int) -> int:
    """The number of values in the LoRA matrices of one adapter."""
    layers = (layer for name, layer in base.named_modules() if name.rpartition(".")[2] in checkpoints.PROJECTIONS)
    return rank * sum(layer.in_features + layer.out_features for layer in layers)
