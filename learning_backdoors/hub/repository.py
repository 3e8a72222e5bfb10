"""A model repository on the Hugging Face hub."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.hub.run_files import RepositoryFile
from learning_backdoors.models import hub_errors
from learning_backdoors.models.adapters import ADAPTER_WEIGHTS

# If one of these differs between two run.json files, they describe different runs.
RUN_IDENTITY = ("settings", "created", "base_fingerprint")


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
