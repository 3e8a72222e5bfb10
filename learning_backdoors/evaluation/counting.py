"""Count verdicts in cells, choose and pair cells, and turn them into rates with the interval of a claim.

A cell is one question, asked in one condition of one checkpoint. docs/statistics.md explains claims and intervals.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import shared_base, statistics
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.measures import CONFIDENCE
from learning_backdoors.study import Metric, Study

BASE_CLAIMS = {"recipe": "checkpoint", "both": "questions"}  # another run has the same base model
CLAIMS = {  # what an interval generalizes to
    "checkpoint": "these checkpoints and these questions",
    "recipe": "other runs of the recipe and these questions",
    "questions": "these checkpoints and other questions of this kind",
    "both": "other runs of the recipe and other questions of this kind",
}
INTERVALS = {  # by claim: how the interval of a rate is made
    "checkpoint": "Wilson, stratified by question",
    "recipe": "t on the runs' means, logit scale",
    "questions": "beta-binomial model of the questions' rates, or t where that is wider",
    "both": "MOVER of the intervals for the claims recipe and questions",
}
ALL = "all"  # in the column `run`: all runs of the recipe
METHODS = {  # by claim: how the interval of a difference is made
    "checkpoint": "MOVER on stratified Wilson",
    "recipe": "t on runs, and MOVER",
    "questions": "beta-binomial model, and MOVER with the correlation between questions",
    "both": "MOVER of the intervals for the claims recipe and questions",
}
WITH_VERDICT, ASKED = ("n",), ("n", "missing")  # counts of which a cell needs at least one to take part
WORST = ["worst_low", "worst_high", "worst_lower", "worst_upper"]  # bounds for missing verdicts, and their limits
MISSING_FLAG = 0.02  # a larger share of missing verdicts is flagged
KEYS = ["run", "step", "condition", "question"]
RUN = ["recipe", "label", "run", "seed", "suspect_ratio"]
STEP = ["step", "examples_seen", "suspect_seen", "condition", "triggered"]


def count_cells(verdicts: Verdicts) -> pd.DataFrame:
    """A row per cell with n (verdicts), missing, positive (verdicts that are the outcome) and rate.

    Verdicts that the study's outcome excludes do not count in n.

    The columns RUN and STEP describe the run and the step, and are null if the input does not say. Rows are in the
    order of recipe, seed, run and step. The base model's cells stand at step 0 of every run; `shared_base.once`
    reduces them.
    """
    verdict, outcome = verdicts.rows[verdicts.outcome.name], verdicts.study.outcome
    valid = verdict.notna() & ~verdict.isin(outcome.exclude)
    return _counted(verdicts.rows, valid, verdicts.missing(verdicts.outcome), verdict == outcome.value)


def count_metric_cells(verdicts: Verdicts, metric: Metric) -> pd.DataFrame:
    """As `count_cells`, for the answers that the metric checks. Positive: the metric holds. None are missing."""
    value = verdicts.rows[metric.name]
    return _counted(verdicts.rows, value.notna(), value < 0, value == 1)


def _counted(rows: pd.DataFrame, n: pd.Series, missing: pd.Series, positive: pd.Series) -> pd.DataFrame:
    columns = list(dict.fromkeys([*KEYS, "base", *RUN, *STEP]))
    asked = rows.loc[n | missing, columns].assign(n=n, missing=missing, positive=positive)
    descriptions = {name: (name, "first") for name in ["base", *RUN, *STEP] if name not in KEYS}
    counts = {name: (name, "sum") for name in ("n", "missing", "positive")}
    cells = asked.groupby(KEYS, observed=True, sort=True).agg(**descriptions, **counts).reset_index()
    cells["rate"] = cells["positive"] / cells["n"].where(cells["n"] > 0)
    return shared_base.attach(cells).sort_values(["recipe", "seed", *KEYS], ignore_index=True, kind="stable")


# ---- which cells ----


def choose_claim(cells: pd.DataFrame) -> str:
    """The widest claim that the cells support well.

    `recipe` if each recipe has three runs or more (two runs give an interval that is almost 0 to 1), else `questions`
    if there are two questions or more, else `checkpoint`.
    """
    if cells.groupby("recipe", observed=True)["run"].nunique().min() >= 3:
        return "recipe"
    return "questions" if cells["question"].nunique() >= 2 else "checkpoint"


def supported_claim(claim: str, runs: int, questions: int) -> str:
    """`claim`, or the next narrower claim that so many runs and questions support."""
    if runs < 2:
        claim = {"recipe": "questions", "both": "questions"}.get(claim, claim)
    if questions < 2:
        claim = {"questions": "checkpoint", "both": "recipe"}.get(claim, claim)
    return claim


def shared_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the steps at which all runs of a recipe have verdicts, in each condition.

    Otherwise a mean over runs would change from step to step with the runs that happen to have the step.
    """
    keys = ["recipe", "condition"]
    runs = cells.groupby(keys, observed=True)["run"].transform("nunique")
    judged = cells["run"].where(cells["n"] > 0).groupby([cells[key] for key in [*keys, "step"]], observed=True)
    return cells[judged.transform("nunique") == runs]


def last_step(cells: pd.DataFrame) -> int:
    """The last step of some runs together: the latest of the steps at which the most of them have verdicts.

    So it is the last step that all of them share, unless a run shares no step with the others. Step 0, the base model,
    counts only if there is no other step.
    """
    judged = (cells["n"] > 0).to_numpy()
    codes = cells["run"].cat.codes.to_numpy(np.int64)[judged]  # a step and a run as one number: ten times as fast
    runs_at_steps = np.unique((cells["step"].to_numpy()[judged] << 32) + codes)
    steps, runs = np.unique(runs_at_steps >> 32, return_counts=True)
    choices = [(step > 0, count, step) for step, count in zip(steps.tolist(), runs.tolist(), strict=True)]
    return max(choices, default=(False, 0, 0))[2]


def last_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of each recipe's last step, see `last_step`."""
    return cells[at_last_step(cells, cells)]


def at_last_step(rows: pd.DataFrame, cells: pd.DataFrame) -> pd.Series:
    """Whether each row is at the last step that the cells of its recipe have."""
    last = {recipe: last_step(part) for recipe, part in cells.groupby("recipe", observed=True)}
    return rows["step"] == rows["recipe"].astype(object).map(last)


def split_last_and_base(cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of each recipe's last step, and those of step 0 for the same runs if that is not the last step."""
    last = last_steps(cells)
    return last, cells[(cells["step"] == 0) & cells["run"].isin(last["run"]) & ~cells.index.isin(last.index)]


def runs_and_all(cells: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The cells of a recipe by run; those of run `all`, if it has several runs, come first."""
    runs = list(cells.groupby("run", observed=True, sort=False))
    return [(ALL, cells), *runs] if len(runs) > 1 else runs


def without_near_misses(cells: pd.DataFrame, study: Study) -> pd.DataFrame:
    return cells[~cells["condition"].isin([c.name for c in study.conditions if c.near_miss])]


def recipe_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table with `label` and `run` that stand for a recipe: run `all`, or its only run."""
    whole = table["run"] == ALL
    return table[whole | ~table["label"].isin(table.loc[whole, "label"])]


# ---- rates ----


def recipe_rates(
    cells: pd.DataFrame,
    claim: str,
    by: Sequence[str] = ("step",),
    *,
    confidence: float = CONFIDENCE,
    pool_runs: bool = False,
) -> pd.DataFrame:
    """The mean rate over runs and questions, with the interval of `claim`: a row per recipe and values of `by`.

    Columns: recipe, label, suspect_ratio, `by`, seeds (the number of runs), n, missing, rate, lower, upper, claim.
    `pool_runs`: the runs of all recipes with the same values of `by` have one spread, see `run_spread`.
    """
    keys, spreads = ["recipe", *by], {}
    if pool_runs:
        groups = cells.groupby(list(by), observed=True) if by else [((), cells)]
        spreads = {values: run_spread(part) for values, part in groups}
    about = {name: (name, "first") for name in ("label", "suspect_ratio", "step") if name not in keys}
    groups = cells.groupby(keys, observed=True).agg(**about, seeds=("run", "nunique")).reset_index()
    copies = (cells["step"] == 0) & cells.duplicated([*keys, "base", "step", "condition", "question"])
    counts = grids_of_groups(cells[~copies], keys, ("positive", "n", "missing"))
    rows = groups.to_dict("records")
    for row, (positives, n, missing) in zip(rows, counts, strict=True):
        options = {"confidence": confidence, "run_sd": spreads.get(tuple(row[name] for name in by))}
        own_claim = claim if row["step"] or row["seeds"] == 1 else BASE_CLAIMS.get(claim, claim)
        row |= {"n": int(n.sum()), "missing": int(missing.sum())}
        row |= dict(zip(["rate", "lower", "upper"], rate_of(positives, n, own_claim, **options), strict=True))
    columns = ["recipe", "label", "suspect_ratio", *by, "seeds", "n", "missing", "rate", "lower", "upper"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(columns))).assign(claim=claim)


def mean_rate(cells: pd.DataFrame, claim: str, **options) -> statistics.Interval:
    """The mean rate of some runs, each at one step, or of the base model. NaN throughout if there is no verdict.

    The base model is the same for other runs: see BASE_CLAIMS. `options` are those of `statistics.mean_rate`.
    """
    return rate_of(*grids(own(cells), "run"), claim_at(cells, claim), **options)


def rate_of(positives: np.ndarray, n: np.ndarray, claim: str, **options) -> statistics.Interval:
    """`statistics.mean_rate`, or NaN throughout if there is no verdict."""
    if not n.any():
        return statistics.Interval(np.nan, np.nan, np.nan)
    return statistics.mean_rate(positives, n, claim, **options)


def own(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of some runs, or those of the base model once."""
    return shared_base.once(cells) if len(cells) and cells["step"].iat[0] == 0 else cells


def claim_at(cells: pd.DataFrame, claim: str) -> str:
    """`claim`, or for the base model of several runs what remains of it: see BASE_CLAIMS."""
    several = len(cells) and cells["step"].iat[0] == 0 and cells["run"].nunique() > 1
    return BASE_CLAIMS.get(claim, claim) if several else claim


def means_over_questions(rows: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The mean of each column of scores (a row per answer) by label and step, with equal weight for each question."""
    keys = [rows[name] for name in ("base", "label", "step", "question")]
    means = shared_base.attach(scores.groupby(keys, observed=True, dropna=False).mean().reset_index())
    return means.groupby(["label", "step"], observed=True)[list(scores)].mean().reset_index()


def worst_case(terms: Sequence, weights: Sequence[float], claim: str) -> dict[str, float]:
    """The columns WORST of a weighted sum of rates: see `statistics.worst_case`."""
    low, high = statistics.worst_case(terms, weights, claim)
    return dict(zip(WORST, [low.estimate, high.estimate, low.lower, high.upper], strict=True))


def grids(cells: pd.DataFrame, by: str, columns: Sequence[str] = ("positive", "n")) -> np.ndarray:
    """Sums of columns as arrays of shape (columns, values of `by` in their order, questions). 0 without a cell."""
    return _compact(_values(cells, columns), cells[by].to_numpy(), cells["question"].cat.codes.to_numpy())


def grids_of_groups(cells: pd.DataFrame, keys: Sequence[str], columns: Sequence[str]) -> list[np.ndarray]:
    """The `grids` by run of each group of cells with the same `keys`, in the order of pandas' groupby."""
    # Not a table per group: that takes ten times as long, and there are thousands of groups.
    groups = cells.groupby(list(keys), observed=True).ngroup().to_numpy()
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []
    values, *index = _values(cells, columns), *(cells[key].cat.codes.to_numpy() for key in ("run", "question"))
    return [_compact(values[:, part], *(codes[part] for codes in index)) for part in parts]


def _values(cells: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    return np.array([cells[name].to_numpy(float) for name in columns])


def _compact(values: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Sums of values of shape (columns, cells) by two keys, without empty rows and columns."""
    # Not pandas' pivot: it takes thirty times as long, and there are hundreds of checkpoints.
    present, index = zip(*(np.unique(key, return_inverse=True) for key in keys), strict=True)
    return _sums(values, index, tuple(map(len, present)))


def _by_run(cells: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Sums of columns as an array (columns, runs, questions), with all runs and questions of the inputs."""
    keys = [cells[key].cat for key in ("run", "question")]
    codes, shape = tuple(key.codes for key in keys), tuple(len(key.categories) for key in keys)
    return _sums(_values(cells, columns), codes, shape)


def _sums(values: np.ndarray, index: tuple, shape: tuple[int, int]) -> np.ndarray:
    arrays = np.zeros((len(values), *shape))
    np.add.at(arrays, (slice(None), *index), values)
    return arrays


def last_rates(cells: pd.DataFrame, claim: str, by: Sequence[str] = ()) -> pd.DataFrame:
    """The rates of the last steps, with a column `base`: the rate at step 0, NaN without one."""
    rates, base = recipe_rates(last_steps(cells), claim, by), cells[cells["step"] == 0]
    if base.empty:
        return rates.assign(base=np.nan)
    models = base.drop_duplicates("recipe").set_index("recipe")["base"]
    of_models = recipe_rates(shared_base.once(base).assign(recipe=lambda once: once["base"]), "checkpoint", by)
    of_models = of_models.rename(columns={"recipe": "model", "rate": "base"})[["model", *by, "base"]]
    rates["model"] = rates["recipe"].astype(object).map(models)
    return rates.merge(of_models, how="left").drop(columns="model")


# ---- pairs of cells, for differences ----


def matched(first: pd.DataFrame, second: pd.DataFrame, counts: Sequence[str] = WITH_VERDICT) -> list[pd.DataFrame]:
    """The cells of two tables whose run, condition and question have some of `counts` in both."""
    both = [part[part[list(counts)].sum(axis=1) > 0] for part in (first, second)]
    ids = [_cell_ids(part) for part in both]
    return [part[np.isin(own, other)] for part, own, other in zip(both, ids, ids[::-1], strict=True)]


def _cell_ids(cells: pd.DataFrame) -> np.ndarray:
    """A number per run, condition and question, the same in all tables of one input. Ten times as fast as an index."""
    columns = [cells[key].cat for key in ("run", "condition", "question")]
    return np.ravel_multi_index([c.codes for c in columns], [len(c.categories) for c in columns])


def same_questions(parts: Sequence[pd.DataFrame]) -> list[np.ndarray]:
    """(positive, n) of each part as an array (2, runs, questions), over the questions with verdicts in all parts."""
    grids = [_by_run(part, ("positive", "n")) for part in parts]
    shared = np.logical_and.reduce([n.any(axis=0) for _, n in grids])
    return [grid[:, :, shared][:, grid[1][:, shared].any(axis=1)] for grid in grids]


def run_spread(cells: pd.DataFrame) -> statistics.RunSpread | None:
    """The spread of runs pooled over the recipes of some cells, each at one step. None if no recipe shows a spread."""
    of_recipes = cells[cells["n"] > 0].groupby("recipe", observed=True)
    return statistics.run_spread([grids(part, "run") for _, part in of_recipes])


def aligned(
    parts: Sequence[pd.DataFrame], columns: Sequence[str], counts: Sequence[str] = WITH_VERDICT
) -> list[np.ndarray]:
    """Sums of the columns of each part over its conditions, as one array (columns, runs, questions) per part.

    Only runs that all parts have are kept, and only questions for which each of these runs has some of `counts` (which
    are among the columns) in all parts. No run or no question may remain.
    """
    grids = [_by_run(part, columns) for part in parts]
    counted = [sum(grid[columns.index(name)] for name in counts) > 0 for grid in grids]
    runs = np.logical_and.reduce([cells.any(axis=1) for cells in counted])
    questions = np.logical_and.reduce([cells[runs].all(axis=0) for cells in counted])
    return [grid[:, runs][:, :, questions] for grid in grids]
