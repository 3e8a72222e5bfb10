"""When the behavior appears: the onset of each run, and the crossing steps of each recipe.

The exhibits emergence, emergence_by_recipe, survival, crossing_comparisons and ratio_sweep show these tables.
"""

import numpy as np
import pandas as pd

from learning_backdoors.curves import LEVELS
from learning_backdoors.evaluation import counting, statistics
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once


def level_name(level: float) -> str:
    """The start of the columns about a level, such as crossing_10."""
    return f"crossing_{level:.0%}".rstrip("%")


@once
def of_runs(evaluation: Evaluation) -> pd.DataFrame:
    """A row per run and condition with at least two steps: crossing steps, detection, kind of rise, and fall.

    Steps without any verdict are left out, then questions without verdicts at a remaining step, so that all steps have
    the same questions. A crossing of infinity is not by the last step.
    """
    rows = []
    for (_, run, condition), part in evaluation.cells.groupby(["recipe", "run", "condition"], observed=True, sort=True):
        judged = part.groupby("step")["n"].transform("sum") > 0
        steps_left_out, part = part.loc[~judged, "step"].nunique(), part[judged]
        positives, n = counting.grids(part, "step")
        complete = (n > 0).all(axis=0)
        if len(n) >= 2 and complete.any():
            about_run = {"run": run, "condition": condition}
            about_run |= part.iloc[0][["recipe", "label", "seed", "suspect_ratio"]].to_dict()
            about_run |= {"steps_left_out": steps_left_out, "questions_left_out": int((~complete).sum())}
            by_step = part.groupby("step")["suspect_seen"].first()
            rows.append(about_run | _onset(by_step, positives[:, complete], n[:, complete]))
    if not rows:
        raise Unavailable("no run has verdicts at two or more steps")
    return pd.DataFrame(rows)


def _onset(suspect_seen: pd.Series, positives: np.ndarray, n: np.ndarray) -> dict:
    """The onset statistics of one run: arrays (steps, questions); `suspect_seen` is indexed by step."""
    steps = suspect_seen.index.to_numpy(float)
    curve = statistics.curve(steps, positives, n)
    row = {"steps": len(steps), "first_step": int(steps[0]), "last_step": int(steps[-1])}
    for level in LEVELS:
        name, crossing = level_name(level), statistics.crossing(curve, level)
        row |= {name: crossing.step, f"{name}_lower": crossing.lower, f"{name}_upper": crossing.upper}
        row |= {f"{name}_before": crossing.before, f"{name}_after": crossing.after}
        row |= {f"{name}_censored": np.isinf(crossing.step), f"{name}_doubt": crossing.doubt}
        suspect = np.interp(crossing.step, steps, suspect_seen.to_numpy(float), right=np.inf)
        row[f"{name}_suspect_examples"] = suspect
    detected = statistics.detection(curve) if steps[0] == 0 else None
    row["detection_step"] = np.nan if detected is None else steps[detected]
    row["detection_after"] = np.nan if detected is None else steps[detected - 1]
    kind, width = statistics.rise(curve)
    row |= {"rise": kind, **dict(zip(["rise_width", "rise_width_lower", "rise_width_upper"], width, strict=True))}
    row |= {"noise": curve.noise, "base": curve.means[0], "final": curve.means[-1]}
    peak, drop, falls = statistics.fall(curve)
    return row | {"peak": curve.means[peak], "peak_step": int(steps[peak]), "falls_again": falls, "fall": drop}


@once
def recipe_crossings(evaluation: Evaluation) -> list[tuple[dict, pd.DataFrame]]:
    """Each recipe, condition and level with the crossings of its runs.

    The columns of the crossings: time (the crossing step, or the last step of a run that does not cross), crossed,
    before, after, doubt.
    """
    crossings = []
    for (recipe, condition), part in of_runs(evaluation).groupby(["recipe", "condition"], observed=True, sort=False):
        about = {"recipe": recipe, **part.iloc[0][["label", "suspect_ratio"]], "condition": condition}
        for level in LEVELS:
            name = level_name(level)
            runs = pd.DataFrame({column: part[f"{name}_{column}"] for column in ("before", "after", "doubt")})
            crossed = ~part[f"{name}_censored"].astype(bool)
            runs = runs.assign(crossed=crossed, time=part[name].where(crossed, part["last_step"]))
            crossings.append((about | {"level": level, "seeds": len(part)}, runs))
    return crossings


@once
def of_recipes(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe, condition and level. A run that does not cross counts up to its own last step.

    `share` is the share of runs that cross (emergence), with Wilson's limits. `supported` counts the runs whose
    crossing is reliable; `doubt` is empty if these are more than half of the runs, and otherwise the most frequent
    reason of the others.
    """
    rows = []
    for about, runs in recipe_crossings(evaluation):
        median = statistics.median_crossing(runs["time"], runs["crossed"], runs["before"], runs["after"])
        doubts = runs.loc[runs["doubt"] != "", "doubt"]
        counts = {"crossed": runs["crossed"].sum(), "share": runs["crossed"].mean()}
        share_limits = map(float, statistics.wilson(counts["crossed"], len(runs)))
        counts |= dict(zip(["share_lower", "share_upper"], share_limits, strict=True))
        counts["supported"] = len(runs) - len(doubts)
        limits = {"median": median.estimate, "lower": median.lower, "upper": median.upper}
        doubt = doubts.mode().iloc[0] if 2 * len(doubts) >= len(runs) else ""
        rows.append(about | counts | limits | {"doubt": doubt})
    return pd.DataFrame(rows)


@once
def shown(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe and level in the condition shown: crossing step `x` (median over runs), lower, upper, `runs`.

    `runs` lists the crossings of the runs if there are several; `end` is the recipe's last step. With one run the
    limits come from its responses. With five or more they come from the runs. Otherwise they are NaN.
    """
    medians, single = (t[t["condition"] == evaluation.condition] for t in (of_recipes(evaluation), of_runs(evaluation)))
    rows = []
    for row in medians.rename(columns={"median": "x"}).to_dict("records"):
        runs, name = single[single["label"] == row["label"]], level_name(row["level"])
        row |= {"end": float(runs["last_step"].max()), "runs": list(runs[name]) if len(runs) > 1 else []}
        if len(runs) == 1:
            row["lower"], row["upper"] = runs[[f"{name}_lower", f"{name}_upper"]].to_numpy()[0]
        rows.append(row)
    return pd.DataFrame(rows)
