"""comparisons.csv: recipe against recipe at the last step, and each recipe's last step against step 0."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import counting, statistics
from learning_backdoors.evaluation.context import Evaluation, once

BETWEEN, RISE = "recipes, last step", "last step - step 0"
COLUMNS = ["comparison", "first", "second", "condition", "difference", "lower", "upper", "p", "p_holm"]
COLUMNS += ["claim", "interval", "seeds", "questions"]


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per condition and comparison.

    With two or more runs on each side, runs are the unit (claim recipe): Welch's t between recipes, paired t within a
    recipe, over the runs that have both steps. With fewer runs, questions are the unit, paired (claim questions). No
    interval is narrower than that of the claim checkpoint, and no p-value is smaller than its interval allows. `p_holm`
    is adjusted by Holm's method over the whole table.
    """
    rows = []
    for condition, part in evaluation.cells.groupby("condition", observed=True):
        trained = part[part["n"] > 0]
        last = dict(list(counting.last_steps(trained).groupby("label", observed=True)))
        labels = list(last)
        for i, first in enumerate(labels):
            base = trained[(trained["label"] == first) & (trained["step"] == 0)]
            compared = [(BETWEEN, second, _between(last[first], last[second])) for second in labels[i + 1 :]]
            for comparison, second, row in [*compared, (RISE, first, _rise(last[first], base))]:
                if row:
                    about = {"comparison": comparison, "first": first, "second": second, "condition": condition}
                    rows.append(about | row)
    result = pd.DataFrame(rows, columns=COLUMNS)
    result["p_holm"] = statistics.holm(result["p"])
    return result


def _between(one: pd.DataFrame, two: pd.DataFrame) -> dict | None:
    """The last steps of two recipes."""
    sides = [counting.grids(part, "run") for part in (one, two)]
    if min(len(n) for _, n in sides) >= 2:
        rates = [statistics.mean_rate(positives, n, "checkpoint") for positives, n in sides]
        means = [part.groupby("run", observed=True)["rate"].mean() for part in (one, two)]
        interval, p = statistics.welch(*means)
        interval = statistics.widen(interval, statistics.contrast(rates, (1, -1)))
        interval = statistics.Interval(interval.estimate, max(interval.lower, -1.0), min(interval.upper, 1.0))
        return _row(interval, p, "recipe", "Welch's t on runs", *sides[0][0].shape)
    # The runs differ between the sides, so each side pools them by question, with equal weight per run.
    shared = set(one["question"]) & set(two["question"])
    sides = [counting.grids(part[part["question"].isin(shared)], "run") for part in (one, two)]
    terms = [[a[None] for a in statistics.pooled_over_runs(*side)] for side in sides]
    return _paired(terms, one["run"].nunique())


def _rise(last: pd.DataFrame, base: pd.DataFrame) -> dict | None:
    """The last step of a recipe against its step 0."""
    if (last["step"] == 0).any():
        return None
    terms = counting.aligned([last, base], ["positive", "n"])
    return _paired(terms, terms[0].shape[1])


def _paired(terms: Sequence, runs: int) -> dict | None:
    """A difference over the same questions, from (positives, n) of shape (runs, questions) on each side."""
    (positives, n), (other_positives, other_n) = terms
    if not n.size:
        return None
    claim = counting.supported_claim("recipe", *n.shape)
    interval = statistics.paired_contrast(terms, (1, -1), claim)
    differences = (positives / n - other_positives / other_n).mean(axis={"recipe": 1}.get(claim, 0))
    p = statistics.t_test(differences)[1] if claim != "checkpoint" else np.nan
    return _row(interval, p, claim, counting.METHODS[claim], runs, n.shape[1])


def _row(interval: statistics.Interval, p: float, claim: str, method: str, runs: int, questions: int) -> dict:
    limits = {"difference": interval.estimate, "lower": interval.lower, "upper": interval.upper}
    limits["p"] = statistics.bounded_p(p, interval)
    return limits | {"claim": claim, "interval": method, "seeds": runs, "questions": questions}
