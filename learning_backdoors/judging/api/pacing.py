"""What lets a call go out: the run is not ending (StopSignal), the server has room (CallGate), its cost fits the cap
(CostBudget).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, fields

from learning_backdoors.judging.api.replies import Reply, TemporaryFailure


@dataclass(frozen=True)
class Limits:
    """How fast, how long and at what cost to ask. Times in seconds."""

    concurrency: int = 32  # maximum calls in flight
    requests_per_minute: float | None = None  # None: what the server's headers allow
    max_cost: float | None = None  # dollars
    timeout: float = 120  # from sending a call to the end of its reply
    max_wait: float = 60  # between two attempts, even if the server asks for more
    give_up_after: float = 900  # without one good reply
    asks: int = 3  # per prompt, while the reply is not accepted
    tries: int = 8  # per prompt, counted only while other prompts get replies

    @classmethod
    def from_options(cls, options: object) -> "Limits":
        """The limits among a script's options. Those it does not have keep their defaults."""
        return cls(**{spec.name: getattr(options, spec.name) for spec in fields(cls) if hasattr(options, spec.name)})


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


class CallGate:
    """Limits calls in flight and calls per minute; adapts both to the server. Use as `async with gate:` around a call.

    The limit on calls in flight starts at 4 and grows by 1 with each reply. When the server is first overloaded (429,
    529) it is halved, and from then on grows by about 1 per round. After 8 failures in a row, one call at a time goes
    out until one succeeds. The pace follows the rate-limit headers, or `per_minute` if that is lower.
    """

    PACE = 0.98  # of the allowed rate, because two clocks never agree
    CATCH_UP_SECONDS = 0.25

    def __init__(self, concurrency: int, per_minute: float | None, stop: StopSignal):
        self._concurrency, self._own_pace, self._stop = concurrency, per_minute, stop
        self.limit, self.in_flight, self.paused_until = float(min(4, concurrency)), 0, 0.0
        self.per_minute, self._next_start, self._shrunk_at, self._growing_fast = per_minute, 0.0, 0.0, True
        self._failures_in_a_row = 0
        self._mean_tokens = {"input-tokens": 0.0, "output-tokens": 0.0}
        self._turn, self._room = asyncio.Lock(), asyncio.Event()

    async def __aenter__(self) -> None:
        async with self._turn:
            while True:
                self._stop.check()
                wait = max(self.paused_until, self._next_start) - time.monotonic()
                if self.in_flight >= int(self.limit):
                    self._room.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._room.wait(), 1)
                elif wait > 0:
                    await self._stop.sleep(wait)
                else:
                    break
            self.in_flight += 1
            if self.per_minute:
                earliest = time.monotonic() - self.CATCH_UP_SECONDS
                self._next_start = max(self._next_start, earliest) + 60 / (self.PACE * self.per_minute)

    async def __aexit__(self, *_) -> None:
        self.in_flight -= 1
        self._room.set()

    def succeeded(self, reply: Reply) -> None:
        self._failures_in_a_row = 0
        self.limit = min(float(self._concurrency), self.limit + (1 if self._growing_fast else 1 / self.limit))
        for name, count in (("input-tokens", reply.input_tokens), ("output-tokens", reply.output_tokens)):
            mean = self._mean_tokens[name]
            self._mean_tokens[name] = mean + ((count or 0) - mean) / 50 if mean else count or 0

    def failed(self, failure: TemporaryFailure, sent_at: float, max_wait: float) -> None:
        self._failures_in_a_row += 1
        # Calls sent before the last halving say nothing about the new limit.
        if failure.overloaded and sent_at > self._shrunk_at:
            self.limit, self._growing_fast, self._shrunk_at = max(1.0, self.limit / 2), False, time.monotonic()
        if failure.overloaded and failure.retry_after:
            self.paused_until = max(self.paused_until, time.monotonic() + min(failure.retry_after, max_wait))
        if self._failures_in_a_row >= 8:
            self.limit, self._growing_fast = 1.0, True

    def observe(self, headers: Mapping) -> None:
        """Set the pace from the rate-limit headers of a reply."""
        paces = [self._own_pace] if self._own_pace else []
        for name, per_call in (("requests", 1.0), *self._mean_tokens.items()):
            limit = headers.get(f"anthropic-ratelimit-{name}-limit", "")
            if limit.isdigit() and int(limit) and per_call:
                paces.append(int(limit) / per_call)
        self.per_minute = min(paces, default=None)


class CapReached(Exception):
    """The next call might cost more than is left of --max-cost."""


@dataclass
class CostBudget:
    """Dollars spent, and their cap. The worst case of a call is reserved before it goes out, so the cap holds."""

    cap: float | None
    stop: StopSignal
    spent: float = 0.0
    reserved: float = field(default=0.0, init=False)

    def fits(self, worst: float | None) -> bool:
        return self.cap is None or self.spent + self.reserved + (worst or 0) <= self.cap

    @contextlib.asynccontextmanager
    async def reserve(self, worst: float | None) -> AsyncIterator[None]:
        """Wait for room, then hold `worst` dollars until the block ends. Book the real cost inside the block.

        If there will be no room, this ends the run and raises Stopped.
        """
        while not self.fits(worst):
            if self.reserved < 1e-12:
                self.stop.stop(CapReached())
            await self.stop.sleep(0.02)
        self.reserved += worst or 0
        try:
            yield
        finally:
            self.reserved = max(0.0, self.reserved - (worst or 0))

    def book(self, dollars: float | None) -> None:
        """Count dollars as spent; None if the price is unknown."""
        self.spent += dollars or 0
