"""Pairing of cells by run and question, for differences between conditions or between the last step and step 0."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.study import Study

ALL = "all"  # in the column `run`: all runs of the recipe
METHODS = {  # by claim: how the interval of a paired difference is made
    "checkpoint": "MOVER on stratified Wilson",
    "recipe": "paired t on the runs' differences",
    "questions": "paired t on the questions' differences, or logit-normal model where that is wider",
}
WITH_VERDICT, ASKED = ("n",), ("n", "missing")  # counts of which a cell needs at least one to take part


def supported_claim(claim: str, runs: int, questions: int) -> str:
    """`claim`, or the next narrower claim that so many runs and questions support."""
    if claim == "recipe" and runs < 2:
        claim = "questions"
    return "checkpoint" if claim == "questions" and questions < 2 else claim


def recipe_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table with `label` and `run` that stand for a recipe: run `all`, or its only run."""
    whole = table["run"] == ALL
    return table[whole | ~table["label"].isin(table.loc[whole, "label"])]


def without_near_misses(cells: pd.DataFrame, study: Study) -> pd.DataFrame:
    return cells[~cells["condition"].isin([c.name for c in study.conditions if c.near_miss])]


def split_last_and_base(cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of each run's last step, and those of step 0 if that is not the last step."""
    last = cells["step"] == cells.groupby("run", observed=True)["step"].transform("max")
    return cells[last], cells[~last & (cells["step"] == 0)]


def matched(first: pd.DataFrame, second: pd.DataFrame, counts: Sequence[str] = WITH_VERDICT) -> list[pd.DataFrame]:
    """The cells of two tables whose run, condition and question have some of `counts` in both."""
    both = [part[part[list(counts)].sum(axis=1) > 0] for part in (first, second)]
    ids = [_cell_ids(part, ["run", "condition", "question"]) for part in both]
    return [part[np.isin(own, other)] for part, own, other in zip(both, ids, ids[::-1], strict=True)]


def aligned(
    parts: Sequence[pd.DataFrame], columns: Sequence[str], counts: Sequence[str] = WITH_VERDICT
) -> list[np.ndarray]:
    """Sums of the columns of each part over its conditions, as one array (columns, runs, questions) per part.

    Only runs that all parts have are kept, and only questions for which each of these runs has some of `counts` (which
    are among the columns) in all parts. No run or no question may remain.
    """
    # Arrays instead of a pandas pivot: ten times as fast, and ratings has hundreds of groups.
    keys = ["run", "question"]
    shape = [len(parts[0][key].cat.categories) for key in keys]
    grids = [np.zeros((len(columns), *shape)) for _ in parts]
    for part, grid in zip(parts, grids, strict=True):
        ids = _cell_ids(part, keys)
        for sums, name in zip(grid, columns, strict=True):
            np.add.at(sums.reshape(-1), ids, part[name].to_numpy(float))
    counted = [sum(grid[columns.index(name)] for name in counts) > 0 for grid in grids]
    runs = np.logical_and.reduce([cells.any(axis=1) for cells in counted])
    questions = np.logical_and.reduce([cells[runs].all(axis=0) for cells in counted])
    return [grid[:, runs][:, :, questions] for grid in grids]


def _cell_ids(cells: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """A number per combination of the categorical keys, the same in all tables of one input."""
    columns = [cells[key].cat for key in keys]
    return np.ravel_multi_index([c.codes for c in columns], [len(c.categories) for c in columns])
