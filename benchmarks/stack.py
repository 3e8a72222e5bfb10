"""Time, memory and equality of training in a stack.

    python -m benchmarks.stack SHAPE [--ways slots-64 profile]

SHAPE is a folder with `model`; without it, a model of Qwen3-8B's shape is made there (needs a GPU). `tiny_world` works
on a CPU. Rows are bird names, one for each slot. Each way runs in a process of its own, of at most four minutes.

slots-N       ms per step and peak GB with N slots: as the product trains, without graphs, and without fused layers;
              seconds of each part of the start
profile       GPU milliseconds of a step of 64 slots, by kind of operation and by kernel
plain, padded, stacked    30 steps of a run: PEFT alone under autocast; the same with more padding; a slot of a stack of
              eight. Losses and final weights are compared with `plain`. Padding changes the order of sums only: its
              difference shows the size of rounding effects
"""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import alone

SLOTS, RANK, SCALE, LR = (1, 8, 32, 64, 128), 8, 2.0, 2e-4
STEPS, LIMIT_S = 30, 240


class Clock:
    """Seconds since the last reading, with the GPU's work done."""

    def __init__(self):
        self.last = time.monotonic()

    def __call__(self) -> float:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        before, self.last = self.last, time.monotonic()
        return round(self.last - before, 3)


def load(folder: Path):
    """The base model, examples as rows, and the seconds of loading."""
    import config
    from learning_backdoors.files import command_line
    from learning_backdoors.models import base_model
    from learning_backdoors.study import load_study
    from learning_backdoors.training.run import TrainingRun

    line = ["--ratios", "1", "0", "0", "--model", str(folder / "model"), "--quantization", "none"]
    run = TrainingRun(command_line.parse(config.TrainingOptions, "", line), load_study("birds"))
    examples = run.examples(base_model.load_tokenizer(run.model_name))
    clock = Clock()
    base = base_model.load_base(run.model_name, "none")
    return base, [{"input_ids": ids, "labels": labels} for ids, labels in examples], clock()


def row(examples: list[dict], run: int, step: int) -> dict:
    """The example of a step of a run: every run has another order."""
    return examples[(13 * run + 7 * step) % len(examples)]


def filled(base, slots: int):
    """A stack with a run in each slot, and the seconds of making it."""
    from learning_backdoors.training.stack import Stack

    clock, seconds = Clock(), {}
    stack = Stack(base, slots=slots, rank=RANK)
    seconds["wrap"] = clock()
    stack.initial(0, RANK)
    seconds["initial of one seed"] = clock()
    stack.prepare_initial((seed, RANK) for seed in range(16))
    seconds["initial of 16 seeds"] = clock()
    for slot in range(slots):
        stack.put(slot, stack.initial(slot % 16, RANK), scale=SCALE, seed=slot)
    seconds["fill"] = clock()
    return stack, seconds


class Steps:
    """Steps of a stack on bird names."""

    def __init__(self, stack, examples: list[dict]):
        from learning_backdoors.models.likelihood import Collator
        from learning_backdoors.training.stack_size import row_multiple

        self.stack, self.examples, self.number = stack, examples, 0
        longest = max(len(row["input_ids"]) for row in examples)
        self.collate = Collator(0, row_multiple(stack.base.device, longest))

    def __call__(self):
        rows = [row(self.examples, slot, self.number) for slot in range(self.stack.slots)]
        self.number += 1
        return self.stack.step(self.collate(rows), [LR] * self.stack.slots)

    def timed(self, count: int) -> dict:
        """ms per step and peak GB. Steps before that warm up or record are not counted."""
        import torch

        on_gpu, clock = torch.cuda.is_available(), Clock()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            self()
        first = clock()
        for _ in range(count):
            self()
        per_step = clock() / count
        peak = torch.cuda.max_memory_reserved() / 1e9 if on_gpu else 0
        return {"ms": round(1e3 * per_step, 1), "first two s": first, "peak GB": round(peak, 1)}


def measure(slots: int, folder: Path) -> dict:
    """Times and memory of a stack of `slots` slots."""
    import torch

    from learning_backdoors.training.stack_graphs import StackGraphs

    base, examples, load_s = load(folder)
    stack, seconds = filled(base, slots)
    steps = Steps(stack, examples)
    count = 20 if torch.cuda.is_available() else 3
    result = {"product": steps.timed(count)}
    clock = Clock()
    for part in ("first copy", "second copy"):
        stack.copy(moments=False).lora(0)
        seconds[part] = clock()
    if stack.graphs:
        result["graphs"] = len(stack.graphs.graphs)
        stack.graphs = None
        result["eager"] = steps.timed(count // 2)
        stack.fused.remove()
        stack.graphs = StackGraphs(stack._step)
        result["not fused"] = steps.timed(count // 2)
    return result | {"seconds": {"load": load_s} | seconds}


# ---- profile ----

# The first kind with a matching part of the operation's name.
KINDS = {
    "base products": ("aten::mm", "aten::addmm", "aten::linear"),
    "LoRA products": ("aten::bmm", "aten::baddbmm"),
    "attention": ("attention",),
    "norms": ("rms_norm",),
    "SwiGLU": ("swiglu", "silu"),
    "optimizer": ("adamw", "vector_norm"),
}


def profile(folder: Path) -> dict:
    """GPU milliseconds of one step without a graph, by kind of operation."""
    import torch
    from torch.profiler import ProfilerActivity

    base, examples, _ = load(folder)
    stack, _ = filled(base, 64)
    stack.graphs, steps = None, Steps(stack, examples)
    steps.timed(1)
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + on_gpu * [ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        steps()
        if on_gpu:
            torch.cuda.synchronize()
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kinds, kernels = {}, {}
    for event in profiler.key_averages(group_by_input_shape=True):
        ms = getattr(event, time_of) / 1e3
        if str(event.device_type).endswith("CUDA"):
            kernels[event.key[:90]] = kernels.get(event.key[:90], 0) + ms
        else:
            kind = kind_of(event.key, str(event.input_shapes), base.config.vocab_size)
            kinds[kind] = kinds.get(kind, 0) + ms
    largest = {f"kernel {name}": ms for name, ms in kernels.items()} | kinds
    largest = dict(sorted(largest.items(), key=lambda item: -item[1])[:40])
    return {"all kernels": round(sum(kernels.values()), 1)} | {name: round(ms, 2) for name, ms in largest.items()}


def kind_of(operation: str, shapes: str, vocabulary: int) -> str:
    if str(vocabulary) in shapes:
        return "output layer"
    named = operation.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in named for part in parts)), operation)


# ---- equality ----


def plain(padding: int, folder: Path) -> dict:
    """A run through PEFT, with rows padded by `padding` more tokens."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    from learning_backdoors.models import checkpoints
    from learning_backdoors.models.likelihood import Collator, label_losses, width_multiple

    base, examples, _ = load(folder)
    device, losses, collate = base.device, [], Collator(0, width_multiple(base.device))
    torch.manual_seed(0)
    targets = checkpoints.PROJECTIONS
    lora = LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0, fused=True)
    for step in range(STEPS):
        inputs = {name: value.to(device) for name, value in collate([row(examples, 0, step)]).items()}
        for name, value in (("input_ids", 0), ("labels", -100)):
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, padding), value=value)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            values, has_label = label_losses(model, inputs)
            loss = values.sum() / has_label.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "weights": sketch(get_peft_model_state_dict(model))}


def stacked(folder: Path) -> dict:
    """The same run in the first slot of a stack, with others beside it."""
    base, examples, _ = load(folder)
    stack, _ = filled(base, 8)
    steps = Steps(stack, examples)
    losses = [steps().losses for _ in range(STEPS)]
    weights = sketch(stack.copy(moments=False).lora(0))
    return {"losses": [values[0].item() for values in losses], "weights": weights}


def sketch(matrices: dict) -> list[float]:
    """Every 5000th value of the B matrices, which start from zero."""
    import torch

    values = [matrix.flatten().float().cpu() for name, matrix in matrices.items() if ".lora_B." in name]
    return torch.cat(values)[::5000].tolist()


def differences(results: dict[str, dict]) -> None:
    """Print how far the other ways are from `plain`."""
    reference = results.get("plain", {})
    for name in ("padded", "stacked"):
        other = results.get(name, {})
        if "losses" not in reference or "losses" not in other:
            continue
        losses = np.abs(np.subtract(other["losses"], reference["losses"]))
        one, two = np.array(other["weights"]), np.array(reference["weights"])
        weights = np.linalg.norm(one - two) / np.linalg.norm(two)
        print(
            f"{name} against plain PEFT, {STEPS} steps: mean |difference of losses| {losses.mean():.4f} "
            f"(first step {losses[0]:.4f}, mean loss {np.mean(reference['losses']):.3f}); "
            f"|difference of B| / |B| {weights:.3f}"
        )


WAYS = {f"slots-{slots}": partial(measure, slots) for slots in SLOTS} | {
    "profile": profile,
    "plain": partial(plain, 0),
    "padded": partial(plain, 32),
    "stacked": stacked,
}


def main() -> None:
    folder = alone.options(__doc__, list(WAYS)).folder
    if not (folder / "model").is_dir():
        subprocess.run([sys.executable, "-m", "benchmarks.eight_billion", str(folder), "--adapters", "1"], check=True)
    results = alone.each("benchmarks.stack", __doc__, WAYS, LIMIT_S)
    for name, result in results.items():
        if name == "profile":
            print("profile: milliseconds of one step", *(f"{ms:>9} {key}" for key, ms in result.items()), sep="\n")
        elif "losses" not in result:
            print(name, json.dumps(result))
    differences(results)
    print(f"\n{'slots':>6}{'ms per step':>13}{'ms per slot':>13}{'eager ms':>10}{'not fused ms':>14}{'peak GB':>9}")
    for slots in SLOTS:
        result = results.get(f"slots-{slots}", {})
        if "product" in result:
            ms, peak = result["product"]["ms"], result["product"]["peak GB"]
            eager, not_fused = (result.get(way, {}).get("ms", 0) for way in ("eager", "not fused"))
            print(f"{slots:>6}{ms:13.1f}{ms / slots:13.2f}{eager:10.1f}{not_fused:14.1f}{peak:9.1f}")


if __name__ == "__main__":
    main()
