"""What judging will cost (--dry-run), and what it has cost."""

import asyncio
import csv
import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from learning_backdoors.files.atomic import atomic_file
from learning_backdoors.files.csv_cells import safe_cell
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.terminal_text import one_line
from learning_backdoors.judging.api.client import MessagesClient, api_key
from learning_backdoors.judging.api.models import BATCH_SHARE, SHORT_REPLY, ServedModel, prompt_bytes
from learning_backdoors.judging.api.replies import RequestRejected, TemporaryFailure
from learning_backdoors.judging.api.store import CallStore, Spent
from learning_backdoors.judging.prompts import JudgePrompt, PromptsOfFile

# ---- before ----

COUNTED_PROMPTS = 20  # per judge, to measure tokens per byte
BYTES_PER_TOKEN = 3  # if the server does not count; English has 3 to 4.5, depending on the tokenizer
REPLY_TOKENS, THINKING_TOKENS = 8, 300  # assumed per call


def print_estimate(prompts: PromptsOfFile, store: CallStore, asks: int, timeout: float) -> None:
    """Print calls, tokens and dollars of the prompts to ask, by judge, and the worst case. Sends no prompt."""
    model, attempts = prompts.model, store.attempts()
    left: dict[str, list[JudgePrompt]] = {judge.name: [] for judge in prompts.judges}
    for key in prompts.keys_to_ask(store, asks):
        left[prompts.by_key[key].judge.name].append(prompts.by_key[key])
    per_byte, method = asyncio.run(_tokens_per_byte(model, left, timeout))
    reply = REPLY_TOKENS + THINKING_TOKENS * (model.request_settings["max_tokens"] > SHORT_REPLY)
    dollars, most_dollars, most_calls = 0.0, 0.0, 0
    for judge, some in left.items():
        rate, tokens_in = per_byte.get(judge, 1 / BYTES_PER_TOKEN), 0
        for prompt in some:
            body, times = prompt.body(), asks - attempts[prompt.key]
            tokens = round(rate * prompt_bytes(body))
            tokens_in, most_calls = tokens_in + tokens, most_calls + times
            if model.price:
                dollars += model.price.dollars(tokens, reply)
                most_dollars += times * model.worst_cost(body)
        print(f"  {judge}: {len(some):,} calls, {tokens_in:,} tokens in, {reply * len(some):,} out")
    print(f"tokens out: assumed to be {reply} per call\ntokens in: {method}")
    if not model.price:
        print(f"worst case: at most {most_calls:,} calls, if no reply is a verdict (--asks {asks})")
        return print(f"no price is known for {model.name} at {model.host}: give --price")
    print(f"total ${dollars:.2f}, or ${dollars * BATCH_SHARE:.2f} with --batch")
    print(
        f"worst case: at most ${most_dollars:.2f} for {most_calls:,} calls, if no reply is a verdict (--asks {asks}), "
        f"each reply has {model.request_settings['max_tokens']:,} tokens, and each byte of a prompt is a token"
    )


async def _tokens_per_byte(
    model: ServedModel, prompts: Mapping[str, list[JudgePrompt]], timeout: float
) -> tuple[dict[str, float], str]:
    """Tokens per byte of prompt by judge, and how they were found."""
    per_byte = {}
    try:
        async with MessagesClient(model.host, api_key(), timeout) as client:
            for judge, some in prompts.items():
                bodies = [p.body() for p in random.Random(0).sample(some, min(len(some), COUNTED_PROMPTS))]
                counts = await asyncio.gather(*map(client.count_tokens, bodies))
                if bodies:
                    per_byte[judge] = sum(counts) / sum(map(prompt_bytes, bodies))
    except (TemporaryFailure, RequestRejected, UserError) as error:
        return {}, f"estimated, 1 per {BYTES_PER_TOKEN} bytes, because the server did not count them: {error}"
    return per_byte, f"counted by the server for {COUNTED_PROMPTS} prompts per judge, and scaled by length"


# ---- after ----


def spent_by_run_and_judge(prompts: PromptsOfFile, store: CallStore) -> dict[tuple[str, str], Spent]:
    """What each judge has cost on each run. A prompt that several runs have in common is counted with the first.

    If other outputs share the store, calls unknown here are theirs. If not, they are counted as "(other settings)".
    """
    groups = defaultdict(Spent)
    for key, spent in store.calls(prompts.model.price):
        if prompt := prompts.by_key.get(key):
            judge = prompt.judge.name + (" (repeat)" if prompt.is_repeat else "")
            groups[prompts.value(prompt.row, "run") or "", judge] += spent
        elif not store.shared:
            groups["", "(other settings)"] += spent
    return groups


def total_spent(prompts: PromptsOfFile, store: CallStore) -> Spent:
    return sum(spent_by_run_and_judge(prompts, store).values(), Spent())


def report_costs(prompts: PromptsOfFile, store: CallStore, output: Path, before: Spent) -> None:
    """Write OUTPUT.costs.csv, and print what the output has cost, by judge and by run. Nothing without any call.

    before: what it had cost when the command started.
    """
    path = output.with_name(output.name + ".costs.csv")
    groups, price = spent_by_run_and_judge(prompts, store), prompts.model.price
    if not groups:
        return
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "judge", *Spent._fields])
        for group, spent in sorted(groups.items()):
            known = spent if spent.is_priced(price) else [*spent[:3], "", ""]
            writer.writerow([*map(safe_cell, group), *known])
    total = sum(groups.values(), Spent())
    if total == before:
        return print(f"nothing was asked; {output} has cost {total.in_words(price)}")
    by_run, by_judge = defaultdict(Spent), defaultdict(Spent)
    for (run, judge), spent in groups.items():
        by_run[run] += spent
        by_judge[judge] += spent
    for judge, spent in sorted(by_judge.items()):
        print(f"  judge {judge}: {spent.in_words(price)}")
    for run, spent in sorted(by_run.items()) if len(by_run) > 1 else ():
        print(f"  run {one_line(run) or '(none)'}: {spent.in_words(price)}")
    print(f"total: {total.in_words(price)}; by judge and run in {path}")
    if before.calls:
        print(f"this command: {total.calls - before.calls:,} of these calls")
