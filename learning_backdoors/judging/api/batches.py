"""Verdicts through the Message Batches API: half the price, within a day.

A batch is written down before it is sent, its id before it is first asked for, and each request carries the batch's own
name in its custom_id. So a process that is killed at any moment finds its batches again: where the record breaks off
before the id, the account's list of batches is searched for one of the same size, whose results then tell by their
custom_ids whether it is ours. Nothing is sent a second time before that is settled.
"""

import contextlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api import claude
from learning_backdoors.judging.api.caller import Caller, CapReached
from learning_backdoors.judging.api.claude import BATCH_SHARE, Fault, Refused
from learning_backdoors.judging.verdict_store import Batch

# The API takes 100,000 requests and 256 MB. Smaller batches fit in a laptop's memory, and less is lost with one.
MAX_REQUESTS = 10_000
MAX_BYTES = 32_000_000
CLOCKS_DIFFER_SECONDS = 600
FIRST_POLL_SECONDS = 1.0


class Batches:
    """The batches for one set of prompts: `prompts` gives each key's number, `body` and `accepts` what is sent for a
    number and which replies are answers."""

    def __init__(
        self,
        caller: Caller,
        prompts: dict[bytes, int],
        body: Callable[[int], dict],
        accepts: Callable[[int], Callable[[str], bool]],
        say: Callable[[str], None],
    ):
        self.caller, self.client, self.store, self.halt = caller, caller.client, caller.store, caller.halt
        self.prompts, self.body, self.accepts, self.say = prompts, body, accepts, say
        self._asked: Counter[bytes] = Counter()  # how often, in this run
        self._hopeless: set[bytes] = set()  # refused for what they are
        self._strangers: set[str] = set()  # batches of the account that are not ours

    async def run(self) -> None:
        """Go on until every prompt has been through a batch. Raises Stopped when the run is ending."""
        wait = FIRST_POLL_SECONDS
        while True:
            changed = await self.collect()
            waiting = self._at_work()
            created = await self._create_next()
            if not created and not waiting and not self._left():
                return
            wait = FIRST_POLL_SECONDS if created or changed else min(wait * 1.5, self.caller.patience.max_wait)
            await self.halt.sleep(0 if created else min(wait, self.caller.patience.max_wait))

    async def collect(self) -> bool:
        """Find lost batches, and take in the results of those that have ended. Returns whether anything changed."""
        changed = False
        for batch in self._ours("creating"):
            changed |= await self._patiently(self._find, batch)
        for batch in self._ours("open"):
            changed |= await self._patiently(self._collect_if_ended, batch)
        return changed

    def _ours(self, state: str) -> list[Batch]:
        """A shared store holds other outputs' batches too: their results are for those to read."""
        batches = self.store.batches(self.client.host, state)
        return [b for b in batches if any(key in self.prompts for key, _ in self.store.open_calls(b.id).values())]

    def _at_work(self) -> int:
        return len(self._ours("creating")) + len(self._ours("open"))

    def _left(self) -> list[bytes]:
        through = self.store.verdict_keys() | self.store.keys_in_batches() | self._hopeless
        asks = self.caller.patience.asks
        return [key for key in self.prompts if key not in through and self._asked[key] < asks]

    async def _patiently(self, step, *arguments) -> bool:
        """Repeat a step that the server may fail at."""
        faults = 0
        while True:
            try:
                done = await step(*arguments)
                self.caller.trouble = None
                return done
            except Fault as fault:
                await self.caller.wait(fault, faults)
                faults += 1

    # ---- sending ----

    async def _create_next(self) -> bool:
        """Send the next batch, if there is anything left for one. Until there is a verdict go live calls: a batch finds
        out about bad settings only at its end."""
        left = self._left()
        if left and not any(map(self.store.has_verdict, self.prompts)):
            await self._live_call(left)
            left = self._left()
        chunk, bodies, size, most = [], [], 0, 0.0
        for key in left:
            body = self.body(self.prompts[key])
            length, cost = len(json.dumps(body)) + 100, self.caller.most_dollars(body, BATCH_SHARE)
            if (
                len(chunk) == MAX_REQUESTS
                or size + length > MAX_BYTES
                or not self.caller.budget.fits(most + (cost or 0))
            ):
                break
            chunk.append((key, cost))
            bodies.append(body)
            size, most = size + length, most + (cost or 0)
        if chunk:
            await self._create(chunk, bodies, most)
        elif left and not self._at_work():
            self.halt.now(CapReached())
        return bool(chunk)

    async def _live_call(self, left: list[bytes]) -> None:
        for key in left[:3]:
            await self.caller.ask(key, self.body(self.prompts[key]), self.accepts(self.prompts[key]))
            if key in self.store.verdict_keys():
                return
        status, reply = self.store.best(key)
        words = repr(reply[:200]) if reply else self.store.last_reason()
        raise UserError(f"no batch was sent, since no live call brought a verdict ({status}: {words})")

    async def _create(self, chunk: list[tuple[bytes, float | None]], bodies: list[dict], most: float) -> None:
        name = secrets.token_hex(6)
        batch, calls = self.store.begin_batch(self.client.host, name, chunk)
        requests = [{"custom_id": f"{name}-{call}", "params": body} for call, body in zip(calls, bodies, strict=True)]
        self._asked.update(key for key, _ in chunk)
        self.caller.budget.settle(None, most)
        faults = 0
        while True:
            try:
                server_id = await self.client.create_batch(requests)
            except Fault as fault:
                if not fault.crowded:
                    return  # it may have been created: `_find` will tell
                await self.caller.wait(fault, faults)
                faults += 1
                self.store.batch_sent_again(batch)
            except (Refused, UserError) as error:
                self._failed(batch, str(error), most)
                no_batches = isinstance(error, Refused) and str(error).startswith(("404", "405", "501"))
                advice = ": run without --batch" if no_batches else ""
                raise UserError(f"{self.client.host} took no batch ({error}){advice}") from None
            else:
                self.store.batch_created(batch, server_id)
                self.say(f"batch {server_id}: {len(chunk):,} prompts sent")
                return

    def _failed(self, batch: int, reason: str, most: float) -> None:
        self.store.end_batch(batch, reason, failed=True)
        self.caller.budget.settle(None, -most)

    # ---- finding ----

    async def _find(self, batch: Batch) -> bool:
        """Settle whether a batch whose id never reached us was created. Returns whether that is settled."""
        undecided = False
        for found in await self._listed_since(batch.began - CLOCKS_DIFFER_SECONDS):
            if not self._may_be(found, batch):
                continue
            if found["processing_status"] != "ended":
                undecided = True
            elif found.get("results_url") and await self._is(found["id"], batch):
                self.store.batch_created(batch.id, found["id"])
                return True
            else:
                self._strangers.add(found["id"])
        # A request that was cut off, as late as it may be, can still be on its way into the list.
        grace = self.client.seconds + 5 * self.caller.patience.max_wait
        if undecided or time.time() - batch.began < grace:
            return False
        most = sum(dollars or 0 for _, dollars in self.store.open_calls(batch.id).values())
        self._failed(batch.id, "the batch was never created", most)
        return True

    async def _listed_since(self, began: float) -> list[dict]:
        try:
            return await self.client.batches_since(began)
        except Refused:  # a server without such a list
            return []

    def _may_be(self, found: dict, batch: Batch) -> bool:
        if found["id"] in self._strangers | self.store.server_ids():
            return False
        same_size = sum(found["request_counts"].values()) == batch.requests
        return same_size and claude.created(found) > batch.began - CLOCKS_DIFFER_SECONDS

    async def _is(self, server_id: str, batch: Batch) -> bool:
        # A batch whose results cannot be had is as good as a stranger's.
        with contextlib.suppress(Refused):
            async with contextlib.aclosing(self.client.batch_results(server_id)) as results:
                async for result in results:
                    return result["custom_id"].startswith(f"{batch.name}-")
        return False

    # ---- collecting ----

    async def _collect_if_ended(self, batch: Batch) -> bool:
        try:
            found = await self.client.batch(batch.server_id)
            if found["processing_status"] != "ended":
                return False
            if not found.get("results_url"):
                raise Refused("its results are gone")
            await self._collect(batch)
        except Refused as refused:
            # Deleted, kept no longer, or of another account: what it cost stays in the books, and its prompts are
            # asked again.
            self.store.end_batch(batch.id, f"the server does not give the batch back ({refused})")
            self.say(f"batch {batch.server_id} is lost: {refused}")
        return True

    async def _collect(self, batch: Batch) -> None:
        for _ in range(3):  # a stream that ends too early without a fault is begun again
            calls = {call: known for call, known in self.store.open_calls(batch.id).items() if known[0] in self.prompts}
            if not calls:
                break
            async for result in self.client.batch_results(batch.server_id):
                name, _, call = result["custom_id"].rpartition("-")
                if name == batch.name and call.isdecimal() and int(call) in calls:
                    self._take(int(call), *calls.pop(int(call)), result["result"])
        else:
            for call in calls:
                self.store.failed(call, "the results of its batch lack it", billed=True)
        if not self.store.open_calls(batch.id):
            self.store.end_batch(batch.id, "")
            self.say(f"batch {batch.server_id}: collected")

    def _take(self, call: int, key: bytes, most: float | None, result: dict) -> None:
        """Write down one result. Only what succeeded is charged for."""
        if result["type"] == "succeeded":
            try:
                reply = self.client.read(result.get("message"))
            except Fault as fault:
                self.store.failed(call, str(fault), billed=True)
                return
            _, cost = self.caller.note(call, reply, most, self.accepts(self.prompts[key]), BATCH_SHARE)
            self.caller.done += 1
            self.caller.budget.settle(None, (cost or 0) - (most or 0))
            return
        reason = self.client.scrub(json.dumps(result.get("error") or result["type"]))[:300]
        if "invalid_request_error" in reason:
            self._hopeless.add(key)
        self.store.failed(call, f"batch: {reason}", billed=False)
        self.caller.budget.settle(None, -(most or 0))
