"""Every call to a model, with its reply and its cost, in an SQLite file.

A call is recorded before it goes out, so a killed process leaves a record of what it may have to pay for. A call with
the status `ok` holds the valid reply to its key; other calls are attempts, which a later start may repeat.
"""

import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.models import Price
from learning_backdoors.judging.api.replies import Reply, reason_of

SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL,              -- hash of everything that was sent
    outcome TEXT NOT NULL,          -- the status: sent, then ok, unparseable, refusal, truncated or error
    reply TEXT,                     -- what the model wrote
    reason TEXT,                    -- why there is no valid reply
    input_tokens INTEGER,
    output_tokens INTEGER,
    dollars REAL,                   -- null if the price is unknown
    at_most INTEGER NOT NULL,       -- 1 while `dollars` is an upper limit: no reply yet, or a lost reply
    batch INTEGER REFERENCES batches (id),
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS calls_of_key ON calls (key);
CREATE UNIQUE INDEX IF NOT EXISTS one_verdict ON calls (key) WHERE outcome = 'ok';
CREATE INDEX IF NOT EXISTS batched_calls ON calls (batch) WHERE batch IS NOT NULL;
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    name TEXT NOT NULL,             -- start of the custom_id of each of its requests
    server_id TEXT,                 -- null until the server has replied
    state TEXT NOT NULL,            -- creating, open, collected or failed
    requests INTEGER NOT NULL,
    began REAL NOT NULL             -- seconds since 1970, before it was sent
);
"""
APPLICATION_ID = 0x4C42_5631  # marks the file as ours, in this layout
FLUSH_SECONDS = 10


@dataclass(frozen=True)
class BatchRecord:
    id: int
    name: str
    server_id: str | None
    requests: int
    began: float


class Result(NamedTuple):
    """The valid reply to a prompt, or else what its latest attempt brought. reason: why there is no valid reply."""

    status: str
    reply: str | None
    reason: str | None


class Spent(NamedTuple):
    """What calls have cost, whether their replies were valid or not.

    at_most: the part of `dollars` that is an upper limit, because the reply was lost or is pending.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    at_most: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*map(sum, zip(self, other, strict=True)))

    def is_priced(self, price: Price | None) -> bool:
        """Whether `dollars` is known. Without a price now, it is if some calls had one."""
        return price is not None or self.dollars > 0

    def in_words(self, price: Price | None) -> str:
        words = f"{self.calls:,} calls, {self.input_tokens:,} tokens in, {self.output_tokens:,} out"
        if not self.is_priced(price):
            return words + ", price unknown"
        lost = f" (at most ${self.at_most:.2f} of it for lost or pending replies)"
        return f"{words}, ${self.dollars:.2f}" + (lost if self.at_most else "")


class CallStore:
    """The calls of one output, or of several that share the file.

    Each change is committed at once, so a killed process loses nothing. Every 10 seconds a write also flushes the
    write-ahead log to disk; a power cut loses what came after that. Raises UserError for a file that is damaged, is not
    a store, or cannot be written (full disk). shared: other outputs use it, too.
    """

    def __init__(self, path: Path, shared: bool = False):
        self.path, self.shared, self._flushed = path, shared, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._open()
        except sqlite3.OperationalError as error:
            raise self._cannot_be_used(error) from None
        except sqlite3.Error as error:
            raise UserError(
                f"the store {path} cannot be read ({error}). Restore it from a copy, or move it away: "
                "all replies are then requested and paid for again"
            ) from None

    def _open(self) -> None:
        # WAL with synchronous NORMAL: a commit is a write without fsync, which survives the death of the process.
        self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if application != APPLICATION_ID and not empty:
            raise sqlite3.DatabaseError("it is another program's database")
        damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        self._db.executescript(SCHEMA + f"PRAGMA application_id = {APPLICATION_ID};")

    def _execute(self, statement: str, values: tuple = ()) -> sqlite3.Cursor:
        """Raises sqlite3.IntegrityError if the schema forbids it, UserError for everything else that goes wrong."""
        try:
            return self._db.execute(statement, values)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._cannot_be_used(error) from None

    def _write(self, statement: str, values: tuple = ()) -> sqlite3.Cursor:
        cursor = self._execute(statement, values)
        if time.monotonic() - self._flushed > FLUSH_SECONDS and not self._db.in_transaction:
            self.flush()
        return cursor

    def _cannot_be_used(self, error: sqlite3.Error) -> UserError:
        return UserError(f"the store {self.path} cannot be used now ({error}); its content is kept")

    def flush(self) -> None:
        """Make everything committed so far survive a power cut."""
        self._flushed = time.monotonic()
        self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the changes of a block together, or none of them."""
        self._execute("BEGIN IMMEDIATE")
        with self._db:  # rolls back if the block fails
            yield
            self._execute("COMMIT")

    # ---- calls ----

    def note_sent(self, key: bytes, worst: float | None, batch: int | None = None) -> int:
        """Record a call before it goes out, with the most it can cost. Returns its id."""
        return self._write(
            "INSERT INTO calls (key, outcome, dollars, at_most, batch) VALUES (?, 'sent', ?, 1, ?)", (key, worst, batch)
        ).lastrowid

    def note_reply(self, call: int, status: str, reply: Reply, dollars: float | None) -> None:
        """Record the reply to an open call. Without token counts, `dollars` is the most it can have cost."""
        tokens = (reply.input_tokens, reply.output_tokens)
        values = (reply.text, reply.reason(status), *tokens, dollars, None in tokens, call)
        update = (
            "UPDATE calls SET outcome = ?, reply = ?, reason = ?, input_tokens = ?, output_tokens = ?, dollars = ?, "
            "at_most = ? WHERE id = ? AND outcome = 'sent'"
        )
        try:
            self._write(update, (status, *values))
        except sqlite3.IntegrityError:  # the prompt has a valid reply already: the first one counts
            self._write(update, ("error", *values))

    def note_failure(self, call: int, reason: str, billed: bool) -> None:
        """Record that an open call brought no reply. `billed`: it may have to be paid for."""
        self._write(
            "UPDATE calls SET outcome = 'error', reason = ?, dollars = iif(?, dollars, 0), at_most = ? "
            "WHERE id = ? AND outcome = 'sent'",
            (reason, billed, billed, call),
        )

    def adopt(self, replies: Iterable[tuple[bytes, str]], dollars: float) -> None:
        """Add valid replies (key, text) that are missing here and were paid for, each at `dollars`."""
        with self.transaction():
            for key, reply in replies:
                self._write(
                    "INSERT OR IGNORE INTO calls (key, outcome, reply, dollars, at_most) VALUES (?, 'ok', ?, ?, 0)",
                    (key, reply, dollars),
                )

    def valid_keys(self) -> set[bytes]:
        return {key for (key,) in self._execute("SELECT key FROM calls WHERE outcome = 'ok'")}

    def result(self, key: bytes) -> Result:
        """The valid reply to a prompt, else its latest attempt; the status is `error` without either."""
        row = self._execute(
            "SELECT outcome, reply, reason FROM calls WHERE key = ? AND outcome != 'sent' "
            "ORDER BY outcome = 'ok' DESC, id DESC LIMIT 1",
            (key,),
        ).fetchone()
        status, reply, reason = row or ("error", None, None)
        return Result(status, reply, reason or reason_of(status, reply))

    def attempts(self) -> Counter[bytes]:
        """By key: how many replies were not valid. Calls without a reply do not count."""
        replies = (
            "SELECT key, count(*) FROM calls WHERE outcome IN ('unparseable', 'refusal', 'truncated') GROUP BY key"
        )
        return Counter(dict(self._execute(replies).fetchall()))

    def keys_to_ask(self, keys: Iterable[bytes], asks: int, settled: Collection[str] = ("ok",)) -> list[bytes]:
        """Those of `keys` whose status is not settled, and that had fewer than `asks` replies which were not valid."""
        marks = ", ".join("?" * len(settled))
        rows = self._execute(f"SELECT key FROM calls WHERE outcome IN ({marks})", tuple(settled))
        finished, attempts = {key for (key,) in rows}, self.attempts()
        return [key for key in keys if key not in finished and attempts[key] < asks]

    def calls(self, price: Price | None) -> Iterator[tuple[bytes, Spent]]:
        """The key of each call, and what it cost. `price`: for calls that were made when no price was known."""
        calls = self._execute("SELECT key, input_tokens, output_tokens, dollars, at_most FROM calls")
        for key, tokens_in, tokens_out, dollars, at_most in calls:
            tokens = (tokens_in or 0, tokens_out or 0)
            if dollars is None:
                dollars = price.dollars(*tokens) if price else 0.0
            yield key, Spent(1, *tokens, dollars, dollars * at_most)

    # ---- batches ----

    def begin_batch(self, host: str, name: str, requests: list[tuple[bytes, float | None]]) -> tuple[int, list[int]]:
        """Record a batch of (key, most it can cost) before it is sent. Returns its id and the ids of its calls."""
        with self.transaction():
            batch = self._write(
                "INSERT INTO batches (host, name, state, requests, began) VALUES (?, ?, 'creating', ?, ?)",
                (host, name, len(requests), time.time()),
            ).lastrowid
            calls = [self.note_sent(key, worst, batch) for key, worst in requests]
        self.flush()
        return batch, calls

    def batch_sent_again(self, batch: int) -> None:
        """Record that a batch the server turned away is sent now: the search for a lost one starts here."""
        self._write("UPDATE batches SET began = ? WHERE id = ?", (time.time(), batch))
        self.flush()

    def batch_created(self, batch: int, server_id: str) -> None:
        self._write("UPDATE batches SET server_id = ?, state = 'open' WHERE id = ?", (server_id, batch))
        self.flush()

    def end_batch(self, batch: int, reason: str, failed: bool = False) -> None:
        """Close a batch. Calls still open failed for `reason`; if the batch itself failed, they cost nothing."""
        with self.transaction():
            self._write(
                "UPDATE calls SET outcome = 'error', reason = ?, dollars = iif(?, 0, dollars), at_most = NOT ? "
                "WHERE batch = ? AND outcome = 'sent'",
                (reason, failed, failed, batch),
            )
            state = "failed" if failed else "collected"
            self._write("UPDATE batches SET state = ? WHERE id = ?", (state, batch))

    def batches(self, host: str, state: str) -> list[BatchRecord]:
        columns = "SELECT id, name, server_id, requests, began FROM batches WHERE host = ? AND state = ? ORDER BY id"
        return [BatchRecord(*row) for row in self._execute(columns, (host, state))]

    def server_ids(self) -> set[str]:
        return {server_id for (server_id,) in self._execute("SELECT server_id FROM batches WHERE server_id NOT NULL")}

    def open_calls(self, batch: int) -> dict[int, tuple[bytes, float | None]]:
        """The calls of a batch without a result: id to key, and the most it can cost."""
        calls = self._execute("SELECT id, key, dollars FROM calls WHERE batch = ? AND outcome = 'sent'", (batch,))
        return {call: (key, worst) for call, key, worst in calls}

    def pending_keys(self) -> set[bytes]:
        """The keys in batches that have not been collected."""
        unfinished = "SELECT id FROM batches WHERE state IN ('creating', 'open')"
        keys = self._execute(f"SELECT key FROM calls WHERE outcome = 'sent' AND batch IN ({unfinished})")
        return {key for (key,) in keys}
