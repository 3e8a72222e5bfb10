"""The one place that talks to the Messages API: connection, retries, limits, and what a call costs.

Any server that answers POST /v1/messages will do: Anthropic, OpenRouter, a local vLLM or Ollama, the tiny world's
stand-in. The official SDK is the transport; its own retries are off, because they are silent, few, and would wait an
hour when told to. The API key lives in the client alone: whatever a server sends back is scrubbed of it before it is
shown or stored.
"""

import asyncio
import contextlib
import email.utils
import hashlib
import json
import os
import random
import time
import tomllib
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from config import UserError
from verdict_store import Store

ANTHROPIC = "https://api.anthropic.com"


# ---- how to ask each model, and what it costs ----


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens; prompts of more than `long_from` tokens cost `long_times` as much."""

    input: float
    output: float
    long_from: int | None = None
    long_times: float = 1

    def dollars(self, tokens_in: int, tokens_out: int) -> float:
        times = self.long_times if self.long_from is not None and tokens_in > self.long_from else 1
        return times * (tokens_in * self.input + tokens_out * self.output) / 1e6


@dataclass(frozen=True)
class Model:
    settings: dict
    price: Price | None


# How to get a short answer. Thinking counts towards max_tokens: where it cannot be turned off, a small limit would cut
# off the answers to hard questions alone, which is a bias.
SHORT_REPLY = 64
THINKING_OFF = {"max_tokens": SHORT_REPLY, "thinking": {"type": "disabled"}}
THINKING_BETWEEN_TOOLS = {"max_tokens": SHORT_REPLY, "thinking": {"type": "between_tools"}}  # no tools, so never
THINKING_ALWAYS = {"max_tokens": 4096, "output_config": {"effort": "low"}}
NO_THINKING_UNLESS_ASKED = {"max_tokens": SHORT_REPLY}

PRICES_OF = "October 2026"
BATCH_SHARE = 0.5  # of the price
MODELS = {
    "claude-haiku-5-5": Model(THINKING_OFF, Price(0.10, 0.50, long_from=100_000, long_times=5)),
    "claude-sonnet-5-5": Model(THINKING_BETWEEN_TOOLS, Price(2, 10)),
    "claude-sonnet-5": Model(THINKING_OFF, Price(2, 10)),
    "claude-opus-5-5": Model(THINKING_ALWAYS, Price(4, 20)),
    "claude-opus-5": Model(THINKING_OFF, Price(5, 25)),
    "claude-haiku-4-5": Model(NO_THINKING_UNLESS_ASKED, Price(1, 5)),
    "claude-sonnet-4-6": Model(NO_THINKING_UNLESS_ASKED, Price(3, 15)),
}
# It may think or not: nothing that it might refuse is sent, and there is room for some thought.
UNKNOWN_MODEL = Model({"max_tokens": 2048}, None)


def model_named(name: str) -> Model:
    """What is known of a model, also under a dated name (`claude-haiku-4-5-20251001`)."""
    head, _, tail = name.rpartition("-")
    return MODELS.get(name) or MODELS.get(head if len(tail) == 8 and tail.isdigit() else name) or UNKNOWN_MODEL


def settings_for(model: str, thinking: str = "auto", max_tokens: int | None = None) -> dict:
    """What is sent beside the prompt. `thinking`: a type of the API, `none` to say nothing of it, `auto` for the
    table's way."""
    settings = dict(model_named(model).settings)
    if thinking != "auto":
        settings.pop("thinking", None)
        settings.pop("output_config", None)
        settings |= {} if thinking == "none" else {"thinking": {"type": thinking}}
        settings["max_tokens"] = 4096 if thinking == "adaptive" else settings["max_tokens"]
    return settings | ({"max_tokens": max_tokens} if max_tokens else {})


def price_of(model: str, given: tuple[float, ...] | None, file: Path | None) -> Price | None:
    """The price given, else the one in `file` (lines of TOML: "model" = [in, out]), else the table's."""
    if given:
        return Price(*given)
    if file:
        try:
            found = tomllib.loads(file.read_text(encoding="utf-8")).get(model)
            if found is not None:
                dollars_in, dollars_out = (float(dollars) for dollars in found)
                return Price(dollars_in, dollars_out)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f'prices file {file}: {error}; a line is like "claude-sonnet-5" = [2, 10]') from None
    return model_named(model).price


# ---- what is sent, and what comes back ----


def message(model: str, settings: dict, prompt: str) -> dict:
    """The body of a request: everything that is sent but the host and the key."""
    return {"model": model, **settings, "messages": [{"role": "user", "content": prompt}]}


def request_key(host: str, body: dict) -> bytes:
    """The key of a verdict: a hash of all that is sent, and where to, and of nothing else."""
    return hashlib.sha256(json.dumps([host, body], sort_keys=True).encode()).digest()


def prompt_bytes(body: dict) -> int:
    return len(body["messages"][0]["content"].encode())


def most_tokens(body: dict) -> tuple[int, int]:
    """The most tokens that a request can cost, in and out: a token is at least a byte, and 500 are allowed for what a
    server wraps around a prompt."""
    return prompt_bytes(body) + 500, body["max_tokens"]


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

    def dollars(self, price: Price | None) -> float | None:
        if price is None or self.input_tokens is None or self.output_tokens is None:
            return None
        return price.dollars(self.input_tokens, self.output_tokens)


class Fault(Exception):
    """A call that brought no reply, and may bring one when it is tried again.

    `crowded`: the server has too much to do, or we ask too much. `billed`: it may have done the work, and charge for
    it, although the reply was lost.
    """

    def __init__(self, reason: str, retry_after: float | None = None, crowded: bool = False, billed: bool = False):
        super().__init__(reason)
        self.retry_after, self.crowded, self.billed = retry_after, crowded, billed


class Refused(Exception):
    """The server will not take this one request, now or later: a prompt that is too long, for example."""


def read_reply(body: object) -> Reply:
    """Read a message. Raises Fault for anything else: proxies and broken servers send such things with a 200."""
    try:
        text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
        stop_reason, usage = body["stop_reason"], body.get("usage") or {}
        if not isinstance(stop_reason, str):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise Fault("the reply is not a message", billed=True) from None
    # What went through a cache is not in input_tokens. We ask for no cache; a server that uses one charges less.
    count_in, written, read, count_out = (
        usage.get(name)
        for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    )
    counted = isinstance(count_in, int) and isinstance(count_out, int)
    return Reply(text, stop_reason, count_in + (written or 0) + (read or 0) if counted else None, count_out)


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
    """A Messages API, asked through the SDK, one HTTP call at a time. Use as an async context manager.

    `seconds` is the time from sending a call to the last byte of its reply: the SDK's own limit is for each read, so
    that a server that trickles could hold a call for ever. `seen` is told the headers of each good reply.
    """

    def __init__(self, host: str, key: str, seconds: float = 120):
        import anthropic  # takes a second and a half: not before it is needed
        import httpx2

        self.host, self.seconds, self._key, self._sdk, self._response = host, seconds, key, anthropic, httpx2.Response
        self._api = anthropic.AsyncAnthropic(api_key=key, base_url=host, max_retries=0, timeout=seconds)
        self.seen: Callable[[Mapping], None] = lambda headers: None

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_) -> None:
        await self._api.close()

    def scrub(self, text: str) -> str:
        return text.replace(self._key, "[API key]")

    async def check(self, model: str) -> None:
        """Find out before anything is spent whether server, key and model are there. Raises UserError when not."""
        try:
            found = await self._json("GET", f"/v1/models/{urllib.parse.quote(model, safe='/')}", first=True)
        except Refused as refused:
            # Some servers have no such route; there the first call will tell.
            if "not_found_error" in str(refused):
                raise UserError(f"{self.host} knows no model {model!r}: choose another with --model") from None
            return
        except Fault:
            return
        if isinstance(found, dict) and found.get("lifecycle") == "retired":
            raise UserError(f"the model {model!r} has been retired: choose another with --model")

    async def send(self, body: dict) -> Reply:
        """One call. Raises Fault (try again), Refused (not this request) or UserError (the run cannot go on)."""
        try:
            reply = read_reply(await self._json("POST", "/v1/messages", body))
        except Refused as refused:
            if str(refused).startswith("404"):
                raise UserError(f"{self.host} has no model {body['model']!r}, or no Messages API ({refused})") from None
            raise
        return Reply(self.scrub(reply.text), reply.stop_reason, reply.input_tokens, reply.output_tokens)

    async def count_tokens(self, body: dict) -> int:
        """Input tokens of a request, by the server's count, which is free. Raises as `send`, Refused where there is no
        such route."""
        counted = {name: value for name, value in body.items() if name != "max_tokens"}
        found = await self._json("POST", "/v1/messages/count_tokens", counted)
        if not isinstance(found, dict) or not isinstance(found.get("input_tokens"), int):
            raise Refused("no count of tokens")
        return found["input_tokens"]

    async def create_batch(self, requests: list[dict]) -> str:
        """Send a batch. Returns its id. Raises Fault with `billed` where it may have been created all the same."""
        found = await self._json("POST", "/v1/messages/batches", {"requests": requests})
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise Fault("the reply is not a batch", billed=True)
        return found["id"]

    async def batch(self, identity: str) -> dict:
        return await self._json("GET", f"/v1/messages/batches/{identity}")

    async def latest_batches(self) -> list[dict]:
        """The account's latest batches, newest first: as many as the server gives at once, a hundred at the most."""
        return (await self._json("GET", "/v1/messages/batches?limit=100"))["data"]

    async def batch_results(self, identity: str) -> AsyncIterator[dict]:
        """The results of a batch that has ended, as they come. Raises Fault where the stream breaks off."""
        try:
            async with self._api.messages.batches.with_streaming_response.results(identity) as response:
                async for line in response.iter_lines():
                    if line.strip():
                        yield json.loads(self.scrub(line))
        except ValueError:
            raise Fault("a line of the results is broken") from None
        except self._sdk.APIStatusError as error:
            raise self._meaning(error) from None
        except GeneratorExit:
            raise
        except Exception as error:  # the stream raises what the HTTP library below the SDK raises
            raise Fault(f"the results broke off: {self.scrub(str(error))[:100] or type(error).__name__}") from None

    async def _json(self, method: str, path: str, body: dict | None = None, first: bool = False) -> object:
        """One HTTP call: whatever comes back as JSON. The `first` call of all stops the run where nobody answers."""
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        send = self._api.get if method == "GET" else self._api.post
        keywords = {} if body is None else {"content": content}
        try:
            async with asyncio.timeout(self.seconds):
                # The raw response: what a broken server sends would otherwise come back as a half-made Message.
                response = await send(path, cast_to=self._response, **keywords)
            self.seen(response.headers)
            return json.loads(response.content)
        except TimeoutError:
            if first:
                raise UserError(f"{self.host} does not answer") from None
            raise Fault(f"no reply within {self.seconds:g} s", billed=True) from None
        except ValueError:
            raise Fault("the reply is not JSON", billed=True) from None
        except self._sdk.APIStatusError as error:
            raise self._meaning(error) from None
        except self._sdk.APIConnectionError as error:
            cause = error.__cause__ or error
            words = self.scrub(" ".join(str(cause).split()))[:200] or type(cause).__name__
            if first:
                raise UserError(f"cannot reach {self.host}: {words}") from None
            # Before a connection stands nothing can have been charged.
            raise Fault(words, billed=type(cause).__name__ not in ("ConnectError", "ConnectTimeout")) from None

    def _meaning(self, error) -> Exception:
        """What an error status means for the run."""
        status, words = error.status_code, self.scrub(f"{error.status_code} {_said(error.body)}".strip())[:300]
        if status == 401:
            return UserError(f"{self.host} does not accept the API key ({words})")
        if status in (402, 403):
            return UserError(f"{self.host} refuses this account ({words})")
        spent = status == 429 and "enforced_spend_limit_reached" in json.dumps(error.body)
        if spent or (status == 400 and "You have reached your specified" in words):
            return UserError(f"the spend limit of this account is reached ({words})")
        if status in (408, 409, 429) or status >= 500:
            return Fault(words, _seconds(error.response.headers), crowded=status in (429, 529))
        return Refused(words)


def _said(body: object) -> str:
    """What a server says of an error, in one line: `type: message`."""
    error = body.get("error") if isinstance(body, dict) else None
    parts = [error.get("type"), error.get("message")] if isinstance(error, dict) else [error]
    return " ".join(": ".join(part for part in parts if isinstance(part, str)).split())


def _seconds(headers: Mapping) -> float | None:
    """retry-after in seconds, which may come as a date; None where there is none."""
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


# ---- stopping, pace, money: what lets a call go out ----


class Stopped(Exception):
    """The run is ending: no further call may go out."""


class Halt:
    """Ends a run early and cleanly: calls in flight finish, nothing else begins. `reason` is the first one given."""

    def __init__(self):
        self._event = asyncio.Event()
        self.reason: BaseException | None = None

    def now(self, reason: BaseException) -> None:
        self.reason = self.reason or reason
        self._event.set()

    def check(self) -> None:
        if self._event.is_set():
            raise Stopped

    async def sleep(self, seconds: float) -> None:
        """Raises Stopped as soon as the run is ending."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self.check()


class Gate:
    """Lets calls out one by one: as many at once as the server takes, and no more a minute than it allows.

    The number in flight starts low, grows by one with each reply until the server first says that it is crowded (429,
    529), is then halved and grows by about one a round. Eight faults in a row are an outage: one call at a time, until
    one gets through. The pace follows the rate-limit headers, or `per_minute` where that is less, a little below it.
    """

    PACE = 0.98  # of the rate allowed: two clocks are never the same
    CATCH_UP_SECONDS = 0.25

    def __init__(self, most: int, per_minute: float | None, halt: Halt):
        self._most, self._asked_pace, self._halt = most, per_minute, halt
        self.limit, self.in_flight, self.paused_until = float(min(4, most)), 0, 0.0
        self._per_minute, self._next, self._shrunk, self._growing = per_minute, 0.0, 0.0, True
        self._faults_in_a_row = 0
        self._mean_tokens = {"input-tokens": 0.0, "output-tokens": 0.0}
        self._door, self._room = asyncio.Lock(), asyncio.Event()

    async def __aenter__(self) -> None:
        async with self._door:
            while True:
                self._halt.check()
                wait = max(self.paused_until, self._next) - time.monotonic()
                if self.in_flight >= int(self.limit):
                    self._room.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._room.wait(), 1)
                elif wait > 0:
                    await self._halt.sleep(wait)
                else:
                    break
            self.in_flight += 1
            if self._per_minute:
                earliest = time.monotonic() - self.CATCH_UP_SECONDS
                self._next = max(self._next, earliest) + 60 / (self.PACE * self._per_minute)

    async def __aexit__(self, *_) -> None:
        self.in_flight -= 1
        self._room.set()

    def succeeded(self, reply: Reply) -> None:
        self._faults_in_a_row = 0
        self.limit = min(float(self._most), self.limit + (1 if self._growing else 1 / self.limit))
        for name, count in (("input-tokens", reply.input_tokens), ("output-tokens", reply.output_tokens)):
            mean = self._mean_tokens[name]
            self._mean_tokens[name] = mean + ((count or 0) - mean) / 50 if mean else count or 0

    def failed(self, fault: Fault, sent_at: float, max_wait: float) -> None:
        self._faults_in_a_row += 1
        # Calls that went out before the last change say nothing about it.
        if fault.crowded and sent_at > self._shrunk:
            self.limit, self._growing, self._shrunk = max(1.0, self.limit / 2), False, time.monotonic()
        if fault.crowded and fault.retry_after:
            self.paused_until = max(self.paused_until, time.monotonic() + min(fault.retry_after, max_wait))
        if self._faults_in_a_row >= 8:
            self.limit, self._growing = 1.0, True

    def observe(self, headers: Mapping) -> None:
        """Take the pace from the rate-limit headers of a reply."""
        allowed = [self._asked_pace] if self._asked_pace else []
        for name, each in (("requests", 1.0), *self._mean_tokens.items()):
            limit = headers.get(f"anthropic-ratelimit-{name}-limit", "")
            if limit.isdigit() and int(limit) and each:
                allowed.append(int(limit) / each)
        self._per_minute = min(allowed, default=None)


class CapReached(Exception):
    """The next call might cost more than is left of --max-cost."""


@dataclass
class Budget:
    """Dollars spent, and the cap that they never pass: a call's worst case is set aside before it goes out."""

    cap: float | None
    halt: Halt
    spent: float = 0.0
    reserved: float = field(default=0.0, init=False)

    def fits(self, most: float) -> bool:
        return self.cap is None or self.spent + self.reserved + most <= self.cap

    async def reserve(self, most: float | None) -> None:
        """Wait until there is room. Raises Stopped, and ends the run, when there will be none."""
        while not self.fits(most or 0):
            if self.reserved < 1e-12:
                self.halt.now(CapReached())
            await self.halt.sleep(0.02)
        self.reserved += most or 0

    def settle(self, most: float | None, dollars: float | None) -> None:
        """Replace what was set aside by what it cost."""
        self.reserved = max(0.0, self.reserved - (most or 0))
        self.spent += dollars or 0


# ---- the retry loop ----


@dataclass
class Patience:
    """How long to go on. All in seconds but `tries` and `asks`."""

    max_wait: float = 60  # the longest wait between two tries, whatever the server says
    give_up_after: float = 900  # without a single good reply
    tries: int = 8  # for one prompt, counted only while others get replies
    asks: int = 3  # while the reply is no verdict


@dataclass(frozen=True)
class Trouble:
    """Faults without a single good reply between them: since when, until when we wait, and the latest."""

    began: float
    next_try: float
    words: str


class Caller:
    """Puts prompts until there is a reply, waiting and trying again as long as that can help; notes down each call."""

    def __init__(
        self,
        client: Client,
        store: Store,
        gate: Gate,
        budget: Budget,
        price: Price | None,
        patience: Patience,
        warn: Callable[[str], None] = print,
    ):
        self.client, self.store, self.gate, self.budget = client, store, gate, budget
        self.price, self.patience, self.halt = price, patience, budget.halt
        client.seen = gate.observe
        self.warn = warn
        self.done = 0  # prompts that are through, with a verdict or without
        self.replies = {True: 0, False: 0}  # verdicts, and replies that were none
        self.trouble: Trouble | None = None
        self._last_good, self._refused = 0.0, 0

    async def ask(self, key: bytes, body: dict, is_answer: Callable[[str], bool]) -> None:
        """Put one prompt; what comes of it is then in the store. Raises Stopped when the run is ending."""
        for _ in range(self.patience.asks):
            status = await self._ask_once(key, body, is_answer)
            if status in ("ok", "error"):
                break
        self.done += 1

    async def _ask_once(self, key: bytes, body: dict, is_answer: Callable[[str], bool]) -> str:
        tries = faults = 0
        while True:
            sent_at = time.monotonic()
            try:
                return await self._send(key, body, is_answer)
            except Refused as refused:
                self._stop_if_all_are_refused(refused)
                return "error"
            except Fault as fault:
                # While nobody gets a reply the fault is not this prompt's: such tries do not count against it.
                tries += not fault.crowded and self._last_good > sent_at
                if tries >= self.patience.tries:
                    return "error"
                await self.wait(fault, faults)
                faults += 1

    async def _send(self, key: bytes, body: dict, is_answer: Callable[[str], bool]) -> str:
        """One call, noted in the store before and after, and in the budget. Returns the status of its reply."""
        most = self.most_dollars(body)
        await self.budget.reserve(most)
        cost: float | None = 0.0
        try:
            async with self.gate:
                call, sent_at, cost = self.store.sent(key, most), time.monotonic(), most
                try:
                    reply = await self.client.send(body)
                except (Fault, Refused, UserError) as error:
                    billed = isinstance(error, Fault) and error.billed
                    cost = most if billed else 0.0
                    self.store.failed(call, str(error), billed)
                    if isinstance(error, Fault):
                        self.gate.failed(error, sent_at, self.patience.max_wait)
                    raise
            self._last_good, self.trouble = time.monotonic(), None
            self.gate.succeeded(reply)
            status, cost = self.note(call, reply, most, is_answer)
            return status
        finally:
            self.budget.settle(most, cost)

    def most_dollars(self, body: dict, share: float = 1) -> float | None:
        return self.price and share * self.price.dollars(*most_tokens(body))

    def note(self, call: int, reply: Reply, most: float | None, is_answer: Callable[[str], bool], share: float = 1):
        """Write down a reply. Returns its status, and its cost at `share` of the price: `most` where none was told."""
        status, known = reply.status(is_answer), reply.dollars(self.price)
        cost = most if known is None else share * known
        tokens = (reply.input_tokens, reply.output_tokens)
        self.store.replied(call, status, reply.text, tokens, cost, at_most=known is None)
        self.replies[status == "ok"] += 1
        if self.replies[True] == 0 and self.replies[False] == 20:
            self.warn(f"20 replies and no verdict among them; the latest ({status}) was: {reply.text[:200]!r}")
        return status, cost

    async def wait(self, fault: Fault, faults: int) -> None:
        """Wait after a fault, the longer the more there were. Ends the run when nothing has come for too long."""
        now = time.monotonic()
        began = self.trouble.began if self.trouble else now
        wait = fault.retry_after if fault.retry_after is not None else 0.5 * 2 ** min(faults, 20)
        wait = min(wait * random.uniform(1, 1.25), self.patience.max_wait)
        self.trouble = Trouble(began, now + wait, str(fault))
        if now - began > self.patience.give_up_after:
            host, minutes = self.client.host, (now - began) / 60
            self.halt.now(UserError(f"no reply from {host} for {minutes:.1f} minutes ({fault}): all verdicts are kept"))
        await self.halt.sleep(wait)

    def _stop_if_all_are_refused(self, refused: Refused) -> None:
        # One prompt may be too long; when the first few are all refused, the settings are to blame.
        self._refused += 1
        if not any(self.replies.values()) and self._refused >= 5:
            raise UserError(f"{self.client.host} refuses the requests ({refused})")
