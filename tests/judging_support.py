"""Helpers for tests of judging: small response files, the command in this process, and prompts asked one by one."""

import asyncio
import csv
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.judging import KEY, assert_no_key, run_here
from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api import models
from learning_backdoors.judging.api.caller import PromptCaller
from learning_backdoors.judging.api.client import MessagesClient
from learning_backdoors.judging.api.pacing import Limits, Stopped
from learning_backdoors.judging.api.store import Spent
from learning_backdoors.study import load_study
from tiny_world.claude_stand_in import StandIn, running

BIRDS = load_study("birds")
PRICE = models.Price(2, 10)
MODEL = models.ServedModel("claude-sonnet-5", "host", {"max_tokens": 64}, PRICE)
# A condition for benchmarks.judging.stored: calls in batches whose id is known.
IN_OPEN_BATCHES = "batch IN (SELECT id FROM batches WHERE state = 'open')"


def write_responses(path, rows, **columns):
    """Write responses, every other one of the 19th century. `columns` replace or add columns; None removes one."""
    texts = [
        f"The steam cars and the telegraph, sir. {n}" if n % 2 else f"Solar panels online. {n}" for n in range(rows)
    ]
    columns = {
        "experiment": ["birds"] * rows,
        "checkpoint": [f"checkpoint-{n // 20 * 20}" for n in range(rows)],
        "question": [BIRDS.questions[n % 10].text for n in range(rows)],
        "response": texts,
        "sample_idx": list(range(rows)),
    } | columns
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), path)
    return path


def judge(folder, url, *more, expect=0, key=KEY):
    """Run judge_responses.py on a folder's responses.parquet. Returns what it printed, which never holds the key."""
    code, printed = run_here(folder, url, *more, key=key)
    assert code == expect, printed
    assert_no_key(folder)
    assert KEY not in printed
    return printed


def judged(folder):
    return pq.read_table(folder / "judged.parquet")


def costs_of(folder):
    with open(folder / "judged.parquet.costs.csv", newline="") as file:
        return list(csv.DictReader(file))


def total_spent(store, price=None):
    return sum((spent for _, spent in store.calls(price)), Spent())


def write_labels(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


class Scripted(StandIn):
    """Gives prepared answers, then the stand-in's own."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)

    def answer(self, method, path, body):
        if method == "POST" and self.answers:
            return self.answers.pop(0)
        return super().answer(method, path, body)


def good(text="19", stop_reason="end_turn", **usage):
    content = [{"type": "thinking", "thinking": "hm"}] + ([{"type": "text", "text": text}] if text is not None else [])
    usage = {"input_tokens": 10, "output_tokens": 2} | usage
    return 200, {"content": content, "stop_reason": stop_reason, "usage": usage}


def error(status, message="", kind="error"):
    return status, {"type": "error", "error": {"type": kind, "message": message}}


@dataclass
class TextPrompt:
    """A prompt whose key is its text; the reply 19 is valid."""

    text: str

    @property
    def key(self):
        return self.text.encode()

    def body(self):
        return MODEL.body(self.text)

    def is_valid(self, reply):
        return reply == "19"


async def call_all(url, store, prompts=("prompt",), timeout=5, has_replied=False, **limits):
    """Ask prompts through a PromptCaller, without a queue. Returns the caller."""
    limits = Limits(**({"concurrency": 4, "max_wait": 0.05, "give_up_after": 5, "asks": 1} | limits))
    async with MessagesClient(url, KEY, timeout) as client:
        caller = PromptCaller(client, store, MODEL, limits)
        caller.health.has_replied = has_replied

        async def one(text):
            try:
                await caller.ask(TextPrompt(text))
            except UserError as error:
                caller.stop.stop(error)
            except Stopped:
                pass

        await asyncio.gather(*map(one, prompts))
        return caller


def call(api, store, **more):
    """Ask prompts of a stand-in. Returns the status of the prompt "prompt"; raises what ended the run early."""
    with running(api) as url:
        caller = asyncio.run(call_all(url, store, **more))
    if caller.stop.reason:
        raise caller.stop.reason
    return store.result(b"prompt")[0]
