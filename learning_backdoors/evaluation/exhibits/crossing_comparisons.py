"""crossing_comparisons.csv: whether the runs of one recipe cross a level earlier than those of another."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import crossings, statistics
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once
from learning_backdoors.evaluation.exhibits import comparisons


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per pair of recipes of comparisons.csv, condition and level. Claim: recipe.

    `difference` is in steps: negative if the first recipe crosses earlier. Runs that have not crossed by
    `until_step`, the last step that all runs of both recipes have, count as crossing there. `p_holm` is adjusted by
    Holm's method over the whole table.
    """
    onset, pairs = crossings.of_runs(evaluation), comparisons.table(evaluation)
    rows, sides_of = [], dict(list(onset.groupby(["condition", "label"], observed=True)))
    for pair in pairs[pairs["comparison"] != comparisons.BASE].itertuples():
        keys = [(pair.condition, label) for label in (pair.first, pair.second)]
        if all(key in sides_of for key in keys):
            sides = [sides_of[key] for key in keys]
            about = {name: getattr(pair, name) for name in ("comparison", "first", "second", "condition")}
            rows += [about | _compared(*sides, level) for level in crossings.LEVELS]
    if not rows:
        raise Unavailable("the inputs have no two recipes to compare")
    result = pd.DataFrame(rows)
    return result.assign(p_holm=statistics.holm(result["p"]))


def _compared(first: pd.DataFrame, second: pd.DataFrame, level: float) -> dict:
    """The columns of one row; tables of runs, see `crossings.of_runs`."""
    until = int(min(first["last_step"].min(), second["last_step"].min()))
    steps = [side[crossings.level_name(level)].to_numpy(float) for side in (first, second)]
    difference, p = statistics.crossing_difference(*steps, until)
    crossed = [int((side <= until).sum()) for side in steps]
    note = "" if p >= 0 else "too few runs: three or more per recipe are needed"
    if min(map(len, steps)) >= 3 and np.isnan(p):
        note = "the runs do not vary" if any(crossed) else "no run crosses by this step"
    row = {"level": level, "until_step": until, "seeds": len(first), "second_seeds": len(second)}
    row |= dict(zip(["crossed", "second_crossed"], crossed, strict=True))
    row |= dict(zip(["difference", "lower", "upper"], difference, strict=True))
    return row | {"p": p, "note": note}
