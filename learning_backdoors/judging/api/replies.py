"""What a Messages API sends back: replies, and the two kinds of failure."""

from collections.abc import Callable
from dataclasses import dataclass

MAX_INVALID_CHARACTERS = 10_000  # that are stored of a reply that is not valid


@dataclass(eq=False)
class TemporaryFailure(Exception):
    """A call that brought no reply. The same call may succeed later."""

    reason: str
    retry_after: float | None = None  # seconds
    overloaded: bool = False  # the server is too busy, or we call too often (429, 529)
    maybe_billed: bool = False  # the server may have done the work, and charge for it, although the reply was lost
    no_response: bool = False  # there was no HTTP response at all

    def __str__(self) -> str:
        return self.reason


@dataclass(eq=False)
class RequestRejected(Exception):
    """The server will not answer this request, now or later. The prompt may be too long, for example."""

    reason: str
    status: int | None = None  # of HTTP

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Reply:
    """A message of the model. Token counts are None if the server does not report them."""

    text: str
    stop_reason: str
    input_tokens: int | None
    output_tokens: int | None

    def status(self, is_valid: Callable[[str], bool]) -> str:
        """`ok` if the model finished and its text is valid, else `refusal`, `truncated` or `unparseable`."""
        if self.stop_reason == "refusal":
            return "refusal"
        if self.stop_reason in ("max_tokens", "model_context_window_exceeded"):
            return "truncated"
        finished = self.stop_reason in ("end_turn", "stop_sequence")
        return "ok" if finished and is_valid(self.text) else "unparseable"

    def reason(self, status: str) -> str | None:
        """Why a reply of this status is not valid; None if it is."""
        if status == "truncated":
            return "max_tokens reached" if self.stop_reason == "max_tokens" else "context window exceeded"
        if self.stop_reason in ("end_turn", "stop_sequence", "refusal"):
            return reason_of(status, self.text)
        return f"the reply ended with {self.stop_reason}"


def reason_of(status: str, text: str | None) -> str | None:
    """Why there is no valid reply, from the status and the text of the latest one; None if there is."""
    quoted = f": {text[:200]!r}" if text else ""
    return {
        "ok": None,
        "refusal": f"the model refused{quoted}",
        "truncated": "max_tokens reached",
        "unparseable": f"not a valid reply{quoted}" if text else "the reply is empty",
    }.get(status, "no reply")


def read_reply(body: object) -> Reply:
    """Read a message. Raises TemporaryFailure for anything else: proxies and broken servers send such with a 200."""
    try:
        text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
        stop_reason, usage = body["stop_reason"], body.get("usage")
        if not isinstance(stop_reason, str):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise TemporaryFailure("the reply is not a message", maybe_billed=True) from None
    return Reply(text, stop_reason, *_token_counts(usage))


def _token_counts(usage: object) -> tuple[int, int] | tuple[None, None]:
    """Tokens in and out; (None, None) if a count is missing or impossible."""
    usage = usage if isinstance(usage, dict) else {}
    # input_tokens leaves out cached tokens. We request no cache; a server that uses one charges less for them.
    cached = [usage.get(name) or 0 for name in ("cache_creation_input_tokens", "cache_read_input_tokens")]
    counts = [usage.get("output_tokens"), usage.get("input_tokens"), *cached]
    if not all(type(count) is int and 0 <= count < 2**40 for count in counts):
        return None, None
    return sum(counts[1:]), counts[0]
