"""What the stand-in did, and what it charged: an event for each piece of work, and sums of them.

Prices are those that Tinker charged for Qwen3-8B on 2026-10-07, in dollars per million tokens.
"""

import json
import time
from collections import Counter
from pathlib import Path

PREFILL, SAMPLE, TRAIN = 0.195, 0.60, 0.44
CACHED_SHARE = 0.2  # of the price of prefill
GB_MONTH = 0.10  # dollars of storage


class Ledger:
    """events: dicts with `event` and `time` (seconds). file: gets each event as a line of JSON."""

    def __init__(self, file: Path | None = None, prices: tuple[float, float, float] = (PREFILL, SAMPLE, TRAIN)):
        self.events: list[dict] = []
        self.prices = prices
        self.file = file.open("a", buffering=1) if file else None

    def add(self, event: str, **fields) -> None:
        record = {"event": event, "time": time.time(), **fields}
        self.events.append(record)
        if self.file:
            self.file.write(json.dumps(record) + "\n")

    def clear(self) -> None:
        """Forget all events. The file keeps them."""
        self.events = []

    def of(self, event: str) -> list[dict]:
        return [record for record in list(self.events) if record["event"] == event]

    def summary(self) -> dict:
        """tokens, dollars, steps and samples, as the functions below describe them."""
        tokens = self.tokens()
        return {"tokens": tokens, "dollars": self.dollars(tokens), "steps": self.steps(), "samples": self.samples()}

    def tokens(self) -> dict[str, int]:
        """train: read by forward_backward. forward: read by forward. prefill, cached, sampled: of the sampler."""
        count = Counter()
        for record in self.of("forward_backward"):
            count["train"] += record["tokens"]
        for record in self.of("forward"):
            count["forward"] += record["tokens"]
        for record in self.of("sample"):
            count["prefill"] += record["prefill"]
            count["cached"] += record["cached"]
            count["sampled"] += record["sampled"]
        return {name: count[name] for name in ("train", "forward", "prefill", "cached", "sampled")}

    def dollars(self, tokens: dict[str, int]) -> dict[str, float]:
        """Charges. A forward pass costs as much as training. Storage is charged until deletion or expiry."""
        prefill, sample, train = (price / 1e6 for price in self.prices)
        dollars = {
            "train": tokens["train"] * train,
            "forward": tokens["forward"] * train,
            "prefill": tokens["prefill"] * prefill + tokens["cached"] * prefill * CACHED_SHARE,
            "sampled": tokens["sampled"] * sample,
            "storage": self._storage(),
        }
        return dollars | {"total": sum(dollars.values())}

    def _storage(self) -> float:
        deleted = {record["path"]: record["time"] for record in self.of("delete")}
        gb_seconds = 0.0
        for record in self.of("save"):
            end = deleted.get(record["path"], record["time"] + (record["ttl"] or 30 * 86400))
            gb_seconds += record["bytes"] / 1e9 * max(0.0, end - record["time"])
        return gb_seconds / (30 * 86400) * GB_MONTH

    def steps(self) -> dict:
        """histories: of each model, the batches that it was trained on, including those before it was loaded.

        paid: how often each batch was charged. Batches are named by a hash of tokens, targets and weights.
        """
        histories, saved = {}, {}
        for record in list(self.events):
            if record["event"] == "model":
                histories[record["model"]] = list(record["history"])
            elif record["event"] == "optim_step":
                histories.setdefault(record["model"], []).append(record["batch"])
            elif record["event"] == "save":
                saved[record["path"]] = list(histories.get(record["model"], []))
        paid = Counter(record["batch"] for record in self.of("optim_step")) + Counter(self._unfinished())
        return {"histories": histories, "saved": saved, "paid": dict(paid)}

    def _unfinished(self) -> list[str]:
        """Batches of forward_backward calls that no optim_step has followed."""
        open_batches: dict[str, list[str]] = {}
        for record in list(self.events):
            if record["event"] == "forward_backward":
                open_batches.setdefault(record["model"], []).append(record["batch"])
            elif record["event"] == "optim_step":
                open_batches.pop(record["model"], None)
        return ["+".join(batches) for batches in open_batches.values()]

    def samples(self) -> dict:
        """Samples by model, prompt and seed: requests, different ones, charged twice, and never fetched by a client."""
        records = self.of("sample")
        charged = Counter((r["path"], r["prompt"], r["seed"]) for r in records if not r["logprobs_only"])
        fetched = {record["request"] for record in self.of("fetched")}
        return {
            "charged": sum(charged.values()),
            "different": len(charged),
            "charged_twice": sum(count - 1 for count in charged.values()),
            "never_fetched": sum(r["request"] not in fetched for r in records if not r["logprobs_only"]),
        }
