"""Samples in flight, on disk: what a killed command has ordered from the server, the next one collects.

`SamplingClient.sample` of the SDK does not tell the server's id of a request, and nothing public asks for the result of
a request again. So this module uses private parts of SDK 0.38, to which pyproject.toml pins it: the client's
`_send_asample_request`, `_request_id_counter` and `_sampling_session_id`, and the class `_APIFuture`.
"""

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learning_backdoors.files import atomic, provenance

if TYPE_CHECKING:  # takes a second to import
    from tinker import SampleResponse, SamplingClient, SamplingParams

# The key of the request that a task of the SDK sends. A task gets the value of the thread that starts it.
_key: ContextVar[tuple | None] = ContextVar("key", default=None)


@dataclass(frozen=True)
class Sample:
    """What the server returned. stopped: at a stop token. cached: tokens of the prompt from the server's cache."""

    tokens: list[int]
    stopped: bool
    cached: int
    log_likelihoods: list[float]

    @classmethod
    def of(cls, response: "SampleResponse") -> "Sample":
        [sequence] = response.sequences
        stopped, cached = sequence.stop_reason == "stop", response.prompt_cache_hit_tokens
        return cls(list(sequence.tokens), stopped, cached, list(sequence.logprobs or ()))


class Journal:
    """A file with a line for each event of a request: it is sent, the server accepts it, the sample arrives.

    Keys are those of responses. Requests with other keys, as those of the canary, are not written.
    """

    def __init__(self, path: Path, keys: Collection[tuple]):
        """keys: of the responses that this command generates."""
        self._keys, self._lock, self._entries = set(keys), threading.Lock(), {}
        atomic.drop_partial_line(path)
        self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (`close` closes it)
        self._file.seek(0)
        for line in self._file:
            facts = json.loads(line)
            self._entries.setdefault(tuple(facts.pop("key")), {}).update(facts)

    def write(self, key: tuple | None, **facts) -> None:
        """Add facts about a request. They survive a kill."""
        with self._lock:  # the SDK's thread writes too
            if key in self._keys and not facts.items() <= self._entries.setdefault(key, {}).items():
                self._entries[key].update(facts)
                self._file.write(json.dumps({"key": key} | facts) + "\n")
                self._file.flush()

    def entry(self, key: tuple, content: str) -> dict | None:
        """What is known about a request with this content, None if it was not sent."""
        entry = self._entries.get(key)
        return entry if entry and entry["content"] == content and key in self._keys else None

    def sample(self, key: tuple, content: str) -> Sample | None:
        """A sample that has arrived."""
        entry = self.entry(key, content)
        return Sample(**entry["sample"]) if entry and entry["sample"] else None

    def forget(self, keys: Iterable[tuple]) -> None:
        """Their requests will be sent again."""
        for key in keys:
            self.write(key, content=None)

    def close(self) -> None:
        self._file.close()


class JournaledSampler:
    """Samples from one checkpoint. Every request is written to a journal before it is sent."""

    def __init__(self, client: "SamplingClient", source: str, journal: Journal, on_overload: Callable[[], None]):
        """source: of the weights, a path on the server or a base model. on_overload: called when it answers 429."""
        self.source, self._journal, self._on_overload = source, journal, on_overload
        self._client = self._journaled(client)

    def content(self, prompt: Sequence[int], parameters: "SamplingParams") -> str:
        """A hash of all that determines a sample."""
        return provenance.sha256(repr((self.source, tuple(prompt), parameters)).encode())

    def sample(self, key: tuple, prompt: Sequence[int], parameters: "SamplingParams") -> "Future[SampleResponse]":
        """Order a sample, or wait again for one that an earlier command has ordered."""
        content = self.content(prompt, parameters)
        entry = self._journal.entry(key, content)
        if entry and entry["request"]:
            return self._wait_again(entry["request"])
        client = self._client
        if entry:  # It is unknown whether the request arrived. With the same ids, the server takes it for a retry.
            client = self._journaled(self._client_of(entry["session"]))
            client._request_id_counter = entry["number"]
        token = _key.set((key, content))
        try:
            return client.sample(_model_input(prompt), 1, parameters).future()
        finally:
            _key.reset(token)

    def log_probabilities(self, tokens: Sequence[int]) -> "Future[list[float | None]]":
        """Of each token after those before it. Some servers return None for the first token, some leave it out."""
        return self._client.compute_logprobs(_model_input(tokens)).future()

    def _journaled(self, client: "SamplingClient") -> "SamplingClient":
        """The client, changed so that it writes down what it sends."""
        send, session = client._send_asample_request, client._sampling_session_id

        async def write_and_send(number: int, num_samples: int, *rest):
            key, content = _key.get() or (None, None)
            self._journal.write(key, content=content, session=session, number=number, request=None, sample=None)
            promise = await send(number, num_samples, *rest)
            if promise is None:  # 429: the client waits and sends it again
                self._on_overload()
                return None
            self._journal.write(key, request=promise.request_id)
            if promise.sample_sequence_ids is None:  # SkyRL leaves these labels out, and the SDK insists on them
                ids = [f"{promise.request_id}:{i}" for i in range(num_samples)]
                promise = promise.model_copy(update={"sample_sequence_ids": ids})
            return promise

        client._send_asample_request = write_and_send
        return client

    def _wait_again(self, request: str) -> "Future[SampleResponse]":
        from tinker import SampleResponse
        from tinker.lib.api_future_impl import _APIFuture
        from tinker.types import UntypedAPIFuture

        promise = UntypedAPIFuture(request_id=request)
        observer = {"queue_state_observer": self._client, "request_type": "Sample"}
        return _APIFuture(SampleResponse, self._client.holder, promise, time.time(), **observer).future()

    def _client_of(self, session: str) -> "SamplingClient":
        """A client that continues an earlier command's sampling session."""
        from tinker import SamplingClient

        names = {"sampling_session_id": session, "base_model": self._client.get_base_model()}
        return SamplingClient(self._client.holder, **names, retry_config=no_retries())


def no_retries():
    """The SDK's setting that a failed sample is not ordered again: the server may charge for both."""
    from tinker.lib.retry_handler import RetryConfig

    return RetryConfig(enable_retry_logic=False)


def _model_input(tokens: Sequence[int]):
    from tinker import ModelInput

    return ModelInput.from_ints(list(tokens))
