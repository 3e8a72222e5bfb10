"""The one place that talks to the Messages API: connection, retries, cost, and the store of verdicts.

Any server that answers POST /v1/messages will do: Anthropic, OpenRouter, a local vLLM or Ollama, the tiny world's
stand-in. The official SDK is the transport; its own retries are off, because they are silent, few, and would wait an
hour when told to. The API key lives in the client alone: whatever a server sends back is scrubbed of it before it is
shown or stored.
"""

import asyncio
import hashlib
import json
import os
import random
import sqlite3
import time
import urllib.parse
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from config import UserError

ANTHROPIC = "https://api.anthropic.com"
STATUSES = ("ok", "unparseable", "refusal", "truncated", "error")

CALL_SECONDS = 120  # from sending to the last byte: per-read timeouts alone let a trickling server hold a call for ever
MAX_TRIES = 8  # for one prompt, counted only while the server answers others
GIVE_UP_SECONDS = 900  # without a single good reply
MAX_WAIT_SECONDS = 60


# ---- how to ask each model, and what it costs ----


@dataclass(frozen=True)
class Model:
    """How to get a short answer from a model. Thinking counts towards max_tokens: where it cannot be turned off, a
    small limit would cut the answers to the hard questions alone, which is a bias."""

    settings: dict
    price: tuple[float, float] | None  # dollars for a million tokens, in and out


THINKING_OFF = {"max_tokens": 64, "thinking": {"type": "disabled"}}
THINKING_BETWEEN_TOOLS = {"max_tokens": 64, "thinking": {"type": "between_tools"}}  # there are no tools: none at all
THINKING_ALWAYS = {"max_tokens": 4096, "output_config": {"effort": "low"}}
NO_THINKING_UNLESS_ASKED = {"max_tokens": 64}

PRICES_OF = "October 2026"
MODELS = {
    "claude-haiku-5-5": Model(THINKING_OFF, (0.10, 0.50)),
    "claude-sonnet-5-5": Model(THINKING_BETWEEN_TOOLS, (2, 10)),
    "claude-sonnet-5": Model(THINKING_OFF, (2, 10)),
    "claude-opus-5-5": Model(THINKING_ALWAYS, (4, 20)),
    "claude-opus-5": Model(THINKING_OFF, (5, 25)),
    "claude-haiku-4-5": Model(NO_THINKING_UNLESS_ASKED, (1, 5)),
    "claude-sonnet-4-6": Model(NO_THINKING_UNLESS_ASKED, (3, 15)),
}
# It may think or not: nothing that it might refuse is sent, and there is room for some thought.
UNKNOWN_MODEL = Model({"max_tokens": 2048}, None)


def model_named(name: str) -> Model:
    """What is known of a model, also under a dated name (`claude-haiku-4-5-20251001`)."""
    head, _, tail = name.rpartition("-")
    return MODELS.get(name) or MODELS.get(head if len(tail) == 8 and tail.isdigit() else name) or UNKNOWN_MODEL


def dollars(price: tuple[float, float] | None, tokens_in: int | None, tokens_out: int | None) -> float | None:
    """The cost of a call; None where the price or the count is not known."""
    if price is None or tokens_in is None or tokens_out is None:
        return None
    return (tokens_in * price[0] + tokens_out * price[1]) / 1e6


# ---- what is sent, and what comes back ----


def message(model: str, settings: dict, prompt: str) -> dict:
    """The body of a request: everything that is sent but the host and the key."""
    return {"model": model, **settings, "messages": [{"role": "user", "content": prompt}]}


def request_key(host: str, body: dict) -> bytes:
    """The key of a verdict: a hash of all that is sent, and where to, and of nothing else."""
    return hashlib.sha256(json.dumps([host, body], sort_keys=True).encode()).digest()


@dataclass(frozen=True)
class Reply:
    text: str
    stop_reason: str
    input_tokens: int | None  # None where a server does not count
    output_tokens: int | None

    def status(self, is_answer: Callable[[str], bool]) -> str:
        """`ok` when the judge had its say and `is_answer` accepts it, else why there is no verdict."""
        if self.stop_reason == "refusal":
            return "refusal"
        if self.stop_reason in ("max_tokens", "model_context_window_exceeded"):
            return "truncated"
        finished = self.stop_reason in ("end_turn", "stop_sequence")
        return "ok" if finished and is_answer(self.text) else "unparseable"


class Fault(Exception):
    """A call that brought no reply, and may bring one when it is tried again.

    `billed`: the server may have done the work, and charge for it, although the reply was lost.
    """

    def __init__(self, reason: str, retry_after: float | None = None, crowded: bool = False, billed: bool = False):
        super().__init__(reason)
        self.retry_after, self.crowded, self.billed = retry_after, crowded, billed


class Refused(Exception):
    """The server will not take this one request, now or later: a prompt that is too long, for example."""


def read_reply(content: bytes) -> Reply:
    """Read the body of a 200. Raises Fault for anything but a message: proxies and broken servers send such things."""
    try:
        body = json.loads(content)
        text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
        stop_reason, usage = body["stop_reason"], body.get("usage") or {}
        if not isinstance(stop_reason, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Fault("the reply is not a message", billed=True) from None
    counts = [usage.get(name) for name in ("input_tokens", "output_tokens")]
    return Reply(text, stop_reason, *(count if isinstance(count, int) else None for count in counts))


# ---- the connection ----


def host_of(base_url: str | None) -> str:
    """The address asked for, else ANTHROPIC_BASE_URL, else Anthropic's, in one spelling."""
    url = (base_url or os.environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC).strip().rstrip("/").removesuffix("/v1")
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise UserError("the base URL must be like https://api.anthropic.com")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError("the base URL must hold no password, query or fragment")
    return url


def api_key() -> str:
    key = (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN") or "").strip()
    if not key:
        raise UserError(
            "no API key: set ANTHROPIC_API_KEY in the environment or in .env (a local server takes any text)"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("ANTHROPIC_API_KEY is not a key: it holds spaces or characters that no key has")
    return key


class Client:
    """A Messages API, asked through the SDK, one HTTP call at a time. Use as an async context manager."""

    def __init__(self, host: str, key: str):
        import anthropic  # takes a second and a half: not before it is needed

        self.host, self._key, self._sdk = host, key, anthropic
        self._api = anthropic.AsyncAnthropic(api_key=key, base_url=host, max_retries=0)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_) -> None:
        await self._api.close()

    def scrub(self, text: str) -> str:
        return text.replace(self._key, "[API key]")

    async def check(self, model: str) -> None:
        """Find out before anything is spent whether server, key and model are there. Raises UserError when not."""
        try:
            async with asyncio.timeout(30):
                raw = await self._api.models.with_raw_response.retrieve(model)
            found = json.loads(raw.http_response.content)
        except self._sdk.APIStatusError as error:
            self._stop_for(error, model)
            # Some servers have no such route, and one that is busy now will be asked again: the first call will tell.
            if error.status_code == 404 and _error_type(error) == "not_found_error":
                raise UserError(f"{self.host} knows no model {model!r}: choose another with --model") from None
            return
        except self._sdk.APIConnectionError as error:
            raise UserError(f"cannot reach {self.host}: {_cause(error)}") from None
        except TimeoutError:
            raise UserError(f"{self.host} does not answer") from None
        except ValueError:
            return
        if isinstance(found, dict) and found.get("lifecycle") == "retired":
            raise UserError(f"the model {model!r} has been retired: choose another with --model")

    async def send(self, body: dict) -> Reply:
        """One call. Raises Fault (try again), Refused (not this request) or UserError (the run cannot go on)."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                raw = await self._api.messages.with_raw_response.create(**body)
            reply = read_reply(raw.http_response.content)
        except TimeoutError:
            raise Fault(f"no reply within {CALL_SECONDS} s", billed=True) from None
        except self._sdk.APIStatusError as error:
            self._stop_for(error, body["model"])
            raise self._fault(error) from None
        except self._sdk.APIConnectionError as error:
            # Before a connection stands nothing can have been charged.
            connecting = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
            raise Fault(_cause(error), billed=not connecting) from None
        return Reply(self.scrub(reply.text), reply.stop_reason, reply.input_tokens, reply.output_tokens)

    def _words(self, error) -> str:
        """What the server said of an error, in one short line."""
        said = error.body.get("error") if isinstance(error.body, dict) else None
        said = said.get("message") if isinstance(said, dict) else said
        said = said if isinstance(said, str) else ""
        return self.scrub(f"{error.status_code} {' '.join(said.split())}".strip())[:300]

    def _stop_for(self, error, model: str) -> None:
        """Raise UserError for what no further call can mend."""
        words = self._words(error)
        if error.status_code == 401:
            raise UserError(f"{self.host} does not accept the API key ({words})") from None
        if error.status_code in (402, 403):
            raise UserError(f"{self.host} refuses this account ({words})") from None
        if error.status_code == 404 and error.request.method == "POST":
            raise UserError(f"{self.host} has no model {model!r}, or no Messages API ({words})") from None
        spent = error.status_code == 429 and "enforced_spend_limit_reached" in json.dumps(error.body)
        if spent or (error.status_code == 400 and "You have reached your specified" in words):
            raise UserError(f"the spend limit of this account is reached ({words})") from None

    def _fault(self, error) -> Fault | Refused:
        status = error.status_code
        if status in (408, 409, 429) or status >= 500:
            return Fault(self._words(error), _seconds(error.response.headers), crowded=status in (429, 529))
        return Refused(self._words(error))


def _error_type(error) -> str | None:
    said = error.body.get("error") if isinstance(error.body, dict) else None
    return said.get("type") if isinstance(said, dict) else None


def _cause(error) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200] or type(error.__cause__ or error).__name__


def _seconds(headers) -> float | None:
    """retry-after in seconds; None where there is none or it is not a number."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None


# ---- the store of verdicts ----

SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL,             -- hash of all that was sent
    outcome TEXT NOT NULL,         -- sent, then ok, unparseable, refusal, truncated or error
    reply TEXT,                    -- what the judge wrote
    reason TEXT,                   -- why there is no reply
    input_tokens INTEGER,
    output_tokens INTEGER,
    dollars REAL,                  -- while the outcome is `sent`, and after a lost reply: the most that it can cost
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS calls_of_key ON calls (key);
CREATE UNIQUE INDEX IF NOT EXISTS one_verdict ON calls (key) WHERE outcome = 'ok';
"""
APPLICATION_ID = 0x4C42_5631  # marks the file as ours, in this layout


class Store:
    """Verdicts and calls on disk, in SQLite. A verdict is a call with the outcome `ok`; all others are attempts.

    Each change is committed at once: a killed process loses nothing that it was told. Raises UserError for a file that
    is damaged or not a store.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._open()
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

    def close(self) -> None:
        self._db.close()

    def verdict_keys(self) -> set[bytes]:
        return {key for (key,) in self._db.execute("SELECT key FROM calls WHERE outcome = 'ok'")}

    def sent(self, key: bytes, most: float | None) -> int:
        """Note a call before it goes out, with the most that it can cost. Returns the call's id."""
        return self._db.execute(
            "INSERT INTO calls (key, outcome, dollars) VALUES (?, 'sent', ?)", (key, most)
        ).lastrowid

    def replied(self, call: int, outcome: str, reply: Reply, cost: float | None) -> None:
        self._db.execute(
            "UPDATE calls SET outcome = ?, reply = ?, input_tokens = ?, output_tokens = ?, dollars = ? WHERE id = ?",
            (outcome, reply.text, reply.input_tokens, reply.output_tokens, cost, call),
        )

    def failed(self, call: int, reason: str, billed: bool) -> None:
        self._db.execute(
            "UPDATE calls SET outcome = 'error', reason = ?, dollars = iif(?, dollars, 0) WHERE id = ?",
            (reason, billed, call),
        )

    def adopt(self, verdicts: Iterable[tuple[bytes, str]]) -> None:
        """Take over verdicts (key, reply) that were paid for elsewhere."""
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.executemany(
                "INSERT OR IGNORE INTO calls (key, outcome, reply, dollars) VALUES (?, 'ok', ?, 0)", verdicts
            )
            cursor.execute("COMMIT")

    def best(self, key: bytes) -> tuple[str, str | None]:
        """Outcome and reply of the verdict, else of the latest attempt; ("error", None) where there is neither."""
        found = self._db.execute(
            "SELECT outcome, reply FROM calls WHERE key = ? AND outcome != 'sent' "
            "ORDER BY outcome = 'ok' DESC, id DESC LIMIT 1",
            (key,),
        ).fetchone()
        return found or ("error", None)

    def reasons(self, key: bytes) -> str | None:
        """Why the latest attempt brought no reply."""
        found = self._db.execute(
            "SELECT reason FROM calls WHERE key = ? AND outcome = 'error' ORDER BY id DESC LIMIT 1", (key,)
        ).fetchone()
        return found and found[0]

    def totals(self, keys: set[bytes]) -> "Totals":
        """Tokens and dollars of all calls, good or bad, that were made for `keys`."""
        totals = Totals()
        rows = self._db.execute("SELECT key, outcome, input_tokens, output_tokens, dollars FROM calls")
        for key, outcome, tokens_in, tokens_out, cost in rows:
            if key in keys:
                totals.calls += 1
                totals.input_tokens += tokens_in or 0
                totals.output_tokens += tokens_out or 0
                totals.dollars += cost or 0
                totals.lost_dollars += (cost or 0) if outcome in ("sent", "error") else 0
        return totals


@dataclass
class Totals:
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    lost_dollars: float = 0.0  # of these: for calls whose reply was lost, at the most that they can have cost


# ---- the retry loop ----


class Caller:
    """Asks until there is a reply, waiting and trying again as long as that can help, and writes down each call."""

    def __init__(self, client: Client, store: Store, price: tuple[float, float] | None):
        self.client, self.store, self.price = client, store, price
        self.last_good = time.monotonic()  # when any call last brought a reply
        self._refused, self._any_reply = 0, False

    async def ask(self, key: bytes, body: dict, is_answer: Callable[[str], bool]) -> str:
        """Put one prompt. Returns the status of the verdict, which is then in the store."""
        call = self.store.sent(key, self._most(body))
        tries = 0
        while True:
            started = time.monotonic()
            try:
                reply = await self.client.send(body)
            except Refused as refused:
                self.store.failed(call, str(refused), billed=False)
                self._stop_if_all_are_refused(refused)
                return "error"
            except Fault as fault:
                # While nobody gets a reply the fault is not this prompt's: such tries do not count against it.
                tries += not fault.crowded and self.last_good > started
                if fault.billed or tries >= MAX_TRIES:
                    self.store.failed(call, str(fault), fault.billed)
                if tries >= MAX_TRIES:
                    return "error"
                if fault.billed:
                    call = self.store.sent(key, self._most(body))
                await self._wait(fault, tries)
            else:
                self.last_good, self._any_reply = time.monotonic(), True
                outcome = reply.status(is_answer)
                self.store.replied(call, outcome, reply, dollars(self.price, reply.input_tokens, reply.output_tokens))
                return outcome

    def _most(self, body: dict) -> float | None:
        # A token is at least a byte; the allowance covers what the server wraps around a prompt.
        size = len(body["messages"][0]["content"].encode())
        return dollars(self.price, size + 500, body["max_tokens"])

    async def _wait(self, fault: Fault, tries: int) -> None:
        silent = time.monotonic() - self.last_good
        if silent > GIVE_UP_SECONDS:
            raise UserError(f"no reply from {self.client.host} for {silent / 60:.0f} minutes ({fault})")
        wait = fault.retry_after if fault.retry_after is not None else 2.0**tries
        await asyncio.sleep(min(wait, MAX_WAIT_SECONDS) * random.uniform(1, 1.25))

    def _stop_if_all_are_refused(self, refused: Refused) -> None:
        # One prompt may be too long; when the first few are all refused, the settings are to blame.
        self._refused += 1
        if not self._any_reply and self._refused >= 5:
            raise UserError(f"{self.client.host} refuses the requests ({refused})")
