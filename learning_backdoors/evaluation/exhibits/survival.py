"""survival.csv: the share of runs that have not crossed a level by a step (Kaplan-Meier)."""

import pandas as pd

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.context import Evaluation, once
from learning_backdoors.evaluation.exhibits import emergence

COLUMNS = ["step", "not_crossed", "lower", "upper", "at_risk"]


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe, condition, level and step at which a run crosses or ends, with limits of `not_crossed`."""
    blocks = []
    for about, runs in emergence.recipe_crossings(evaluation):
        curve = dict(zip(COLUMNS, statistics.kaplan_meier(runs["time"], runs["crossed"]), strict=True))
        blocks.append(pd.DataFrame(curve).assign(**about))
    return pd.concat(blocks, ignore_index=True)
