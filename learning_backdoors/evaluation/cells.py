"""From verdicts to the tables that figures and reports are made of. Which interval a rate gets is decided here.

A cell is one question, asked in one condition of one checkpoint. `summary` has a row a cell and a row `all` a
checkpoint, whose rate is the mean over questions, each of equal weight.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.study import Metric

CLAIMS = {
    "checkpoint": "these checkpoints, these questions",
    "recipe": "another training run by the same recipe, these questions",
    "questions": "these checkpoints, questions like these",
}
INTERVALS = {
    "checkpoint": "Wilson, stratified by question",
    "recipe": "t on the runs' means, logit scale",
    "questions": "logit-normal model of the questions' rates",
}
MISSING_FLAG = 0.02
RUN = ["recipe", "label", "run", "seed", "suspect_ratio"]
STEP = ["step", "examples_seen", "suspect_seen", "condition", "triggered"]


def count_cells(verdicts: Verdicts) -> pd.DataFrame:
    """A row a run, step, condition and question: n (verdicts at hand), missing, positive. In order of recipe and step.

    Columns that say what the run and the step are (RUN, STEP) come along; NaN where the input does not know them.
    """
    verdict = verdicts.rows[verdicts.outcome.name]
    positive = verdict == verdicts.study.outcome.value
    return _counted(verdicts.rows, verdict.notna(), verdicts.missing(verdicts.outcome), positive)


def count_metric_cells(verdicts: Verdicts, metric: Metric) -> pd.DataFrame:
    """As `count_cells`, for the answers that the metric checks: positive if the metric holds; none are missing."""
    held = verdicts.rows[metric.name]
    return _counted(verdicts.rows, held.notna(), held < 0, held == 1)


def _counted(rows: pd.DataFrame, n: pd.Series, missing: pd.Series, positive: pd.Series) -> pd.DataFrame:
    marked = rows[["run", "step", "condition", "question"]].assign(n=n, missing=missing, positive=positive)
    asked = n | missing  # the others are nobody's
    if not asked.all():
        rows, marked = rows[asked], marked[asked]
    for name in [*RUN, *STEP]:
        if name not in marked:
            marked[name] = rows[name]
    keys = ["run", "step", "condition", "question"]
    known = {name: (name, "first") for name in [*RUN, *STEP] if name not in keys}
    counts = {name: (name, "sum") for name in ("n", "missing", "positive")}
    table = marked.groupby(keys, observed=True, sort=True).agg(**known, **counts).reset_index()
    table["rate"] = table["positive"] / table["n"].where(table["n"] > 0)
    return table.sort_values(
        ["recipe", "seed", "run", "step", "condition", "question"], ignore_index=True, kind="stable"
    )


def choose_claim(cells: pd.DataFrame) -> str:
    """The widest claim that the input can bear: `recipe` if each recipe has three runs or more, else `questions` if
    there are two questions or more, else `checkpoint`. (Two runs can bear `recipe`, but say hardly more than 0 to 1.)
    """
    trained = cells[cells["run"].isin(trained_runs(cells))]
    if trained.groupby("recipe", observed=True)["run"].nunique().min() >= 3:
        return "recipe"
    return "questions" if cells["question"].nunique() >= 2 else "checkpoint"


def trained_runs(cells: pd.DataFrame) -> list[str]:
    """Runs with a step after 0, or all runs where there is none: a file of base model rows alone is no run."""
    last = cells.groupby("run", observed=True, sort=False)["step"].max()
    return list(last.index[last > 0]) if (last > 0).any() else list(last.index)


def recipe_rates(cells: pd.DataFrame, claim: str, by: Sequence[str] = ("step",)) -> pd.DataFrame:
    """Mean rate over the runs of each recipe and over questions, with the interval of `claim`: a row a recipe and `by`.

    Columns: recipe, label, suspect_ratio, `by`, seeds, n, missing, rate, lower, upper, claim.
    """
    rows = []
    for (recipe, *place), part in cells.groupby(["recipe", *by], observed=True, sort=True):
        rate, lower, upper = mean_rate(part, claim)
        counts = {"seeds": part["run"].nunique(), "n": part["n"].sum(), "missing": part["missing"].sum()}
        known = {"recipe": recipe, "label": part["label"].iloc[0], "suspect_ratio": part["suspect_ratio"].iloc[0]}
        rows.append(known | dict(zip(by, place, strict=True)) | counts | {"rate": rate, "lower": lower, "upper": upper})
    return pd.DataFrame(rows).assign(claim=claim)


def mean_rate(part: pd.DataFrame, claim: str) -> statistics.Interval:
    """The rate of some runs at one step each; NaN throughout where no verdict is at hand."""
    positives, n = grids(part, "run")
    if n.sum() == 0:
        return statistics.Interval(np.nan, np.nan, np.nan)
    return statistics.mean_rate(positives, n, claim)


def grids(part: pd.DataFrame, down: str, sums: Sequence[str] = ("positive", "n")) -> np.ndarray:
    """Columns of cells as arrays: `down` in its order by questions, 0 where there is no cell."""
    # By hand: pandas' pivot takes thirty times as long, and there are hundreds of checkpoints.
    rows, i = np.unique(part[down].to_numpy(), return_inverse=True)
    columns, j = np.unique(part["question"].cat.codes.to_numpy(), return_inverse=True)
    arrays = np.zeros((len(sums), len(rows), len(columns)))
    for array, name in zip(arrays, sums, strict=True):
        np.add.at(array, (i, j), part[name].to_numpy(float))
    return arrays


def shared_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of those steps at which all runs of a recipe have verdicts, condition by condition.

    A mean over the runs that happen to have a step would go up and down with which these are.
    """
    keys = ["recipe", "condition"]
    runs = cells.groupby(keys, observed=True)["run"].transform("nunique")
    judged = cells["run"].where(cells["n"] > 0).groupby([cells[key] for key in [*keys, "step"]], observed=True)
    return cells[judged.transform("nunique") == runs]


def last_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of each run's last step."""
    return cells[cells["step"] == cells.groupby("run", observed=True)["step"].transform("max")]


def with_base(last: pd.DataFrame, base: pd.DataFrame, keys: Sequence[str] = ("recipe",)) -> pd.DataFrame:
    """The rates of last steps with a column `base`: the rate of the same recipe at step 0, NaN where there is none."""
    if base.empty:
        return last.assign(base=np.nan)
    return last.merge(base[[*keys, "rate"]].rename(columns={"rate": "base"}), on=list(keys), how="left")
