"""What --engine tinker needs beside the engine: the session, the journal of samples in flight, and costs."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from config import GenerationOptions
from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines.protocol import Request
from learning_backdoors.generation.sampling_costs import (
    Budget,
    usage_of_checks,
    usage_of_row,
    usage_of_seed_check,
    worst_case,
)
from learning_backdoors.generation.store import ResponseStore
from learning_backdoors.models.canary_texts import canary_examples
from learning_backdoors.models.devices import RANKS
from learning_backdoors.models.remote_checkpoint import RemoteCheckpoint, read_remote
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.tinker_api.pending import Journal
from learning_backdoors.tinker_api.prices import Usage, find_price
from learning_backdoors.tinker_api.service import open_service

Prompts = Mapping[tuple[str, str], tuple[int, ...]]  # of plan.render_prompts


@contextmanager
def engine_settings(
    options: GenerationOptions,
    runs: Sequence[RunDirectory],
    store: ResponseStore,
    tokenizer,
    prompts: Prompts,
    requests: Sequence[Request],
) -> Iterator[dict]:
    """The settings of `TinkerEngine`. The session with the server ends with the block, and then costs are printed."""
    if RANKS > 1:
        raise UserError("--engine tinker runs in one process: start it without a launcher")
    step_0 = runs[0].folder / "checkpoint-0"
    record = same_server(read_remote(step_0), requests, options.base_url)
    earlier = finished_usage(store.rows.values(), prompts)
    checks = usage_of_checks(canary_examples(tokenizer), requests)
    budget = Budget(record.base_model, options.price, options.max_cost, earlier, checks)
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(open_service(options.base_url or record.base_url))
        journal = Journal(store.folder / "in-flight.jsonl", [request.key for request in requests])
        stack.enter_context(contextlib.closing(journal))
        stack.callback(lambda: print(f"this command: {budget.usage.in_words(budget.price)}", flush=True))
        settings = {"service": service, "step_0": step_0, "journal": journal, "budget": budget}
        yield settings | {"concurrency": options.concurrency}


def same_server(first: RemoteCheckpoint, requests: Sequence[Request], base_url: str | None) -> RemoteCheckpoint:
    """Raise UserError if a checkpoint is on another server than `first`, or has another base model."""
    for folder in dict.fromkeys(request.adapter for request in requests if request.adapter):
        record = read_remote(folder)
        if record.base_model != first.base_model:
            raise UserError(f"{folder} has the base model {record.base_model}, not {first.base_model}")
        if record.base_url != first.base_url and base_url is None:
            raise UserError(f"{folder} is at {record.base_url}, not at {first.base_url}: use one server at a time")
    return first


def finished_usage(rows, prompts: Prompts) -> Usage:
    """Of the finished responses."""
    return sum((usage_of_row(row, len(prompts[row["condition"], row["question_id"]])) for row in rows), Usage())


def print_estimate(
    options: GenerationOptions,
    runs: Sequence[RunDirectory],
    store: ResponseStore,
    tokenizer,
    prompts: Prompts,
    requests: Sequence[Request],
) -> None:
    """Print tokens and dollars of the responses to generate, and the worst case. Sends nothing."""
    rows, model = list(store.rows.values()), read_remote(runs[0].folder / "checkpoint-0").base_model
    price, examples = find_price(model, options.price), canary_examples(tokenizer)
    checks = usage_of_checks(examples, requests) + usage_of_seed_check(examples, requests)
    most = sum(map(worst_case, requests), Usage())
    if rows:
        mean = finished_usage(rows, prompts).sample / len(rows)
        expected = Usage(prefill=most.prefill, sample=round(mean * len(requests))) + checks
        print(f"expected: {expected.in_words(price)} (responses as long as the {len(rows):,} finished ones)")
    print(f"worst case: {(most + checks).in_words(price)} (every response has {options.max_new_tokens:,} tokens)")
    print(f"of these, {checks.in_words(price)} are for the canary's checks")
    if price is None:
        command_line.note(f"no price is known for {model}: give --price PREFILL SAMPLE TRAIN")
