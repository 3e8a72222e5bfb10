"""The asking loop: puts prompts to a model behind a Messages API until each has an accepted reply in a store.

Judging and persona preparation use it. What happens to one prompt is in caller.py, what lets a call go out is in
pacing.py.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterable, Iterator

from learning_backdoors.files.command_line import progress_bar
from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.batches import BatchRunner
from learning_backdoors.judging.api.caller import Outage, Prompt, PromptCaller
from learning_backdoors.judging.api.client import MessagesClient, api_key
from learning_backdoors.judging.api.models import ServedModel
from learning_backdoors.judging.api.pacing import Limits, Stopped, StopSignal
from learning_backdoors.judging.api.store import CallStore

NOTICE_EVERY_SECONDS = 60  # while a wait lasts
SHORT_WAIT_SECONDS = 5  # not worth a notice


def ask_all(
    prompts: Iterable[Prompt],
    model: ServedModel,
    store: CallStore,
    limits: Limits,
    *,
    settled: tuple[str, ...] = ("ok",),
    spent: float = 0.0,
    batch: bool = False,
    title: str = "asking",
    unit: str = "reply",
) -> BaseException | None:
    """Ask every prompt whose result in `store` is not settled, and collect the results of earlier batches.

    settled: outcomes (see CallStore) that are final. By default only an accepted reply is.
    spent: dollars that count towards `limits.max_cost` already.
    batch: send the prompts as Message Batches.
    title, unit: words of the progress bar.
    Returns why the run ended early: CapReached, KeyboardInterrupt or a UserError; None if every prompt was asked.
    Raises UserError if the server, the model or the key cannot be used. Without anything to ask, no key is needed.
    Ctrl-C or SIGTERM once lets the calls in flight finish; twice stops at once.
    """
    by_key = {prompt.key: prompt for prompt in prompts}
    left = sum(store.result(key)[0] not in settled for key in by_key)
    if not left and not store.pending_keys() & by_key.keys():
        return None

    async def run() -> BaseException | None:
        stop = StopSignal()
        async with MessagesClient(model.host, api_key(), limits.timeout) as client:
            await client.check_model(model.name)
            client.has_answered = left < len(by_key)  # an earlier start got replies: the settings are good
            caller = PromptCaller(client, store, model, limits, stop, settled, spent)
            batches = BatchRunner(caller, by_key)
            with progress_bar(title, len(by_key), len(by_key) - left, unit) as bar:
                async with _shown_on(bar, caller):
                    with _interruptible(caller), contextlib.suppress(Stopped):
                        try:
                            if batch and left:
                                await batches.run()
                            else:
                                await batches.collect()
                                await _ask_live(caller, by_key, settled)
                        except UserError as error:
                            stop.stop(error)
        return stop.reason

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:  # the second Ctrl-C
        return KeyboardInterrupt()


async def _ask_live(caller: PromptCaller, by_key: dict[bytes, Prompt], settled: tuple[str, ...]) -> None:
    """Ask one call per prompt, several at once. Prompts in batches of an earlier start are left out."""
    pending = caller.store.pending_keys()

    def queue() -> Iterator[Prompt]:
        for key, prompt in by_key.items():
            if key not in pending and caller.store.result(key)[0] not in settled:
                yield prompt
        caller.queue_is_empty = True

    async def worker(prompts: Iterator[Prompt]) -> None:
        try:
            for prompt in prompts:
                await caller.ask(prompt)
        except Stopped:
            pass
        except UserError as error:
            caller.stop.stop(error)  # calls in flight are paid for: they finish

    prompts = queue()
    async with asyncio.TaskGroup() as group:
        for _ in range(caller.limits.concurrency):
            group.create_task(worker(prompts))


# ---- progress ----


@contextlib.asynccontextmanager
async def _shown_on(bar, caller: PromptCaller):
    """Show the caller's work on a tqdm bar, and its messages above the bar, while the block lasts."""
    done_before = bar.n
    caller.say = lambda line: bar.write(line, file=sys.stderr)

    def refresh() -> None:
        if caller.model.price:
            bar.set_postfix_str(f"${caller.budget.spent:.2f}", refresh=False)
        bar.update(done_before + caller.done - bar.n)

    async def refresh_forever() -> None:
        next_notice = 0.0
        while True:
            await asyncio.sleep(0.5)
            refresh()
            now = time.monotonic()
            notice = waiting_notice(caller.gate.paused_until, caller.outage, now)
            if notice and now >= next_notice:
                next_notice = now + NOTICE_EVERY_SECONDS
                caller.say(notice)

    task = asyncio.create_task(refresh_forever())
    try:
        yield
    finally:
        task.cancel()
        refresh()


def waiting_notice(paused_until: float, outage: Outage | None, now: float) -> str | None:
    """What the run waits for, and how long; None if it does not wait. Times by time.monotonic()."""
    if outage and now - outage.began > SHORT_WAIT_SECONDS:
        silent = time.strftime("%H:%M:%S", time.gmtime(now - outage.began))
        return f"no reply for {silent} ({outage.latest}): next try in {max(0, outage.next_try - now):.0f} s"
    if paused_until - now > SHORT_WAIT_SECONDS:
        return f"rate limited: next try in {paused_until - now:.0f} s"
    return None


# ---- Ctrl-C ----


@contextlib.contextmanager
def _interruptible(caller: PromptCaller) -> Iterator[None]:
    """Ctrl-C or SIGTERM once: calls in flight finish. Twice: stop at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupted() -> None:
        if caller.stop.reason:
            task.cancel()
        else:
            caller.say(f"stopping after the {caller.gate.in_flight} calls in flight; press Ctrl-C again to stop now")
            caller.stop.stop(KeyboardInterrupt())

    # Windows has no such handlers: there the first Ctrl-C stops at once.
    with contextlib.suppress(NotImplementedError):
        for number in handlers:
            loop.add_signal_handler(number, interrupted)
    try:
        yield
    finally:
        # Removing a handler makes SIGTERM deadly, also while the output is written: restore the earlier handlers.
        with contextlib.suppress(NotImplementedError):
            for number, handler in handlers.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)
