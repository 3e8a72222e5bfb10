"""A small HTTP/1.1 server: an answer is one write, and a waiting request costs no thread."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit


class Dropped(Exception):
    """The connection is closed without an answer."""


@dataclass
class Request:
    """headers: names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body) if self.body else {}


@dataclass
class Answer:
    """content: bytes, or what is sent as JSON."""

    content: object
    status: int = 200
    kind: str = "application/json"

    def data(self) -> bytes:
        body = self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()
        head = f"HTTP/1.1 {self.status} -\r\nContent-Type: {self.kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


class HttpServer:
    """Serves from one event loop in a thread of its own."""

    def __init__(self, respond: Callable[[Request], Awaitable[Answer]], port: int = 0):
        self.loop, self.respond = asyncio.new_event_loop(), respond
        asyncio.set_event_loop(None)
        start = asyncio.start_server(self._serve, "127.0.0.1", port, backlog=4096, limit=2**26)
        self.server = self.loop.run_until_complete(start)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        async def end() -> None:
            self.server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self.loop)
        self.thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await _read(reader):
                try:
                    answer = await self.respond(request)
                except Exception as error:
                    if isinstance(error, Dropped):
                        raise
                    answer = Answer({"detail": f"the stand-in failed: {type(error).__name__}: {error}"}, 501)
                writer.write(answer.data())
                await writer.drain()
        except (Dropped, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection; None if it was closed."""
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, unquote(urlsplit(target).path), headers, body)
