"""Writes that are complete or absent, also after a crash or a power cut, by one process at a time."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from learning_backdoors.files.errors import UserError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder. It replaces `path` if the block succeeds and is deleted otherwise.

    If `path` is a symbolic link, the link stays and its target is written.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: dict) -> None:
    """Write a document as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sync_files(folder: Path) -> None:
    """Flush every file in a folder to disk, and the folder itself."""
    for file in folder.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush renames inside a folder to disk."""
    if os.name != "nt":  # Windows cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def drop_partial_line(path: Path) -> None:
    """Remove an incomplete last line, which a killed process leaves behind."""
    if path.exists():
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` for this process. The operating system releases the lock when the process ends, however it ends.

    Raises UserError if another process holds it.
    """
    path = path.resolve()  # one lock for a file and the links to it
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(f"another process is writing {path}: wait for it, or stop it") from None
