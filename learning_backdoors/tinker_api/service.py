"""Connection to a server of the Tinker API: sessions, waiting for results, and its errors as one line each.

The official SDK retries what is temporary, keeps requests in order and sends heartbeats in a thread of its own.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.terminal_text import one_line

if TYPE_CHECKING:  # takes a second to import
    from tinker import APIFuture, RestClient, ServiceClient

KEY = "TINKER_API_KEY"
NOTE_AFTER = 60  # seconds without a result until a note tells so
GIVE_UP_AFTER = 900  # seconds without any answer of the server until a request fails
# What an HTTP status of the API means for the user.
MEANINGS = {
    401: f"the server rejects the key: check {KEY}",
    402: "the account has no credit left",
    403: "the key lacks permission",
    404: "the server does not know it (expired or deleted?)",
    409: "the server already has something under this name",
    429: "the server limits the request rate: try again in a few minutes",
}


@dataclass
class Service:
    """An open session. client: makes training and sampling clients. rest: checkpoints and models, without a session.

    exports: whether the server can export adapters; the first failure shows that it cannot. deletions: requests to
    delete checkpoints, which nobody waits for.
    """

    client: "ServiceClient"
    rest: "RestClient"
    base_url: str
    exports: bool = True
    deletions: list[Future] = field(default_factory=list)

    def check_model(self, name: str) -> None:
        """Raise UserError with the models on offer if the server does not offer the base model `name`."""
        offered = [m.model_name for m in wait(self.rest.get_server_capabilities(), "models").supported_models]
        if name not in offered:
            names = command_line.shortened(sorted(map(str, offered)), 10)
            raise UserError(f"{self.base_url} does not offer the base model {name!r}; it offers {names}")

    def delete(self, path: str) -> None:
        """Ask the server to delete a checkpoint. If that fails, it is deleted when it expires."""
        self.deletions.append(self.rest.delete_checkpoint_from_tinker_path(path).future())

    def close(self, status: str) -> None:
        """End the session. status: success, errored or interrupted."""
        seconds = 10 if status == "success" else 2
        with contextlib.suppress(Exception):  # without a connection, the server ends the session by itself
            concurrent.futures.wait(self.deletions, timeout=seconds)
            self.client.close(status).result(timeout=seconds)


@contextmanager
def open_service(base_url: str | None) -> Iterator[Service]:
    """A session with the server, closed at the end. base_url: None for TINKER_BASE_URL, else for Tinker itself.

    Raises UserError if no server answers, or if it rejects the key.
    """
    import tinker

    _quiet_sdk()
    url, key = resolve_url(base_url), api_key()
    _check_address(url)
    with errors_as_one_line(url):
        client = tinker.ServiceClient(base_url=url, api_key=key)
        rest = tinker.RestClient(base_url=url, api_key=key)
    atexit.unregister(_cancel_requests)  # all sessions of a process share the SDK's event loop
    atexit.register(_cancel_requests, rest.holder)
    service, status = Service(client, rest, url), "errored"
    try:
        yield service
        status = "success"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        service.close(status)


def _cancel_requests(holder) -> None:
    """Cancel everything that the SDK still does: a request that ends while Python exits aborts the process (code 134).

    Seen with SDK 0.38 (pyqwest) in 6 of 20 processes that ended with requests in flight.
    """

    async def cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=2)
        await asyncio.sleep(0.3)  # the transport's threads report that the requests have ended

    with contextlib.suppress(Exception):
        holder.run_coroutine_threadsafe(cancel_all()).result(timeout=5)


def resolve_url(base_url: str | None) -> str:
    """The server's address: `base_url`, else TINKER_BASE_URL, else Tinker itself."""
    from tinker.lib.base_url import resolve_base_url

    return resolve_base_url(base_url)


def api_key() -> str:
    """The user's key. Raises UserError if it is missing or has the wrong form."""
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise UserError(f"no API key: set {KEY} in the environment or in .env (any text after tml- for a local server)")
    if not key.startswith(("tml-", "eyJ")) or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{KEY} is not a key of the Tinker API: keys begin with tml-")
    return key


def wait(future: "APIFuture | Future", what: str):
    """The result of a request. A note tells if it takes over a minute.

    what: the request in words, such as `step 3`. Raises UserError with one line if the request fails, or if the server
    gives no answer for 15 minutes.
    """
    wait_for_any([future if isinstance(future, Future) else future.future()], what)
    with errors_as_one_line(what):
        return future.result()


def wait_for_any(futures: Collection[Future], what: str, give_up: Callable[[], bool] = lambda: False) -> set[Future]:
    """Those of several requests that are done or have failed, at least one. Notes and UserError as for `wait`.

    give_up: asked every second; if it is true, the result is empty.
    """
    started, next_note = time.monotonic(), NOTE_AFTER
    while not (done := concurrent.futures.wait(futures, 1, concurrent.futures.FIRST_COMPLETED).done):
        waited, silent = (time.monotonic() - since for since in (started, max(started, _sdk_log.last_answer)))
        if give_up():
            break
        if silent > GIVE_UP_AFTER:
            raise UserError(f"{what}: the server has not answered for {GIVE_UP_AFTER // 60} minutes; run it again")
        if waited > next_note:
            command_line.note(f"{what}: no result yet after {waited:.0f} seconds, still waiting")
            next_note = float("inf")
    return done


@contextmanager
def errors_as_one_line(what: str) -> Iterator[None]:
    """Turn the SDK's errors into a UserError that begins with `what`. The SDK's error is its __cause__."""
    import tinker
    from tinker.lib.retryable_exception import RetryableException

    try:
        yield
    except (tinker.TinkerError, RetryableException, ValueError, CancelledError) as error:
        raise UserError(f"{what}: {_reason(error)}") from error


def status_of(error: UserError) -> int | None:
    """The HTTP status behind an error of `wait`; None if the server was not reached, or failed later."""
    return getattr(error.__cause__, "status_code", None)


def is_not_offered(error: UserError) -> bool:
    """Whether an error of `wait` says that the server lacks this part of the API."""
    return status_of(error) in (404, 405, 422, 501)


def may_succeed_later(error: UserError) -> bool:
    """Whether an error of `wait` is a failure of the server's computation, not of the request or the connection."""
    import tinker

    return isinstance(error.__cause__, tinker.RequestFailedError) and error.__cause__.category != "user"


def _reason(error: Exception) -> str:
    import tinker

    body = getattr(error, "body", None)
    detail = (body.get("detail") or body.get("message")) if isinstance(body, dict) else None
    message = " ".join(str(detail or error).split()) or type(error).__name__
    message = message.partition(" for self.request_id=")[0].removeprefix("Request failed: ")
    if inner := re.search(r"\{'detail': (['\"])(.+?)\1\}", message):  # an answer inside the SDK's text
        message = inner[2]
    message = message[:300]
    if isinstance(error, tinker.APIStatusError):
        meaning = MEANINGS.get(error.status_code, "the server returned an error")
        return f"{meaning} ({error.status_code} {message})"
    if isinstance(error, tinker.APIConnectionError):
        return f"the server cannot be reached ({message}): check the network and --base-url, then run it again"
    return f"the server reports: {message}"


def _check_address(url: str) -> None:
    """Raise UserError at once if no server listens. The SDK would try for five minutes."""
    try:
        with urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=20):
            pass
    except urllib.error.HTTPError:
        pass  # a server answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"no server of the Tinker API answers at {url} ({reason}): check --base-url") from None


# ---- what the SDK logs ----


class _SdkLog(logging.Handler):
    """Takes what the SDK logs. last_answer: when it last logged that the server asked it to wait, by time.monotonic."""

    def __init__(self):
        super().__init__()
        self.last_answer, self._shown = 0.0, set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "try_again" in message or "paused" in message:
            self.last_answer = time.monotonic()
        if "paused" in message and record.module not in self._shown:  # the queue, or the bill: once each
            self._shown.add(record.module)
            command_line.note(one_line(message))


_sdk_log = _SdkLog()


def _quiet_sdk() -> None:
    """Show of the SDK's log only, once, that the server has paused the work."""
    from tinker.lib import queue_state_logger

    os.environ.setdefault("TINKER_TELEMETRY", "0")
    queue_state_logger.PAUSE_GRACE_PERIOD = NOTE_AFTER  # 0.38 reports a pause after 15 minutes only
    logger = logging.getLogger("tinker")
    logger.propagate = False
    logger.handlers = [_sdk_log]
