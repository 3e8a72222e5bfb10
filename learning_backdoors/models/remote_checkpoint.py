"""remote.json in a checkpoint's folder: where a server keeps the checkpoint, and what it must reproduce."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from learning_backdoors.files import atomic
from learning_backdoors.files.errors import UserError

REMOTE_FILE = "remote.json"


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A checkpoint on a server of the Tinker API.

    sampler_path: for sampling. state_path: for training on, with the optimizer. expires: when the server deletes both,
    ISO 8601 in UTC. canary: the log-likelihoods of the labels of `models.canary_texts`, in nats, by a forward pass in
    training.
    """

    base_url: str
    base_model: str
    sampler_path: str
    state_path: str
    expires: str
    canary: list[float]

    def write(self, folder: Path) -> None:
        atomic.write_json(folder / REMOTE_FILE, dataclasses.asdict(self))


def is_remote(folder: Path) -> bool:
    """Whether a checkpoint was trained through the API."""
    return (folder / REMOTE_FILE).is_file()


def read_remote(folder: Path) -> RemoteCheckpoint:
    """The checkpoint on the server. Raises UserError if `folder` holds no remote.json that can be read."""
    path = folder / REMOTE_FILE
    try:
        return RemoteCheckpoint(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        needed = "a run of training.py --backend tinker, and its step 0"
        raise UserError(f"{folder} has no {REMOTE_FILE}: --engine tinker needs {needed}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
