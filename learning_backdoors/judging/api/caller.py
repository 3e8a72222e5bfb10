"""The retry loop: asks one prompt until there is a reply, and records each call in the store."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.client import MessagesClient
from learning_backdoors.judging.api.models import ServedModel
from learning_backdoors.judging.api.pacing import CallGate, CostBudget, Limits, StopSignal
from learning_backdoors.judging.api.replies import Reply, RequestRejected, TemporaryFailure
from learning_backdoors.judging.api.store import CallStore

MAX_REJECTED = 20  # requests rejected before the first reply; a rejection costs nothing
WARN_AFTER_REPLIES = 20  # replies of which none was accepted


class Prompt(Protocol):
    """One prompt. `key` is ServedModel.key of its body, or another unique hash."""

    @property
    def key(self) -> bytes: ...

    def body(self) -> dict:
        """What is sent."""

    def accepts(self, reply: str) -> bool:
        """Whether a reply will do; if not, the prompt is asked again."""


@dataclass(frozen=True)
class Outage:
    """Failures without one good reply in between."""

    began: float  # time.monotonic()
    next_try: float
    latest: str


class PromptCaller:
    """Asks prompts, waiting and trying again as long as that can help.

    settled: statuses of replies that are not asked for again, even if asks are left.
    spent: dollars that count towards the cap already.
    """

    def __init__(
        self,
        client: MessagesClient,
        store: CallStore,
        model: ServedModel,
        limits: Limits,
        stop: StopSignal,
        settled: tuple[str, ...] = ("ok",),
        spent: float = 0.0,
    ):
        self.client, self.store, self.model, self.limits, self.stop = client, store, model, limits, stop
        self.gate = CallGate(limits.concurrency, limits.requests_per_minute, stop)
        self.budget = CostBudget(limits.max_cost, stop, spent)
        client.on_headers = self.gate.observe
        self.say: Callable[[str], None] = print
        self.done = 0  # prompts that are finished, with an accepted reply or without
        self.queue_is_empty = False  # all unfinished prompts are in flight
        self.outage: Outage | None = None
        self._settled, self._last_good, self._rejected = settled, 0.0, 0
        self._replies: Counter[bool] = Counter()  # by whether they were accepted

    async def ask(self, prompt: Prompt) -> None:
        """Ask one prompt; the result is in the store afterwards. Raises Stopped if the run is ending."""
        for _ in range(self.limits.asks):
            status = await self._ask_until_reply(prompt)
            if status in self._settled or status == "error":
                break
        self.done += 1

    async def _ask_until_reply(self, prompt: Prompt) -> str:
        """Call until there is a reply. Returns its status, `error` if there is none."""
        tries = failures = 0
        while True:
            sent_at = time.monotonic()
            try:
                return await self._call(prompt)
            except RequestRejected as rejected:
                self._stop_if_all_are_rejected(rejected)
                return "error"
            except TemporaryFailure as failure:
                # If no prompt gets a reply, this prompt is not the cause: such tries do not count against it.
                tries += not failure.overloaded and self._last_good > sent_at
                if tries >= self.limits.tries or self._is_hopeless():
                    return "error"
                await self.wait_after(failure, failures)
                failures += 1

    async def _call(self, prompt: Prompt) -> str:
        """One call, recorded before it goes out and after the reply. Returns the status of the reply."""
        body = prompt.body()
        worst = self.model.worst_cost(body)
        async with self.budget.reserve(worst), self.gate:
            call, sent_at = self.store.note_sent(prompt.key, worst), time.monotonic()
            try:
                reply = await self.client.send(body)
            except (TemporaryFailure, RequestRejected, UserError) as error:
                billed = isinstance(error, TemporaryFailure) and error.maybe_billed
                self.budget.book(worst if billed else 0.0)
                self.store.note_failure(call, str(error), billed)
                if isinstance(error, TemporaryFailure):
                    self.gate.failed(error, sent_at, self.limits.max_wait)
                raise
            self._last_good, self.outage = time.monotonic(), None
            self.gate.succeeded(reply)
            status, cost = self.note_reply(call, prompt, reply, worst)
            self.budget.book(cost)
            return status

    def note_reply(self, call: int, prompt: Prompt, reply: Reply, worst: float | None, share: float = 1):
        """Record a reply. Returns its status, and its cost at `share` of the price (`worst` without token counts)."""
        status, price = reply.status(prompt.accepts), reply.dollars(self.model.price)
        cost = worst if price is None else share * price
        tokens = (reply.input_tokens, reply.output_tokens)
        self.store.note_reply(call, status, reply.text, tokens, cost, at_most=None in tokens)
        self._replies[status == "ok"] += 1
        if self._replies == {False: WARN_AFTER_REPLIES}:
            self.say(
                f"none of the first {WARN_AFTER_REPLIES} replies is valid; the latest ({status}): {reply.text[:200]!r}"
            )
        return status, cost

    async def wait_after(self, failure: TemporaryFailure, failures: int) -> None:
        """Wait before the next attempt, longer with each failure. Ends the run if nothing succeeds for too long."""
        now = time.monotonic()
        began = self.outage.began if self.outage else now
        wait = failure.retry_after if failure.retry_after is not None else 0.5 * 2 ** min(failures, 20)
        wait = min(wait * random.uniform(1, 1.25), self.limits.max_wait)
        self.outage = Outage(began, now + wait, str(failure))
        if now - began > self.limits.give_up_after:
            minutes = (now - began) / 60
            self.stop.stop(
                UserError(f"no reply from {self.client.host} for {minutes:.1f} minutes ({failure}). Replies are kept")
            )
        await self.stop.sleep(wait)

    def _is_hopeless(self) -> bool:
        """Whether the server has answered all other prompts, and failed at these for too long."""
        silent = time.monotonic() - self.outage.began if self.outage else 0
        return self.queue_is_empty and self._last_good > 0 and silent > self.limits.give_up_after

    def _stop_if_all_are_rejected(self, rejected: RequestRejected) -> None:
        # A single prompt may be too long. If all of the first ones are rejected, the settings are to blame.
        self._rejected += 1
        if not self.client.has_answered and self._rejected >= MAX_REJECTED:
            raise UserError(f"{self.client.host} rejects the requests ({rejected})")
