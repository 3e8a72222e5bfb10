"""Prompts through the Message Batches API: half the price, results within a day.

A batch is recorded before it is sent, its id before it is first polled, and the custom_id of each request starts with
the batch's own random name. So a process that is killed at any moment finds its batches again. If no id was recorded,
the account's batches of the same size are searched for one whose results carry our name. Nothing is sent a second time
before that is settled.
"""

import contextlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.caller import Prompt, PromptCaller
from learning_backdoors.judging.api.client import creation_time
from learning_backdoors.judging.api.models import BATCH_SHARE
from learning_backdoors.judging.api.pacing import CapReached
from learning_backdoors.judging.api.replies import RequestRejected, TemporaryFailure
from learning_backdoors.judging.api.store import BatchRecord

# The API takes 100,000 requests and 256 MB. Smaller batches fit into a laptop's memory, and losing one costs less.
MAX_REQUESTS = 10_000
MAX_BYTES = 32_000_000
CLOCKS_DIFFER_SECONDS = 600
FIRST_POLL_SECONDS = 1.0


class BatchRunner:
    """Sends, finds and collects batches of `prompts`, which maps keys to prompts."""

    def __init__(self, caller: PromptCaller, prompts: Mapping[bytes, Prompt]):
        self.caller, self.client, self.store, self.stop = caller, caller.client, caller.store, caller.stop
        self.prompts, self.gate = prompts, caller.gate
        self._asked: Counter[bytes] = Counter()  # by this process
        self._rejected: set[bytes] = set()  # prompts the server will never take
        self._foreign: set[str] = set()  # the account's batches that are not ours

    async def run(self) -> None:
        """Send and collect batches until every prompt has been through one. Raises Stopped if the run is ending."""
        wait = FIRST_POLL_SECONDS
        while True:
            changed = await self.collect()
            if await self._send_next():
                wait = FIRST_POLL_SECONDS
                self.stop.check()
                continue
            if not self._unfinished() and not self._left():
                return
            wait = FIRST_POLL_SECONDS if changed else wait * 1.5
            await self.stop.sleep(min(wait, self.caller.limits.max_wait))

    async def collect(self) -> bool:
        """Find lost batches, and store the results of ended ones. Returns whether any batch changed its state."""
        failures = 0
        while True:
            try:
                found = [await self._find(batch) for batch in self._ours("creating")]
                collected = [await self._collect_if_ended(batch) for batch in self._ours("open")]
                self.caller.health.outage_began = None
                return any(found + collected)
            except TemporaryFailure as failure:
                await self.caller.wait_after(failure, failures)
                failures += 1

    def _ours(self, state: str) -> list[BatchRecord]:
        """A shared store also holds batches of other outputs; each output reads its own results."""
        batches = self.store.batches(self.client.host, state)
        return [b for b in batches if any(key in self.prompts for key, _ in self.store.open_calls(b.id).values())]

    def _unfinished(self) -> bool:
        return bool(self._ours("creating") or self._ours("open"))

    def _left(self) -> list[bytes]:
        asks, out = self.caller.limits.asks, self.store.pending_keys() | self._rejected
        return [key for key in self.store.keys_to_ask(self.prompts, asks) if key not in out and self._asked[key] < asks]

    # ---- sending ----

    async def _send_next(self) -> bool:
        """Send the next batch if prompts are left. Returns whether one was sent."""
        left = self._left()
        requests, bodies, size, worst = [], [], 0, 0.0
        for key in left[:MAX_REQUESTS]:
            body = self.prompts[key].body()
            size += len(json.dumps(body)) + 100
            cost = self.caller.model.worst_cost(body, BATCH_SHARE)
            if size > MAX_BYTES or not self.gate.fits(worst + (cost or 0)):
                break
            requests.append((key, cost))
            bodies.append(body)
            worst += cost or 0
        if requests:
            await self._send(requests, bodies, worst)
        elif left and not self._unfinished():
            self.stop.stop(CapReached())
        return bool(requests)

    async def _send(self, requests: list[tuple[bytes, float | None]], bodies: list[dict], worst: float) -> None:
        name = secrets.token_hex(6)
        batch, calls = self.store.begin_batch(self.client.host, name, requests)
        self._asked.update(key for key, _ in requests)
        self.gate.spent += worst
        content = [{"custom_id": f"{name}-{call}", "params": body} for call, body in zip(calls, bodies, strict=True)]
        failures = 0
        while True:
            try:
                server_id = await self.client.create_batch(content)
            except TemporaryFailure as failure:
                if not failure.overloaded:
                    return  # the batch may exist: `_find` will show
                await self.caller.wait_after(failure, failures)
                failures += 1
                self.store.batch_sent_again(batch)
            except (RequestRejected, UserError) as error:
                self._end_as_failed(batch, str(error), worst)
                no_route = isinstance(error, RequestRejected) and error.status in (404, 405)
                advice = ": run without --batch" if no_route else ""
                raise UserError(f"{self.client.host} did not accept the batch ({error}){advice}") from None
            else:
                self.store.batch_created(batch, server_id)
                self.caller.say(f"batch {server_id}: {len(requests):,} prompts sent")
                return

    def _end_as_failed(self, batch: int, reason: str, worst: float) -> None:
        self.store.end_batch(batch, reason, failed=True)
        self.gate.spent -= worst

    # ---- finding ----

    async def _find(self, batch: BatchRecord) -> bool:
        """Find out whether a batch whose id never reached us was created. Returns whether that is settled."""
        undecided = False
        for candidate in await self._candidates(batch):
            if candidate["processing_status"] != "ended":
                undecided = True
            elif candidate.get("results_url") and await self._has_our_results(candidate["id"], batch):
                self.store.batch_created(batch.id, candidate["id"])
                return True
            else:
                self._foreign.add(candidate["id"])
        # The server may list a batch some time after its request was cut off.
        grace = self.client.timeout + 5 * self.caller.limits.max_wait
        if undecided or time.time() - batch.began < grace:
            return False
        worst = sum(dollars or 0 for _, dollars in self.store.open_calls(batch.id).values())
        self._end_as_failed(batch.id, "the batch was never created", worst)
        return True

    async def _candidates(self, batch: BatchRecord) -> list[dict]:
        """The account's batches that may be this one: of the same size, recent, and not known to be another."""
        since = batch.began - CLOCKS_DIFFER_SECONDS
        try:
            listed = await self.client.batches_since(since)
        except RequestRejected:  # a server without such a list
            return []
        others = self._foreign | self.store.server_ids()
        recent = [entry for entry in listed if entry["id"] not in others and creation_time(entry) > since]
        return [entry for entry in recent if sum(entry["request_counts"].values()) == batch.requests]

    async def _has_our_results(self, server_id: str, batch: BatchRecord) -> bool:
        # A batch whose results cannot be read is treated as foreign.
        with contextlib.suppress(RequestRejected):
            async with contextlib.aclosing(self.client.batch_results(server_id)) as results:
                async for result in results:
                    return result["custom_id"].startswith(f"{batch.name}-")
        return False

    # ---- collecting ----

    async def _collect_if_ended(self, batch: BatchRecord) -> bool:
        try:
            status = await self.client.batch(batch.server_id)
            if status["processing_status"] != "ended":
                return False
            if not status.get("results_url"):
                raise RequestRejected("its results are gone")
            await self._collect(batch)
        except RequestRejected as rejection:
            # Deleted, expired, or of another account: its cost stays counted, and its prompts are asked again.
            self.store.end_batch(batch.id, f"the server does not return the batch ({rejection})")
            self.caller.say(f"batch {batch.server_id} is lost: {rejection}")
        return True

    async def _collect(self, batch: BatchRecord) -> None:
        for _ in range(3):  # a stream that ends early without an error is read again
            calls = {call: value for call, value in self.store.open_calls(batch.id).items() if value[0] in self.prompts}
            if not calls:
                break
            async for result in self.client.batch_results(batch.server_id):
                name, _, call = result["custom_id"].rpartition("-")
                if name == batch.name and call.isdecimal() and int(call) in calls:
                    self._store_result(int(call), *calls.pop(int(call)), result["result"])
        else:
            for call in calls:
                self.store.note_failure(call, "missing from the results of its batch", billed=True)
        if not self.store.open_calls(batch.id):
            self.store.end_batch(batch.id, "")
            self.caller.say(f"batch {batch.server_id}: collected")

    def _store_result(self, call: int, key: bytes, worst: float | None, result: dict) -> None:
        """Record one result. Only requests that succeeded are charged for."""
        cost = 0.0
        if result["type"] == "succeeded":
            try:
                reply = self.client.read(result.get("message"))
            except TemporaryFailure as failure:
                return self.store.note_failure(call, str(failure), billed=True)
            _, cost = self.caller.note_reply(call, self.prompts[key], reply, worst, BATCH_SHARE)
            self.caller.done += 1
        else:
            reason = self.client.scrub(json.dumps(result.get("error") or result["type"]))[:300]
            if "invalid_request_error" in reason:
                self._rejected.add(key)
            self.store.note_failure(call, f"batch: {reason}", billed=False)
        self.gate.spent += (cost or 0) - (worst or 0)
