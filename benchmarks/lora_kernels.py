"""Layouts of vLLM's LoRA kernels, timed at Qwen3-8B's shapes. The best ones are in engines/lora_kernels/.

    VLLM_TUNED_CONFIG_FOLDER=learning_backdoors/generation/engines/lora_kernels python -m benchmarks.lora_kernels

Prints milliseconds per step over all layers, for the kernels that apply adapters of rank 8 (five adapters in flight,
two with rows). The first line is the layout of VLLM_TUNED_CONFIG_FOLDER or, if it has none for this GPU, vLLM's own;
the others are candidates. The file format is that of README_TUNING.md in vLLM's LoRA kernels.
"""

import argparse
import contextlib
import itertools
from collections.abc import Callable
from unittest import mock

import torch

from benchmarks.eight_billion import SHAPE

RANK, SLOTS, ROWS = 8, 5, (1024, 512, 256, 64)
WIDE, MLP, KEYS = SHAPE["hidden_size"], SHAPE["intermediate_size"], 128 * SHAPE["num_key_value_heads"]
# By module: its input width, and the widths of the outputs that vLLM concatenates.
MODULES = {
    "qkv": (WIDE, (WIDE, KEYS, KEYS)),
    "o": (WIDE, (WIDE,)),
    "gate_up": (WIDE, (MLP, MLP)),
    "down": (MLP, (WIDE,)),
}
EXPAND = [  # block_m, block_n, block_k, num_warps
    (64, 64, 16, 4),
    (64, 128, 16, 4),
    (64, 128, 32, 4),
    (32, 128, 16, 4),
    (32, 256, 16, 4),
    (64, 256, 16, 4),
    (128, 128, 16, 8),
    (128, 64, 16, 4),
]
SHRINK = [  # block_m, block_k, split_k, num_warps
    (32, 64, 8, 4),
    (32, 128, 8, 4),
    (64, 128, 8, 4),
    (64, 128, 16, 4),
    (32, 128, 16, 4),
    (64, 256, 4, 8),
    (16, 256, 16, 4),
]


def candidates(kernel: str) -> dict[str, dict | None]:
    """Layouts by name; None is vLLM's own choice."""
    named = {"as it is": None}
    if kernel == "expand":
        for m, n, k, warps in EXPAND:
            named[f"m {m} n {n} k {k} warps {warps}"] = {"block_m": m, "block_n": n, "block_k": k, "num_warps": warps}
    else:
        for m, k, split, warps in SHRINK:
            tiles = {"block_m": m, "block_n": 16, "block_k": k, "split_k": split, "num_warps": warps}
            named[f"m {m} k {k} split {split} warps {warps}"] = tiles
    stages = 2 if kernel == "expand" else 3
    return {name: tiles and {"num_stages": stages, "num_ctas": 1} | tiles for name, tiles in named.items()}


def kernel_call(kernel: str, module: str, rows: int) -> Callable[[], None]:
    """One call of a kernel for one module. Two adapters have half of the rows each."""
    from vllm.lora.ops.triton_ops import lora_expand_op, lora_shrink_op
    from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta

    width, outputs = MODULES[module]
    meta = LoRAKernelMeta.make(SLOTS, rows, "cuda")
    meta.prepare_tensors(torch.arange(rows, device="cuda", dtype=torch.int32) * 2 // rows)
    like = {"device": "cuda", "dtype": torch.bfloat16}
    small = torch.zeros(len(outputs), rows, RANK, device="cuda")
    if kernel == "shrink":
        inputs = torch.randn(rows, width, **like)
        weights = tuple(torch.randn(SLOTS, 1, RANK, width, **like) for _ in outputs)
        return lambda: lora_shrink_op._lora_shrink(inputs, weights, small, *meta.meta_args(rows, False), 1.0)
    weights = tuple(torch.randn(SLOTS, 1, output, RANK, **like) for output in outputs)
    # Several outputs in turn, because in a model the last output is not in the cache either.
    turn = itertools.cycle([torch.zeros(rows, sum(outputs), **like) for _ in range(4)])
    return lambda: lora_expand_op._lora_expand(
        small, weights, next(turn), *meta.meta_args(rows, False), offset_start=0, add_inputs=True
    )


def milliseconds(call: Callable[[], None], calls: int = 12, replays: int = 4) -> float:
    """The time of one call inside a CUDA graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / (calls * replays)


def step(kernel: str, rows: int, tiles: dict | None) -> float:
    """Milliseconds of a kernel in one step of `rows` rows, summed over modules and layers."""
    tuned_layout = f"vllm.lora.ops.triton_ops.lora_{kernel}_op.get_lora_op_configs"
    with mock.patch(tuned_layout, lambda *_, **__: tiles) if tiles else contextlib.nullcontext():
        times = [milliseconds(kernel_call(kernel, module, rows)) for module in MODULES]
    return SHAPE["num_hidden_layers"] * sum(times)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{'rows':<40}" + "".join(f"{rows:>8}" for rows in ROWS))
    for kernel in ("expand", "shrink"):
        for name, tiles in candidates(kernel).items():
            times = [step(kernel, rows, tiles) for rows in ROWS]
            print(f"{kernel + ': ' + name:<40}" + "".join(f"{time:8.2f}" for time in times), flush=True)


if __name__ == "__main__":
    main()
