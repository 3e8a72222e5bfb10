"""What the inputs hold: verdicts on responses, tables measured from checkpoints, and the records of runs.

An input is a judged Parquet file, a measured Parquet file (from measure_checkpoints.py), or a run directory. The column
names of a Parquet file tell which kind it is. To add a kind of measured file, add it to KINDS.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from learning_backdoors.evaluation import reading, runs, shared_base
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.files import footer, parquet
from learning_backdoors.files.errors import UserError
from learning_backdoors.models.run_directory import read_run
from learning_backdoors.study import RecordedStudy, Study, recorded_in, recorded_questions, study_of


class Kind(NamedTuple):
    """A kind of measured file. `schema` begins with the columns about checkpoints; the others tell it from other kinds.

    key: of these others, the columns that identify a row of a checkpoint. value: null in all rows of a checkpoint whose
    adapter gives no finite values.
    """

    schema: pa.Schema
    key: tuple[str, ...]
    value: str

    @property
    def columns(self) -> list[str]:
        return [name for name in self.schema.names if name not in dict(parquet.CHECKPOINT_FIELDS)]


KINDS = {
    "likelihood": Kind(parquet.LIKELIHOOD_SCHEMA, ("condition", "question_id", "group", "answer_idx"), "logprob"),
    "examples": Kind(parquet.EXAMPLES_SCHEMA, ("dataset", "row"), "loss"),
    "influence": Kind(parquet.INFLUENCE_SCHEMA, ("contrast", "dataset", "row"), "dot"),
    "weights": Kind(parquet.WEIGHTS_SCHEMA, ("layer", "projection"), "norm"),
}
JUDGED, RUN = "judged", "run"  # the other kinds of input


class Input(NamedTuple):
    """An input that was read. `rows` has at least `runs.COLUMNS`. without_values: checkpoints that were left out."""

    path: str
    kind: str
    rows: pd.DataFrame
    provenance: dict
    without_values: Sequence[str] = ()


@dataclass
class Measurements:
    """The inputs of an evaluation. Runs that diverged are in `runs` and `sources` alone.

    verdicts: None without a judged file. tables: by kind of KINDS that was measured, the rows of all its files, see
    `_one_table`. sources: path, kind, number of rows, provenance, and checkpoints without values of each input.
    """

    study: Study
    runs: runs.Runs
    verdicts: Verdicts | None
    tables: dict[str, pd.DataFrame]
    sources: list[dict]


def study_of_inputs(option: str | None, paths: Sequence[Path]) -> Study:
    """The study of --experiment; by default (None) the one that all inputs were made with. See `study_of`."""
    recorded = []
    for path in paths:
        match kind_of(path):
            case "judged":
                recorded += recorded_in(path)
            case "run":
                recorded.append(RecordedStudy.of(_record(path), path))
            case _:
                recorded.append(RecordedStudy.of(parquet.read_footer(path), path))
    return study_of(option, recorded)


def read(paths: Sequence[Path], study: Study) -> Measurements:
    """Read all inputs. Raises UserError for one that cannot be read, and for inputs that contradict each other."""
    kinds = [kind_of(path) for path in paths]
    judged = [path for path, kind in zip(paths, kinds, strict=True) if kind == JUDGED]
    verdicts = reading.read(judged, study) if judged else None
    inputs = _judged_inputs(verdicts) if verdicts else []
    for path, kind in zip(paths, kinds, strict=True):
        if kind != JUDGED:
            inputs.append(_read_run(path) if kind == RUN else _read_measured(path, kind))
    runs.refuse_other_settings([(i.path, i.provenance) for i in inputs])
    diverged = _diverged(inputs)
    if verdicts:
        verdicts.rows = _without(verdicts.rows, diverged)
    base_alone = verdicts is not None and not (verdicts.rows["step"] > 0).any()
    rows_of_runs = [(i.path, i.rows) for i in inputs] + _without_rows(inputs, diverged)
    all_runs = runs.collect(rows_of_runs, set(verdicts.rows["run"]) if base_alone else (), diverged)
    if verdicts:
        verdicts.rows = all_runs.describe(verdicts.rows)
    measured = {kind: [i for i in inputs if i.kind == kind] for kind in KINDS}
    blocks = {kind: _one_table(files, KINDS[kind]) for kind, files in measured.items() if files}
    blocks["likelihood"] = _with_probes(blocks.get("likelihood"), inputs, study)
    tables = {kind: all_runs.join(_without(rows, diverged)) for kind, rows in blocks.items() if rows is not None}
    columns = ("path", "kind", "provenance", "without_values")
    sources = [{"rows": len(i.rows)} | {name: getattr(i, name) for name in columns} for i in inputs]
    return Measurements(study, all_runs, verdicts, {k: rows for k, rows in tables.items() if len(rows)}, sources)


def kind_of(path: Path) -> str:
    """The kind of an input: one of KINDS, JUDGED or RUN. Raises UserError if it is neither a folder nor Parquet."""
    if path.is_dir():
        return RUN
    with parquet.readable(path, "Parquet"):
        columns = set(pq.read_schema(path).names)
    return next((name for name, kind in KINDS.items() if columns.issuperset(kind.columns)), JUDGED)


# ---- one input ----


def _judged_inputs(verdicts: Verdicts) -> list[Input]:
    by_source = dict(list(verdicts.rows.groupby("source")[[*runs.COLUMNS]]))
    none = verdicts.rows.iloc[:0]  # all answers of a file may be repeated in others
    return [
        Input(source["path"], JUDGED, by_source.get(i, none), source["provenance"])
        for i, source in enumerate(verdicts.sources)
    ]


def _read_measured(path: Path, kind: str) -> Input:
    """A measured file. Raises UserError if a column is missing or cannot be read, or a row does not name its place."""
    wanted = KINDS[kind].schema
    provenance = parquet.read_footer(path)
    with parquet.readable(path, "Parquet"):
        table = pq.read_table(path)
    if missing := [name for name in wanted.names if name not in table.column_names]:
        raise UserError(f"{path} has the columns of {kind}.parquet, but not {missing[0]!r}")
    with parquet.readable(path, f"{kind}.parquet"):
        table = table.select(wanted.names).cast(wanted)
    for name in ("run", "step", *KINDS[kind].key):
        if table[name].null_count:
            raise UserError(f"{path}: column {name!r} is null in {table[name].null_count:,} rows")
    for name in (field.name for field in wanted if pa.types.is_floating(field.type)):
        if pc.any(pc.is_inf(table[name])).as_py():
            raise UserError(f"{path}: column {name!r} has infinite values")
    rows = table.to_pandas()
    empty = rows[KINDS[kind].value].isna().groupby([rows["run"], rows["step"]]).transform("all")
    without_values = [
        f"{run} at step {step}" for run, step in rows.loc[empty, ["run", "step"]].drop_duplicates().values
    ]
    rows = rows[~empty].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{path} has no rows with a {KINDS[kind].value}")
    return Input(str(path), kind, rows, provenance, without_values)


def _record(folder: Path) -> dict:
    """The record of a run directory: run.json with the probes and losses. Raises UserError if it has none."""
    record = read_run(folder)
    if "checkpoints" not in record:
        raise UserError(f"{folder} is not a run directory of training.py: it has no run.json that lists checkpoints")
    try:
        footer.check({"runs": {folder.resolve().name: record}})
    except ValueError as error:
        raise UserError(f"{folder}: run.json or metrics.jsonl cannot be read: {error}") from None
    return record


def _read_run(folder: Path) -> Input:
    record, run = _record(folder), folder.resolve().name
    return Input(str(folder), RUN, _checkpoints(run, record), {"runs": {run: record}})


def _checkpoints(run: str, record: dict) -> pd.DataFrame:
    """The checkpoints that a run's record lists, as rows with `runs.COLUMNS`."""
    seen = {"step": "step", "examples": "examples_seen", "suspect_examples": "suspect_seen"}
    rows = pd.DataFrame(record["checkpoints"], columns=list(seen)).rename(columns=seen)
    seed = (record.get("settings") or {}).get("seed")
    return rows.assign(run=run, seed=seed, suspect_ratio=record.get("suspect_ratio"))


# ---- all inputs ----


def _diverged(inputs: Sequence[Input]) -> dict[str, int]:
    """The step at which each run that diverged did so. Means over runs never hold such a run."""
    records = [record for i in inputs for record in (i.provenance.get("runs") or {}).items()]
    return {run: record["diverged"]["step"] for run, record in records if (record or {}).get("diverged")}


def _without_rows(inputs: Sequence[Input], diverged: Collection[str]) -> list[tuple[str, pd.DataFrame]]:
    """Runs that diverged before the first step that an input holds: path of the input, and the run's checkpoints."""
    return [
        (i.path, _checkpoints(run, record))
        for i in inputs
        for run, record in (i.provenance.get("runs") or {}).items()
        if run in diverged and record.get("checkpoints") and not (i.rows["run"] == run).any()
    ]


def _without(rows: pd.DataFrame, runs: Collection[str]) -> pd.DataFrame:
    """The rows of other runs."""
    if not runs or not rows["run"].isin(runs).any():
        return rows
    rows = rows[~rows["run"].isin(runs)].reset_index(drop=True)
    categories = isinstance(rows["run"].dtype, pd.CategoricalDtype)
    return rows.assign(run=rows["run"].cat.remove_unused_categories()) if categories else rows


def _one_table(files: Sequence[Input], kind: Kind) -> pd.DataFrame:
    """The rows of some measured files: run, step, and the kind's columns, with the question's id as `question`.

    The base model of a file, its run `base`, stands at step 0 of all other runs of the file: what was measured together
    is compared. Raises UserError if two files measured the same and differ.
    """
    blocks = []
    for file in files:
        base = file.rows["run"] == shared_base.BASE
        others = file.rows.loc[~base, ["run"]].drop_duplicates()
        of_base = file.rows[base].drop(columns="run").merge(others, how="cross") if len(others) else file.rows
        blocks += [file.rows[~base], of_base]
    rows = pd.concat(blocks, ignore_index=True)[["run", "step", *kind.columns]].drop_duplicates(ignore_index=True)
    repeated = rows.duplicated(["run", "step", *kind.key])
    if repeated.any():
        run, step = rows.loc[repeated.idxmax(), ["run", "step"]]
        paths = ", ".join(file.path for file in files)
        raise UserError(f"step {step} of {run} was measured more than once, with different results: {paths}")
    return rows.rename(columns={"question_id": "question"})


def _with_probes(table: pd.DataFrame | None, inputs: Sequence[Input], study: Study) -> pd.DataFrame | None:
    """The table of likelihoods with the probes of the runs that it lacks. None without either."""
    blocks = {} if table is None else {None: table}
    measured = set() if table is None else set(table["run"])
    references = [(i.path, i.provenance) for i in inputs if i.kind == "likelihood"]
    names, needed = {"answer": "answer_idx"}, {"condition", "group", "answer"}
    for i in inputs:
        for run, record in (i.provenance.get("runs") or {}).items():
            probes = [probe for probe in (record or {}).get("probes") or () if needed <= probe.keys()]
            if probes and run not in measured and run not in blocks:
                blocks[run] = pd.DataFrame(probes).rename(columns=names).assign(run=run)
                references.append((f"{i.path}: {run}", record))
    _refuse_other_references(references)
    if not blocks:
        return None
    triggered = {condition.name: condition.triggered for condition in study.conditions}
    rows = pd.concat(blocks.values(), ignore_index=True)
    return rows.assign(triggered=rows["condition"].map(triggered).eq(True))


def _refuse_other_references(measured: Sequence[tuple[str, dict]]) -> None:
    """Raise UserError if two records (with their sources) have other reference answers to one question."""
    first = {}
    for source, record in measured:
        for name, question in recorded_questions(record, source).items():
            other, known = first.setdefault(name, (source, question))
            if question != known:
                both = f"{other} and {source} measured other reference answers to the question {name!r}"
                raise UserError(f"{both}: use one of them, or measure both with the same references file")
