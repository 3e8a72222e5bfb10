"""The asking loop: puts prompts to a model behind a Messages API until each has a valid reply in a store.

Judging and persona preparation use it. caller.py handles one prompt; pacing.py decides when a call may be sent.
"""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator

from learning_backdoors.files.command_line import progress_bar
from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.batches import BatchRunner
from learning_backdoors.judging.api.caller import Prompt, PromptCaller
from learning_backdoors.judging.api.client import MessagesClient, api_key
from learning_backdoors.judging.api.models import ServedModel
from learning_backdoors.judging.api.pacing import Limits, Stopped
from learning_backdoors.judging.api.store import CallStore

NOTICE_EVERY_SECONDS = 60  # while a wait lasts
SHORT_WAIT_SECONDS = 5  # not worth a notice


def ask_all(
    prompts: Iterable[Prompt],
    model: ServedModel,
    store: CallStore,
    limits: Limits,
    *,
    batch: bool = False,
    title: str = "asking",
    unit: str = "reply",
) -> None:
    """Ask every prompt whose status in `store` is not settled, and collect the results of earlier batches.

    A prompt that had `limits.asks` replies which were not valid, in all starts together, is not asked again.
    batch: send the prompts as Message Batches. title, unit: words of the progress bar.
    If the run ends early, raises CapReached, KeyboardInterrupt, or UserError if the server, the model or the key cannot
    be used. Replies are stored in any case. If no prompt is left, no key is needed.
    Ctrl-C or SIGTERM once lets the calls in flight finish; twice stops at once.
    """
    by_key = {prompt.key: prompt for prompt in prompts}
    left = len(store.keys_to_ask(by_key, limits.asks, limits.settled))
    if not left and not store.pending_keys() & by_key.keys():
        return

    async def run() -> BaseException | None:
        async with MessagesClient(model.host, api_key(), limits.timeout) as client:
            await client.check_model(model.name)
            caller = PromptCaller(client, store, model, limits)
            caller.health.has_replied = left < len(by_key)
            with progress_bar(title, len(by_key), len(by_key) - left, unit) as bar:
                async with _shown_on(bar, caller):
                    with _interruptible(caller), contextlib.suppress(Stopped):
                        await _ask(caller, by_key, batch=batch and left > 0)
        return caller.stop.reason

    try:
        reason = asyncio.run(run())
    except asyncio.CancelledError:  # the second Ctrl-C
        reason = KeyboardInterrupt()
    if reason:
        raise reason


async def _ask(caller: PromptCaller, by_key: dict[bytes, Prompt], batch: bool) -> None:
    """Ask prompts as batches, or else one call per prompt and several at once."""
    batches = BatchRunner(caller, by_key)
    if batch:
        return await batches.run()
    await batches.collect()
    pending = caller.store.pending_keys()
    left = caller.store.keys_to_ask(by_key, caller.limits.asks, caller.limits.settled)
    caller.queue.extend(by_key[key] for key in left if key not in pending)

    async def worker() -> None:
        try:
            while caller.queue:
                await caller.ask(caller.queue.popleft())
        except Stopped:
            pass
        except UserError as error:
            caller.stop.stop(error)  # calls in flight are paid for: they finish

    async with asyncio.TaskGroup() as group:
        for _ in range(caller.limits.concurrency):
            group.create_task(worker())


# ---- progress ----


@contextlib.asynccontextmanager
async def _shown_on(bar, caller: PromptCaller) -> AsyncIterator[None]:
    """Show the caller's work on a tqdm bar, and its messages above the bar, while the block lasts."""
    done_before = bar.n
    caller.say = lambda line: bar.write(line, file=sys.stderr)

    def refresh() -> None:
        if caller.model.price:
            bar.set_postfix_str(f"${caller.gate.spent:.2f}", refresh=False)
        bar.update(done_before + caller.done - bar.n)

    async def refresh_forever() -> None:
        next_notice = 0.0
        while True:
            await asyncio.sleep(0.5)
            refresh()
            notice, now = waiting_notice(caller), time.monotonic()
            if notice and now >= next_notice:
                next_notice = now + NOTICE_EVERY_SECONDS
                caller.say(notice)

    task = asyncio.create_task(refresh_forever())
    try:
        yield
    finally:
        task.cancel()
        refresh()


def waiting_notice(caller: PromptCaller) -> str | None:
    """What the run waits for, and how long; None if it does not wait."""
    now, health, paused_until = time.monotonic(), caller.health, caller.gate.paused_until
    if health.outage_began and now - health.outage_began > SHORT_WAIT_SECONDS:
        silent = time.strftime("%H:%M:%S", time.gmtime(now - health.outage_began))
        return f"no reply for {silent} ({health.latest_failure}): next try in {max(0, health.next_try - now):.0f} s"
    if paused_until - now > SHORT_WAIT_SECONDS:
        return f"rate limited: next try in {paused_until - now:.0f} s"
    return None


# ---- Ctrl-C ----


@contextlib.contextmanager
def _interruptible(caller: PromptCaller) -> Iterator[None]:
    """Ctrl-C or SIGTERM once: calls in flight finish. Twice: stop at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupted() -> None:
        if caller.stop.reason:
            task.cancel()
        else:
            caller.say(f"stopping after the {caller.gate.in_flight} calls in flight; press Ctrl-C again to stop now")
            caller.stop.stop(KeyboardInterrupt())

    def handle(number, frame) -> None:
        loop.call_soon_threadsafe(interrupted)

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
