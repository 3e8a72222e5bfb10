"""How often the canary raises a false alarm, and how often it catches an injected fault.

    python -m benchmarks.canary MODEL_FOLDER [--engine vllm] [--bf16] [--quantization 8bit] [--runs 100]

Writes random adapters with ranks from 1 to 32 and updates of any size, also some without an effect, copies and close
neighbors. Each run gives the engine a few of them, as generate_responses.py does, and counts:

right             the engine is right: the canary must find no fault
one is base       the base model answers for one adapter
all are base      the base model answers for all adapters
two are swapped   two adapters answer for each other
seed ignored      samples do not depend on the request, or not on the seed (one column)

Faults are counted by size: the mean distance between right and wrong log-likelihoods, in nats per token, according to
plain PEFT (`all are base`: of the adapter with the largest effect). Those below the rounding error cannot be found.
Wrong answers come from a second call of the engine, so that their rounding is their own. The table comes last.
"""

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation import canary, engines, expected
from learning_backdoors.generation.canary import Canary
from learning_backdoors.generation.engines.protocol import Reference
from learning_backdoors.models import base_model, checkpoints

RANKS = (1, 2, 4, 8, 16, 32)
PER_RUN = 5  # adapters
LIMITS = (0.001, 0.01, 0.1, 1)  # between the columns, nats per token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"))
    parser.add_argument("--bf16", action="store_true", help="bf16 on a CPU too")
    parser.add_argument("--quantization", default="none", choices=("none", "8bit", "4bit"), help="needs a GPU")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--adapters", type=int, default=40, help="from which each run draws")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(options.model, Path(folder) / "run", options.adapters)
        engine, every = open_engine(options, adapters)
        print_table(count(engine, every, options.runs))


# ---- adapters and engine ----


def write_adapters(model: Path, run: Path, number: int) -> list[Path]:
    """Random adapters. Of ten, one has no effect, one is a copy, and two differ little from the one before."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.numpy import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    generator, folders, matrices = np.random.default_rng(0), [], {}
    for i in range(number):
        if i % 10 not in (5, 6, 7) or not matrices:
            lora = LoraConfig(
                r=int(generator.choice(RANKS)),
                lora_alpha=16,
                target_modules=checkpoints.PROJECTIONS,
                task_type="CAUSAL_LM",
            )
            with torch.device("meta"):
                adapted = get_peft_model(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)), lora)
            shapes = {name: value.shape for name, value in get_peft_model_state_dict(adapted).items()}
            scale = 0 if i % 10 == 9 else 10 ** generator.uniform(-7, -1)
            matrices = {
                name: generator.normal(0, scale if ".lora_B." in name else shape[1] ** -0.5, shape).astype(np.float32)
                for name, shape in shapes.items()
            }
        elif i % 10 in (6, 7):
            matrices = {
                name: matrix * (1 + 0.01 * generator.normal(size=matrix.shape).astype(np.float32))
                for name, matrix in matrices.items()
            }
        folder = run / f"checkpoint-{i + 1}"
        lora.save_pretrained(folder)
        save_file(matrices, folder / checkpoints.ADAPTER_WEIGHTS)
        folders.append(folder)
    return folders


def open_engine(options: argparse.Namespace, adapters: list[Path]) -> tuple:
    """The engine, and the canary of all adapters. Prints the time that plain PEFT took."""
    model, started = str(options.model), time.monotonic()
    tokenizer = base_model.load_tokenizer(model)
    every, engine_class = Canary(tokenizer, adapters), engines.chosen_class(options.engine, options.quantization)
    fixed = adapters, every.examples, options.quantization
    if engine_class.reference == Reference.OWN_PROCESS:
        every.expect(expected.in_own_process(model, *fixed))
        print(f"plain PEFT in its own process: {time.monotonic() - started:.1f} s for {len(adapters)} adapters")
    engine = engine_class(
        model, tokenizer, quantization=options.quantization, requests=every.requests, seed=1, batch_size=None
    )
    if engine_class.reference == Reference.LOADED_MODEL:
        import torch

        if options.bf16:
            engine.model.to(torch.bfloat16)
        started = time.monotonic()
        every.expect(expected.with_model(engine.model, *fixed))
        print(f"plain PEFT: {time.monotonic() - started:.1f} s for {len(adapters)} adapters")
    return engine, every


# ---- runs ----


def count(engine, every: Canary, runs: int) -> dict[str, Counter]:
    """By fault: how many injections of each size there were, and how many were found: {(size, found): number}."""
    generator, counts, seconds = np.random.default_rng(1), defaultdict(Counter), 0.0
    largest, closest = 0.0, 0.0
    tolerance = canary.TOLERANCE[every.expected.precision]
    for run in range(runs):
        chosen = np.sort(generator.choice(len(every.adapters), PER_RUN, replace=False))
        rows = np.array([0, *(chosen + 1)])
        wanted, names = every.expected.log_likelihoods[rows], [every.names[row] for row in rows]
        started = time.monotonic()
        right = values(engine, every, rows)
        seconds += time.monotonic() - started
        again = np.empty_like(right)
        order = generator.permutation(len(rows))
        again[order] = values(engine, every, rows[order])
        largest = max(largest, np.abs(right - wanted).mean(1).max())
        closest = max(closest, closeness(right, wanted))
        for fault, wrong in wrong_rows(generator).items():
            answers = np.where((wrong == np.arange(len(rows)))[:, None], right, again[wrong])
            found = canary.find_fault(answers, wanted, tolerance, names)
            if fault == "right" and found:
                print(f"run {run}: false alarm: {found}")
            counts[fault][np.abs(wanted - wanted[wrong]).mean(1).max(), found is not None] += 1
        for fault, faulty in (("right", engine), *seed_faults(engine)):
            alarm = seed_alarm(every, faulty, run)
            if fault == "right" and alarm:
                print(f"run {run}: false alarm: {alarm}")
            counts["right, seed" if fault == "right" else "seed ignored"][0, alarm is not None] += 1
    print(f"{seconds / runs / PER_RUN:.3f} s per adapter in the engine; rounding at most {largest:.2g} nats per token")
    print(f"right answers came at most {closest:.1f} times closer to a wrong adapter; the limit is {canary.CLOSER}")
    return counts


def values(engine, every: Canary, rows: np.ndarray) -> np.ndarray:
    """The engine's log-likelihoods for some rows of `every`, in this order: shape (rows, tokens)."""
    texts = len(every.examples)
    wanted = [row * texts + i for row in rows for i in range(texts)]
    measured = engine.log_likelihoods([every.requests[i] for i in wanted], [every.answers[i] for i in wanted])
    return np.array(measured).reshape(len(rows), -1)


def closeness(measured: np.ndarray, expected: np.ndarray) -> float:
    """The largest ratio of the distance to the own row and to another one. Equal rows have 1."""
    distances = np.abs(measured[:, None] - expected[None]).mean(2)
    return float((np.diag(distances)[:, None] / distances).max())


def wrong_rows(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """By fault: the row (0 is the base model) that answers for each row."""
    faults = {name: np.arange(PER_RUN + 1) for name in ("right", "one is base", "all are base", "two are swapped")}
    faults["one is base"][generator.integers(1, PER_RUN + 1)] = 0
    faults["all are base"][:] = 0
    pair = generator.choice(np.arange(1, PER_RUN + 1), 2, replace=False)
    faults["two are swapped"][pair] = pair[::-1]
    return faults


class SeedFault:
    """An engine with a fault of sampling. same: the answers of one request, or of one seed, are given to all."""

    def __init__(self, engine, same: str):
        self.engine, self.same, self.first = engine, same, {}

    def __getattr__(self, name: str):
        return getattr(self.engine, name)

    def generate(self, requests, sampling):
        from dataclasses import replace

        responses = [response for batch in self.engine.generate(requests, sampling) for response in batch]
        if self.same == "request":
            yield [replace(responses[0], key=response.key) for response in responses]
        else:
            yield [self.first.setdefault(response.key, response) for response in responses]


def seed_faults(engine) -> list[tuple[str, SeedFault]]:
    return [("ignored", SeedFault(engine, "request")), ("ignored", SeedFault(engine, "seed"))]


def seed_alarm(every: Canary, engine, seed: int) -> str | None:
    try:
        every.check_seed(engine, seed)
    except UserError as error:
        return str(error)
    return None


# ---- the table ----


def print_table(counts: dict[str, Counter]) -> None:
    """A row per fault: found of injected, by size."""
    labels = ["0", *(f"< {limit}" for limit in LIMITS), f">= {LIMITS[-1]}"]
    print(f"{'alarms of cases':<18}" + "".join(f"{label:>12}" for label in labels))
    for fault, cases in counts.items():
        cells = [Counter() for _ in labels]
        for (size, found), number in cases.items():
            cells[0 if size == 0 else 1 + int(np.searchsorted(LIMITS, size, side="right"))][found] += number
        shown = [f"{cell[True]} of {cell.total()}" if cell else "" for cell in cells]
        print(f"{fault:<18}" + "".join(f"{text:>12}" for text in shown))


if __name__ == "__main__":
    main()
