"""survival.csv: the share of runs that have not crossed a level by a step (Kaplan-Meier)."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.context import Evaluation, once
from learning_backdoors.evaluation.exhibits import emergence


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe, condition, level and crossing step, with 95% limits of the share `not_crossed`."""
    blocks = []
    onset = emergence.table(evaluation)
    for (label, condition), part in onset.groupby(["label", "condition"], observed=True, sort=False):
        for level in emergence.LEVELS:
            name = emergence.level_name(level)
            crossed = ~part[f"{name}_censored"].astype(bool)
            curve = statistics.kaplan_meier(part[name].where(crossed, part["last_step"]), crossed)
            block = pd.DataFrame(np.transpose(curve), columns=["step", "not_crossed", "lower", "upper"])
            blocks.append(block.assign(label=label, condition=condition, level=level, seeds=len(part)))
    return pd.concat(blocks, ignore_index=True)
