"""Speed and memory of the probes of a stack: all slots together, and one slot after another.

    python -m benchmarks.stack_probes /tmp/smollm2 --slots 1 8 64          a model's folder
    python -m benchmarks.stack_probes tiny_world/model --slots 32

Each stack holds random adapters of rank 8. A probe scores the reference answers of the birds study under each of them.
together: seconds for all slots, the faster of two probes. one by one: the same, a slot at a time, extrapolated from two
slots. apart: the largest difference between the two, in nats per token. peak: GPU memory in a probe; stack: before it.
"""

import argparse
import time
from pathlib import Path

import torch

from learning_backdoors.models import base_model, likelihood
from learning_backdoors.study import load_study
from learning_backdoors.training.probes import reference_examples
from learning_backdoors.training.stack import Stack
from learning_backdoors.training.stack_probes import StackProbes

RANK = 8


def filled_stack(base, slots: int) -> Stack:
    """Random adapters with a small effect."""
    stack, generator = Stack(base, slots, RANK), torch.Generator().manual_seed(0)
    for slot in range(slots):
        lora = {name: 0.01 * torch.randn(shape, generator=generator) for name, shape in stack.shapes.items()}
        stack.put(slot, lora, scale=2.0)
    return stack


def timed(probes: StackProbes, slots: list[int]) -> tuple[float, dict]:
    """Seconds of a probe, and the likelihoods by slot."""
    started = time.monotonic()
    scored = probes.score(slots)  # reads the values, so it waits for the GPU
    return time.monotonic() - started, {slot: [row["logprob"] for row in rows] for slot, rows in scored.items()}


def gigabytes(peak: bool = False) -> str:
    if not torch.cuda.is_available():
        return "-"
    return f"{(torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 1e9:.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--questions", type=int, default=20, help="reference questions, with 16 answers each")
    parser.add_argument("--batches", type=int, nargs="+", help="also with at most so many tokens per batch")
    options = parser.parse_args()
    tokenizer, base = base_model.load_tokenizer(str(options.model)), base_model.load_base(str(options.model), "none")
    answers = reference_examples(load_study("birds"), tokenizer)
    questions = list(dict.fromkeys(reference.question for _, reference, _ in answers))[: options.questions]
    answers = [answer for answer in answers if answer[1].question in questions]
    rows = likelihood.pack([example for _, _, example in answers])
    print(
        f"{len(answers)} answers, {len(rows)} packed rows, {sum(len(row.tokens) for row in rows):,} tokens", flush=True
    )
    lines = []
    for slots in options.slots:
        stack = filled_stack(base, slots)
        before, probes = gigabytes(), StackProbes(stack, answers)
        alone = [timed(probes, [slot]) for slot in (0, 0, slots - 1)][1:]  # the first one warms up
        one_by_one = slots * min(seconds for seconds, _ in alone)
        for most in options.batches or [likelihood.GPU_BATCH_TOKENS]:
            likelihood.GPU_BATCH_TOKENS = most
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
            tokens = likelihood.batch_tokens(base)
            together = [timed(probes, list(range(slots))) for _ in range(2)]
            values = together[0][1]
            apart = max(abs(a - b) for _, v in alone for slot in v for a, b in zip(v[slot], values[slot], strict=True))
            seconds = min(seconds for seconds, _ in together)
            lines.append(
                f"{slots:>6}{tokens:>10,}{seconds:>12.2f}{one_by_one:>14.2f}{apart:>10.1e}{before:>10}{gigabytes(True):>10}"
            )
            print(lines[-1], flush=True)
        stack.remove()
        del stack, probes
    print(f"\n{options.model}, {base.dtype}, {torch.get_num_threads()} CPU threads")
    print(f"{'slots':>6}{'tokens':>10}{'together s':>12}{'one by one s':>14}{'apart':>10}{'stack':>10}{'peak':>10}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
