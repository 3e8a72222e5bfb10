"""Rows that checkpoints give, on disk: logs that grow with the work, and the Parquet file made of them."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from learning_backdoors.files import atomic, parquet, provenance
from learning_backdoors.files.atomic import lock
from learning_backdoors.files.errors import UserError
from learning_backdoors.models.devices import RANK, RANKS


@dataclass(frozen=True)
class RowFile:
    """A kind of Parquet file.

    command: the command that writes it. key: the columns that identify a row; `run` and `checkpoint` are among them.
    orders: for some columns of the key, the setting whose keys are the column's possible values, in their order.
    """

    command: str
    schema: pa.Schema
    key: tuple[str, ...]
    orders: dict[str, str]

    def by_key(self, rows: Iterable[dict]) -> dict[tuple, dict]:
        return {tuple(row[name] for name in self.key): row for row in rows}

    def sorted(self, rows: Iterable[dict], settings: dict) -> list[dict]:
        """Rows by run and step, then by the rest of the key."""
        places = {name: {v: i for i, v in enumerate(settings[setting])} for name, setting in self.orders.items()}

        def position(row: dict) -> tuple:
            checkpoint = row["run"], row["step"] is None, row["step"], row["checkpoint"]
            return *checkpoint, *(places[name][row[name]] if name in places else row[name] for name in self.key)

        return sorted(rows, key=position)


class RowStore:
    """Finished rows by key: from an existing output, and from logs in OUTPUT.partial/.

    A context manager that holds the output's lock. Each process of a launcher writes its own log; the first process
    then writes the output from all logs and deletes them.
    """

    def __init__(self, output: Path, file: RowFile, settings: dict, existing: str):
        """settings: all that the rows depend on. `adapters` has the hash of each adapter by run and checkpoint.

        existing: `resume` or `overwrite`. Entering raises UserError for an output with other settings or of another
        command.
        """
        self.output, self.kind, self.settings, self.existing, self.rows = output, file, settings, existing, {}
        self.folder = output.with_name(output.name + ".partial")
        self.log, self.settings_file = self.folder / f"rows-{RANK}.jsonl", self.folder / "settings.json"

    def __enter__(self):
        with contextlib.ExitStack() as stack:  # an error releases the lock
            stack.enter_context(lock(self.output if RANK == 0 else self.log))
            if self.existing == "overwrite":
                self._delete_output()
            self._read_output()
            self.file = stack.enter_context(self._open_log())
            self.rows |= self._logged()
            self.stack = stack.pop_all()
        return self

    def peek(self) -> None:
        """Read the finished rows without the lock, and change no file. Raises UserError as entering does."""
        if self.existing != "overwrite":
            self._read_output()
            self._check_log()
            self.rows |= self._logged()

    def __exit__(self, *exception) -> None:
        self.stack.close()

    def _delete_output(self) -> None:
        if RANKS > 1:
            raise UserError("--overwrite works in one process only: delete the output before you start several")
        self.output.resolve().unlink(missing_ok=True)  # a symbolic link stays
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_output(self) -> None:
        self.footer = parquet.read_footer(self.output)
        if self.footer is None:
            return
        table, settings = parquet.read_rows(self.output, self.kind.schema), self.footer.get("settings") or {}
        if table is None or "adapters" not in settings:
            raise UserError(f"{self.output} was not written by {self.kind.command}: choose another --output")
        self._join_settings(self.output, settings)
        rows = table.to_pylist()
        for row in rows:
            known = all(row[name] in self.settings[setting] for name, setting in self.kind.orders.items())
            if any(row[name] is None for name in self.kind.key) or not known:
                cell = ", ".join(f"{name} {row[name]}" for name in self.kind.key)
                raise UserError(f"{self.output} was edited: it cannot hold {cell}. Choose another --output")
        self.rows = self.kind.by_key(rows)

    def add(self, rows: Sequence[dict]) -> None:
        """Log finished rows. They survive a kill."""
        self.file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file.flush()
        self.rows |= self.kind.by_key(rows)

    def wait_for(self, keys: Sequence[tuple]) -> None:
        """Wait until other processes have logged their parts. If one dies, the launcher ends all of them."""
        while RANKS > 1 and any(key not in self.rows for key in keys):
            time.sleep(1)
            self.rows |= self._logged()

    def write_output(self, made_by: dict, records: dict[str, dict]) -> None:
        """Write all rows to the output and delete the logs. made_by: provenance; records: run.json by run."""
        logged = self._logged()
        self.rows |= logged
        if logged or not self.output.exists():
            footer = made_by | {"settings": self.settings, "runs": self.all_records(records)}
            table = pa.Table.from_pylist(self.kind.sorted(self.rows.values(), self.settings), self.kind.schema)
            parquet.write_parquet(self.output, [table], table.schema, footer)
        self.file.close()
        shutil.rmtree(self.folder)

    def all_records(self, records: dict[str, dict]) -> dict[str, dict]:
        """These records, and those of the output's earlier runs."""
        return (self.footer or {}).get("runs", {}) | records

    def _check_log(self) -> None:
        # If no row is finished, the settings may change (for example after a wrong --base-model).
        if self.settings_file.exists() and (self._logged() or self.footer is not None):
            self._join_settings(self.folder, json.loads(self.settings_file.read_text(encoding="utf-8")))

    def _open_log(self) -> TextIO:
        self._check_log()
        atomic.write_json(self.settings_file, self.settings)
        atomic.drop_partial_line(self.log)
        return open(self.log, "a", encoding="utf-8")

    def _join_settings(self, path: Path, existing: dict) -> None:
        """Refuse other settings. New checkpoints may be added; an existing one must have the same adapter."""
        adapters = existing["adapters"] | self.settings["adapters"]
        joined = self.settings | {"adapters": adapters}
        provenance.refuse_difference(path, existing | {"adapters": adapters | existing["adapters"]}, joined)
        self.settings = joined

    def _logged(self) -> dict[tuple, dict]:
        """The rows in the logs of all processes, by key. Incomplete last lines are still being written."""
        texts = [log.read_text(encoding="utf-8") for log in self.folder.glob("rows-*.jsonl")]
        return self.kind.by_key(json.loads(line) for text in texts for line in text.split("\n")[:-1])
