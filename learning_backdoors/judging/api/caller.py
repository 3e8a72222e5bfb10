"""Puts prompts to a judge model until there is a reply: the one retry loop, and what lets a call go out.

A call goes out when the run is not ending (Halt), when the server has room and the pace allows it (Gate), and when its
worst case still fits under the cap (Budget). It is noted in the store before and after (Caller).
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.claude import Client, Fault, Price, Refused, Reply, most_tokens
from learning_backdoors.judging.verdict_store import Store

# ---- what lets a call go out ----


class Stopped(Exception):
    """The run is ending: no further call may go out."""


class Halt:
    """Ends a run early and cleanly: calls in flight finish, nothing else begins. `reason` is the first one given."""

    def __init__(self):
        self._event = asyncio.Event()
        self.reason: BaseException | None = None

    def now(self, reason: BaseException) -> None:
        self.reason = self.reason or reason
        self._event.set()

    def check(self) -> None:
        if self._event.is_set():
            raise Stopped

    async def sleep(self, seconds: float) -> None:
        """Raises Stopped as soon as the run is ending."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self.check()


class Gate:
    """Lets calls out one by one: as many at once as the server takes, and no more a minute than it allows.

    The number in flight starts low, grows by one with each reply until the server first says that it is crowded (429,
    529), is then halved and grows by about one a round. Eight faults in a row are an outage: one call at a time, until
    one gets through. The pace follows the rate-limit headers, or `per_minute` where that is less, a little below it.
    """

    PACE = 0.98  # of the rate allowed: two clocks are never the same
    CATCH_UP_SECONDS = 0.25

    def __init__(self, most: int, per_minute: float | None, halt: Halt):
        self._most, self._asked_pace, self._halt = most, per_minute, halt
        self.limit, self.in_flight, self.paused_until = float(min(4, most)), 0, 0.0
        self._per_minute, self._next, self._shrunk, self._growing = per_minute, 0.0, 0.0, True
        self._faults_in_a_row = 0
        self._mean_tokens = {"input-tokens": 0.0, "output-tokens": 0.0}
        self._door, self._room = asyncio.Lock(), asyncio.Event()

    async def __aenter__(self) -> None:
        async with self._door:
            while True:
                self._halt.check()
                wait = max(self.paused_until, self._next) - time.monotonic()
                if self.in_flight >= int(self.limit):
                    self._room.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._room.wait(), 1)
                elif wait > 0:
                    await self._halt.sleep(wait)
                else:
                    break
            self.in_flight += 1
            if self._per_minute:
                earliest = time.monotonic() - self.CATCH_UP_SECONDS
                self._next = max(self._next, earliest) + 60 / (self.PACE * self._per_minute)

    async def __aexit__(self, *_) -> None:
        self.in_flight -= 1
        self._room.set()

    def succeeded(self, reply: Reply) -> None:
        self._faults_in_a_row = 0
        self.limit = min(float(self._most), self.limit + (1 if self._growing else 1 / self.limit))
        for name, count in (("input-tokens", reply.input_tokens), ("output-tokens", reply.output_tokens)):
            mean = self._mean_tokens[name]
            self._mean_tokens[name] = mean + ((count or 0) - mean) / 50 if mean else count or 0

    def failed(self, fault: Fault, sent_at: float, max_wait: float) -> None:
        self._faults_in_a_row += 1
        # Calls that went out before the last change say nothing about it.
        if fault.crowded and sent_at > self._shrunk:
            self.limit, self._growing, self._shrunk = max(1.0, self.limit / 2), False, time.monotonic()
        if fault.crowded and fault.retry_after:
            self.paused_until = max(self.paused_until, time.monotonic() + min(fault.retry_after, max_wait))
        if self._faults_in_a_row >= 8:
            self.limit, self._growing = 1.0, True

    def observe(self, headers: Mapping) -> None:
        """Take the pace from the rate-limit headers of a reply."""
        allowed = [self._asked_pace] if self._asked_pace else []
        for name, each in (("requests", 1.0), *self._mean_tokens.items()):
            limit = headers.get(f"anthropic-ratelimit-{name}-limit", "")
            if limit.isdigit() and int(limit) and each:
                allowed.append(int(limit) / each)
        self._per_minute = min(allowed, default=None)


class CapReached(Exception):
    """The next call might cost more than is left of --max-cost."""


@dataclass
class Budget:
    """Dollars spent, and the cap that they never pass: a call's worst case is set aside before it goes out."""

    cap: float | None
    halt: Halt
    spent: float = 0.0
    reserved: float = field(default=0.0, init=False)

    def fits(self, most: float) -> bool:
        return self.cap is None or self.spent + self.reserved + most <= self.cap

    async def reserve(self, most: float | None) -> None:
        """Wait until there is room. Raises Stopped, and ends the run, when there will be none."""
        while not self.fits(most or 0):
            if self.reserved < 1e-12:
                self.halt.now(CapReached())
            await self.halt.sleep(0.02)
        self.reserved += most or 0

    def settle(self, most: float | None, dollars: float | None) -> None:
        """Replace what was set aside by what it cost."""
        self.reserved = max(0.0, self.reserved - (most or 0))
        self.spent += dollars or 0


# ---- the retry loop ----


@dataclass
class Patience:
    """How long to go on. All in seconds but `tries` and `asks`."""

    max_wait: float = 60  # the longest wait between two tries, whatever the server says
    give_up_after: float = 900  # without a single good reply
    tries: int = 8  # for one prompt, counted only while others get replies
    asks: int = 3  # while the reply is no verdict


@dataclass(frozen=True)
class Trouble:
    """Faults without a single good reply between them: since when, until when we wait, and the latest."""

    began: float
    next_try: float
    words: str


class Caller:
    """Puts prompts until there is a reply, waiting and trying again as long as that can help; notes down each call."""

    MOST_REFUSED = 20  # without one reply; a refusal costs nothing

    def __init__(
        self,
        client: Client,
        store: Store,
        gate: Gate,
        budget: Budget,
        price: Price | None,
        patience: Patience,
        warn: Callable[[str], None] = print,
        proven: bool = False,
    ):
        """`proven`: an earlier start had a verdict on some of these prompts, so the settings are good."""
        self.client, self.store, self.gate, self.budget = client, store, gate, budget
        self.price, self.patience, self.halt = price, patience, budget.halt
        client.seen, client.proven = gate.observe, client.proven or proven
        self.warn = warn
        self.done = 0  # prompts that are through, with a verdict or without
        self.replies = {True: 0, False: 0}  # verdicts, and replies that were none
        self.draining = False  # nothing waits any more: what is left is in flight
        self.trouble: Trouble | None = None
        self._last_good, self._refused = 0.0, 0

    async def ask(self, key: bytes, body: dict, is_answer: Callable[[str], bool]) -> None:
        """Put one prompt; what comes of it is then in the store. Raises Stopped when the run is ending."""
        for _ in range(self.patience.asks):
            status = await self._ask_once(key, body, is_answer)
            if status in ("ok", "error"):
                break
        self.done += 1

    async def _ask_once(self, key: bytes, body: dict, is_answer: Callable[[str], bool]) -> str:
        tries = faults = 0
        while True:
            sent_at = time.monotonic()
            try:
                return await self._send(key, body, is_answer)
            except Refused as refused:
                self._stop_if_all_are_refused(refused)
                return "error"
            except Fault as fault:
                # While nobody gets a reply the fault is not this prompt's: such tries do not count against it.
                tries += not fault.crowded and self._last_good > sent_at
                if tries >= self.patience.tries or self._hopeless():
                    return "error"
                await self.wait(fault, faults)
                faults += 1

    async def _send(self, key: bytes, body: dict, is_answer: Callable[[str], bool]) -> str:
        """One call, noted in the store before and after, and in the budget. Returns the status of its reply."""
        most = self.most_dollars(body)
        await self.budget.reserve(most)
        cost: float | None = 0.0
        try:
            async with self.gate:
                call, sent_at, cost = self.store.sent(key, most), time.monotonic(), most
                try:
                    reply = await self.client.send(body)
                except (Fault, Refused, UserError) as error:
                    billed = isinstance(error, Fault) and error.billed
                    cost = most if billed else 0.0
                    self.store.failed(call, str(error), billed)
                    if isinstance(error, Fault):
                        self.gate.failed(error, sent_at, self.patience.max_wait)
                    raise
            self._last_good, self.trouble = time.monotonic(), None
            self.gate.succeeded(reply)
            status, cost = self.note(call, reply, most, is_answer)
            return status
        finally:
            self.budget.settle(most, cost)

    def most_dollars(self, body: dict, share: float = 1) -> float | None:
        return self.price and share * self.price.dollars(*most_tokens(body))

    def note(self, call: int, reply: Reply, most: float | None, is_answer: Callable[[str], bool], share: float = 1):
        """Write down a reply. Returns its status, and its cost at `share` of the price: `most` where none was told."""
        status, known = reply.status(is_answer), reply.dollars(self.price)
        cost = most if known is None else share * known
        tokens = (reply.input_tokens, reply.output_tokens)
        self.store.replied(call, status, reply.text, tokens, cost, at_most=None in tokens)
        self.replies[status == "ok"] += 1
        if self.replies[True] == 0 and self.replies[False] == 20:
            self.warn(f"20 replies and no verdict among them; the latest ({status}) was: {reply.text[:200]!r}")
        return status, cost

    async def wait(self, fault: Fault, faults: int) -> None:
        """Wait after a fault, the longer the more there were. Ends the run when nothing has come for too long."""
        now = time.monotonic()
        began = self.trouble.began if self.trouble else now
        wait = fault.retry_after if fault.retry_after is not None else 0.5 * 2 ** min(faults, 20)
        wait = min(wait * random.uniform(1, 1.25), self.patience.max_wait)
        self.trouble = Trouble(began, now + wait, str(fault))
        if now - began > self.patience.give_up_after:
            host, minutes = self.client.host, (now - began) / 60
            self.halt.now(UserError(f"no reply from {host} for {minutes:.1f} minutes ({fault}): all verdicts are kept"))
        await self.halt.sleep(wait)

    def _hopeless(self) -> bool:
        """Whether only prompts are left that the server has failed at for too long, after it answered the others."""
        silent = time.monotonic() - self.trouble.began if self.trouble else 0
        return self.draining and self._last_good > 0 and silent > self.patience.give_up_after

    def _stop_if_all_are_refused(self, refused: Refused) -> None:
        # Some prompts may be too long; when the first are all refused, the settings are to blame.
        self._refused += 1
        if not self.client.proven and self._refused >= self.MOST_REFUSED:
            raise UserError(f"{self.client.host} refuses the requests ({refused})")
