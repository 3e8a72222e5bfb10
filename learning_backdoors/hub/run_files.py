"""The files of a run as its hub repository holds them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import config
from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.hub import model_card
from learning_backdoors.models import adapters, run_directory
from learning_backdoors.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from learning_backdoors.models.checkpoints import Checkpoint


@dataclass(frozen=True)
class RepositoryFile:
    """One file of a repository. `content`: its bytes, or the local file that holds them."""

    path: str
    content: bytes | Path

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    def equals(self, remote) -> bool:
        """Whether a huggingface_hub.RepoFile has the same content, by SHA-256 (large files) or git hash (others)."""
        if remote.size != self.size:
            return False
        if remote.lfs:
            return remote.lfs.sha256 == provenance.sha256(self.content)
        content = self.content.read_bytes() if isinstance(self.content, Path) else self.content
        return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class SharedRun:
    """The checkpoints of a run that are to be pushed, and run.json as it may be shown.

    steps: the steps to push, in order. record: run.json without local paths. Raises UserError if the run cannot be
    pushed.
    """

    def __init__(self, run_dir: Path, steps: Sequence[int] | None, base_model: str | None):
        """steps: None for all checkpoints of a finished run. base_model: hub name, for a run trained on a folder."""
        run = run_directory.open_runs((run_dir,), steps, None)[0]
        if missing := [key for key in model_card.REQUIRED if key not in run.record]:
            raise UserError(f"{run_dir} is not a run directory of training.py: its run.json has no {missing[0]}")
        self._checkpoints = [checkpoint for checkpoint in run.checkpoints if checkpoint.folder]
        self.steps = [checkpoint.step for checkpoint in self._checkpoints]
        total = run.record["total_steps"]
        if absent := set(steps or (total,)).difference(self.steps):
            remedy = "finish the run with training.py, or choose checkpoints with --step"
            raise UserError(f"{run_dir} has no adapter of step {min(absent)} of {total}: {remedy}")
        self.record = model_card.public_record(run.record, _hub_name(run.base_model, base_model))

    def files(self, repo_id: str, steps: Sequence[int]) -> list[RepositoryFile]:
        """All files, the model card first. `steps`: every step of the repository after the push, for the card."""
        last = self.record["total_steps"]
        card = model_card.write_card(self.record, repo_id, steps, at_top_level=last in steps)
        record = json.dumps(self.record, indent=2, ensure_ascii=False) + "\n"
        files = [RepositoryFile("README.md", card.encode()), RepositoryFile("run.json", record.encode())]
        for checkpoint in self._checkpoints:
            files += self._adapter(checkpoint, f"{checkpoint.name}/")
            if checkpoint.step == last:
                # PEFT, vLLM and the hub's pages look at the top level. The hub stores equal content once.
                files += self._adapter(checkpoint, "")
        return files

    def _adapter(self, checkpoint: Checkpoint, folder: str) -> list[RepositoryFile]:
        """The adapter without the files for resuming, and with the base model's hub name instead of a local path."""
        settings = adapters.check_adapter(checkpoint.folder)
        settings |= {"base_model_name_or_path": self.record["settings"]["model"]}
        config_file = RepositoryFile(folder + ADAPTER_CONFIG, json.dumps(settings, indent=2, sort_keys=True).encode())
        return [config_file, RepositoryFile(folder + ADAPTER_WEIGHTS, checkpoint.folder / ADAPTER_WEIGHTS)]


def _hub_name(trained_on: str, given: str | None) -> str:
    """The hub name of the base model."""
    is_folder = run_directory.is_path(trained_on) or Path(trained_on).is_dir()
    if is_folder or not config.HUB_NAME.fullmatch(trained_on):
        if not given:
            raise UserError(
                f"the run was trained on the folder {trained_on}: give the model's hub name as --base-model"
            )
    elif given not in (None, trained_on):
        raise UserError(f"the run was trained on {trained_on}, not on {given}")
    return given or trained_on
