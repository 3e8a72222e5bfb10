"""emergence_by_recipe.csv: the median crossing step over the runs of each recipe."""

import pandas as pd

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.context import Evaluation, once
from learning_backdoors.evaluation.exhibits import emergence


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe, condition and level. A run that does not cross counts up to its own last step.

    `supported` counts the runs whose crossing is reliable; `doubt` is empty if these are more than half of the runs,
    and otherwise the most frequent reason of the others.
    """
    rows = []
    for about, runs in emergence.recipe_crossings(evaluation):
        median = statistics.median_crossing(runs["time"], runs["crossed"], runs["before"], runs["after"])
        doubts = runs.loc[runs["doubt"] != "", "doubt"]
        counts = {"crossed": runs["crossed"].sum(), "supported": len(runs) - len(doubts)}
        limits = {"median": median.estimate, "lower": median.lower, "upper": median.upper}
        doubt = doubts.mode().iloc[0] if 2 * len(doubts) >= len(runs) else ""
        rows.append(about | counts | limits | {"doubt": doubt})
    return pd.DataFrame(rows)
