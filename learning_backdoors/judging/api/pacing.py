"""Three conditions before a call is sent: the run is not ending (StopSignal), the server has room (InFlightLimit and
Pace), and the cost of the call fits the cap. CallGate waits until all of them hold.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields

from learning_backdoors.judging.api.replies import Reply, TemporaryFailure


@dataclass(frozen=True)
class Limits:
    """How fast, how often and at what cost to ask. Times in seconds, costs in dollars."""

    concurrency: int = 32  # maximum calls in flight
    requests_per_minute: float | None = None  # None: what the server's headers allow
    max_cost: float | None = None
    spent: float = 0.0  # counts towards max_cost already
    timeout: float = 120  # from sending a call to the end of its reply
    max_wait: float = 60  # between two attempts, even if the server asks for more
    give_up_after: float = 900  # without a reply
    settled: tuple[str, ...] = ("ok",)  # statuses that are final: those prompts are not asked again
    asks: int = 3  # per prompt, in all starts together, while its status is not settled
    tries: int = 8  # per prompt, counted only while other prompts get replies

    @classmethod
    def from_options(cls, options: object, **limits) -> "Limits":
        """The limits among a script's options, and others by name. The rest keep their defaults."""
        given = {spec.name: getattr(options, spec.name) for spec in fields(cls) if hasattr(options, spec.name)}
        return cls(**given | limits)


class CapReached(Exception):
    """The next call might cost more than is left of --max-cost."""


class Stopped(Exception):
    """The run is ending: no further call may go out."""


class StopSignal:
    """Ends a run cleanly: calls in flight finish, no new ones start. `reason` is the first one given."""

    def __init__(self):
        self._event = asyncio.Event()
        self.reason: BaseException | None = None

    def stop(self, reason: BaseException) -> None:
        self.reason = self.reason or reason
        self._event.set()

    def check(self) -> None:
        if self._event.is_set():
            raise Stopped

    async def sleep(self, seconds: float) -> None:
        """Sleep. Raises Stopped as soon as the run is ending."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self.check()


class InFlightLimit:
    """How many calls may be in flight: `now`, at most `most`.

    It starts at 4 and grows by 1 with each reply. When the server is first overloaded (429, 529) it is halved, and from
    then on grows by about 1 per round. After 8 failures in a row, one call at a time goes out until one succeeds.
    """

    def __init__(self, most: int):
        self.most, self.now = most, min(4.0, most)
        self._growing_fast, self._halved_at, self._failures_in_a_row = True, 0.0, 0

    def replied(self) -> None:
        self._failures_in_a_row = 0
        self.now = min(float(self.most), self.now + (1 if self._growing_fast else 1 / self.now))

    def failed(self, overloaded: bool, sent_at: float) -> None:
        self._failures_in_a_row += 1
        # Calls sent before the last halving say nothing about the new limit.
        if overloaded and sent_at > self._halved_at:
            self.now, self._growing_fast, self._halved_at = max(1.0, self.now / 2), False, time.monotonic()
        if self._failures_in_a_row >= 8:
            self.now, self._growing_fast = 1.0, True


class Pace:
    """How many calls may start per minute: what the rate-limit headers allow, or the user's limit if that is lower."""

    SHARE = 0.98  # of the allowed rate, because two clocks never agree
    CATCH_UP_SECONDS = 0.25

    def __init__(self, user_limit: float | None):
        self.user_limit, self.per_minute = user_limit, user_limit
        self.next_start = 0.0  # time.monotonic()
        self._mean_tokens = {"input-tokens": 0.0, "output-tokens": 0.0}

    def started(self) -> None:
        if self.per_minute:
            earliest = time.monotonic() - self.CATCH_UP_SECONDS
            self.next_start = max(self.next_start, earliest) + 60 / (self.SHARE * self.per_minute)

    def replied(self, reply: Reply, headers: Mapping) -> None:
        for name, count in (("input-tokens", reply.input_tokens), ("output-tokens", reply.output_tokens)):
            mean = self._mean_tokens[name]
            self._mean_tokens[name] = mean + ((count or 0) - mean) / 50 if mean else count or 0
        paces = [self.user_limit] if self.user_limit else []
        for name, per_call in (("requests", 1.0), *self._mean_tokens.items()):
            limit = headers.get(f"anthropic-ratelimit-{name}-limit", "")
            if limit.isdigit() and int(limit) and per_call:
                paces.append(int(limit) / per_call)
        self.per_minute = min(paces, default=None)


class CallGate:
    """Lets calls out when all conditions hold. Use `async with gate.slot(worst)` around a call, and report its result
    inside the block with `replied` or `failed`. Costs are in dollars, None if the price is unknown.

    The worst cost of a call is reserved before it goes out, so the cap holds.
    """

    def __init__(self, limits: Limits, stop: StopSignal):
        self.stop, self.cap, self.max_wait = stop, limits.max_cost, limits.max_wait
        self.spent, self._reserved = limits.spent, 0.0
        self.limit, self.pace = InFlightLimit(limits.concurrency), Pace(limits.requests_per_minute)
        self.in_flight, self.paused_until = 0, 0.0
        self._turn, self._call_ended = asyncio.Lock(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def slot(self, worst: float | None) -> AsyncIterator[None]:
        """Wait, then hold a place in flight and `worst` dollars until the block ends.

        Raises Stopped if the run is ending. If the cap leaves no room for the call, this ends the run.
        """
        async with self._turn:
            await self._wait(worst)
            self.in_flight += 1
            self._reserved += worst or 0
            self.pace.started()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._reserved = max(0.0, self._reserved - (worst or 0))
            self._call_ended.set()

    def fits(self, worst: float | None) -> bool:
        return self.cap is None or self.spent + self._reserved + (worst or 0) <= self.cap

    async def _wait(self, worst: float | None) -> None:
        while True:
            self.stop.check()
            fits = self.fits(worst)
            seconds = max(self.paused_until, self.pace.next_start) - time.monotonic()
            if not fits and not self.in_flight:
                self.stop.stop(CapReached())
            elif not fits or self.in_flight >= int(self.limit.now):
                self._call_ended.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._call_ended.wait(), 1)
            elif seconds > 0:
                await self.stop.sleep(seconds)
            else:
                return

    def replied(self, reply: Reply, headers: Mapping, cost: float | None) -> None:
        self.spent += cost or 0
        self.limit.replied()
        self.pace.replied(reply, headers)

    def failed(self, failure: TemporaryFailure, sent_at: float, cost: float | None) -> None:
        self.spent += cost or 0
        self.limit.failed(failure.overloaded, sent_at)
        if failure.overloaded and failure.retry_after:
            wait = min(failure.retry_after, self.max_wait)
            self.paused_until = max(self.paused_until, time.monotonic() + wait)
