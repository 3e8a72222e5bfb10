"""How far a long run is: one line that is written over on a terminal, a line a minute in a log."""

import asyncio
import shutil
import sys
import time

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.caller import Caller


class Progress:
    """Shows a Caller's work while its block lasts: `async with Progress(caller, total, done): ...`."""

    def __init__(self, caller: Caller, total: int, done: int):
        self.caller, self.total, self.before = caller, total, done
        self.began, self.spent_before = time.monotonic(), caller.budget.spent
        self._terminal = sys.stderr.isatty()
        self._shown, self._noticed = self.began, False

    async def __aenter__(self) -> "Progress":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_) -> None:
        self._task.cancel()
        self._show(clear=True)

    def say(self, text: str) -> None:
        """Print a line without spoiling the one that is written over."""
        print(("\r\x1b[K" if self._terminal else "") + text, file=sys.stderr, flush=True)

    async def _run(self) -> None:
        synced = time.monotonic()
        while True:
            await asyncio.sleep(0.5)
            self._show()
            if time.monotonic() - synced > 10:
                try:
                    self.caller.store.sync()
                except UserError as error:
                    self.caller.halt.now(error)
                synced = time.monotonic()

    def _show(self, clear: bool = False) -> None:
        line, now, notice = self.line(), time.monotonic(), bool(self.notice())
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\x1b[K" + ("" if clear else line[:width]), end="", file=sys.stderr, flush=True)
        elif now - self._shown >= 60 or (notice and not self._noticed and now - self._shown >= 5):
            print(line, file=sys.stderr, flush=True)
            self._shown = now
        self._noticed = notice

    def line(self) -> str:
        elapsed, done = time.monotonic() - self.began, self.caller.done
        rate = done / elapsed if elapsed > 0 else 0
        parts = [
            f"{self.before + done:,} of {self.total:,} verdicts",
            f"{rate:.0f}/s" if rate >= 1 else f"{60 * rate:.0f}/min",
        ]
        parts.append(f"{self.caller.gate.in_flight} in flight")
        left = self.total - self.before - done
        if self.caller.price and done:
            spent = self.caller.budget.spent
            expected = spent + (spent - self.spent_before) / done * left
            parts.append(f"${spent:.2f} of about ${expected:.2f}")
        if rate and left:
            parts.append(f"{_duration(left / rate)} left")
        return " | ".join([*parts, *filter(None, [self.notice()])])

    def notice(self) -> str:
        """What we are waiting for, if for anything."""
        now, gate, trouble = time.monotonic(), self.caller.gate, self.caller.trouble
        if gate.paused_until > now:
            return f"rate limited: next try in {gate.paused_until - now:.0f} s"
        if trouble and now - trouble.began > 5:
            silent, wait = _duration(now - trouble.began), max(0, trouble.next_try - now)
            return f"no reply for {silent} ({trouble.words}): next try in {wait:.0f} s"
        return ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
