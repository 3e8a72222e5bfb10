"""Access to the Hugging Face hub: the user's token, and the hub's errors as one line each.

`huggingface_hub` reads its address (HF_ENDPOINT) and other settings from the environment when it is first imported, so
load .env before.
"""

import contextlib
from collections.abc import Iterator

from learning_backdoors.files.errors import UserError

# What an HTTP status of the hub means for the user.
MEANINGS = {
    401: "the hub rejects the token; create a new one in the hub's settings",
    402: "the account has no credit left",
    403: "the token lacks permission; it needs the right to write or to call models",
    412: "someone else has changed the repository in the meantime; run the command again",
    429: "the hub limits the request rate; try again in a few minutes",
}


def token() -> str:
    """The token of this machine's user. Raises UserError if there is no token."""
    import huggingface_hub

    token = huggingface_hub.get_token()
    if not token:
        raise UserError("no token for the Hugging Face hub: set HF_TOKEN in .env, or run `hf auth login`")
    return token


@contextlib.contextmanager
def as_user_errors(name: str, missing: str) -> Iterator[None]:
    """Turn every error of the hub into a UserError.

    name: the repository or model. missing: the message if the hub does not have it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # errors of the hub, the network and the upload protocol share no base class
        raise UserError(" ".join(_describe(error, name, missing).split())) from None


def _describe(error: BaseException, name: str, missing: str) -> str:
    import httpx2
    from huggingface_hub import errors

    known = (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, httpx2.TransportError, errors.InferenceTimeoutError)
    while error.__cause__ and not isinstance(error, known):  # an upload's own error only says that it failed
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set in the environment and blocks all access to the hub: unset it"
    if not isinstance(error, known):
        return f"{name}: {type(error).__name__}: {str(error)[:300]}"
    if not isinstance(error, errors.HfHubHTTPError):
        return f"the hub cannot be reached ({str(error)[:300] or type(error).__name__}): check the network"
    status, message = error.response.status_code, error.server_message or ""
    with contextlib.suppress(Exception):  # inference providers wrap the message in another object
        message = error.response.json()["error"]["message"]
    # The hub also answers 401 for a repository that does not exist or is private. A bad token has its own message.
    absent = status == 404 or isinstance(error, errors.RepositoryNotFoundError)
    if absent or "not supported by any provider" in message:
        return f"{missing} ({status} {message[:300]})"
    return f"{name}: {MEANINGS.get(status, 'the hub returned an error')} ({status} {message[:300]})"
