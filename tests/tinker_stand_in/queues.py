"""Queues of work: training calls in order, and samples in batches."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable


class Lane:
    """The training calls of one model. They run in the order of their seq_id, whatever order they arrive in.

    A call that failed before it was accepted leaves a hole in the numbers, which the lane skips after HOLE seconds.
    """

    HOLE = 2.0

    def __init__(self, run: Callable):
        """run: carries out a call, a coroutine function."""
        self.calls: dict[int, object] = {}
        self.next: int | None = None  # the first number that arrives
        self.run, self.news = run, asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._work())

    def add(self, number: int, call: object) -> None:
        self.next = number if self.next is None else self.next
        self.calls[number] = call
        self.news.set()

    async def _work(self) -> None:
        while True:
            if self.next not in self.calls:
                self.news.clear()
                try:
                    await asyncio.wait_for(self.news.wait(), self.HOLE if self.calls else None)
                except TimeoutError:
                    self.next = min(self.calls)
                continue
            call = self.calls.pop(self.next)
            self.next += 1
            await self.run(call)


class Batches:
    """Samples that wait. Those of one checkpoint that arrive within a few ms, or while others run, are one batch."""

    ROWS, PAUSE = 256, 0.004

    def __init__(self, run: Callable):
        """run: carries out a batch: a coroutine function of a checkpoint and a list of calls."""
        self.waiting: OrderedDict[object, list] = OrderedDict()
        self.run, self.news = run, asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._work())

    def add(self, checkpoint: object, call: object) -> None:
        self.waiting.setdefault(checkpoint, []).append(call)
        self.news.set()

    async def _work(self) -> None:
        while True:
            await self.news.wait()
            await asyncio.sleep(self.PAUSE)
            checkpoint, calls = self.waiting.popitem(last=False)
            if len(calls) > self.ROWS:
                self.waiting[checkpoint] = calls[self.ROWS :]
            if not self.waiting:
                self.news.clear()
            await self.run(checkpoint, calls[: self.ROWS])
