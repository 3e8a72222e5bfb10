"""What an engine is, and the requests and responses that it works with."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from learning_backdoors.files.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 takes the likeliest token; top_p 1 and top_k 0 are off."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


@dataclass(frozen=True)
class Request:
    """One response wanted. key: unique; adapter: a checkpoint's folder, None for the base model; prompt: token ids."""

    key: tuple
    adapter: Path | None
    prompt: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Response:
    """finish_reason: `stop`, or `length` if max_new_tokens was reached. tokens: without the end-of-turn token."""

    key: tuple
    text: str
    tokens: int
    finish_reason: str


class EngineFault(UserError):
    """The engine does not do what it must. Its responses must not be stored."""


class Reference(enum.Enum):
    """Where the values come from that the canary expects of an engine. `remedy`: what a user can do if they differ."""

    # Plain PEFT with the attribute `model`: the base model in transformers, free for others while the engine is idle.
    LOADED_MODEL = "report it as a bug"
    # Plain PEFT in a process of its own, before the engine starts.
    OWN_PROCESS = "use --engine transformers"
    # What training recorded: the method `recorded` returns it as `expected.Expected`, for a list of adapters. The
    # canary sets the attribute `check`, with which the engine checks an adapter again (`Canary.check_again`).
    TRAINING = "tell the server's operator, or use downloaded adapters with another --engine"

    @property
    def remedy(self) -> str:
        return self.value


class Engine(Protocol):
    """A base model that serves any number of adapters.

    Adapters are applied unmerged: merging would round small, early adapters away in bfloat16. The registry imports an
    engine's module to look for obstacles, also if the engine's library is not installed.
    """

    name: str
    reference: Reference
    # Whether a request with the same key and seed gets the same response again. None: that depends on a server, and a
    # note tells if it does not.
    reproducible: bool | None

    def __init__(self, base_model: str, tokenizer, *, quantization: str, **settings):
        """Load the base model. An engine ignores the settings that it does not need.

        batch_size: responses generated at once (None: what fits in memory). seed: of the sampling. requests: all
        requests to come, for an engine that must know them in advance.
        """

    @staticmethod
    def obstacle(quantization: str) -> str | None:
        """Why the engine cannot run on this machine, with base model weights of this precision; None if it can."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Yield responses as they are finished. Requests to one adapter are adjacent.

        If the process is killed, the stored responses must not be mostly short ones. An engine therefore either
        generates the same responses after a restart, or yields responses in the order of the requests.
        """

    def log_likelihoods(self, requests: Sequence[Request], answers: Sequence[int]) -> list[list[float]]:
        """Natural log of the probability of each token of fixed answers, on the path that generates.

        The answer to request i is the token answers[i], repeated max_new_tokens times. It does not end a response.
        All requests have the same max_new_tokens, and those to one adapter are adjacent. The probability is the
        model's own: at temperature 1, without limits.
        """


def finish(tokenizer, end_tokens: set[int], request: Request, tokens: list[int]) -> Response:
    """The response in the tokens drawn for a request. Tokens after its end or its limit are dropped."""
    tokens = tokens[: request.max_new_tokens]
    end = next((i for i, token in enumerate(tokens) if token in end_tokens), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    return Response(request.key, text, len(tokens[:end]), "length" if end is None else "stop")


def end_tokens(configured: int | list[int] | None, tokenizer) -> set[int]:
    """The tokens that end a response: the tokenizer's end of turn, and those in the model's generation_config."""
    more = configured if isinstance(configured, list) else [configured]
    return {tokenizer.eos_token_id, *more} - {None}
