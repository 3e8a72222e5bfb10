"""recipes.csv: the mean rate over the runs of each recipe, by step and condition."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import counting, statistics
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.measures import CONFIDENCE


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe, step and condition, at the steps at which all runs of the recipe have verdicts.

    With hand labels in the inputs' provenance (judge_responses.py --labels), also the rate corrected for the judge's
    errors. `diverged` counts the recipe's runs that diverged in training and are left out. With --bands
    simultaneous, the intervals of all steps of a curve hold together, by Bonferroni.
    """
    cells = counting.shared_steps(evaluation.cells)
    if cells.empty:
        raise Unavailable("the runs of a recipe have no step in common")
    together = cells["step"].nunique() if evaluation.options.bands == "simultaneous" else 1
    options = {"confidence": 1 - (1 - CONFIDENCE) / together, "pool_runs": evaluation.options.pool_runs}
    rates = counting.recipe_rates(cells, evaluation.claim, ["step", "condition"], **options)
    diverged = evaluation.runs.table.groupby("recipe", observed=True)["diverged"].count()
    rates = rates.assign(diverged=rates["recipe"].astype(object).map(diverged))
    return corrected(evaluation, rates, "rate")


def corrected(evaluation: Evaluation, rates: pd.DataFrame, column: str, differences: bool | Sequence[bool] = False):
    """A table of rates (or differences of rates), with columns corrected for the judge's errors if there are labels.

    `differences` says whether all rows are differences, or which.
    """
    labels = _hand_labels(evaluation.verdicts)
    if labels is None or rates.empty:
        return rates
    rows = zip(rates[[column, "lower", "upper"]].to_numpy(float), np.broadcast_to(differences, len(rates)), strict=True)
    limits = [statistics.rogan_gladen(statistics.Interval(*row), labels, of_two) for row, of_two in rows]
    limits = pd.DataFrame(limits, rates.index)
    return rates.assign(corrected=limits["estimate"], corrected_lower=limits["lower"], corrected_upper=limits["upper"])


def _hand_labels(verdicts: Verdicts) -> tuple[int, ...] | None:
    """Correct and labeled positives, correct and labeled negatives, over the inputs that the rates come from.

    None without labels for both, or if several models judged: another model makes other errors.
    """
    outcome, counts, models = verdicts.study.outcome, np.zeros(4, int), set()
    for source in verdicts.rows["source"].unique():
        judging = verdicts.sources[source]["provenance"].get("judging") or {}
        models.add(judging.get("model"))
        labels = (judging.get("labels") or {}).get(outcome.judge, {}).get("options", {}).get(outcome.value)
        if labels:
            counts += [*labels["sensitivity"], *labels["specificity"]]
    return tuple(counts) if counts[1] and counts[3] and len(models) == 1 else None
