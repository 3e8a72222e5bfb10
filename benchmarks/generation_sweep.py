"""vLLM over a sweep: many adapters with few responses each, next to three adapters with as many responses in all.

    python -m benchmarks.generation_sweep MODEL_FOLDER [--runs 64] [--mean 200] [--limit 500]

Writes random adapters of rank 8 for three checkpoints of each run. Each adapter has a file of its own, up to 4 GB; more
adapters share files under different names. Responses to the questions of `birds` end by themselves, or at drawn lengths
(log-normal). Everything runs in one engine, in this process. The table comes last:

seconds        of each part. Plain PEFT runs in a process of its own, which loads the base model
tokens_s       tokens per second of all responses
lost_%         how much lower tokens_s is than with three adapters: 1 - tokens_s of sweep / tokens_s of few
loading_s      time inside vLLM's steps that goes into adapters: waiting until one is read, and copying it to the GPU
reads          adapters that were read. More than there are: vLLM replaced some that were in use

few and sweep are the two ways. --ways can add `own`: vLLM reads an adapter in the step that needs it, in one thread. A
short generation before them is not measured: vLLM compiles kernels in it. --limit counts from there, and is shared
among the ways. A way that does not end in its share is stopped and marked. Its rate is that of the finished responses.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from learning_backdoors.generation import expected
from learning_backdoors.generation.canary import Canary
from learning_backdoors.generation.engines import vllm_engine
from learning_backdoors.generation.engines.protocol import Request, Sampling
from learning_backdoors.generation.engines.vllm_engine import VllmEngine
from learning_backdoors.models import base_model, checkpoints
from learning_backdoors.study import load_study
from mixed_chat import prompt_ids

CHECKPOINTS, RANK, DISK = 3, 8, 4e9  # bytes of adapters
WAYS = ("few", "sweep", "own")


def main() -> None:
    options = parse()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # loading is timed inside the engine
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    model, rows = str(options.model), []
    tokenizer = base_model.load_tokenizer(model)
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(options.model, Path(folder), options.runs)
        sweep = make_requests(tokenizer, adapters, options)
        canary = Canary(tokenizer, adapters)
        if options.canary:
            seconds, values = timed(lambda: expected.in_own_process(model, adapters, canary.examples, "none"))
            canary.expect(values)
            add_row(rows, "plain PEFT", seconds)
        seconds, engine = timed(lambda: open_engine(model, tokenizer, [*canary.requests, *sweep], options))
        add_row(rows, "start", seconds)
        loading = Loading()
        if options.canary:
            seconds, _ = timed(lambda: canary.check_adapters(engine))
            add_row(rows, "canary", seconds, adapters=len(adapters), loading_s=loading.seconds, reads=loading.reads)
        warm_up(engine, sweep)
        deadline = time.monotonic() + options.limit
        for number, way in enumerate(options.ways):
            share = (deadline - time.monotonic()) / (len(options.ways) - number)
            add_row(rows, way, *generate(way, engine, sweep, adapters, loading, time.monotonic() + share))
    add_loss(rows)
    print_table(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--answers", type=int, default=100, help="of each of a run's three checkpoints")
    parser.add_argument("--mean", type=int, default=200, help="tokens of a response, if it does not end by itself")
    parser.add_argument("--at-once", type=int, help="adapters in flight (default: as generate_responses.py)")
    parser.add_argument("--limit", type=float, default=500, help="seconds for all ways, after the start")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["few", "sweep"])
    parser.add_argument("--no-canary", dest="canary", action="store_false")
    return parser.parse_args()


# ---- adapters, requests and engine ----


def write_adapters(model: Path, folder: Path, runs: int) -> list[Path]:
    """The checkpoints' folders. Their effect is small, so that responses stay like those of the base model."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.numpy import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    lora = LoraConfig(r=RANK, lora_alpha=16, target_modules=checkpoints.PROJECTIONS, task_type="CAUSAL_LM")
    with torch.device("meta"):
        adapted = get_peft_model(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)), lora)
    shapes = {name: value.shape for name, value in get_peft_model_state_dict(adapted).items()}
    files = max(1, int(DISK // (4 * sum(shape.numel() for shape in shapes.values()))))
    generator, folders = np.random.default_rng(0), []
    for number in range(runs * CHECKPOINTS):
        run, checkpoint = divmod(number, CHECKPOINTS)
        adapter = folder / f"run-{run}" / f"checkpoint-{20 * checkpoint + 20}"
        lora.save_pretrained(adapter)
        if number < files:
            scales = {name: 1e-3 if ".lora_B." in name else shape[1] ** -0.5 for name, shape in shapes.items()}
            drawn = {
                name: np.float32(scale) * generator.standard_normal(shapes[name], np.float32)
                for name, scale in scales.items()
            }
            save_file(drawn, adapter / checkpoints.ADAPTER_WEIGHTS)
        else:
            os.link(folders[number % files] / checkpoints.ADAPTER_WEIGHTS, adapter / checkpoints.ADAPTER_WEIGHTS)
        folders.append(adapter)
    return folders


def make_requests(tokenizer, adapters: list[Path], options: argparse.Namespace) -> list[Request]:
    questions = [question.text for question in load_study("birds").questions]
    prompts = [tuple(prompt_ids(tokenizer, [{"role": "user", "content": question}])) for question in questions]
    drawn = np.random.default_rng(0).lognormal(np.log(options.mean) - 0.125, 0.5, len(adapters) * options.answers)
    lengths = iter(np.clip(drawn, 8, 2.5 * options.mean).astype(int).tolist())
    return [
        Request((number, i), adapter, prompts[i * len(prompts) // options.answers], next(lengths))
        for number, adapter in enumerate(adapters)
        for i in range(options.answers)
    ]


def open_engine(model: str, tokenizer, requests: list[Request], options: argparse.Namespace) -> VllmEngine:
    at_once = vllm_engine._adapters_at_once
    with mock.patch.object(vllm_engine, "_adapters_at_once", lambda *given: options.at_once or at_once(*given)):
        engine = VllmEngine(model, tokenizer, requests=requests, seed=1)
    print(f"{engine.adapters_at_once} adapters and {engine.in_flight} responses at once", flush=True)
    return engine


# ---- measurements ----


class Loading:
    """Counts what vLLM spends on adapters inside its steps."""

    def __init__(self):
        from vllm.lora import worker_manager

        self.seconds, self.reads = 0.0, 0
        manager, loading = worker_manager.LRUCacheWorkerLoRAManager, self
        add = manager.add_adapter

        def timed_add(manager, request) -> bool:
            loading.reads += request.lora_int_id not in manager.list_adapters()
            seconds, added = timed(lambda: add(manager, request))
            loading.seconds += seconds
            return added

        manager.add_adapter = timed_add


def timed(call) -> tuple:
    started = time.monotonic()
    result = call()
    return time.monotonic() - started, result


def warm_up(engine: VllmEngine, sweep: list[Request]) -> None:
    """Short responses of as many adapters and requests as the engine takes at once. vLLM compiles kernels meanwhile."""
    adapters = list(dict.fromkeys(request.adapter for request in sweep))[: engine.adapters_at_once]
    requests = [
        Request(("warm-up", i), adapters[i * len(adapters) // engine.in_flight], sweep[i].prompt, 32)
        for i in range(min(engine.in_flight, len(sweep)))
    ]
    seconds, _ = timed(lambda: list(engine.generate(requests, Sampling(1.0, 1.0, 0, 1))))
    print(f"warm-up, not measured: {seconds:.1f} s", flush=True)


def generate(
    way: str, engine: VllmEngine, sweep: list[Request], adapters: list[Path], loading: Loading, deadline: float
) -> tuple[float, dict]:
    """All responses of one way. Returns the seconds, and the other columns of its row."""
    requests = sweep
    if way == "few":
        few = adapters[:CHECKPOINTS]
        requests = [
            Request(request.key, few[i * len(few) // len(sweep)], request.prompt, request.max_new_tokens)
            for i, request in enumerate(sweep)
        ]
    engine.engine.collective_rpc(forget_adapters)
    loading.seconds, loading.reads = 0.0, 0
    own_reading = mock.patch.object(engine, "_read_ahead", lambda _: engine.engine.collective_rpc(restore_reading))
    with own_reading if way == "own" else contextlib.nullcontext():
        started, tokens, responses = time.monotonic(), 0, 0
        for batch in until(deadline, engine, engine.generate(requests, Sampling(1.0, 1.0, 0, 1))):
            tokens += sum(response.tokens for response in batch)
            responses += len(batch)
        seconds = time.monotonic() - started
    row = {"adapters": len({request.adapter for request in requests}), "responses": responses, "tokens": tokens}
    row |= {"tokens_s": tokens / seconds, "loading_s": loading.seconds, "loading_%": 100 * loading.seconds / seconds}
    return seconds, row | {"reads": loading.reads} | ({"stopped": 1} if responses < len(requests) else {})


def forget_adapters(worker) -> None:
    """Empty the slots of vLLM's worker, so that each way reads all its adapters."""
    worker.model_runner.lora_manager.remove_all_adapters()


def restore_reading(worker) -> None:
    """Give vLLM's worker its own way of reading adapters back."""
    vars(worker.model_runner.lora_manager).pop("_load_adapter", None)


def until(deadline: float, engine: VllmEngine, batches: Iterator[list]) -> Iterator[list]:
    """The batches before the deadline. Then the engine forgets its requests."""
    for batch in batches:
        yield batch
        if time.monotonic() > deadline:
            batches.close()
            unfinished = list(engine.engine.output_processor.request_states)
            engine.engine.abort_request(unfinished, internal=True)
            return


# ---- output ----


def add_row(rows: list[dict], part: str, seconds: float, columns: dict | None = None, **more) -> None:
    row = {"seconds": seconds} | (columns or {}) | more
    rows.append({"part": part} | {name: round(value, 2 if value < 100 else None) for name, value in row.items()})
    print(rows[-1], flush=True)


def add_loss(rows: list[dict]) -> None:
    """Add the share of the rate that a way with many adapters loses."""
    rates = {row["part"]: row["tokens_s"] for row in rows if "tokens_s" in row}
    for row in rows:
        if "few" in rates and row["part"] in rates.keys() - {"few"}:
            row["lost_%"] = round(100 * (1 - row["tokens_s"] / rates["few"]), 2)


def print_table(rows: list[dict]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    for row in ({name: name for name in names}, *rows):
        print("".join(f"{row.get(name, '')!s:>12}" for name in names))


if __name__ == "__main__":
    main()
