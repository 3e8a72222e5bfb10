"""The one place that talks to the Messages API: how to ask each model, what that costs, and what a reply means.

Any server that answers POST /v1/messages will do: Anthropic, OpenRouter, a local vLLM or Ollama, the tiny world's
stand-in. The official SDK is the transport; its own retries are off, because they are silent, few, and would wait an
hour when told to (caller.py has ours). The API key lives in the client alone: whatever a server sends back is scrubbed
of it before it is shown or stored.
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import hashlib
import itertools
import json
import math
import os
import time
import tomllib
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from learning_backdoors.files.errors import UserError

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
    # OpenRouter's names are like anthropic/claude-sonnet-5.5; its prices are its own, but the models are the same.
    settings = dict(model_named(model.rpartition("/")[2].replace(".", "-")).settings)
    if thinking != "auto":
        settings.pop("thinking", None)
        settings.pop("output_config", None)
        settings |= {} if thinking == "none" else {"thinking": {"type": thinking}}
        settings["max_tokens"] = 4096 if thinking == "adaptive" else settings["max_tokens"]
    return settings | ({"max_tokens": max_tokens} if max_tokens else {})


def price_of(model: str, host: str, given: tuple[float, ...] | None, file: Path | None) -> Price | None:
    """The price given, else the one in `file` (lines of TOML: "model" = [in, out]), else the table's, which holds for
    Anthropic's own host alone: what another asks for a model of the same name is not known here."""
    if given:
        return Price(*given)
    if file:
        try:
            found = tomllib.loads(file.read_text(encoding="utf-8")).get(model)
            if found is not None:
                dollars_in, dollars_out = (float(dollars) for dollars in found)
                if not all(0 <= dollars < math.inf for dollars in (dollars_in, dollars_out)):
                    raise ValueError(f"{model!r}: a price must be from 0 up")
                return Price(dollars_in, dollars_out)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f'prices file {file}: {error}; a line is like "claude-sonnet-5" = [2, 10]') from None
    return model_named(model).price if host == ANTHROPIC else None


def require_price(price: Price | None, model: str, host: str) -> None:
    """Raise UserError where there is no price to keep --max-cost by."""
    if price is None:
        raise UserError(f"no price is known for {model!r} at {host}, so --max-cost cannot be kept: give it as --price")


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
        stop_reason, usage = body["stop_reason"], body.get("usage")
        if not isinstance(stop_reason, str):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise Fault("the reply is not a message", billed=True) from None
    return Reply(text, stop_reason, *_tokens(usage))


def _tokens(usage: object) -> tuple[int, int] | tuple[None, None]:
    """Tokens in and out; twice None where a server does not count them, or counts what cannot be."""
    told = usage if isinstance(usage, dict) else {}
    # What went through a cache is not in input_tokens. We ask for no cache; a server that uses one charges less.
    cached = [told.get(name) or 0 for name in ("cache_creation_input_tokens", "cache_read_input_tokens")]
    counts = [told.get("output_tokens"), told.get("input_tokens"), *cached]
    if not all(type(count) is int and 0 <= count < 2**40 for count in counts):
        return None, None
    return sum(counts[1:]), counts[0]


def created(batch: dict) -> float:
    """When a batch was created, in seconds since 1970."""
    return datetime.fromisoformat(batch["created_at"]).timestamp()


def _listed(batch: object) -> bool:
    """Whether an entry of the list of batches has what we look at."""
    try:
        created(batch)
        sum(batch["request_counts"].values())
        return isinstance(batch["id"], str) and isinstance(batch["processing_status"], str)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


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
    that a server that trickles could hold a call for ever. `seen` is told the headers of each good reply. `proven` is
    whether the server has answered a prompt: what it refuses from then on is refused for what the prompt says.
    """

    POOLS = 8  # of connections: to find a free one takes the longer the more there are
    SHORTEST_SECRET = 12  # characters; "none" and "0", which local servers are given, are parts of honest replies

    def __init__(self, host: str, key: str, seconds: float = 120):
        import anthropic  # takes a second and a half: not before it is needed
        import httpx2

        self.host, self.seconds, self._key, self._sdk, self._http = host, seconds, key, anthropic, httpx2
        self._api = anthropic.AsyncAnthropic(api_key=key, base_url=host, max_retries=0, timeout=seconds)
        # Judge calls go out over HTTP clients of the SDK's making, with the SDK's headers, but past its data models:
        # to build and check these takes a third of a call's processor time, and half-made ones hide broken replies.
        headers = {**self._api.default_headers, **self._api.auth_headers}
        self._headers = {
            name: value
            for name, value in headers.items()
            if isinstance(value, str) and not name.lower().startswith("x-stainless")  # the SDK's statistics on itself
        }
        self._messages = httpx2.URL(f"{host}/v1/messages")
        self._pools = [anthropic.DefaultAsyncHttpxClient(timeout=seconds) for _ in range(self.POOLS)]
        self._next_pool = itertools.cycle(self._pools)
        self.seen: Callable[[Mapping], None] = lambda headers: None
        self.proven = False

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_) -> None:
        for connections in (self._api, *self._pools):
            await connections.__aexit__(None, None, None)

    def scrub(self, text: str) -> str:
        """A text of the server's as it may be shown and stored: without the key, and without halves of characters,
        which no file takes."""
        text = text.encode("utf-8", "replace").decode()
        return text.replace(self._key, "[API key]") if len(self._key) >= self.SHORTEST_SECRET else text

    def read(self, message: object) -> Reply:
        """Read a message; its text comes scrubbed. Raises Fault for anything else."""
        reply = read_reply(message)
        self.proven = True
        return dataclasses.replace(reply, text=self.scrub(reply.text))

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
            return self.read(await self._json("POST", "/v1/messages", body))
        except Refused as refused:
            if str(refused).startswith("404"):
                raise UserError(f"{self.host} has no model {body['model']!r}, or no Messages API ({refused})") from None
            raise

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
        found = await self._json("GET", f"/v1/messages/batches/{identity}")
        if not isinstance(found, dict) or not isinstance(found.get("processing_status"), str):
            raise Fault("the reply is not a batch")
        return found

    async def batches_since(self, began: float) -> list[dict]:
        """The account's batches, newest first, back to a time (seconds since 1970)."""
        found: list[dict] = []
        while True:
            after = f"&after_id={found[-1]['id']}" if found else ""
            page = await self._json("GET", f"/v1/messages/batches?limit=100{after}")
            if (
                not isinstance(page, dict)
                or not isinstance(page.get("data"), list)
                or not all(map(_listed, page["data"]))
            ):
                raise Fault("the reply is not a list of batches")
            found += page["data"]
            if not page["data"] or not page.get("has_more") or created(found[-1]) < began:
                return found

    async def batch_results(self, identity: str) -> AsyncIterator[dict]:
        """The results of a batch that has ended, as they come. Raises Fault where the stream breaks off."""
        try:
            async with self._api.messages.batches.with_streaming_response.results(identity) as response:
                async for line in response.iter_lines():
                    if line.strip():
                        found = json.loads(line)
                        if not isinstance(found["custom_id"] + found["result"]["type"], str):
                            raise TypeError
                        yield found
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Fault("a line of the results is broken") from None
        except self._sdk.APIStatusError as error:
            raise self._meaning(error.response) from None
        except Exception as error:  # the stream raises what the HTTP library below the SDK raises
            raise Fault(f"the results broke off: {self.scrub(str(error))[:100] or type(error).__name__}") from None

    async def _json(self, method: str, path: str, body: dict | None = None, first: bool = False) -> object:
        """One HTTP call: whatever comes back as JSON. The `first` call of all stops the run where nobody answers."""
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        try:
            async with asyncio.timeout(self.seconds):
                response = await self._exchange(method, path, content)
            if response.is_error:
                raise self._meaning(response, of_prompt=path == "/v1/messages")
            self.seen(response.headers)
            return json.loads(response.content)
        except TimeoutError:
            if first:
                raise UserError(f"{self.host} does not answer") from None
            raise Fault(f"no reply within {self.seconds:g} s", billed=True) from None
        except (ValueError, RecursionError):
            raise Fault("the reply is not JSON", billed=True) from None
        except self._http.HTTPError as error:
            words = self.scrub(" ".join(str(error).split()))[:200] or type(error).__name__
            if first:
                raise UserError(f"cannot reach {self.host}: {words}") from None
            # Before a connection stands nothing can have been charged.
            connecting = isinstance(error, self._http.ConnectError | self._http.ConnectTimeout)
            raise Fault(words, billed=not connecting) from None

    async def _exchange(self, method: str, path: str, content: bytes | None):
        """Send, and return the response, of whatever status. Raises httpx2.HTTPError where there is none."""
        if path == "/v1/messages":
            return await next(self._next_pool).post(self._messages, content=content, headers=self._headers)
        send, body = (self._api.get, {}) if method == "GET" else (self._api.post, {"content": content})
        try:
            return await send(path, cast_to=self._http.Response, **body)
        except self._sdk.APIStatusError as error:
            return error.response
        except self._sdk.APIConnectionError as error:
            raise error.__cause__ or self._http.HTTPError(str(error)) from None

    def _meaning(self, response, of_prompt: bool = False) -> Exception:
        """What an error status means for the run. A 403 is for the account, or for one prompt that was flagged."""
        status, said = response.status_code, _said(response.content)
        words = self.scrub(f"{status} {said}".strip())[:300]
        if status == 401:
            return UserError(f"{self.host} does not accept the API key ({words})")
        if status == 402 or (status == 403 and not (of_prompt and self.proven)):
            return UserError(f"{self.host} refuses this account ({words})")
        spent = status == 429 and b"enforced_spend_limit_reached" in response.content
        if spent or (status == 400 and "You have reached your specified" in said):
            return UserError(f"the spend limit of this account is reached ({words})")
        if status in (408, 409, 429) or status >= 500:
            return Fault(words, _seconds(response.headers), crowded=status in (429, 529))
        return Refused(words)


def _said(content: bytes) -> str:
    """What a server says of an error, in one line: `type: message`; nothing where it says it in another form."""
    try:
        error = json.loads(content)["error"]
        kind, words = error.get("type"), error["message"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return " ".join((f"{kind}: {words}" if kind else str(words)).split())


def _seconds(headers: Mapping) -> float | None:
    """retry-after in seconds, which may come as a date; None where there is none."""
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
