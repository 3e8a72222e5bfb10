"""The store of calls: damage, full disks, and prices known later.

python -m pytest -n 0 tests/judging/api/test_call_store.py
"""

import contextlib
import sqlite3
import time

import pytest
from judging_support import PRICE, total_spent

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.replies import Reply
from learning_backdoors.judging.api.store import CallStore


def test_calls_without_a_price_can_be_priced_later(store):
    reply = Reply("19", "end_turn", 1_000_000, 100_000)
    store.note_reply(store.note_sent(b"prompt", None), "ok", reply, None)
    assert total_spent(store).dollars == 0
    assert total_spent(store, PRICE).dollars == 3


def test_a_damaged_or_foreign_store_is_refused(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    with pytest.raises(UserError, match="cannot be read.*move it away"):
        CallStore(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name)")
    with pytest.raises(UserError, match="another program"):
        CallStore(path)


def test_a_full_disk_is_a_one_line_error(store):
    store._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(UserError, match="verdicts.sqlite cannot be used now .*full"):
        for n in range(3000):
            store.note_sent(n.to_bytes(32), 1.0)
    with pytest.raises(UserError, match="cannot be used now"):
        store.begin_batch("host", "name", [(n.to_bytes(32), 1.0) for n in range(3000)])


def test_a_store_with_a_damaged_page_is_refused(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    store = CallStore(path)
    with store.transaction():
        for n in range(3000):
            store.note_sent(n.to_bytes(32), 1.0)
    store.flush()
    store.close()
    content = bytearray(path.read_bytes())
    content[40960:45056] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        CallStore(path)


def test_a_write_flushes_the_log_to_disk_every_ten_seconds(store, monkeypatch):
    """What is flushed is in the main file, so a copy of that file alone, as after a power cut, has it."""

    def calls_in_main_file() -> int:
        copy = store.path.with_name("copy.sqlite")
        copy.write_bytes(store.path.read_bytes())
        with contextlib.closing(sqlite3.connect(copy)) as db:
            return db.execute("SELECT count(*) FROM calls").fetchone()[0]

    store.flush()
    store.note_sent(b"one", None)
    assert calls_in_main_file() == 0
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 11)
    store.note_sent(b"two", None)
    assert calls_in_main_file() == 2
