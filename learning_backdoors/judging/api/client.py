"""HTTP calls to a Messages API: Anthropic, OpenRouter, a local vLLM or Ollama, or the tiny world's stand-in.

Retries are in caller.py: the SDK's own are silent, few, and wait for an hour if the server says so. The API key stays
in this file: text from the server is scrubbed of it before it is shown or stored.
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import os
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from datetime import datetime

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.models import ANTHROPIC
from learning_backdoors.judging.api.replies import Reply, RequestRejected, TemporaryFailure, read_reply

MAX_BODY = 1_000_000  # bytes of an HTTP body after decompression; a verdict has some hundred
SHORTEST_SECRET = 12  # characters; local servers are given "none" or "0", which occur in honest replies
NO_SECRETS = ("accept", "anthropic-version", "content-type", "user-agent")  # headers; all others may hold one


def host_of(base_url: str | None) -> str:
    """The address given, else ANTHROPIC_BASE_URL, else Anthropic's. Lowercase, without the default port."""
    url = (base_url or os.environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC).strip().rstrip("/").removesuffix("/v1")
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise UserError("the base URL must look like https://api.anthropic.com")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError("the base URL must not contain a password, a query or a fragment")
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = "" if parts.port in (None, {"http": 80, "https": 443}[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{name}{port}{parts.path}"


def api_key() -> str:
    key = (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN") or "").strip()
    if not key:
        raise UserError("no API key: set ANTHROPIC_API_KEY in the environment or in .env (any text for a local server)")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("ANTHROPIC_API_KEY is not a key: it contains spaces or characters that no key has")
    return key


class MessagesClient:
    """A Messages API, one HTTP call at a time. Use it as an async context manager.

    timeout: seconds from sending a call to the last byte of its reply. The SDK's timeout is per read, so a server that
    trickles could hold a call forever.
    """

    def __init__(self, host: str, key: str, timeout: float = 120):
        import anthropic  # takes 1.5 s to import, so only when needed
        import httpx2

        self.host, self.timeout, self._httpx = host, timeout, httpx2
        # The SDK's HTTP client and headers, without its data models: 0.8 instead of 1.2 ms CPU time per call
        # (python -m benchmarks.judging http). The data models also hide broken replies.
        # Redirects are refused: they would send prompts to an address that the user did not give.
        self._http = anthropic.DefaultAsyncHttpxClient(timeout=timeout, follow_redirects=False)
        sdk = anthropic.AsyncAnthropic(api_key=key, base_url=host, http_client=self._http)
        self._headers = {
            name: value
            for name, value in {**sdk.default_headers, **sdk.auth_headers}.items()
            if isinstance(value, str) and not name.lower().startswith("x-stainless")  # the SDK's usage statistics
        }
        values = {key, *(value for name, value in self._headers.items() if name.lower() not in NO_SECRETS)}
        words = {word for value in values for word in (value, *re.split(r"[\s,;=]+", value))}
        self._secrets = sorted((word for word in words if len(word) >= SHORTEST_SECRET), key=len, reverse=True)

    async def __aenter__(self) -> "MessagesClient":
        return self

    async def __aexit__(self, *_) -> None:
        await self._http.aclose()

    def scrub(self, text: str) -> str:
        """Text from the server without lone surrogates, which cannot be written to a file, and without secrets.

        Secrets are the API key and the values of other headers that we send, such as ANTHROPIC_CUSTOM_HEADERS.
        """
        text = text.encode("utf-8", "replace").decode()
        for secret in self._secrets:
            text = text.replace(secret, "[API key]")
        return text

    # ---- prompts ----

    async def check_model(self, model: str) -> None:
        """Raise UserError if the server cannot be reached, or lacks the model, or rejects the key."""
        try:
            entry, _ = await self._json("GET", f"/v1/models/{urllib.parse.quote(model, safe='/')}")
        except RequestRejected as rejected:
            # Some servers lack this route. The first prompt then shows whether the model exists.
            if "not_found_error" in str(rejected):
                raise UserError(f"{self.host} has no model {model!r}: choose another with --model") from None
            return
        except TemporaryFailure as failure:
            if failure.no_response:
                raise UserError(f"cannot reach {self.host}: {failure}") from None
            return
        if isinstance(entry, dict) and entry.get("lifecycle") == "retired":
            raise UserError(f"the model {model!r} has been retired: choose another with --model")

    async def send(self, body: dict) -> tuple[Reply, Mapping]:
        """One call: the reply and its HTTP headers.

        Raises TemporaryFailure, RequestRejected, or UserError if no further call can succeed.
        """
        try:
            message, headers = await self._json("POST", "/v1/messages", body)
        except RequestRejected as rejected:
            if rejected.status != 404:
                raise
            raise UserError(f"{self.host} has no model {body['model']!r}, or no Messages API ({rejected})") from None
        return self.read(message), headers

    def read(self, message: object) -> Reply:
        """Read a message and scrub its text. Raises TemporaryFailure for anything else."""
        reply = read_reply(message)
        return dataclasses.replace(reply, text=self.scrub(reply.text), stop_reason=self.scrub(reply.stop_reason)[:50])

    async def count_tokens(self, body: dict) -> int:
        """Input tokens of a request, counted by the server (free). Raises RequestRejected if there is no such route."""
        counted = {name: value for name, value in body.items() if name != "max_tokens"}
        answer, _ = await self._json("POST", "/v1/messages/count_tokens", counted)
        if not isinstance(answer, dict) or not isinstance(answer.get("input_tokens"), int):
            raise RequestRejected("no token count")
        return answer["input_tokens"]

    # ---- batches ----

    async def create_batch(self, requests: list[dict]) -> str:
        """Send a batch and return its id. After a TemporaryFailure it may exist, unless the failure is `overloaded`."""
        batch, _ = await self._json("POST", "/v1/messages/batches", {"requests": requests})
        if not _has_text(batch, "id"):
            raise TemporaryFailure("the reply is not a batch", maybe_billed=True)
        return batch["id"]

    async def batch(self, server_id: str) -> dict:
        batch, _ = await self._json("GET", f"/v1/messages/batches/{server_id}")
        if not _has_text(batch, "processing_status"):
            raise TemporaryFailure("the reply is not a batch")
        return batch

    async def batches_since(self, time: float) -> list[dict]:
        """The account's batches, newest first, back to a time (seconds since 1970)."""
        batches: list[dict] = []
        while True:
            after = f"&after_id={batches[-1]['id']}" if batches else ""
            page, _ = await self._json("GET", f"/v1/messages/batches?limit=100{after}")
            listed = page.get("data") if isinstance(page, dict) else None
            if not isinstance(listed, list) or not all(map(_is_listed_batch, listed)):
                raise TemporaryFailure("the reply is not a list of batches")
            batches += listed
            if not listed or not page.get("has_more") or creation_time(batches[-1]) < time:
                return batches

    async def batch_results(self, server_id: str) -> AsyncIterator[dict]:
        """The results of an ended batch, as they arrive. Raises TemporaryFailure if the stream breaks off."""
        url, headers = f"{self.host}/v1/messages/batches/{server_id}/results", {**self._headers, "accept": "*/*"}
        try:
            async with self._http.stream("GET", url, headers=headers) as response:
                if not response.is_success:
                    raise self._failure(response, await _read_body(response))
                partial = b""
                async for chunk in response.aiter_bytes():
                    *lines, partial = (partial + chunk).split(b"\n")
                    for line in filter(bytes.strip, lines):
                        yield _batch_result(line)
                    if len(partial) > MAX_BODY:
                        raise RequestRejected("a line of its results is longer than 1 MB")
                if partial.strip():
                    yield _batch_result(partial)
        except self._httpx.HTTPError as error:
            raise TemporaryFailure(f"the results broke off: {self._reason(error)}") from None

    # ---- one HTTP call ----

    async def _json(self, method: str, path: str, body: dict | None = None) -> tuple[object, Mapping]:
        """The JSON value of a response, and its headers."""
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        try:
            async with (
                asyncio.timeout(self.timeout),
                self._http.stream(method, self.host + path, content=content, headers=self._headers) as response,
            ):
                received = await _read_body(response)
            if not response.is_success:
                raise self._failure(response, received, about_prompt=path == "/v1/messages")
            return json.loads(received), response.headers
        except TimeoutError:
            words = f"no reply within {self.timeout:g} s"
            raise TemporaryFailure(words, maybe_billed=True, no_response=True) from None
        except (ValueError, RecursionError):
            raise TemporaryFailure("the reply is not JSON", maybe_billed=True) from None
        except self._httpx.HTTPError as error:
            # Without a connection nothing can have been charged.
            connected = not isinstance(error, self._httpx.ConnectError | self._httpx.ConnectTimeout)
            raise TemporaryFailure(self._reason(error), maybe_billed=connected, no_response=True) from None

    def _reason(self, error: Exception) -> str:
        return self.scrub(" ".join(str(error).split()))[:200] or type(error).__name__

    def _failure(self, response, body: bytes, about_prompt: bool = False) -> Exception:
        """The exception that an HTTP status means: stop the run, try again, or give this request up."""
        status, message = response.status_code, _error_message(body)
        words = self.scrub(f"{status} {message}".strip())[:300]
        if response.has_redirect_location:
            target = self.scrub(response.headers["location"])[:200]
            return UserError(f"{self.host} redirects to {target}: check this address, and give it with --base-url")
        if status == 401:
            return UserError(f"{self.host} does not accept the API key ({words})")
        if status == 402 or (status == 403 and not about_prompt):
            return UserError(f"{self.host} refuses this account ({words})")
        limit_reached = status == 429 and b"enforced_spend_limit_reached" in body
        if limit_reached or (status == 400 and "You have reached your specified" in message):
            return UserError(f"the spend limit of this account is reached ({words})")
        if status in (408, 409, 429) or status >= 500:
            wait = retry_after(response.headers)
            return TemporaryFailure(words, retry_after=wait, overloaded=status in (429, 529))
        return RequestRejected(words, status)


async def _read_body(response) -> bytes:
    """The body of a response. The HTTP library decompresses in pieces of 1 MiB, so a small body cannot fill memory."""
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_BODY:
            raise TemporaryFailure("the reply is larger than 1 MB", maybe_billed=response.is_success)
    return body


def _error_message(content: bytes) -> str:
    """The server's error as `type: message` in one line; "" if it has another form."""
    try:
        error = json.loads(content)["error"]
        kind, message = error.get("type"), error["message"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return " ".join((f"{kind}: {message}" if kind else str(message)).split())


def retry_after(headers: Mapping) -> float | None:
    """The retry-after header in seconds (it may be a date); 0 if it is in the past, None if missing or unreadable."""
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _has_text(answer: object, name: str) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get(name), str)


def creation_time(batch: dict) -> float:
    """When a batch was created, in seconds since 1970."""
    return datetime.fromisoformat(batch["created_at"]).timestamp()


def _is_listed_batch(batch: object) -> bool:
    """Whether an entry in the list of batches has the fields we use."""
    try:
        creation_time(batch)
        sum(batch["request_counts"].values())
        return _has_text(batch, "id") and _has_text(batch, "processing_status")
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _batch_result(line: bytes) -> dict:
    try:
        result = json.loads(line)
        if not isinstance(result["custom_id"] + result["result"]["type"], str):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise TemporaryFailure("a line of the results is broken") from None
    return result
