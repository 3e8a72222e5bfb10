"""The progress of asking: one tqdm bar, and a line while the server makes us wait."""

import asyncio
import contextlib
import sys
import time

from learning_backdoors.files.progress import progress_bar
from learning_backdoors.judging.api.caller import Outage, PromptCaller

LINE_EVERY_SECONDS = 60  # while a wait lasts
SHORT_WAIT_SECONDS = 5  # not worth a line


class AskingProgress:
    """Shows the work of a PromptCaller while the block lasts: `async with AskingProgress(...)`."""

    def __init__(self, caller: PromptCaller, total: int, done: int, title: str, unit: str):
        self.caller, self._done_before, self._line_at = caller, done, -LINE_EVERY_SECONDS
        self.bar = progress_bar(title, total, done, unit)
        caller.say = self.say

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._refresh_forever())

    async def __aexit__(self, *_) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.refresh()
        self.bar.close()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.write(line, file=sys.stderr)

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.refresh()

    def refresh(self) -> None:
        caller, now = self.caller, time.monotonic()
        if caller.model.price:
            self.bar.set_postfix_str(f"${caller.budget.spent:.2f}", refresh=False)
        self.bar.update(self._done_before + caller.done - self.bar.n)
        notice = waiting_notice(caller.gate.paused_until, caller.outage, now)
        if notice and now - self._line_at >= LINE_EVERY_SECONDS:
            self._line_at = now
            self.say(notice)


def waiting_notice(paused_until: float, outage: Outage | None, now: float) -> str | None:
    """What the run waits for, and how long; None if it does not wait. Times by time.monotonic()."""
    if outage and now - outage.began > SHORT_WAIT_SECONDS:
        silent = time.strftime("%H:%M:%S", time.gmtime(now - outage.began))
        return f"no reply for {silent} ({outage.latest}): next try in {max(0, outage.next_try - now):.0f} s"
    if paused_until - now > SHORT_WAIT_SECONDS:
        return f"rate limited: next try in {paused_until - now:.0f} s"
    return None
