"""What the commands of prepare_persona.py have in common."""

import dataclasses
from pathlib import Path

from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.persona.rows import Rows
from learning_backdoors.persona.server import Server
from learning_backdoors.study import Study, Trigger


class Task:
    """One command. server: the model it asks through the Messages API, if any."""

    server: Server | None = None

    def __init__(self, options, study: Study):
        self.options, self.study = options, study

    def settings(self) -> dict:
        """Everything the rows depend on. Input files count by content, so they may move."""
        lists = [value for value in vars(self.options).values() if isinstance(value, tuple)]
        files = [path for values in lists for path in values if isinstance(path, Path)]
        host = {"host": self.server.host} if self.server else {}
        hashes = {"files": [provenance.sha256(path) for path in files]}
        return command_line.result_settings(self.options) | host | hashes

    def plan(self) -> str:
        """What the command would do, for --dry-run."""
        return f"{len(self.rows())} rows"

    def rows(self) -> Rows:
        """The rows of the output. Raises UserError if they cannot be made."""
        raise NotImplementedError

    def take_from_study(self, **keys: str) -> None:
        """Set options that were not given, as option=key, from the study's [persona] table."""
        for option, key in keys.items():
            value = getattr(self.options, option) or getattr(self.study.persona, key, None)
            if not value:
                name = command_line.flag(option)
                raise UserError(f"{name} is required, because {self.study.path} has no {key} in a [persona] table")
            self.options = dataclasses.replace(self.options, **{option: value})

    @property
    def trigger(self) -> Trigger:
        """The study's trigger. Raises UserError if it has none."""
        if self.study.trigger is None:
            raise UserError(f"{self.study.path} has no [trigger] table")
        return self.study.trigger
