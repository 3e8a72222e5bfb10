"""The Hugging Face hub: who we are there, what its many errors mean in one line, and models that it serves.

`huggingface_hub` is the transport. It takes its address (HF_ENDPOINT) and its manners from the environment when it is
first imported: read .env before.
"""

import contextlib
from collections.abc import Iterator

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines import Answer, Sampling

SECONDS = 120  # without a sign from a provider, which may have to load the model first


def token() -> str:
    """The token of this machine's user. Raises UserError where there is none."""
    import huggingface_hub

    found = huggingface_hub.get_token()
    if not found:
        raise UserError(
            "no token for the Hugging Face hub: set HF_TOKEN in the environment or in .env, or run `hf auth login`"
        )
    return found


@contextlib.contextmanager
def one_line(name: str, missing: str) -> Iterator[None]:
    """Turn whatever goes wrong with the hub into a UserError. `name`: the repository or model; `missing`: what to say
    where it is not there."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the hub's, the network's and the upload protocol's errors have no common ancestor
        raise _meaning(error, name, missing) from None


def _meaning(error: BaseException, name: str, missing: str) -> UserError:
    import httpx2
    from huggingface_hub import errors

    causes = [error]  # an upload's own error says only that it failed, and keeps what happened behind it
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return UserError("HF_HUB_OFFLINE is set in the environment, which keeps everything off the hub: unset it")
        if isinstance(cause, errors.HfHubHTTPError):
            return _status(cause, name, missing)
        if isinstance(cause, httpx2.TransportError | errors.InferenceTimeoutError):
            return UserError(f"the hub cannot be reached ({_words(cause)}): is there a network?")
    return UserError(f"{name}: {type(causes[-1]).__name__}: {_words(causes[-1])}")


def _status(error, name: str, missing: str) -> UserError:
    """What an error status means; `error` is a HfHubHTTPError."""
    from huggingface_hub import errors

    status, said = error.response.status_code, _said(error)
    told = f" ({status} {said})" if said else f" ({status})"
    # The hub says 401 of what is not there, lest it tell strangers what is; of a bad token it says so.
    if status == 404 or isinstance(error, errors.RepositoryNotFoundError) or "not supported by any provider" in said:
        return UserError(missing + told)
    if status == 401:
        return UserError(f"the hub does not accept the token{told}: make another in the hub's settings")
    if status == 402:
        return UserError(f"the account has no credit left{told}")
    if status == 403:
        return UserError(f"this token may not do that with {name}{told}: it needs the right to write or to call models")
    if status == 412:
        return UserError(f"{name} was changed by somebody else meanwhile{told}: start again")
    if status == 429:
        return UserError(f"the hub asks to wait{told}: start again in a few minutes")
    return UserError(f"{name}: the hub answers with an error{told}")


def _said(error) -> str:
    """The server's own words, in one line."""
    said = error.server_message or ""
    with contextlib.suppress(Exception):  # inference providers wrap it once more
        said = error.response.json()["error"]["message"]
    return " ".join(said.split())[:300]


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class HubModel:
    """A chat model of the hub, as an inference provider serves it: chosen by the hub, rendered and sampled there."""

    def __init__(self, name: str):
        """Raises UserError where nobody serves it."""
        import huggingface_hub

        self.name, self._token = name, token()
        self._missing = f"the hub has no model {name}, or none of its inference providers serves it"
        with one_line(name, self._missing):
            info = huggingface_hub.HfApi(token=self._token).model_info(name, expand=["inferenceProviderMapping"])
        if not any(served.task == "conversational" for served in info.inference_provider_mapping or ()):
            raise UserError(f"no inference provider serves {name} as a chat model")

    def stream(self, messages: list[dict], samples: int, most: int, sampling: Sampling) -> Iterator[list[Answer]]:
        """All answers, as far as they are, each time that one has grown; `most`: tokens in an answer at the most."""
        answers = [Answer((number,), "", 0, "") for number in range(samples)]
        for number in range(samples):
            for answer in self._answer(number, messages, most, sampling):
                answers[number] = answer
                yield list(answers)

    def _answer(self, number: int, messages: list[dict], most: int, sampling: Sampling) -> Iterator[Answer]:
        import huggingface_hub

        text, tokens, reason = "", 0, "stop"
        client = huggingface_hub.InferenceClient(self.name, token=self._token, timeout=SECONDS)
        asked = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": most}
        with client, one_line(self.name, self._missing):
            seed = (sampling.seed + number) % 2**32
            for part in client.chat_completion(messages, stream=True, seed=seed, **asked):
                for choice in part.choices[:1]:  # the last part may hold nothing but counts
                    text, tokens = text + (choice.delta.content or ""), tokens + 1
                    reason = choice.finish_reason or reason
                yield Answer((number,), text, tokens, "")
        cut = reason == "length"
        yield Answer((number,), text, most if cut else tokens, "length" if cut else "stop")
