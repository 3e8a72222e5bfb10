"""Access to the Hugging Face hub: the user's token, and the hub's errors as one line each.

`huggingface_hub` reads its address (HF_ENDPOINT) and other settings from the environment when it is first imported, so
load .env before.
"""

import contextlib
from collections.abc import Iterator

from learning_backdoors.files.errors import UserError


def token() -> str:
    """The token of this machine's user. Raises UserError if there is no token."""
    import huggingface_hub

    token = huggingface_hub.get_token()
    if not token:
        raise UserError(
            "no token for the Hugging Face hub: set HF_TOKEN in the environment or in .env, or run `hf auth login`"
        )
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
        raise _user_error(error, name, missing) from None


def _user_error(error: BaseException, name: str, missing: str) -> UserError:
    import httpx2
    from huggingface_hub import errors

    causes = [error]  # an upload's own error only says that it failed; the reason is in its cause
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return UserError("HF_HUB_OFFLINE is set in the environment and blocks all access to the hub: unset it")
        if isinstance(cause, errors.HfHubHTTPError):
            return _http_error(cause, name, missing)
        if isinstance(cause, httpx2.TransportError | errors.InferenceTimeoutError):
            return UserError(f"the hub cannot be reached ({_one_line(cause)}): check the network")
    return UserError(f"{name}: {type(causes[-1]).__name__}: {_one_line(causes[-1])}")


def _http_error(error, name: str, missing: str) -> UserError:
    """The meaning of a HfHubHTTPError."""
    from huggingface_hub import errors

    status, message = error.response.status_code, _server_message(error)
    detail = f" ({status} {message})" if message else f" ({status})"
    # The hub also answers 401 for a repository that does not exist or is private. A bad token has its own message.
    absent = status == 404 or isinstance(error, errors.RepositoryNotFoundError)
    if absent or "not supported by any provider" in message:
        return UserError(missing + detail)
    if status == 401:
        return UserError(f"the hub rejects the token{detail}: create a new one in the hub's settings")
    if status == 402:
        return UserError(f"the account has no credit left{detail}")
    if status == 403:
        return UserError(
            f"the token lacks permission for {name}{detail}: it needs the right to write or to call models"
        )
    if status == 412:
        return UserError(f"{name} was changed by someone else in the meantime{detail}: run the command again")
    if status == 429:
        return UserError(f"the hub limits the request rate{detail}: try again in a few minutes")
    return UserError(f"{name}: the hub returned an error{detail}")


def _server_message(error) -> str:
    message = error.server_message or ""
    with contextlib.suppress(Exception):  # inference providers wrap the message in another object
        message = error.response.json()["error"]["message"]
    return " ".join(message.split())[:300]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
