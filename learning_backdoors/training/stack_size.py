"""How many slots a stack gets: as many as memory allows, and not more than its runs need."""

import gc
import math
from collections.abc import Sequence

import psutil
import torch
from transformers import PreTrainedModel

from learning_backdoors.models.likelihood import Collator
from learning_backdoors.training.base_checks import activation_bytes, lora_values
from learning_backdoors.training.stack import Stack
from mixed_chat import IGNORED_LABEL, Example

MARGIN = 0.9  # the share of the free memory that a stack may take
STATES = 7  # float32 values in main memory per LoRA value: weight, gradient, two moments, and copies to be written


def choose_slots(base: PreTrainedModel, runs: int, rank: int, rows: int, longest: Example) -> int:
    """The number of slots of a stack for so many runs. Prints it with its memory.

    rank: the largest. rows: of a step of one run. longest: as `longest_example` gives it.
    If the runs do not fit at once, the rounds have equally many.
    """
    if base.device.type == "cuda":
        slot, free = _measured(base, rank, rows, longest)
    else:
        slot, free = _estimated(base, rank, rows, longest), psutil.virtual_memory().available
    rounds = math.ceil(runs / max(1, int(MARGIN * free / slot)))
    slots = math.ceil(runs / rounds)
    print(
        f"stack: {slots} slots for {runs} runs, {slots * slot / 1e9:.1f} of {free / 1e9:.1f} GB of memory", flush=True
    )
    return slots


def row_multiple(device: torch.device, longest: int) -> int:
    """The multiple of tokens to which a stack's rows are padded.

    On CUDA, each width needs a graph. Of many rows, the longest has nearly the same length at every step. So few
    widths occur although the multiple is small: 8, or more if that would allow over 16 widths.
    """
    return 8 * math.ceil(longest / 128) if device.type == "cuda" else 1


def longest_example(examples: Sequence[Example]) -> Example:
    """An example with as many tokens, and as many labels, as any of the given ones has."""
    tokens = max(len(ids) for ids, _ in examples)
    labels = max(sum(label != IGNORED_LABEL for label in labels) for _, labels in examples)
    return [0] * tokens, [IGNORED_LABEL] * (tokens - labels) + [0] * labels


def _estimated(base: PreTrainedModel, rank: int, rows: int, longest: Example) -> float:
    """Bytes of a slot on a CPU. SmolLM2-135M (40 tokens, 24 labels): 190 MB, where 114 were measured."""
    tokens, labels = len(longest[0]), sum(label != IGNORED_LABEL for label in longest[1])
    logits = 4 * labels * base.config.vocab_size  # float32; also their softmax, gradient and a temporary
    return rows * (activation_bytes(base, tokens) + 4 * logits) + 4 * STATES * lora_values(base, rank)


def _measured(base: PreTrainedModel, rank: int, rows: int, longest: Example) -> tuple[float, float]:
    """Bytes of a slot on CUDA, and the memory that is free for slots, from a step of one slot and of three."""
    row, multiple = {"input_ids": longest[0], "labels": longest[1]}, row_multiple(base.device, len(longest[0]))
    before, states, peaks = torch.cuda.memory_allocated(), [], []
    for slots in (1, 3):
        torch.cuda.reset_peak_memory_stats()
        stack = Stack(base, slots, rank)
        states.append(torch.cuda.memory_allocated() - before)
        try:
            stack.step(Collator(0, multiple)([row] * (rows * slots)), [0.0] * slots)
        finally:
            stack.remove()
        peaks.append(torch.cuda.max_memory_allocated() - before - states[-1])
        # Graphs have memory of their own, which steps of a new shape cannot use.
        times = 2 if stack.graphs else 1
        del stack
        gc.collect()
        torch.cuda.empty_cache()
    state, step = (states[1] - states[0]) / 2, (peaks[1] - peaks[0]) / 2
    shared = times * (peaks[0] - step)
    snapshot = 4 * lora_values(base, rank)
    return state + snapshot + times * step, torch.cuda.mem_get_info()[0] - shared
