"""Asks one prompt until it has a valid reply or further calls cannot help, and records each call in the store."""

import dataclasses
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.client import MessagesClient
from learning_backdoors.judging.api.models import ServedModel
from learning_backdoors.judging.api.pacing import CallGate, Limits, StopSignal
from learning_backdoors.judging.api.replies import MAX_INVALID_CHARACTERS, Reply, RequestRejected, TemporaryFailure
from learning_backdoors.judging.api.store import CallStore

MAX_REJECTED = 20  # requests rejected before the first reply; a rejection costs nothing
WARN_AFTER_REPLIES = 20  # replies of which none was valid


class Prompt(Protocol):
    """One prompt. `key` is ServedModel.key of its body, or another unique hash."""

    @property
    def key(self) -> bytes: ...

    def body(self) -> dict:
        """What is sent."""

    def is_valid(self, reply: str) -> bool:
        """Whether a reply is a valid answer; if not, the prompt is asked again."""


class ServerHealth:
    """What all calls together say about the server: whether it, the prompt or the settings cause a failure.

    | failure | what follows |
    | --- | --- |
    | overloaded (429, 529) | the prompt is tried again |
    | no prompt got a reply since the call was sent | the server is the cause: tried again |
    | another prompt got a reply since the call was sent | counts as a try; after `limits.tries` the prompt fails |
    | no reply for `limits.give_up_after` seconds, and only prompts in flight are left | the prompt fails |
    | no reply for `limits.give_up_after` seconds otherwise | the run ends |
    | the request is rejected | the prompt fails |
    | 20 requests are rejected, or one with 403, before the first reply | the run ends: wrong settings or account |

    Times are by time.monotonic().
    """

    def __init__(self, host: str, limits: Limits):
        self.host, self.limits = host, limits
        self.has_replied = False  # to any prompt, earlier starts included
        self.last_reply: float | None = None  # in this start
        self.outage_began: float | None = None  # first failure since the last reply
        self.next_try, self.latest_failure, self._rejected = 0.0, "", 0

    def replied(self) -> None:
        self.has_replied, self.last_reply, self.outage_began = True, time.monotonic(), None

    def failed(self, failure: TemporaryFailure, next_try: float) -> None:
        """Record a failure. Raises UserError if there was no reply for too long."""
        self.outage_began = self.outage_began or time.monotonic()
        self.next_try, self.latest_failure = next_try, str(failure)
        if self.is_down():
            minutes = (time.monotonic() - self.outage_began) / 60
            raise UserError(f"no reply from {self.host} for {minutes:.1f} minutes ({failure}). Replies are kept")

    def rejected(self, rejection: RequestRejected) -> None:
        """Record a rejected request. Raises UserError if the account or the settings are the cause."""
        self._rejected += 1
        if rejection.status == 403 and not self.has_replied:
            raise UserError(f"{self.host} refuses this account ({rejection})")
        if self._rejected >= MAX_REJECTED and not self.has_replied:
            raise UserError(f"{self.host} rejects the requests ({rejection})")

    def counts_as_try(self, failure: TemporaryFailure, sent_at: float) -> bool:
        """Whether another prompt got a reply meanwhile. Otherwise the server is the cause, not this prompt."""
        return not failure.overloaded and self.last_reply is not None and self.last_reply > sent_at

    def is_down(self) -> bool:
        return bool(self.outage_began) and time.monotonic() - self.outage_began > self.limits.give_up_after


class PromptCaller:
    """Asks prompts, waiting and trying again as long as that can help."""

    def __init__(self, client: MessagesClient, store: CallStore, model: ServedModel, limits: Limits):
        self.client, self.store, self.model, self.limits, self.stop = client, store, model, limits, StopSignal()
        self.gate, self.health = CallGate(limits, self.stop), ServerHealth(client.host, limits)
        self.queue: deque[Prompt] = deque()  # prompts that no call was made for yet
        self.done = 0  # prompts that are finished, with a valid reply or without
        self.say: Callable[[str], None] = print
        self._attempts = store.attempts()  # replies that were not valid, by key, earlier starts included
        self._replies: Counter[bool] = Counter()  # by whether they were valid

    async def ask(self, prompt: Prompt) -> None:
        """Ask one prompt; the result is in the store afterwards.

        Raises Stopped if the run is ending, and UserError if no further call can succeed.
        """
        tries = failures = 0
        while self._attempts[prompt.key] < self.limits.asks:
            sent_at = time.monotonic()
            try:
                status = await self._call(prompt)
            except RequestRejected as rejection:
                self.health.rejected(rejection)
                break
            except TemporaryFailure as failure:
                tries += self.health.counts_as_try(failure, sent_at)
                only_these_fail = not self.queue and self.health.last_reply is not None and self.health.is_down()
                if tries >= self.limits.tries or only_these_fail:
                    break
                await self.wait_after(failure, failures)
                failures += 1
            else:
                if status in self.limits.settled:
                    break
                tries = failures = 0
        self.done += 1

    async def _call(self, prompt: Prompt) -> str:
        """One call, recorded before it goes out and after the reply. Returns the status of the reply."""
        body = prompt.body()
        worst = self.model.worst_cost(body)
        async with self.gate.slot(worst):
            call, sent_at = self.store.note_sent(prompt.key, worst), time.monotonic()
            try:
                reply, headers = await self.client.send(body)
            except TemporaryFailure as failure:
                self.gate.failed(failure, sent_at, worst if failure.maybe_billed else 0.0)
                self.store.note_failure(call, str(failure), failure.maybe_billed)
                raise
            except (RequestRejected, UserError) as error:
                self.store.note_failure(call, str(error), billed=False)
                raise
            status, cost = self.note_reply(call, prompt, reply, worst)
            self.gate.replied(reply, headers, cost)
            return status

    def note_reply(
        self, call: int, prompt: Prompt, reply: Reply, worst: float | None, share: float = 1
    ) -> tuple[str, float | None]:
        """Record a reply. Returns its status, and its cost at `share` of the price (`worst` without token counts).

        Text that is not an answer is cut, so that a chatty model cannot fill the disk.
        """
        self.health.replied()
        status, cost = reply.status(prompt.is_valid), self.model.cost(reply, share)
        if status not in self.limits.settled:
            reply = dataclasses.replace(reply, text=reply.text[:MAX_INVALID_CHARACTERS])
            self._attempts[prompt.key] += 1
        cost = worst if cost is None else cost
        self.store.note_reply(call, status, reply, cost)
        self._replies[status == "ok"] += 1
        if self._replies == {False: WARN_AFTER_REPLIES}:
            self.say(
                f"none of the first {WARN_AFTER_REPLIES} replies is valid; the latest ({status}): {reply.text[:200]!r}"
            )
        return status, cost

    async def wait_after(self, failure: TemporaryFailure, failures: int) -> None:
        """Wait before the next attempt, longer with each failure. Raises UserError if the server is down for long."""
        # The longer of the two: a server that asks for 0 seconds must not switch the backoff off.
        wait = max(failure.retry_after or 0.0, 0.5 * 2 ** min(failures, 20))
        wait = min(wait * random.uniform(1, 1.25), self.limits.max_wait)
        self.health.failed(failure, time.monotonic() + wait)
        await self.stop.sleep(wait)
