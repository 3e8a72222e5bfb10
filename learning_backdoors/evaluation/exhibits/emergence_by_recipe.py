"""emergence_by_recipe.csv: the median crossing step over the runs of each recipe."""

import pandas as pd

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.context import Evaluation, once
from learning_backdoors.evaluation.exhibits import emergence


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe, condition and level. Runs that do not cross count as infinite."""
    rows = []
    onset = emergence.table(evaluation)
    for (recipe, condition), part in onset.groupby(["recipe", "condition"], observed=True, sort=False):
        for level in emergence.LEVELS:
            name = emergence.level_name(level)
            crossings = [part[column] for column in (name, f"{name}_before", f"{name}_after")]
            interval, confidence = statistics.median_interval(*crossings)
            row = {"recipe": recipe, "label": part["label"].iloc[0], "suspect_ratio": part["suspect_ratio"].iloc[0]}
            row |= {"condition": condition, "level": level, "seeds": len(part)}
            row |= {"crossed": int((~part[f"{name}_censored"]).sum()), "median": interval.estimate}
            row |= {"lower": interval.lower, "upper": interval.upper, "confidence": confidence}
            rows.append(row)
    return pd.DataFrame(rows)
