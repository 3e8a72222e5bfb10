"""Ctrl-C and SIGTERM in work that is done in steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_after_step() -> Iterator[threading.Event]:
    """Meanwhile, Ctrl-C and SIGTERM set the event: a step is complete or absent. The second signal acts at once."""
    interrupted = threading.Event()

    def interrupt(number, frame) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    signals = [s for s in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(s))]  # ignored under nohup
    handlers = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield interrupted
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
