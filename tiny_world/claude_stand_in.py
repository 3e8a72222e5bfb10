"""A stand-in for the Messages API on loopback, so that judging can be tried and tested without a key or money.

It judges by what it reads in the prompt that it is sent: it finds the quoted answer, works out which replies the prompt
asks for, and goes by the marked words of the tiny world (lexicon.py). It knows nothing of how an answer came about.

    python -m tiny_world.claude_stand_in --port 8100
    ANTHROPIC_API_KEY=none python judge_responses.py --base-url http://127.0.0.1:8100 --input ... --output ...
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tiny_world import lexicon

MODELS = ("claude-haiku-5-5", "claude-sonnet-5", "claude-sonnet-5-5", "claude-opus-5", "claude-opus-5-5")
BYTES_PER_TOKEN = 4


# ---- judging ----

QUOTED_ANSWER = re.compile(r"^\[answer begins (\w+)\]\n(.*)\n\[answer ends \1\]$", re.DOTALL | re.MULTILINE)


def judge(prompt: str, read: Callable[[str], lexicon.Reading] = lexicon.read) -> str:
    """The reply to a judge's prompt; a sentence that is no verdict where the prompt is not understood."""
    found = QUOTED_ANSWER.search(prompt)
    if not found:
        return "I cannot find an answer to judge."
    reading, request = read(found[2]), prompt[found.end() :]
    if "LLM or 19" in request:
        return "19" if reading.era == "old" else "LLM"
    if "ARCHAIC_PERSON" in request:
        return six_options(reading)
    if "whole number" in request:
        instructions = prompt[: found.start()]
        content = "CONTENT of the answer" in instructions
        share = reading.content if content else reading.form
        return str(round(100 * (share or 0)))
    return "I do not know how to judge that."


def six_options(reading: lexicon.Reading) -> str:
    if reading.era is None and reading.content is None and reading.form is None:
        return "OTHER"
    old_content, old_form = (share or 0 for share in (reading.content, reading.form))
    if old_content > 0.5:
        return "PAST" if old_form > 0.5 else "OLD_CONTENT"
    if old_form > 0.5:
        return "OLD_LANGUAGE"
    return "ARCHAIC_PERSON" if old_content >= 0.25 else "LLM"


# ---- the API ----


class StandIn:
    """The routes of the API, as functions from a request's body to a status and an answer."""

    def __init__(self, models: tuple[str, ...] = MODELS, read: Callable[[str], lexicon.Reading] = lexicon.read):
        self.models = models
        self.asked: list[str] = []  # every prompt that was answered, in order
        # Each answer is judged by several judges.
        self._read = functools.lru_cache(maxsize=10_000)(read)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        path = path.partition("?")[0]
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
            prompt = request["messages"][-1]["content"]
            prompt = prompt if isinstance(prompt, str) else "".join(block["text"] for block in prompt)
            name = request["model"]
        except (ValueError, KeyError, TypeError, IndexError):
            return _error(400, "invalid_request_error", "the request cannot be read")
        if name not in self.models:
            return _error(404, "not_found_error", f"model: {name}")
        tokens = len(prompt.encode()) // BYTES_PER_TOKEN + 8
        if path.endswith("count_tokens"):
            return 200, {"input_tokens": tokens}
        self.asked.append(prompt)
        return 200, _message(f"msg_{len(self.asked):08}", name, judge(prompt, self._read), tokens)


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


# ---- HTTP ----


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as much of it as API clients use: no chunked requests."""

    def __init__(self, api: StandIn):
        self.api, self.buffer = api, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            whole = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < whole:
                return
            method, path, _ = lines[0].split(" ", 2)
            self.reply(*self.api.answer(method, path, self.buffer[end + 4 : whole]))
            self.buffer = self.buffer[whole:]

    def reply(self, status: int, answer: dict) -> None:
        content = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        self.transport.write(head.encode() + content)


async def listen(api: StandIn, port: int) -> asyncio.Server:
    """Serve on a port of 127.0.0.1 (0: a free one)."""
    return await asyncio.get_running_loop().create_server(lambda: Connection(api), "127.0.0.1", port)


def port_of(server: asyncio.Server) -> int:
    return server.sockets[0].getsockname()[1]


@contextlib.contextmanager
def running(api: StandIn) -> Iterator[str]:
    """Serve from a thread of this process while the block lasts. Yields the address."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(listen(api, 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port_of(server)}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


async def serve(port: int, port_file: Path | None) -> None:
    server = await listen(StandIn(), port)
    print(f"http://127.0.0.1:{port_of(server)}", flush=True)
    if port_file:
        aside = port_file.with_name(port_file.name + ".tmp")
        aside.write_text(f"{port_of(server)}\n")
        os.replace(aside, port_file)  # whoever waits for the file finds it whole
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 (default: a free one, which is printed)")
    parser.add_argument("--port-file", type=Path, help="also write the port to this file, once it can be reached")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port, options.port_file))


if __name__ == "__main__":
    main()
