"""Count verdicts in cells, and turn cells into rates with the interval of a claim.

A cell is one question, asked in one condition of one checkpoint. docs/statistics.md explains claims and intervals.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.study import Metric

CLAIMS = {  # what an interval generalizes to
    "checkpoint": "these checkpoints, these questions",
    "recipe": "another training run by the same recipe, these questions",
    "questions": "these checkpoints, questions like these",
}
INTERVALS = {  # by claim: how the interval of a rate is made
    "checkpoint": "Wilson, stratified by question",
    "recipe": "t on the runs' means, logit scale",
    "questions": "logit-normal model of the questions' rates",
}
MISSING_FLAG = 0.02  # a larger share of missing verdicts is flagged
KEYS = ["run", "step", "condition", "question"]
RUN = ["recipe", "label", "run", "seed", "suspect_ratio"]
STEP = ["step", "examples_seen", "suspect_seen", "condition", "triggered"]


def count_cells(verdicts: Verdicts) -> pd.DataFrame:
    """A row per cell with n (verdicts), missing, positive (verdicts that are the outcome) and rate.

    The columns RUN and STEP describe the run and the step, and are null if the input does not say. Rows are in the
    order of recipe, seed, run and step.
    """
    verdict = verdicts.rows[verdicts.outcome.name]
    positive = verdict == verdicts.study.outcome.value
    return _counted(verdicts.rows, verdict.notna(), verdicts.missing(verdicts.outcome), positive)


def count_metric_cells(verdicts: Verdicts, metric: Metric) -> pd.DataFrame:
    """As `count_cells`, for the answers that the metric checks. Positive: the metric holds. None are missing."""
    value = verdicts.rows[metric.name]
    return _counted(verdicts.rows, value.notna(), value < 0, value == 1)


def _counted(rows: pd.DataFrame, n: pd.Series, missing: pd.Series, positive: pd.Series) -> pd.DataFrame:
    columns = list(dict.fromkeys([*KEYS, *RUN, *STEP]))
    asked = rows.loc[n | missing, columns].assign(n=n, missing=missing, positive=positive)
    descriptions = {name: (name, "first") for name in [*RUN, *STEP] if name not in KEYS}
    counts = {name: (name, "sum") for name in ("n", "missing", "positive")}
    cells = asked.groupby(KEYS, observed=True, sort=True).agg(**descriptions, **counts).reset_index()
    cells["rate"] = cells["positive"] / cells["n"].where(cells["n"] > 0)
    return cells.sort_values(["recipe", "seed", *KEYS], ignore_index=True, kind="stable")


# ---- which cells ----


def choose_claim(cells: pd.DataFrame) -> str:
    """The widest claim that the cells support well.

    `recipe` if each recipe has three runs or more (two runs give an interval that is almost 0 to 1), else `questions`
    if there are two questions or more, else `checkpoint`.
    """
    trained = cells[cells["run"].isin(trained_runs(cells))]
    if trained.groupby("recipe", observed=True)["run"].nunique().min() >= 3:
        return "recipe"
    return "questions" if cells["question"].nunique() >= 2 else "checkpoint"


def trained_runs(cells: pd.DataFrame) -> list[str]:
    """Runs with a step after 0, or all runs if none has one: a file with base model rows alone is not a run."""
    last = cells.groupby("run", observed=True, sort=False)["step"].max()
    return list(last.index[last > 0]) if (last > 0).any() else list(last.index)


def shared_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the steps at which all runs of a recipe have verdicts, in each condition.

    Otherwise a mean over runs would change from step to step with the runs that happen to have the step.
    """
    keys = ["recipe", "condition"]
    runs = cells.groupby(keys, observed=True)["run"].transform("nunique")
    judged = cells["run"].where(cells["n"] > 0).groupby([cells[key] for key in [*keys, "step"]], observed=True)
    return cells[judged.transform("nunique") == runs]


def last_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of each run's last step."""
    return cells[cells["step"] == cells.groupby("run", observed=True)["step"].transform("max")]


# ---- rates ----


def recipe_rates(cells: pd.DataFrame, claim: str, by: Sequence[str] = ("step",)) -> pd.DataFrame:
    """The mean rate over runs and questions, with the interval of `claim`: a row per recipe and values of `by`.

    Columns: recipe, label, suspect_ratio, `by`, seeds (the number of runs), n, missing, rate, lower, upper, claim.
    """
    rows = []
    for (recipe, *values), part in cells.groupby(["recipe", *by], observed=True, sort=True):
        row = {"recipe": recipe, "label": part["label"].iloc[0], "suspect_ratio": part["suspect_ratio"].iloc[0]}
        row |= dict(zip(by, values, strict=True))
        row |= {"seeds": part["run"].nunique(), "n": part["n"].sum(), "missing": part["missing"].sum()}
        row |= dict(zip(["rate", "lower", "upper"], mean_rate(part, claim), strict=True))
        rows.append(row)
    return pd.DataFrame(rows).assign(claim=claim)


def mean_rate(cells: pd.DataFrame, claim: str) -> statistics.Interval:
    """The mean rate of some runs, each at one step. NaN throughout if there is no verdict."""
    positives, n = grids(cells, "run")
    if n.sum() == 0:
        return statistics.Interval(np.nan, np.nan, np.nan)
    return statistics.mean_rate(positives, n, claim)


def grids(cells: pd.DataFrame, by: str, columns: Sequence[str] = ("positive", "n")) -> np.ndarray:
    """Sums of columns as arrays of shape (columns, values of `by` in their order, questions). 0 without a cell."""
    # Not pandas' pivot: it takes thirty times as long, and there are hundreds of checkpoints.
    rows, i = np.unique(cells[by].to_numpy(), return_inverse=True)
    questions, j = np.unique(cells["question"].cat.codes.to_numpy(), return_inverse=True)
    arrays = np.zeros((len(columns), len(rows), len(questions)))
    for array, name in zip(arrays, columns, strict=True):
        np.add.at(array, (i, j), cells[name].to_numpy(float))
    return arrays


def last_rates(cells: pd.DataFrame, claim: str, by: Sequence[str] = ()) -> pd.DataFrame:
    """The rates of the last steps, with a column `base`: the rate at step 0, NaN without one."""
    rates, base = recipe_rates(last_steps(cells), claim, by), cells[cells["step"] == 0]
    if base.empty:
        return rates.assign(base=np.nan)
    base = recipe_rates(base, "checkpoint", by).rename(columns={"rate": "base"})
    return rates.merge(base[["recipe", *by, "base"]], how="left")
