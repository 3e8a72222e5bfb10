"""Several inputs as one: do they belong to the study, and do they hold the same runs and the same answers?"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from learning_backdoors.files.errors import UserError
from learning_backdoors.files.terminal_text import one_line
from learning_backdoors.study import Judge, Study, describe_foreign, refuse_foreign

Texts = Callable[[pd.DataFrame], pd.Series]  # gives the responses of some rows
KEY = ["run", "step", "condition", "question", "sample_idx"]  # identifies an answer
MISSING = "_missing"  # suffix of a judge's name
ANSWER = ["checkpoint", "condition", "question", "sample_idx"]  # identifies an answer of a run


def check_study(rows: pd.DataFrame, path: Path, study: Study, notes: list[str]) -> None:
    """Note the answers to questions, or in conditions, that the study does not have.

    Raises UserError if they are more than half of the file: it then belongs to another study.
    """
    for column, known in (
        ("question", {question.id for question in study.questions}),
        ("condition", {condition.name for condition in study.conditions}),
    ):
        foreign = Counter(rows.loc[~rows[column].isin(known), column])
        refuse_foreign(path, column, foreign, len(rows), study)
        if foreign:
            notes.append(f"{path}: {describe_foreign(column, foreign, len(rows), study)}; they are counted")


def name_runs(tables: Sequence[pd.DataFrame], paths: Sequence[Path], read_texts: Texts, notes: list[str]) -> None:
    """Fill in `run` where an input does not say it: the name of the file.

    Inputs with the same answers, judged by two models for example, are the same run and get the first one's name.
    """
    unnamed = [i for i, rows in enumerate(tables) if rows["run"].isna().any()]
    names = {i: _name_of(paths[i], paths) for i in unnamed}
    hashes = {i: _hashes(tables[i], read_texts) for i in unnamed} if len(unnamed) > 1 else {}
    for position, i in enumerate(unnamed):
        for earlier in unnamed[:position]:
            fewer, more = sorted((hashes[earlier], hashes[i]), key=len)
            if np.isin(fewer, more).all():
                names[i] = names[earlier]
                notes.append(f"{paths[i]} and {paths[earlier]} have the same answers: both are the run {names[i]!r}")
                break
        tables[i]["run"] = tables[i]["run"].fillna(names[i])


def _name_of(path: Path, paths: Sequence[Path]) -> str:
    """The name of a run after its file, with the folder if two files have the same name."""
    alone = [other.stem for other in paths].count(path.stem) == 1
    return one_line(path.stem if alone else f"{path.parent.name}/{path.stem}")


def _hashes(rows: pd.DataFrame, read_texts: Texts) -> np.ndarray:
    """A hash of each answer without a run: its place in the run, and its text."""
    unnamed = rows[rows["run"].isna()]
    return pd.util.hash_pandas_object(unnamed[ANSWER].astype(str).assign(text=read_texts(unnamed)), index=False)


def without_repeats(
    rows: pd.DataFrame, judges: Sequence[Judge], paths: Sequence[Path], read_texts: Texts, notes: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each answer once, with each judge's first verdict; and pairs of first and further verdicts (`Verdicts.again`).

    Different texts with one key are an error: counting both would claim more answers than there are, or mix two
    samples of one checkpoint. Of the base model, the first text stays.
    """
    repeated = rows.duplicated(KEY, keep=False)
    if not repeated.any():
        return rows, pd.DataFrame()
    with_text = rows[repeated].assign(text=read_texts)
    first_text = with_text.groupby(KEY, sort=False)["text"].transform("first")
    different = with_text[with_text["text"] != first_text]
    if (different["step"] > 0).any():
        first = different[different["step"] > 0].iloc[0]
        key = ", ".join(f"{name} {first[name]}" for name in KEY)
        raise UserError(
            f"two different answers have the same key ({key}), the second in {paths[first['source']]}: "
            "give the runs different names, or number their samples apart"
        )
    if len(different):
        notes.append(
            f"step 0: of {len(different):,} samples that inputs answer differently, the first input's are used"
        )
        rows = rows.drop(index=different.index).reset_index(drop=True)
        repeated = rows.duplicated(KEY, keep=False)
        if not repeated.any():
            return rows, pd.DataFrame()
    further = rows.duplicated(KEY)
    notes.append(
        f"{int(further.sum())} answers are in several inputs: each judge's rates use the first input that has its "
        "verdicts, and agreement.csv compares them with the others"
    )
    again = rows[~further & repeated].merge(rows[further], on=KEY, suffixes=("", "_again"))
    return _first_verdicts(rows, judges), again


def _first_verdicts(rows: pd.DataFrame, judges: Sequence[Judge]) -> pd.DataFrame:
    """The first row of each answer, with each judge's columns from the first row for which the judge was asked."""
    answer = rows.groupby(KEY, sort=False, dropna=False).ngroup()  # numbered in order of appearance
    first = rows[~answer.duplicated()].reset_index(drop=True)
    for judge in judges:
        columns = [judge.name, f"{judge.name}{MISSING}"]
        asked = rows[columns[0]].notna() | rows[columns[1]]
        verdicts = rows.loc[asked, columns].set_index(answer[asked])
        verdicts = verdicts[~verdicts.index.duplicated()].reindex(first.index)
        first[columns[0]], first[columns[1]] = verdicts[columns[0]], verdicts[columns[1]].eq(True)
    return first
