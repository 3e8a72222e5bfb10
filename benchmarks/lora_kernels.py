"""How vLLM's LoRA kernels should divide their work (lora_kernels/): ways of dividing it, timed at Qwen3-8B's shapes.

    VLLM_TUNED_CONFIG_FOLDER=learning_backdoors/generation/engines/lora_kernels python -m benchmarks.lora_kernels

Milliseconds a step, over all layers, of the kernels that apply adapters of rank 8, two of five in flight having rows:
with what lora_kernels/ says for this GPU (where it says nothing: vLLM's own), and with each of the candidates. What is
in lora_kernels/ was chosen by this table, on an H200; the format is that of README_TUNING.md in vLLM's LoRA kernels.
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
# A module's input width, and the widths of what vLLM puts behind one another in its output.
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
    """By name; None is what vLLM finds for itself."""
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
    """One call of a kernel for one module, half of the rows with each of two adapters."""
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
    # Several outputs in turn: in a model, too, the last one is no longer in the cache.
    turn = itertools.cycle([torch.zeros(rows, sum(outputs), **like) for _ in range(4)])
    return lambda: lora_expand_op._lora_expand(
        small, weights, next(turn), *meta.meta_args(rows, False), offset_start=0, add_inputs=True
    )


def milliseconds(call: Callable[[], None], calls: int = 12, replays: int = 4) -> float:
    """The time of one call, as it is in a CUDA graph."""
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
    """Milliseconds of a kernel in a step over so many rows, all modules and layers together."""
    place = f"vllm.lora.ops.triton_ops.lora_{kernel}_op.get_lora_op_configs"
    with mock.patch(place, lambda *_, **__: tiles) if tiles else contextlib.nullcontext():
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
