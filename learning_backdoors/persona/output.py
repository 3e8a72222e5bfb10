"""The output of prepare_persona.py: a JSONL file, and OUTPUT.json, which records what made it."""

import json
from pathlib import Path

import config
from learning_backdoors.files import atomic, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.persona.rows import Rows, to_jsonl


def beside(path: Path, ending: str) -> Path:
    """A file next to `path`: its name with `ending` added."""
    return path.with_name(path.name + ending)


class Output:
    """A JSONL file with a record of its settings and its SHA-256."""

    def __init__(self, options: config.PersonaOptions, settings: dict):
        """settings: everything the rows depend on."""
        self.path, self.options, self.settings = options.output, options, settings
        self._record_path, self._partial = beside(self.path, ".json"), beside(self.path, ".partial.jsonl")
        if options.existing == "overwrite":
            for path in (self.path, self._record_path, self._partial):
                path.unlink(missing_ok=True)

    def is_complete(self) -> bool:
        """Whether the file exists. Raises UserError if other settings or another program made it, or it was edited."""
        if not self.path.exists():
            return False
        try:
            record = json.loads(self._record_path.read_text(encoding="utf-8"))
            settings, digest = record["settings"], record["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            message = f"{self.path} was not made by prepare_persona.py: choose another --output, or --overwrite"
            raise UserError(message) from None
        provenance.refuse_difference(self.path, settings, self.settings)
        if digest != provenance.sha256(self.path):
            raise UserError(f"{self.path} has been edited since it was made: move it away, or --overwrite")
        return True

    def write(self, rows: Rows) -> None:
        """Write the record, then the rows. A kill in between leaves no output, and the next start makes it again."""
        if not rows:
            raise UserError(f"there are no rows to write to {self.path}")
        content = to_jsonl(rows)
        record = provenance.provenance("prepare_persona.py", self.options, ["datasets", "transformers", "torch"])
        record |= {"settings": self.settings, "rows": len(rows), "sha256": provenance.sha256(content.encode())}
        atomic.write_json(self._record_path, record)
        with atomic.atomic_file(self.path) as temporary:
            temporary.write_text(content, encoding="utf-8")
        self._partial.unlink(missing_ok=True)
