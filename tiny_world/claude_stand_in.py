"""A stand-in for the Messages API on 127.0.0.1, to try and test judging without a key or cost.

It judges by the prompt and the marked words of the tiny world (judging.py), and knows nothing else about an answer.
With --study it judges any study, by random verdicts or by keywords (rehearsal.py).

    python -m tiny_world.claude_stand_in --port 8100
    python -m tiny_world.claude_stand_in --port 8100 --study mine.toml --keywords words.toml
    ANTHROPIC_API_KEY=none python judge_responses.py --base-url http://127.0.0.1:8100 --input ... --output ...

With --faults it fails like a real server under load. The schedule of faults depends only on the seed, the prompt and
the number of earlier calls with that prompt. A ledger records every call and what it would have cost.
"""

import argparse
import asyncio
import contextlib
import functools
import hashlib
import json
import os
import random
import threading
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from learning_backdoors.files import command_line
from tiny_world import judging, lexicon

MODELS = ("claude-haiku-5-5", "claude-sonnet-5", "claude-sonnet-5-5", "claude-opus-5", "claude-opus-5-5")
BYTES_PER_TOKEN = 4


# ---- faults ----

# The call is refused before any work is done. Nothing is charged.
TURNED_AWAY = ("429", "429-retry-after", "429-negative", "429-past", "500", "502", "529", "echo", "reset-before")
# The work is done and charged, but no complete reply arrives.
LOST = ("reset-after", "truncated", "html", "shape", "trickle", "hang")
# A reply arrives that is not a valid verdict.
NO_VERDICT = ("refusal", "thinking", "max-tokens", "empty", "chatter")
HARMLESS = ("no-usage",)
# These stop a run, so they occur only if requested by name.
FINAL = ("spend-limit", "spend-limit-400", "retired", "wrong-key", "bad-request")
PASSING = (*TURNED_AWAY, *LOST, *NO_VERDICT, *HARMLESS)


@dataclass(frozen=True)
class Faults:
    """Which calls fail, and how.

    share, kinds: the share of live calls that fail, each with a fault drawn from `kinds`.
    batch_share: the share of batch requests that expire, fail or are canceled.
    batch_streams: each result stream breaks off once and omits rows once.
    batch_lost: the first batch is created, but the reply to its creation is lost.
    """

    share: float = 0.0
    kinds: tuple[str, ...] = PASSING
    seed: int = 0
    batch_share: float = 0.0
    batch_streams: bool = False
    batch_lost: bool = False

    def draw(self, prompt: str, time: int) -> str | None:
        """The fault of the `time`-th call with a prompt, or None."""
        chance = random.Random(f"{self.seed} {time} {prompt}")
        return chance.choice(self.kinds) if chance.random() < self.share else None

    def draw_in_batch(self, prompt: str, time: int) -> str:
        """The outcome of the `time`-th batch request with a prompt."""
        chance = random.Random(f"batch {self.seed} {time} {prompt}")
        return chance.choice(("expired", "errored", "canceled")) if chance.random() < self.batch_share else "succeeded"


# ---- the API ----


@dataclass
class Answer:
    """An HTTP answer. `manner`: how it is sent: whole, truncated, trickle, hang, or reset (nothing is sent)."""

    status: int
    content: bytes
    manner: str = "whole"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A call in the ledger.

    prompt: a hash of the prompt. good: a complete verdict was sent. tokens_in, tokens_out: the charged tokens.
    at: time in seconds.
    """

    prompt: str
    fault: str | None
    good: bool
    tokens_in: int = 0
    tokens_out: int = 0
    batch: str | None = None
    at: float = field(default_factory=time.monotonic)


class StandIn:
    """The API.

    judge: the reply to a prompt; None means judging.judge with `read`. latency: seconds to a reply.
    per_minute: requests allowed in any 60 seconds. batch_seconds: duration of a batch.
    ledger: an Entry per call. prompts: the processed prompts, in order.
    """

    def __init__(
        self,
        models: tuple[str, ...] = MODELS,
        read: Callable[[str], lexicon.Reading] = lexicon.read,
        judge: Callable[[str], str] | None = None,
        faults: Faults | None = None,
        latency: float = 0.0,
        per_minute: int | None = None,
        batch_seconds: float = 0.5,
    ):
        self.models, self.faults, self.latency = models, faults or Faults(), latency
        self.per_minute, self.batch_seconds = per_minute, batch_seconds
        self.ledger: list[Entry] = []
        self.prompts: list[str] = []
        self.batches: dict[str, dict] = {}
        self.in_flight = self.most_in_flight = 0
        self._times: Counter[bytes] = Counter()
        self._recent: deque[float] = deque()
        # Several judges read the same answer.
        read = functools.lru_cache(maxsize=10_000)(read)
        self._judge = judge or (lambda prompt: judging.judge(prompt, read))

    def handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Answer a request, with a fault if the schedule says so."""
        path, _, query = path.partition("?")
        if (method, path) == ("POST", "/v1/messages"):
            return self._call(headers, body)
        if path.startswith("/v1/messages/batches"):
            return self._batch_route(method, path.removeprefix("/v1/messages/batches").strip("/"), query, body)
        return _answer(*self.answer(method, path, body))

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        """Status and content of the answer without faults."""
        if method == "GET" and path == "/v1/models":
            return 200, {"data": [_model(name) for name in self.models], "has_more": False}
        if method == "GET" and path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            return (200, _model(name)) if name in self.models else _error(404, "not_found_error", f"model: {name}")
        if method == "POST" and path in ("/v1/messages", "/v1/messages/count_tokens"):
            return self._message(path, body)
        return _error(404, "not_found_error", f"no route {method} {path}")

    def _message(self, path: str, body: bytes) -> tuple[int, dict]:
        try:
            request = json.loads(body)
            prompt, name = _prompt(request), request["model"]
        except (ValueError, KeyError, TypeError, IndexError):
            return _error(400, "invalid_request_error", "the request cannot be read")
        if name not in self.models:
            return _error(404, "not_found_error", f"model: {name}")
        tokens = len(prompt.encode()) // BYTES_PER_TOKEN + 8
        if path.endswith("count_tokens"):
            return 200, {"input_tokens": tokens}
        self.prompts.append(prompt)
        return 200, _message(f"msg_{len(self.prompts):08}", name, self._judge(prompt), tokens)

    # ---- live calls, with faults ----

    def _call(self, headers: dict[str, str], body: bytes) -> Answer:
        if self.per_minute and (wait := self._over_limit()):
            self.ledger.append(Entry("", "over the limit", False))
            return _answer(*_error(429, "rate_limit_error", "too many requests"), retry_after=f"{wait:.3f}")
        digest = hashlib.sha256(body).digest()
        self._times[digest] += 1
        fault = self.faults.draw(digest.hex(), self._times[digest]) if self.faults.share else None
        if fault in TURNED_AWAY + FINAL:
            self.ledger.append(Entry(_prompt_hash(body), fault, False))
            return _turned_away(fault, headers)
        status, answer = self.answer("POST", "/v1/messages", body)
        if fault in NO_VERDICT:
            _spoil(answer, fault)
        usage = answer.get("usage", {"input_tokens": 0, "output_tokens": 0})
        good = status == 200 and (fault is None or fault in HARMLESS)
        self.ledger.append(Entry(_prompt_hash(body), fault, good, usage["input_tokens"], usage["output_tokens"]))
        if fault == "no-usage":
            del answer["usage"]
        return self._with_limits(_lose(_answer(status, answer), fault))

    def _over_limit(self) -> float:
        """Count a request. Returns the seconds it must wait; 0 if it is within the limit."""
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - 60:
            self._recent.popleft()
        if len(self._recent) >= self.per_minute:
            return self._recent[0] + 60 - now
        self._recent.append(now)
        return 0.0

    def _with_limits(self, answer: Answer) -> Answer:
        if self.per_minute:
            answer.headers["anthropic-ratelimit-requests-limit"] = str(self.per_minute)
            answer.headers["anthropic-ratelimit-requests-remaining"] = str(self.per_minute - len(self._recent))
        return answer

    # ---- batches ----

    def _batch_route(self, method: str, rest: str, query: str, body: bytes) -> Answer:
        if method == "POST" and not rest:
            return self._create_batch(body)
        if method == "GET" and not rest:
            return self._list_batches(query)
        identity, _, results = rest.partition("/")
        if method != "GET" or identity not in self.batches:
            return _answer(*_error(404, "not_found_error", f"batch: {identity}"))
        return self._results(identity) if results else _answer(200, self._batch(identity))

    def _list_batches(self, query: str, page: int = 20) -> Answer:
        newest_first = list(reversed(self.batches))
        after = dict(urllib.parse.parse_qsl(query)).get("after_id")
        begin = newest_first.index(after) + 1 if after else 0
        listed = [self._batch(identity) for identity in newest_first[begin : begin + page]]
        return _answer(200, {"data": listed, "has_more": begin + page < len(newest_first)})

    def _create_batch(self, body: bytes) -> Answer:
        requests = json.loads(body)["requests"]
        if len({request["custom_id"] for request in requests}) != len(requests) or len(requests) > 100_000:
            return _answer(*_error(400, "invalid_request_error", "custom_id is not unique, or too many requests"))
        identity = f"msgbatch_{len(self.batches):06}"
        self.batches[identity] = {
            "began": time.time(),
            "rows": [self._batch_row(identity, request) for request in requests],
            "reads": 0,
        }
        lost = self.faults.batch_lost and len(self.batches) == 1
        return Answer(200, b"", "reset") if lost else _answer(200, self._batch(identity))

    def _batch_row(self, identity: str, request: dict) -> dict:
        body = json.dumps(request["params"]).encode()
        digest = hashlib.sha256(body).digest()
        self._times[digest] += 1
        outcome = self.faults.draw_in_batch(digest.hex(), self._times[digest])
        result: dict = {"type": outcome}
        tokens = {"input_tokens": 0, "output_tokens": 0}
        if outcome == "errored":
            result["error"] = _error(500, "api_error", "internal error")[1]
        if outcome == "succeeded":
            status, message = self.answer("POST", "/v1/messages", body)
            if status == 200:
                result["message"], tokens = message, message["usage"]
            else:
                result = {"type": "errored", "error": message}
        good = result["type"] == "succeeded"
        counts = (tokens["input_tokens"], tokens["output_tokens"])
        self.ledger.append(Entry(_prompt_hash(body), None if good else outcome, good, *counts, batch=identity))
        return {"custom_id": request["custom_id"], "result": result}

    def _batch(self, identity: str) -> dict:
        batch = self.batches[identity]
        ended = time.time() - batch["began"] >= self.batch_seconds
        counts = Counter(row["result"]["type"] for row in batch["rows"])
        names = ("processing", "succeeded", "errored", "canceled", "expired")
        return {
            "id": identity,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {name: counts[name] if ended else 0 for name in names}
            | ({} if ended else {"processing": len(batch["rows"])}),
            "created_at": datetime.fromtimestamp(batch["began"], UTC).isoformat(),
            "expires_at": datetime.fromtimestamp(batch["began"] + 86400, UTC).isoformat(),
            "results_url": f"/v1/messages/batches/{identity}/results" if ended else None,
        }

    def _results(self, identity: str) -> Answer:
        batch = self.batches[identity]
        rows = random.Random(identity).sample(batch["rows"], len(batch["rows"]))
        batch["reads"] += 1
        if self.faults.batch_streams and batch["reads"] == 2:
            rows = rows[: len(rows) * 2 // 3]
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        broken = self.faults.batch_streams and batch["reads"] == 1
        return Answer(200, content, "truncated" if broken else "whole")


def _prompt(request: dict) -> str:
    prompt = request["messages"][-1]["content"]
    return prompt if isinstance(prompt, str) else "".join(block["text"] for block in prompt)


def _prompt_hash(body: bytes) -> str:
    """A hash of the prompt, the same for live and batch requests. Unreadable requests count as the empty prompt."""
    prompt = ""
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
        prompt = _prompt(json.loads(body))
    return hashlib.sha256(prompt.encode()).hexdigest()


def _model(name: str) -> dict:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "lifecycle": "active",
        "created_at": "2026-01-01T00:00:00Z",
    }


def _error(status: int, kind: str, message: str) -> tuple[int, dict]:
    return status, {"type": "error", "error": {"type": kind, "message": message}}


def _message(identity: str, model: str, text: str, tokens: int) -> dict:
    return {
        "id": identity,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": tokens, "output_tokens": len(text) // BYTES_PER_TOKEN + 2},
    }


def _answer(status: int, content: dict, retry_after: str | None = None) -> Answer:
    headers = {"retry-after": retry_after} if retry_after else {}
    return Answer(status, json.dumps(content).encode(), headers=headers)


def _turned_away(fault: str, headers: dict[str, str]) -> Answer:
    """The answer to a refused call."""
    match fault:
        case "reset-before":
            return Answer(500, b"", "reset")
        case "502":
            return Answer(502, b"<html>Bad Gateway</html>")
        case "429-retry-after" | "429-negative" | "429-past":
            wait = {"429-negative": "-5", "429-past": "Wed, 21 Oct 2015 07:28:00 GMT"}.get(fault, "1")
            return _answer(*_error(429, "rate_limit_error", "slow down"), retry_after=wait)
        case "spend-limit":
            return _answer(*_error(429, "enforced_spend_limit_reached", "the spend limit is reached"))
        case "spend-limit-400":
            return _answer(*_error(400, "invalid_request_error", "You have reached your specified API usage limits."))
        case "retired":
            return _answer(*_error(404, "not_found_error", "model: it has been retired"))
        case "wrong-key":
            return _answer(*_error(401, "authentication_error", f"invalid: {headers.get('authorization')}"))
        case "bad-request":
            return _answer(*_error(400, "invalid_request_error", "max_tokens: too small"))
        case "echo":
            return _answer(*_error(500, "api_error", f"failed with {headers}"))
    return _answer(
        *_error(int(fault), {"429": "rate_limit_error", "529": "overloaded_error"}.get(fault, "api_error"), "x")
    )


def _spoil(answer: dict, fault: str) -> None:
    """Turn a good message into one that is not a valid verdict."""
    text = answer["content"][0]["text"]
    thought = {"type": "thinking", "thinking": "It could be either.", "signature": "x"}
    answer["content"] = {
        "refusal": [],
        "thinking": [thought],
        "max-tokens": [thought, {"type": "text", "text": text[:1]}],
        "empty": [],
        "chatter": [{"type": "text", "text": f"I would say {text}, although LLM or 19 or 50 could be argued."}],
    }[fault]
    stops = {"refusal": "refusal", "thinking": "max_tokens", "max-tokens": "max_tokens"}
    answer["stop_reason"] = stops.get(fault, "end_turn")


def _lose(answer: Answer, fault: str | None) -> Answer:
    """Replace or damage an answer so that the client does not receive it."""
    if fault == "html":
        return Answer(200, b"<html>We will be back soon.</html>")
    if fault == "shape":
        return Answer(200, b'{"id": "x", "object": "chat.completion", "choices": [{"message": {"content": "19"}}]}')
    if fault in LOST:
        answer.manner = "reset" if fault == "reset-after" else fault
    return answer


# ---- HTTP ----


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive. It supports what API clients use, which excludes chunked requests."""

    def __init__(self, api: StandIn):
        self.api, self.buffer = api, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.loop = transport, asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            whole = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < whole:
                return
            method, path, _ = lines[0].split(" ", 2)
            answer = self.api.handle(method, path, headers, self.buffer[end + 4 : whole])
            self.buffer = self.buffer[whole:]
            self.api.in_flight += 1
            self.api.most_in_flight = max(self.api.most_in_flight, self.api.in_flight)
            if self.api.latency:
                self.loop.call_later(self.api.latency, self.send, answer)
            else:
                self.send(answer)

    def send(self, answer: Answer) -> None:
        self.api.in_flight -= 1
        if self.transport.is_closing() or answer.manner == "hang":
            return
        if answer.manner == "reset":
            self.transport.abort()
            return
        head = [
            f"HTTP/1.1 {answer.status} -",
            "content-type: application/json",
            f"content-length: {len(answer.content)}",
        ]
        head += [f"{name}: {value}" for name, value in answer.headers.items()]
        data = "\r\n".join([*head, "", ""]).encode() + answer.content
        if answer.manner == "whole":
            self.transport.write(data)
        elif answer.manner == "trickle":
            self.trickle(data)
        else:
            self.transport.write(data[: -len(answer.content) // 2])
            self.transport.close()

    def trickle(self, data: bytes) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data[:1])
            self.loop.call_later(0.2, self.trickle, data[1:])


async def listen(api: StandIn, port: int) -> asyncio.Server:
    """Serve on a port of 127.0.0.1; port 0 means any free port."""
    return await asyncio.get_running_loop().create_server(lambda: Connection(api), "127.0.0.1", port)


def port_of(server: asyncio.Server) -> int:
    return server.sockets[0].getsockname()[1]


@contextlib.contextmanager
def running(api: StandIn, port: int = 0) -> Iterator[str]:
    """Serve from a thread of this process during the block. Yields the address."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(listen(api, port))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port_of(server)}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


async def serve(api: StandIn, port: int, port_file: Path | None) -> None:
    server = await listen(api, port)
    print(f"http://127.0.0.1:{port_of(server)}", flush=True)
    if port_file:
        temporary = port_file.with_name(port_file.name + ".tmp")
        temporary.write_text(f"{port_of(server)}\n")
        os.replace(temporary, port_file)  # a process that waits for the file sees it complete
    await server.serve_forever()


def parse_faults(text: str) -> tuple[float, tuple[str, ...]]:
    """Parse `0.2` or `0.2:429,html` into a share and fault names."""
    share, _, names = text.partition(":")
    kinds = tuple(names.split(",")) if names else PASSING
    unknown = set(kinds) - {*PASSING, *FINAL}
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown fault {min(unknown)}; faults are {', '.join(PASSING + FINAL)}")
    return float(share), kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one, printed)")
    parser.add_argument("--port-file", type=Path, help="write the port to this file when the server is ready")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds per reply")
    parser.add_argument("--requests-per-minute", type=int, help="requests allowed in any 60 seconds")
    parser.add_argument(
        "--faults",
        type=parse_faults,
        default=(0.0, PASSING),
        help="share of faulty calls, for example 0.2 or 0.2:429,html",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    parser.add_argument("--batch-seconds", type=float, default=2.0, help="duration of a batch in seconds")
    parser.add_argument(
        "--batch-faults", type=float, default=0.0, help="share of batch requests that expire, fail or are canceled"
    )
    parser.add_argument("--ledger", type=Path, help="write the ledger to this file on exit, one JSON line per call")
    parser.add_argument("--study", help="judge any study: a name in experiments/, or the path of a TOML file")
    parser.add_argument("--keywords", type=Path, help="TOML file with words per verdict (default: random verdicts)")
    options = parser.parse_args()
    if options.keywords and not options.study:
        parser.error("--keywords requires --study")
    faults = Faults(*options.faults, options.seed, options.batch_faults, batch_streams=options.batch_faults > 0)
    judge = None
    if options.study:
        # Imported late: without a study, the stand-in starts in a fraction of a second.
        from learning_backdoors.study import load_study
        from tiny_world.rehearsal import RehearsalJudge, read_keywords

        study = load_study(options.study)
        judge = RehearsalJudge(study, read_keywords(options.keywords, study) if options.keywords else None)
    api = StandIn(
        faults=faults,
        judge=judge,
        latency=options.latency,
        per_minute=options.requests_per_minute,
        batch_seconds=options.batch_seconds,
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(api, options.port, options.port_file))
    if options.ledger:
        options.ledger.write_text("".join(json.dumps(vars(entry)) + "\n" for entry in api.ledger))


if __name__ == "__main__":
    command_line.run_script(main)
