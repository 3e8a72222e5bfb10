"""Models behind a Messages API: how to ask each for a short reply, and what that costs."""

import hashlib
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.replies import Reply

ANTHROPIC = "https://api.anthropic.com"


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens. A prompt of more than `long_from` tokens costs `long_times` as much."""

    input: float
    output: float
    long_from: int | None = None
    long_times: float = 1

    def dollars(self, tokens_in: int, tokens_out: int) -> float:
        times = self.long_times if self.long_from is not None and tokens_in > self.long_from else 1
        return times * (tokens_in * self.input + tokens_out * self.output) / 1e6


# ---- the table of models ----


@dataclass(frozen=True)
class KnownModel:
    request_settings: dict
    price: Price | None


# Thinking counts towards max_tokens. If it cannot be turned off, a small limit would cut off the replies to hard
# questions only, which is a bias: such models get a large limit.
SHORT_REPLY = 64
THINKING_OFF = {"max_tokens": SHORT_REPLY, "thinking": {"type": "disabled"}}
THINKING_BETWEEN_TOOLS = {"max_tokens": SHORT_REPLY, "thinking": {"type": "between_tools"}}  # no tools: no thinking
THINKING_ALWAYS = {"max_tokens": 4096, "output_config": {"effort": "low"}}
THINKING_ON_REQUEST = {"max_tokens": SHORT_REPLY}

PRICES_OF = "October 2026"
BATCH_SHARE = 0.5  # a batch costs this share of the price
MODELS = {
    "claude-haiku-5-5": KnownModel(THINKING_OFF, Price(0.10, 0.50, long_from=100_000, long_times=5)),
    "claude-sonnet-5-5": KnownModel(THINKING_BETWEEN_TOOLS, Price(2, 10)),
    "claude-sonnet-5": KnownModel(THINKING_OFF, Price(2, 10)),
    "claude-opus-5-5": KnownModel(THINKING_ALWAYS, Price(4, 20)),
    "claude-opus-5": KnownModel(THINKING_OFF, Price(5, 25)),
    "claude-haiku-4-5": KnownModel(THINKING_ON_REQUEST, Price(1, 5)),
    "claude-sonnet-4-6": KnownModel(THINKING_ON_REQUEST, Price(3, 15)),
}
# An unknown model may think: send no setting that it could reject, and leave room for some thought.
UNKNOWN_MODEL = KnownModel({"max_tokens": 2048}, None)


def known_model(name: str) -> KnownModel:
    """The table's entry for a model, also under a dated name (`claude-haiku-4-5-20251001`)."""
    head, _, tail = name.rpartition("-")
    return MODELS.get(name) or MODELS.get(head if len(tail) == 8 and tail.isdigit() else name) or UNKNOWN_MODEL


def request_settings(model: str, thinking: str = "auto", max_tokens: int | None = None) -> dict:
    """The settings sent with each prompt.

    thinking: a type of the API, `none` to leave the setting out, `auto` for the table's choice.
    """
    # OpenRouter writes anthropic/claude-sonnet-5.5. Its prices differ, the models are the same.
    settings = dict(known_model(model.rpartition("/")[2].replace(".", "-")).request_settings)
    if thinking != "auto":
        settings.pop("thinking", None)
        settings.pop("output_config", None)
        settings |= {} if thinking == "none" else {"thinking": {"type": thinking}}
        settings["max_tokens"] = 4096 if thinking == "adaptive" else settings["max_tokens"]
    return settings | ({"max_tokens": max_tokens} if max_tokens else {})


def price_of(model: str, host: str, given: tuple[float, ...] | None = None, file: Path | None = None) -> Price | None:
    """The price given, else the one in `file` (TOML: "model" = [in, out]), else the table's; None if unknown.

    The table holds for Anthropic's own host only: other servers set their own prices.
    """
    if given:
        return Price(*given)
    if file:
        try:
            pair = tomllib.loads(file.read_text(encoding="utf-8-sig")).get(model)
            if pair is not None:
                dollars_in, dollars_out = (float(dollars) for dollars in pair)
                if not all(0 <= dollars < math.inf for dollars in (dollars_in, dollars_out)):
                    raise ValueError(f"{model!r}: a price must be 0 or more")
                return Price(dollars_in, dollars_out)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f'prices file {file}: {error}; a line is like "claude-sonnet-5" = [2, 10]') from None
    return known_model(model).price if host == ANTHROPIC else None


# ---- a model at an address ----


@dataclass(frozen=True)
class ServedModel:
    """A model at an address, the settings sent with each prompt, and its price (None: unknown)."""

    name: str
    host: str
    request_settings: dict
    price: Price | None

    def body(self, prompt: str) -> dict:
        """The body of a request: everything that is sent, except for host and API key."""
        return {"model": self.name, **self.request_settings, "messages": [{"role": "user", "content": prompt}]}

    def key(self, body: dict) -> bytes:
        """The key of a request in a store: a hash of the body and the host, and of nothing else."""
        return hashlib.sha256(json.dumps([self.host, body], sort_keys=True).encode()).digest()

    def worst_cost(self, body: dict, share: float = 1) -> float | None:
        """The most dollars a request can cost at a share of the price; None if the price is unknown.

        A token is at least one byte; 500 tokens are added for what a server wraps around a prompt.
        """
        return self.price and share * self.price.dollars(prompt_bytes(body) + 500, body["max_tokens"])

    def cost(self, reply: Reply, share: float = 1) -> float | None:
        """Dollars for a reply at a share of the price; None if the price or a token count is unknown."""
        if self.price is None or reply.input_tokens is None or reply.output_tokens is None:
            return None
        return share * self.price.dollars(reply.input_tokens, reply.output_tokens)

    def require_price(self) -> None:
        """Raise UserError if --max-cost cannot be kept because the price is unknown."""
        if self.price is None:
            raise UserError(
                f"--max-cost needs a price, and no price is known for {self.name!r} at {self.host}: give --price"
            )


def prompt_bytes(body: dict) -> int:
    return len(body["messages"][0]["content"].encode())
