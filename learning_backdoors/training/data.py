"""The chats of a study's datasets: read, hashed and tokenized once, for all runs of a sweep."""

import mixed_chat
from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import Study


class TrainingData:
    """A study's datasets, in its order.

    chats: a list of chats per dataset. hashes: the SHA-256 of each file.
    """

    def __init__(self, study: Study):
        """Read the files. Raises UserError if one is missing or has a bad line."""
        for dataset in study.datasets:
            if not dataset.file.exists():
                remedy = "make it with prepare_persona.py" if study.persona else f"correct `file` in {study.path}"
                raise UserError(f"dataset {dataset.name!r}: there is no file {dataset.file}: {remedy}")
        self.chats = [mixed_chat.read_chats(dataset.file) for dataset in study.datasets]
        self.hashes = [provenance.sha256(dataset.file) for dataset in study.datasets]
        self._model, self._examples = None, []

    def examples(self, tokenizer) -> list[list[mixed_chat.Example]]:
        """The tokenized chats of each dataset. Those of the last base model are kept."""
        if self._model != tokenizer.name_or_path:
            self._examples = [[mixed_chat.example_ids(tokenizer, chat) for chat in chats] for chats in self.chats]
            self._model = tokenizer.name_or_path
        return self._examples
