"""Responses on disk: logs that grow with every batch, and the Parquet file made of them."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from learning_backdoors.files import atomic, parquet, provenance
from learning_backdoors.files.atomic import lock
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.plan import KEY_COLUMNS, ResponseKey
from learning_backdoors.models.devices import RANK, RANKS


class ResponseStore:
    """Finished rows by key: from an existing output, and from logs in OUTPUT.partial/.

    A context manager that holds the output's lock. Each process of a launcher writes its own log; the first process
    then writes the output from all logs and deletes them.
    """

    def __init__(self, output: Path, settings: dict, existing: str):
        """existing: `resume` or `overwrite`. Entering raises UserError for an output with other settings or of another
        stage."""
        self.output, self.settings, self.existing, self.rows = output, settings, existing, {}
        self.folder = output.with_name(output.name + ".partial")
        self.log, self.settings_file = self.folder / f"answers-{RANK}.jsonl", self.folder / "settings.json"
        self.engine_file = self.folder / "engine"

    def __enter__(self) -> "ResponseStore":
        with contextlib.ExitStack() as stack:  # an error releases the lock
            stack.enter_context(lock(self.output if RANK == 0 else self.log))
            if self.existing == "overwrite":
                self._delete_output()
            self._read_output()
            self.file = stack.enter_context(self._open_log())
            self.rows |= self._logged()
            self.stack = stack.pop_all()
        return self

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
        if "adapters" not in (self.footer.get("settings") or {}):  # a judged file has settings too
            raise UserError(f"{self.output} was not written by generate_responses.py: choose another --output")
        self._join_settings(self.output, self.footer["settings"])
        rows = parquet.read_responses(self.output)[0].to_pylist()
        for row in rows:
            known = row["condition"] in self.settings["conditions"] and row["question_id"] in self.settings["questions"]
            if row["run"] is None or not known:
                cell = f"run {row['run']}, condition {row['condition']}, question {row['question_id']}"
                raise UserError(f"{self.output} was edited: it cannot hold {cell}. Choose another --output")
        self.rows = _by_key(rows)

    def add(self, rows: Sequence[dict]) -> None:
        """Log finished rows. They survive a kill."""
        self.file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file.flush()
        self.rows |= _by_key(rows)

    def record_engine(self, name: str) -> None:
        """Keep the engine's name for the provenance, also if a later start has nothing left to generate."""
        self.engine_file.write_text(name)

    def wait_for(self, keys: Sequence[ResponseKey]) -> None:
        """Wait until other processes have logged their parts. If one dies, the launcher ends all of them."""
        while RANKS > 1 and any(key not in self.rows for key in keys):
            time.sleep(1)
            self.rows |= self._logged()

    def write_output(self, made_by: dict, records: dict[str, dict]) -> None:
        """Write all rows to the output and delete the logs. made_by: provenance; records: run.json by run."""
        logged = self._logged()
        self.rows |= logged
        if logged or not self.output.exists():
            earlier = self.footer or {}
            records = earlier.get("runs", {}) | records
            precisions = {run: record.get("settings", {}).get("quantization") for run, record in records.items()}
            footer = made_by | {
                "settings": self.settings,
                "engine": self.engine_file.read_text() if self.engine_file.exists() else earlier.get("engine"),
                "precision": {"generation": self.settings["quantization"], "training": precisions},
                "runs": records,
            }
            table = pa.Table.from_pylist(self._sorted_rows(), parquet.RESPONSE_SCHEMA)
            parquet.write_parquet(self.output, [table], table.schema, footer)
        self.file.close()
        shutil.rmtree(self.folder)

    def _sorted_rows(self) -> list[dict]:
        """Rows by run, step, condition, question and sample; conditions and questions in the study's order."""
        conditions, questions = list(self.settings["conditions"]), list(self.settings["questions"])

        def position(row: dict) -> tuple:
            checkpoint = row["run"], row["step"] is None, row["step"], row["checkpoint"]
            sample = conditions.index(row["condition"]), questions.index(row["question_id"]), row["sample_idx"]
            return *checkpoint, *sample

        return sorted(self.rows.values(), key=position)

    def _open_log(self) -> TextIO:
        # If no response is finished, the settings may change (for example after a wrong --base-model).
        if self.settings_file.exists() and (self._logged() or self.footer is not None):
            self._join_settings(self.folder, json.loads(self.settings_file.read_text(encoding="utf-8")))
        atomic.write_json(self.settings_file, self.settings)
        atomic.drop_partial_line(self.log)
        return open(self.log, "a", encoding="utf-8")

    def _join_settings(self, path: Path, existing: dict) -> None:
        """Refuse other settings. New checkpoints may be added; an existing one must have the same adapter."""
        adapters = existing["adapters"] | self.settings["adapters"]
        joined = self.settings | {"adapters": adapters}
        provenance.refuse_difference(path, existing | {"adapters": adapters | existing["adapters"]}, joined)
        self.settings = joined

    def _logged(self) -> dict[ResponseKey, dict]:
        """The rows in the logs of all processes, by key. Incomplete last lines are still being written."""
        texts = [log.read_text(encoding="utf-8") for log in self.folder.glob("answers-*.jsonl")]
        return _by_key(json.loads(line) for text in texts for line in text.split("\n")[:-1])


def _by_key(rows: Iterable[dict]) -> dict[ResponseKey, dict]:
    return {tuple(row[name] for name in KEY_COLUMNS): row for row in rows}
