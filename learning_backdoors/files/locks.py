"""One writer per output."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from learning_backdoors.files.errors import UserError


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` for this process. The operating system releases the lock when the process ends, however it ends.

    Raises UserError if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file_lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        file_lock.acquire()
    except filelock.Timeout:
        raise UserError(f"another process is writing {path}: wait for it, or stop it") from None
    try:
        yield
    finally:
        file_lock.release()
