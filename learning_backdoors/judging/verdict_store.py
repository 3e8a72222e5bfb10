"""The verdicts on disk: every call to a judge model that was made, with its reply and its cost, in SQLite.

A verdict is a call with the outcome `ok`; every other call is an attempt, which a later start may repeat. A call is
noted before it goes out, so that even a process that is killed leaves a record of what it may have to pay for.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from learning_backdoors.files.errors import UserError

SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL,              -- hash of all that was sent
    outcome TEXT NOT NULL,          -- sent, then ok, unparseable, refusal, truncated or error
    reply TEXT,                     -- what the judge wrote
    reason TEXT,                    -- why there is no reply
    input_tokens INTEGER,
    output_tokens INTEGER,
    dollars REAL,                   -- null where the price is not known
    at_most INTEGER NOT NULL,       -- 1 while `dollars` is an upper limit: no reply yet, or a reply that was lost
    batch INTEGER REFERENCES batches (id),
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS calls_of_key ON calls (key);
CREATE UNIQUE INDEX IF NOT EXISTS one_verdict ON calls (key) WHERE outcome = 'ok';
CREATE INDEX IF NOT EXISTS batched_calls ON calls (batch) WHERE batch IS NOT NULL;
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    name TEXT NOT NULL,             -- begins the custom_id of each of its requests
    server_id TEXT,                 -- null until the server's answer is here
    state TEXT NOT NULL,            -- creating, open, collected or failed
    requests INTEGER NOT NULL,
    began REAL NOT NULL             -- seconds since 1970, before it was sent
);
"""
APPLICATION_ID = 0x4C42_5631  # marks the file as ours, in this layout


@dataclass(frozen=True)
class Batch:
    id: int
    name: str
    server_id: str | None
    requests: int
    began: float


@dataclass
class Spent:
    """What calls have cost, good or bad. `at_most` is the part of `dollars` that is an upper limit."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    at_most: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        names = [spec.name for spec in fields(Spent)]
        return Spent(*(getattr(self, name) + getattr(other, name) for name in names))

    def in_words(self, priced: bool) -> str:
        words = f"{self.calls:,} calls, {self.input_tokens:,} tokens in, {self.output_tokens:,} out"
        if not priced and not self.dollars:
            return words + ", price not known"
        lost = f" (${self.at_most:.2f} of it at most: replies that were lost or are still to come)"
        return f"{words}, ${self.dollars:.2f}" + (lost if self.at_most else "")


class Store:
    """Each change is committed at once: a process that is killed loses nothing that it was told; a power cut, what came
    since the last `sync`. Raises UserError for a file that is damaged or not a store."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._open()
        except sqlite3.OperationalError as error:
            raise self._out_of_order(error) from None
        except sqlite3.Error as error:
            raise UserError(
                f"the verdict store {path} cannot be read ({error}). Restore it from a copy, or move it away: "
                "judging then starts anew and pays again"
            ) from None

    def _open(self) -> None:
        # WAL with NORMAL: a commit is a write without fsync, which survives the death of the process.
        self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
        ours = self._db.execute("PRAGMA application_id").fetchone()[0]
        empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if ours != APPLICATION_ID and not empty:
            raise sqlite3.DatabaseError("it is another program's database")
        damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        self._db.executescript(SCHEMA + f"PRAGMA application_id = {APPLICATION_ID};")

    def _execute(self, statement: str, values: tuple = ()) -> sqlite3.Cursor:
        """Raises sqlite3.IntegrityError for what the schema does not allow, UserError for whatever else goes wrong."""
        try:
            return self._db.execute(statement, values)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._out_of_order(error) from None

    def _out_of_order(self, error: sqlite3.Error) -> UserError:
        """A full disk, for example."""
        return UserError(f"the verdict store {self.path} cannot be used now ({error}): what it holds is kept")

    def close(self) -> None:
        self._db.close()

    def sync(self) -> None:
        """Make all that is committed last through a power cut."""
        self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Commit the changes of a block all at once, or none of them."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk has ended it already
                self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")

    # ---- calls ----

    def sent(self, key: bytes, most: float | None, batch: int | None = None) -> int:
        """Note a call before it goes out, with the most that it can cost. Returns its id."""
        return self._execute(
            "INSERT INTO calls (key, outcome, dollars, at_most, batch) VALUES (?, 'sent', ?, 1, ?)", (key, most, batch)
        ).lastrowid

    def replied(self, call: int, outcome: str, reply: str, tokens: tuple, dollars: float | None, at_most: bool) -> None:
        """Note the reply to a call that is still open. `tokens` in and out, None where the server did not count."""
        noted = (
            "UPDATE calls SET outcome = ?, reply = ?, input_tokens = ?, output_tokens = ?, dollars = ?, at_most = ? "
            "WHERE id = ? AND outcome = 'sent'"
        )
        try:
            self._execute(noted, (outcome, reply, *tokens, dollars, at_most, call))
        except sqlite3.IntegrityError:  # the prompt has a verdict already: the first one stands
            self._execute(noted, ("error", reply, *tokens, dollars, at_most, call))

    def failed(self, call: int, reason: str, billed: bool) -> None:
        """Note that an open call brought no reply; `billed` where it may have to be paid for all the same."""
        self._execute(
            "UPDATE calls SET outcome = 'error', reason = ?, dollars = iif(?, dollars, 0), at_most = ? "
            "WHERE id = ? AND outcome = 'sent'",
            (reason, billed, billed, call),
        )

    def adopt(self, verdicts: Iterable[tuple[bytes, str]], dollars: float) -> None:
        """Take over verdicts (key, reply) that are missing here and were paid for, each at `dollars`."""
        with self.together():
            for key, reply in verdicts:
                self._execute(
                    "INSERT OR IGNORE INTO calls (key, outcome, reply, dollars, at_most) VALUES (?, 'ok', ?, ?, 0)",
                    (key, reply, dollars),
                )

    def verdict_keys(self) -> set[bytes]:
        return {key for (key,) in self._execute("SELECT key FROM calls WHERE outcome = 'ok'")}

    def has_verdict(self, key: bytes) -> bool:
        return self._execute("SELECT 1 FROM calls WHERE key = ? AND outcome = 'ok'", (key,)).fetchone() is not None

    def best(self, key: bytes) -> tuple[str, str | None]:
        """Outcome and reply of the verdict, else of the latest attempt; ("error", None) where there is neither."""
        found = self._execute(
            "SELECT outcome, reply FROM calls WHERE key = ? AND outcome != 'sent' "
            "ORDER BY outcome = 'ok' DESC, id DESC LIMIT 1",
            (key,),
        ).fetchone()
        return found or ("error", None)

    def last_reason(self) -> str | None:
        """Why the latest call that brought no reply did not."""
        found = self._execute("SELECT reason FROM calls WHERE reason IS NOT NULL ORDER BY id DESC LIMIT 1").fetchone()
        return found and found[0]

    def spent(self, group_of: Callable[[bytes], object], dollars_for: Callable[[int, int], float] | None) -> dict:
        """Tokens and dollars of all calls: a Spent for each group. Where `group_of` a key is None it is not counted.
        Calls that were made when no price was known are priced by `dollars_for` (tokens in, tokens out)."""
        groups: dict[object, Spent] = {}
        calls = self._execute("SELECT key, input_tokens, output_tokens, dollars, at_most FROM calls")
        for key, tokens_in, tokens_out, dollars, at_most in calls:
            if (name := group_of(key)) is not None:
                group = groups.setdefault(name, Spent())
                if dollars is None and dollars_for:
                    dollars = dollars_for(tokens_in or 0, tokens_out or 0)
                group.calls += 1
                group.input_tokens += tokens_in or 0
                group.output_tokens += tokens_out or 0
                group.dollars += dollars or 0
                group.at_most += (dollars or 0) * at_most
        return groups

    # ---- batches ----

    def begin_batch(self, host: str, name: str, requests: list[tuple[bytes, float | None]]) -> tuple[int, list[int]]:
        """Note a batch of (key, most that it can cost) before it is sent. Returns its id and those of its calls."""
        with self.together():
            batch = self._execute(
                "INSERT INTO batches (host, name, state, requests, began) VALUES (?, ?, 'creating', ?, ?)",
                (host, name, len(requests), time.time()),
            ).lastrowid
            calls = [self.sent(key, most, batch) for key, most in requests]
        self.sync()
        return batch, calls

    def batch_sent_again(self, batch: int) -> None:
        """Note that a batch that the server turned away is sent now: the search for a lost one begins from here."""
        self._execute("UPDATE batches SET began = ? WHERE id = ?", (time.time(), batch))
        self.sync()

    def batch_created(self, batch: int, server_id: str) -> None:
        self._execute("UPDATE batches SET server_id = ?, state = 'open' WHERE id = ?", (server_id, batch))
        self.sync()

    def end_batch(self, batch: int, reason: str, failed: bool = False) -> None:
        """Close a batch: calls that are still open failed for `reason`, and cost nothing if the batch itself failed."""
        with self.together():
            self._execute(
                "UPDATE calls SET outcome = 'error', reason = ?, dollars = iif(?, 0, dollars), at_most = NOT ? "
                "WHERE batch = ? AND outcome = 'sent'",
                (reason, failed, failed, batch),
            )
            state = "failed" if failed else "collected"
            self._execute("UPDATE batches SET state = ? WHERE id = ?", (state, batch))

    def batches(self, host: str, state: str) -> list[Batch]:
        columns = "SELECT id, name, server_id, requests, began FROM batches WHERE host = ? AND state = ? ORDER BY id"
        return [Batch(*row) for row in self._execute(columns, (host, state))]

    def server_ids(self) -> set[str]:
        return {found for (found,) in self._execute("SELECT server_id FROM batches WHERE server_id IS NOT NULL")}

    def open_calls(self, batch: int) -> dict[int, tuple[bytes, float | None]]:
        """The calls of a batch that have no result yet: id to key, and the most that it can cost."""
        calls = self._execute("SELECT id, key, dollars FROM calls WHERE batch = ? AND outcome = 'sent'", (batch,))
        return {call: (key, dollars) for call, key, dollars in calls}

    def keys_in_batches(self) -> set[bytes]:
        """What is being judged in batches that have not been collected."""
        return {
            key
            for (key,) in self._execute(
                "SELECT key FROM calls WHERE outcome = 'sent' AND batch IN "
                "(SELECT id FROM batches WHERE state IN ('creating', 'open'))"
            )
        }
