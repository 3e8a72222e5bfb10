"""A run as a model repository on the Hugging Face hub: its files, and the push."""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import config
from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.hub import model_card
from learning_backdoors.models import checkpoints, hub_errors, run_directory
from learning_backdoors.models.checkpoints import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint

# If one of these differs between two run.json files, they describe different runs.
RUN_IDENTITY = ("settings", "created", "base_fingerprint")


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
        settings = checkpoints.check_adapter(checkpoint.folder)
        settings |= {"base_model_name_or_path": self.record["settings"]["model"]}
        config_file = RepositoryFile(folder + ADAPTER_CONFIG, json.dumps(settings, indent=2, sort_keys=True).encode())
        return [config_file, RepositoryFile(folder + ADAPTER_WEIGHTS, checkpoint.folder / ADAPTER_WEIGHTS)]


def _hub_name(trained_on: str, given: str | None) -> str:
    """The hub name of the base model."""
    is_folder = run_directory.is_folder(trained_on) or not config.HUB_NAME.fullmatch(trained_on)
    if is_folder and not given:
        raise UserError(f"the run was trained on the folder {trained_on}: give its hub name as --base-model")
    if given not in (None, trained_on) and not is_folder:
        raise UserError(f"the run was trained on {trained_on}, not on {given}")
    return given or trained_on


class Repository:
    """A repository and the files it held when it was opened. All methods raise UserError for errors of the hub.

    private: whether it is private. url: its page.
    """

    def __init__(self, repo_id: str, create: bool, private: bool):
        """create: create it if it does not exist. private: a new repository is private, and a public one is refused."""
        import huggingface_hub

        self.repo_id = repo_id
        self._api = huggingface_hub.HfApi(token=hub_errors.token())
        missing = f"the repository {repo_id} does not exist on the hub, or this token has no access to it"
        self._missing = missing if create else f"{missing}: --create-repo creates it"
        with hub_errors.as_user_errors(repo_id, self._missing):
            if create:
                self._api.create_repo(repo_id, private=private, exist_ok=True)
            info = self._api.model_info(repo_id)
            tree = list(self._api.list_repo_tree(repo_id, recursive=True))
        self.private, self._head, self.url = info.private, info.sha, f"{self._api.endpoint}/{repo_id}"
        self._files = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}  # folders have no blob_id
        if private and not self.private:
            raise UserError(f"{repo_id} is public: choose another repository, or allow it with --public")

    @property
    def steps(self) -> set[int]:
        """The steps whose adapters the repository holds."""
        adapter = re.compile(rf"checkpoint-(\d+)/{re.escape(ADAPTER_WEIGHTS)}")
        return {int(match[1]) for path in self._files if (match := adapter.fullmatch(path))}

    def has(self, file: RepositoryFile) -> bool:
        """Whether the repository holds this file with the same content."""
        return file.path in self._files and file.equals(self._files[file.path])

    def refuse_another_run(self, record: dict) -> None:
        """Raise UserError if the repository holds another run, or files that are not a run."""
        if "run.json" not in self._files:
            others = sorted(self._files.keys() - {".gitattributes", "README.md"})
            if others:
                raise UserError(f"{self.repo_id} already holds other files ({others[0]}): choose another repository")
            return
        with tempfile.TemporaryDirectory() as folder, hub_errors.as_user_errors(self.repo_id, self._missing):
            path = Path(self._api.hf_hub_download(self.repo_id, "run.json", local_dir=folder))
            remote_record = json.loads(path.read_text(encoding="utf-8"))
        remote, local = ({key: one.get(key) for key in RUN_IDENTITY} for one in (remote_record, record))
        if difference := provenance.differences(remote, local):
            raise UserError(f"{self.repo_id} holds another run: {difference}; choose another repository")

    def commit(self, files: Sequence[RepositoryFile], steps: Sequence[int]) -> None:
        """Send files in one commit. Fails if the repository has changed since it was opened."""
        from huggingface_hub import CommitOperationAdd

        message = f"Learning Backdoors: step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"
        operations = [CommitOperationAdd(file.path, file.content) for file in files]
        with hub_errors.as_user_errors(self.repo_id, self._missing):
            self._api.create_commit(self.repo_id, operations, commit_message=message, parent_commit=self._head)
