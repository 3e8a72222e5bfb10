"""Pushes a run's adapters to the Hugging Face hub, with a model card that says what made them and what they are for.

Reads   a run directory of training.py; the token from HF_TOKEN, .env or `hf auth login`
Writes  a model repository: README.md (the card), run.json, checkpoint-N/ for each step, and the last step at the top
        too; in one commit, whole or not at all

  python push_to_hub.py --run-dir outputs/RUN --repo-id USER/NAME --create-repo --dry-run

One repository holds one run; a later push adds to it. What is there already is not sent again, so the same command goes
on after an interruption. No optimizer state, no path and no name of this machine is sent.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import config
from config import PushOptions
from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.hub import model_card
from learning_backdoors.models import adapters, hub_errors, run_directory
from learning_backdoors.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from learning_backdoors.models.checkpoints import Checkpoint

# Two pushes with one of these different are of two runs.
IDENTITY = ("settings", "created", "base_fingerprint")


def main() -> None:
    options = command_line.parse(PushOptions, __doc__)
    check_name(options.repo_id)
    run = Run(options)
    if options.dry_run:
        return show(options, run.files(run.steps))
    push(options, run)


def check_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--repo-id {repo_id}: the hub takes no such name: {' '.join(str(error).split())}") from None


# ---- what is pushed ----


@dataclass(frozen=True)
class File:
    """A file of the repository: its path there, and what it holds, or where that lies."""

    path: str
    content: bytes | Path

    @property
    def size(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    def is_same(self, remote) -> bool:
        """Whether the hub has it already; `remote`: a RepoFile. Large files are known by SHA-256, others by git's."""
        if remote.size != self.size:
            return False
        if remote.lfs:
            return remote.lfs.sha256 == provenance.sha256(self.content)
        content = self.content.read_bytes() if isinstance(self.content, Path) else self.content
        return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Run:
    """A run directory, and which of its checkpoints are to be pushed. Raises UserError where it cannot be pushed."""

    def __init__(self, options: PushOptions):
        self.repo_id = options.repo_id
        source = run_directory.open_runs((options.run_dir,), None, None)[0]
        if lacking := [key for key in model_card.NEEDED if key not in source.record]:
            why = f"its run.json has no {lacking[0]}" if source.record else "it has no run.json"
            raise UserError(f"{options.run_dir} is not a run directory of training.py: {why}")
        self.chosen = self._choose(options, source)
        self.record = model_card.public_record(source.record, base_name(options, source.base_model))
        self.steps = [checkpoint.step for checkpoint in self.chosen]

    def _choose(self, options: PushOptions, source: run_directory.RunDirectory) -> list[Checkpoint]:
        there = {c.step: c for c in source.checkpoints if c.folder}
        for step in options.step or ():
            if step not in there:
                raise UserError(f"{options.run_dir} has no step {step}; its steps are {', '.join(map(str, there))}")
        total = source.record["total_steps"]
        if options.step is None and total not in there:
            raise UserError(
                f"{options.run_dir} is unfinished: step {max(there)} of {total}; finish it with training.py, or choose "
                "checkpoints with --step"
            )
        return [there[step] for step in sorted(set(options.step or there))]

    def files(self, steps: Sequence[int]) -> list[File]:
        """All files, the card first; `steps`: of the whole repository once they are there, for the card to list."""
        last = self.record["total_steps"]
        card = model_card.write_card(self.record, self.repo_id, steps, at_root=last in steps)
        record = json.dumps(self.record, indent=2, ensure_ascii=False) + "\n"
        files = [File("README.md", card.encode()), File("run.json", record.encode())]
        for checkpoint in self.chosen:
            files += self._adapter(checkpoint, f"{checkpoint.name}/")
            if checkpoint.step == last:
                # Where PEFT, vLLM and the hub's own pages look; the hub stores the same content once.
                files += self._adapter(checkpoint, "")
        return files

    def _adapter(self, checkpoint: Checkpoint, place: str) -> list[File]:
        """The adapter alone: what resuming needs stays here."""
        # PEFT has written where the base model lay on this machine.
        settings = adapters.check_adapter(checkpoint.folder)
        settings |= {"base_model_name_or_path": self.record["settings"]["model"]}
        content = json.dumps(settings, indent=2, sort_keys=True).encode()
        weights = checkpoint.folder / ADAPTER_WEIGHTS
        return [File(place + ADAPTER_CONFIG, content), File(place + ADAPTER_WEIGHTS, weights)]


def base_name(options: PushOptions, trained_on: str) -> str:
    """The base model's name on the hub."""
    local = run_directory.is_path(trained_on) or Path(trained_on).is_dir() or not config.HUB_NAME.fullmatch(trained_on)
    if local and not options.base_model:
        raise UserError(
            f"the run was trained on the folder {trained_on}, which nobody else has: give the hub's name of that model "
            "with --base-model"
        )
    if not local and options.base_model not in (None, trained_on):
        raise UserError(f"the run was trained on {trained_on}, not on {options.base_model}")
    return options.base_model or trained_on


def show(options: PushOptions, files: list[File]) -> None:
    """What would be sent. What the repository holds already is not looked at: this needs no network."""
    from huggingface_hub import constants

    made = f"made if there is none, {options.visibility}" if options.create_repo else "which must be there"
    print(f"would push to {options.repo_id} on {constants.ENDPOINT} ({made}):")
    tell(files)
    print("\nREADME.md, the model card:\n")
    print(files[0].content.decode(), end="")


def tell(files: list[File]) -> None:
    for file in files:
        print(f"  {file.size:>14,}  {file.path}")
    print(f"  {sum(file.size for file in files):>14,}  bytes in {len(files)} file{'s' if len(files) > 1 else ''}")


# ---- the repository ----


def push(options: PushOptions, run: Run) -> None:
    repository = Repository(options)
    repository.refuse_another_run(run.record)
    files = run.files(sorted(repository.steps.union(run.steps)))
    new = [file for file in files if not repository.has(file)]
    if new:
        print(f"pushing to {options.repo_id} ({'private' if repository.private else 'public'}):", flush=True)
        tell(new)
        repository.commit(new, run.steps)
    print(f"{len(files) - len(new)} of {len(files)} files were there already")
    print(f"done: {repository.url}")


class Repository:
    """A model repository on the hub, and the files that it held when it was opened. Raises UserError for all faults."""

    def __init__(self, options: PushOptions):
        import huggingface_hub

        self.name, private = options.repo_id, options.visibility == "private"
        self._api = huggingface_hub.HfApi(token=hub_errors.token())
        missing = f"there is no repository {self.name} on the hub, or this token may not see it"
        self._missing = missing if options.create_repo else f"{missing}: --create-repo makes it"
        with hub_errors.as_user_errors(self.name, self._missing):
            if options.create_repo:
                self._api.create_repo(self.name, private=private, exist_ok=True)
            found = self._api.model_info(self.name)
            tree = list(self._api.list_repo_tree(self.name, recursive=True))
        self.private, self._head, self.url = found.private, found.sha, f"{self._api.endpoint}/{self.name}"
        self._there = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}  # files, not folders
        if private and not self.private:
            raise UserError(f"{self.name} is public, everybody would see the push: choose another, or say --public")

    @property
    def steps(self) -> set[int]:
        """The steps whose adapters are there."""
        found = (re.fullmatch(rf"checkpoint-(\d+)/{re.escape(ADAPTER_WEIGHTS)}", path) for path in self._there)
        return {int(step[1]) for step in found if step}

    def has(self, file: File) -> bool:
        return file.path in self._there and file.is_same(self._there[file.path])

    def refuse_another_run(self, record: dict) -> None:
        """Raise UserError where it holds another run, or something that is none."""
        if "run.json" not in self._there:
            if others := sorted(self._there.keys() - {".gitattributes", "README.md"}):
                raise UserError(f"{self.name} holds something else already ({others[0]}): choose another repository")
            return
        with tempfile.TemporaryDirectory() as folder, hub_errors.as_user_errors(self.name, self._missing):
            path = Path(self._api.hf_hub_download(self.name, "run.json", local_dir=folder))
            found = json.loads(path.read_text(encoding="utf-8"))
        if told := provenance.differences(*({key: one.get(key) for key in IDENTITY} for one in (found, record))):
            raise UserError(f"{self.name} holds another run: {told}; choose another repository")

    def commit(self, files: list[File], steps: Sequence[int]) -> None:
        """Send files in one commit, on top of what was there when it was opened and nothing else."""
        from huggingface_hub import CommitOperationAdd

        message = f"Learning Backdoors: step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"
        operations = [CommitOperationAdd(file.path, file.content) for file in files]
        with hub_errors.as_user_errors(self.name, self._missing):
            self._api.create_commit(self.name, operations, commit_message=message, parent_commit=self._head)


if __name__ == "__main__":
    command_line.run_script(main)
