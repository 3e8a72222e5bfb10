"""Checks of the inputs: do they belong to the study, and do two of them hold the same run?"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from learning_backdoors.files.errors import UserError
from learning_backdoors.files.terminal_text import one_line
from learning_backdoors.study import Study

ANSWER = ["checkpoint", "condition", "question", "sample_idx"]  # identifies an answer of a run


def check_study(rows: pd.DataFrame, path: Path, study: Study, notes: list[str]) -> None:
    """Note the answers to questions, or in conditions, that the study does not have.

    Raises UserError if they are more than half of the file: it then belongs to another study.
    """
    for column, known in (
        ("question", {question.id for question in study.questions}),
        ("condition", {condition.name for condition in study.conditions}),
    ):
        foreign = rows.loc[~rows[column].isin(known), column]
        if foreign.empty:
            continue
        names = list(foreign.unique())
        examples = ", ".join(repr(name)[:60] for name in names[:3]) + (", ..." if len(names) > 3 else "")
        count = f"{len(names)} {column}{'s' if len(names) > 1 else ''}"
        text = f"{path}: {len(foreign):,} of {len(rows):,} answers belong to {count} that the study {study.name!r} "
        text += f"does not have ({examples})"
        if len(foreign) > len(rows) / 2:
            raise UserError(f"{text}: choose the file's study with --experiment")
        notes.append(f"{text}; they are counted")


def name_runs(
    tables: Sequence[pd.DataFrame],
    paths: Sequence[Path],
    read_texts: Callable[[pd.DataFrame], pd.Series],
    notes: list[str],
) -> None:
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


def _hashes(rows: pd.DataFrame, read_texts: Callable[[pd.DataFrame], pd.Series]) -> np.ndarray:
    """A hash of each answer without a run: its place in the run, and its text."""
    unnamed = rows[rows["run"].isna()]
    return pd.util.hash_pandas_object(unnamed[ANSWER].astype(str).assign(text=read_texts(unnamed)), index=False)
