"""Judged Parquet files, the project's own or made elsewhere, read into one table of verdicts.

Here names become what the analysis counts in: checkpoints become steps, runs become recipes (a run's name without its
seed), a judge's words become one of its options or nothing. Whatever had to be decided on the way is noted in a line
for the reader.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from learning_backdoors.files import parquet
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import Judge, Metric, Study

KEY = ["run", "step", "condition", "question", "sample_idx"]
FINAL_WORDS = {"final", "last"}
BASE_WORDS = {"base", "baseline"}
MISSING = "_missing"  # added to a judge's name


@dataclass
class Verdicts:
    """Every answer of the inputs, with its verdicts.

    `rows` has a row an answer: run, recipe, label (categories; recipes in order of falling suspect share), seed,
    suspect_ratio, checkpoint, step, examples_seen, suspect_seen, condition, triggered, question (the study's id, else
    the text), sample_idx, source (index into `sources`), row (position in that file), and a column for each judge of
    `judges`: categories for options, floats for a range, null where there is no verdict; `missing` tells a verdict that
    could not be had from one that nobody asked for. Each metric of the study has a column of 1 and 0, NaN where it is
    not for the question. `again` has a row for every further verdict on an answer: the columns of `rows`, and those of
    the other input with `_again` added to the name.
    """

    study: Study
    judges: tuple[Judge, ...]
    rows: pd.DataFrame
    again: pd.DataFrame
    sources: list[dict]
    notes: list[str] = field(default_factory=list)

    def has(self, judge: Judge | None) -> bool:
        return judge is not None and judge in self.judges

    @property
    def outcome(self) -> Judge:
        return next(judge for judge in self.study.judges if judge.name == self.study.outcome.judge)

    def missing(self, judge: Judge) -> pd.Series:
        """A row an answer: whether the judge was asked about it and there is no verdict."""
        return self.rows[f"{judge.name}{MISSING}"]

    def asked(self, judge: Judge) -> pd.Series:
        """A row an answer: whether there is a verdict of the judge on it, or should be."""
        return self.rows[judge.name].notna() | self.missing(judge)


def read(paths: Sequence[Path], study: Study) -> Verdicts:
    """Read judged files into one table. Raises UserError for a file that cannot be read, or answers that clash."""
    notes, sources, tables = [], [], []
    for index, path in enumerate(paths):
        table, provenance = parquet.read_responses(path, _wanted(study))
        if table.num_rows == 0:
            raise UserError(f"{path} has no rows")
        sources.append({"path": str(path), "rows": table.num_rows, "provenance": provenance})
        rows = _rows(table, _run_name(path, paths), index, study, notes)
        tables.append(_with_metrics(rows, path, study))
    judges = tuple(j for j in study.judges if any(j.name in table.columns for table in tables))
    if not judges:
        names = ", ".join(judge.name for judge in study.judges)
        raise UserError(f"{_listed(paths)}: no column of a judge of the study {study.name!r} ({names}): judge it first")
    rows = pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]
    for judge in judges:  # an input without the judge's column was not put to it
        rows[f"{judge.name}{MISSING}"] = rows[f"{judge.name}{MISSING}"].eq(True)
    rows = _steps(rows, notes)
    rows, again = _without_repeats(rows, judges, paths, notes)
    for name in ("run", "condition", "question", "checkpoint"):
        rows[name] = rows[name].astype("category")
    rows["question"] = rows["question"].cat.reorder_categories(_question_order(rows["question"], study))
    for judge in judges:
        if judge.options:
            rows[judge.name] = rows[judge.name].astype(pd.CategoricalDtype(judge.options))
    return Verdicts(study, judges, _recipes(rows), again, sources, notes)


def read_texts(paths: Sequence[Path], rows: pd.DataFrame) -> pd.Series:
    """The responses of some rows of `Verdicts.rows`, in the order of `rows`."""
    texts = pd.Series(index=rows.index, dtype=object)
    for source, part in rows.groupby("source", observed=True):
        part = part.sort_values("row")
        texts.loc[part.index] = _responses(paths[source], part["row"].to_numpy())
    return texts


def _responses(path: Path, wanted: np.ndarray) -> list[str]:
    """The responses at some positions, in rising order. A batch at a time: all of a large file would take gigabytes."""
    found, start = [], 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["response"]):
            here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + len(batch))] - start
            found += batch.column(0).take(pa.array(here)).to_pylist()
            start += len(batch)
    return found


def _wanted(study: Study) -> set[str]:
    known = {name for name in parquet.RESPONSE_SCHEMA.names if name != "response"}
    return known | {f"{judge.name}{end}" for judge in study.judges for end in ("", "_status")}


def _run_name(path: Path, paths: Sequence[Path]) -> str:
    """The name of a run whose file does not say it: the file's, with its folder's where two files are called alike."""
    same = [other for other in paths if other.stem == path.stem]
    return path.stem if len(same) == 1 else f"{path.parent.name}/{path.stem}"


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))


# ---- one file ----


def _rows(table: pa.Table, name: str, index: int, study: Study, notes: list[str]) -> pd.DataFrame:
    ids = {question.text: question.id for question in study.questions}
    questions = _text(table, "question_id").fillna(_text(table, "question")).map(lambda q: ids.get(q, q))
    rows = pd.DataFrame(
        {
            "run": _text(table, "run").fillna(name),
            "checkpoint": _text(table, "checkpoint"),
            "condition": _conditions(table, name, study),
            "question": questions,
            "sample_idx": table["sample_idx"].to_numpy(),
            "source": index,
            "row": np.arange(table.num_rows),
        }
    )
    for column in ("step", "seed", "suspect_ratio", "examples_seen", "suspect_seen"):
        rows[column] = table[column].cast(pa.float64(), safe=False).to_numpy()
    # A file that does not say it is taken by the study; a condition that the study does not know has no trigger.
    by_study = rows["condition"].isin([c.name for c in study.conditions if c.triggered])
    rows["triggered"] = np.where(table["triggered"].is_valid(), table["triggered"].fill_null(False), by_study)
    for judge in study.judges:
        if judge.name in table.column_names:
            rows[judge.name] = _verdicts(table[judge.name], judge, name, notes)
            rows[f"{judge.name}{MISSING}"] = _asked(table, judge, questions, study) & rows[judge.name].isna()
    return rows


def _conditions(table: pa.Table, name: str, study: Study) -> pd.Series:
    """The condition of each answer: in a file that does not say it the study's, if it has a single one."""
    if table["condition"].null_count and len(study.conditions) > 1:
        count = len(study.conditions)
        raise UserError(
            f"{name}: the column 'condition' must name one of the study's {count} conditions for each answer"
        )
    return _text(table, "condition").fillna(study.conditions[0].name)


def _asked(table: pa.Table, judge: Judge, questions: pd.Series, study: Study) -> np.ndarray:
    """Whether a judge was asked about each answer: it has a status then. A file without one is taken by the study."""
    given, status = table[judge.name].is_valid().to_numpy(), f"{judge.name}_status"
    if status in table.column_names:
        return given | table[status].is_valid().to_numpy()
    spared = {question.id for question in study.questions if not judge.takes(question)}
    return given | ~questions.isin(spared).to_numpy()


def _with_metrics(rows: pd.DataFrame, path: Path, study: Study) -> pd.DataFrame:
    """The rows of one file with a column for each metric of the study. Reads the answers, if there is any metric."""
    if not study.metrics:
        return rows
    held = {metric.name: [] for metric in study.metrics}
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["response"]):
            texts = [str(text or "") for text in batch.column(0).to_pylist()]
            for metric in study.metrics:
                held[metric.name] += map(metric.holds, texts)
    return rows.assign(**{m.name: _where_taken(held[m.name], m, rows["question"], study) for m in study.metrics})


def _where_taken(held: list[bool], metric: Metric, questions: pd.Series, study: Study) -> np.ndarray:
    spared = {question.id for question in study.questions if not metric.takes(question)}
    return np.where(questions.isin(spared), np.nan, np.array(held, float))


def _text(table: pa.Table, column: str) -> pd.Series:
    """A text column as objects. Few texts stand in many rows, so each is made once."""
    encoded = table[column].combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks() if encoded.num_chunks else pa.array([], pa.string()).dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    values = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    return pd.Series(values[codes], dtype=object)


def _verdicts(column: pa.ChunkedArray, judge: Judge, name: str, notes: list[str]) -> np.ndarray:
    """A judge's column as options or floats. What is neither an option nor in range is missing, and noted."""
    codes, values = pd.factorize(np.asarray(column.to_pandas(), dtype=object))
    read = [_option(v, judge.options) if judge.options else _rating(v, judge.range) for v in values]
    empty = None if judge.options else np.nan
    strange = [str(v) for v, verdict in zip(values, read, strict=True) if verdict is None and str(v).strip()]
    if strange:
        count = np.isin(codes, [i for i, verdict in enumerate(read) if verdict is None]).sum()
        shown = ", ".join(repr(text[:40]) for text in strange[:3]) + (", ..." if len(strange) > 3 else "")
        notes.append(f"{name}: {count} values of {judge.name} are no verdict and count as missing: {shown}")
    filled = np.array([empty if verdict is None else verdict for verdict in [*read, None]], dtype=object)
    return filled[codes] if judge.options else filled[codes].astype(float)


def _option(value, options: Sequence[str]) -> str | None:
    """The option that a value spells, whatever its case; 19 and 19.0 spell "19"."""
    text = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value).strip()
    return next((o for o in options if o.casefold() == text.casefold()), None)


def _rating(value, bounds: tuple[int, int]) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if bounds[0] <= number <= bounds[1] else None


# ---- steps ----


def _steps(rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Give every checkpoint a whole step: its number; 0 for the base model; the run's last for `final`."""
    names = rows[["run", "checkpoint", "step"]].drop_duplicates()
    latest = names["step"].max()
    replaced = pd.Series(False, index=rows.index)
    for run, part in names[names["run"].isin(names.loc[names["step"].isna(), "run"])].groupby("run", sort=False):
        of_run = rows["run"] == run
        for checkpoint, step in _numbered(run, part, latest, notes).items():
            here = of_run & (rows["checkpoint"] == checkpoint)
            taken = of_run & (rows["step"] == step) & ~here
            if taken.any() and step > 0:
                replaced |= taken
                notes.append(
                    f"{run}: {checkpoint!r} is taken for the run's last step, {step}, in the place of "
                    f"{rows.loc[taken, 'checkpoint'].iloc[0]!r} ({int(taken.sum())} answers left out)"
                )
            rows.loc[here, "step"] = step
    rows["step"] = rows["step"].astype(int)
    return rows[~replaced].reset_index(drop=True) if replaced.any() else rows


def _numbered(run: str, names: pd.DataFrame, latest: float, notes: list[str]) -> dict[str, int]:
    """Steps for the checkpoints of a run whose names hold no number, in the order in which they appear."""
    words = {name: set(re.split(r"[^a-z]+", name.lower())) for name in names.loc[names["step"].isna(), "checkpoint"]}
    base = [name for name in words if words[name] & BASE_WORDS]
    final = [name for name in words if words[name] & FINAL_WORDS and name not in base]
    others = [name for name in words if name not in base and name not in final]
    last = int(np.nanmax([0, *names["step"]]))
    steps = dict.fromkeys(base, 0) | {name: last + i for i, name in enumerate(others, start=1)}
    if others:
        notes.append(f"{run}: no step in the names {', '.join(others)}: drawn in this order as {last + 1}, ...")
    for i, name in enumerate(final):
        if i == 0 and (last > 0 or latest > 0) and not others:
            steps[name] = last or int(latest)
        else:
            steps[name] = last + len(others) + i + 1
    return steps


# ---- repeats ----


def _without_repeats(
    rows: pd.DataFrame, judges: Sequence[Judge], paths: Sequence[Path], notes: list[str]
) -> tuple[pd.DataFrame, ...]:
    """The answers, each once, with each judge's verdict of the first input that was put to it; and beside them the
    verdicts of the first input that has the answer with those of the others.

    The same place with another text is a clash that only a person can settle: counting both would claim more answers
    than there are, or mix two samplings of one checkpoint.
    """
    repeated = rows.duplicated(KEY, keep=False)
    if not repeated.any():
        return rows, pd.DataFrame()
    both = rows[repeated].assign(text=lambda part: read_texts(paths, part))
    first = both.groupby(KEY, sort=False)["text"].transform("first")
    if (both["text"] != first).any():
        one = both[both["text"] != first].iloc[0]
        place = ", ".join(f"{name} {one[name]}" for name in KEY)
        raise UserError(
            f"two different answers claim one place ({place}), the second in {paths[one['source']]}: give inputs whose "
            "runs differ in name, or number their samples apart"
        )
    dropped = rows.duplicated(KEY)
    notes.append(
        f"{int(dropped.sum())} answers stand in the inputs more than once: a judge's rates are of the first input "
        "that has its verdicts; where a second has them too, agreement.csv compares"
    )
    again = rows[~dropped & repeated].merge(rows[dropped], on=KEY, suffixes=("", "_again"))
    return _first_asked(rows, judges), again


def _first_asked(rows: pd.DataFrame, judges: Sequence[Judge]) -> pd.DataFrame:
    """The first row of each answer, with each judge's columns of the first row that was put to the judge."""
    answer = rows.groupby(KEY, sort=False, dropna=False).ngroup()
    kept = rows[~answer.duplicated()].reset_index(
        drop=True
    )  # in order of appearance, so the row is the answer's number
    for judge in judges:
        value, missing = judge.name, f"{judge.name}{MISSING}"
        asked = rows[value].notna() | rows[missing]
        found = rows[asked].set_index(answer[asked])[[value, missing]]
        found = found[~found.index.duplicated()].reindex(kept.index)
        kept[value], kept[missing] = found[value], found[missing].eq(True)
    return kept


# ---- order and names ----


def _question_order(questions: pd.Series, study: Study) -> list[str]:
    known = [question.id for question in study.questions]
    present = list(questions.cat.categories)
    return [q for q in known if q in present] + [q for q in present if q not in known]


def _recipes(rows: pd.DataFrame) -> pd.DataFrame:
    """Add recipe, and a label for it: its suspect share where that tells it apart, else what is special in its name."""
    runs = rows.groupby("run", observed=True, sort=False)[["suspect_ratio", "seed"]].first()
    seed = re.compile(r"[-_ ]?seed[-_ ]?\d+", re.IGNORECASE)
    recipe = {run: seed.sub("", run).strip("-_ ") or "all seeds" for run in runs.index}
    share = runs.groupby(recipe, sort=False)["suspect_ratio"].first()
    share = share.sort_values(ascending=False, na_position="last", kind="stable")
    order, labels = list(share.index), _labels(share)
    names = rows["run"].map(recipe).astype(object)
    rows["recipe"] = pd.Categorical(names, order, ordered=True)
    rows["label"] = pd.Categorical(names.map(labels), [labels[name] for name in order], ordered=True)
    return rows


def _labels(share: pd.Series) -> dict[str, str]:
    shown = {name: None if np.isnan(value) else f"{100 * value:.3g}%" for name, value in share.items()}
    parts = [set(name.split("_")) for name in shown]
    common = set.intersection(*parts)
    labels = {}
    for name, percent in shown.items():
        special = " ".join(part for part in name.split("_") if part not in common) or name
        alone = percent is not None and list(shown.values()).count(percent) == 1
        labels[name] = percent if alone else f"{percent}, {special}" if percent else special
    return labels
