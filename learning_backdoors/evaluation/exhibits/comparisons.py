"""comparisons.csv: each recipe against its control, its neighbors along the suspect share, and the base model."""

import itertools
from collections.abc import Collection

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import controls, counting, shared_base, statistics
from learning_backdoors.evaluation.context import Evaluation, once
from learning_backdoors.evaluation.exhibits import recipes
from learning_backdoors.measures import CONFIDENCE

CONTROL, NEIGHBOR, OTHER, BASE = "with control", "neighboring share", "other pair", "change from base"
COMPARED = "compared"  # the start of notes on the steps and questions that a row is limited to
COLUMNS = ["comparison", "first", "second", "condition", "step", "first_rate", "second_rate"]
COLUMNS += ["difference", "lower", "upper", "p", "p_holm", "claim", "interval", "seeds", "second_seeds", "questions"]
COLUMNS += ["note"]


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per condition and comparison, at the last step that both sides share, over the questions that both have.

    The base model is the second side of BASE. The claim is that of --claim, by default recipe, or what the numbers of
    runs and questions support. With one run on a side the row is about these runs, and there is no p-value. `p_holm` is
    adjusted by Holm's method over the whole table. `note` says what limits a row, or why it has no difference.
    """
    rows, claim = [], evaluation.options.claim or "recipe"
    for condition, part in evaluation.cells.groupby("condition", observed=True):
        judged = part[part["n"] > 0]
        spread = counting.run_spread(counting.last_steps(judged)) if evaluation.options.pool_runs else None
        few = judged[[*counting.KEYS, "base", "n", "positive"]]  # many columns would take most of the time
        by_label = {label: cells for label, cells in few.groupby(judged["label"], observed=True)}
        by_label = {label: cells for label, cells in by_label.items() if cells["step"].max() > 0}
        clean = counting.last_steps(judged[judged["suspect_ratio"] == 0])
        last = clean.groupby("label", observed=True)["rate"].mean()
        with_base = judged.loc[judged["step"] == 0, "label"].unique()
        for comparison, first, second in pairs(evaluation, last, by_label, with_base):
            about = {"comparison": comparison, "first": first, "second": second, "condition": condition}
            rows.append(about | _compared(by_label[first], by_label.get(second), claim, spread))
    result = pd.DataFrame(rows, columns=COLUMNS)
    result["p_holm"] = statistics.holm(result["p"])
    return recipes.corrected(evaluation, result, "difference", True)


def pairs(
    evaluation: Evaluation, last: pd.Series, labels: Collection[str], with_base: Collection[str]
) -> list[tuple[str, str, str]]:
    """(comparison, first label, second label) of one condition's comparisons. The label of the base model is base.

    `labels` are those of the recipes, `with_base` of those that were measured at step 0. `last`: see `controls.pairs`.
    """
    recipes = evaluation.runs.table
    of_control, neighbors = controls.pairs(recipes[recipes["label"].isin(labels)], last, evaluation.study)
    found = [(CONTROL, *pair) for pair in of_control.items()] + [(NEIGHBOR, *pair) for pair in neighbors]
    if evaluation.options.compare == "all":
        made = {frozenset(pair) for _, *pair in found}
        found += [(OTHER, *pair) for pair in itertools.combinations(labels, 2) if frozenset(pair) not in made]
    return found + [(BASE, label, shared_base.BASE) for label in labels if label in with_base]


def _compared(first: pd.DataFrame, second: pd.DataFrame | None, claim: str, spread) -> dict:
    """The columns of one comparison. Without `second`, with the base model."""
    of_base = second is None
    both = first if of_base else pd.concat([first, second])
    step = counting.last_step(both)
    other = counting.own(first[first["step"] == 0]) if of_base else second[second["step"] == step]
    sides = [first[first["step"] == step], other]
    if not all(map(len, sides)):
        return {"note": "refused: the recipes share no step"}
    grids = counting.same_questions(sides)
    runs = [grid.shape[1] for grid in grids]
    row = {"step": step, "seeds": runs[0], "second_seeds": runs[1]}
    shared, asked = grids[0].shape[2], max(side["question"].nunique() for side in sides)
    if not shared:
        return row | {"note": "refused: the recipes were not asked the same questions"}
    least = runs[0] if of_base else min(runs)
    claim = counting.supported_claim(claim, least, shared)
    difference = statistics.change_from_base if of_base else statistics.rate_difference

    def interval(confidence: float) -> statistics.Interval:
        return difference(*grids, claim, confidence=confidence, run_sd=spread)

    first_rate, second_rate = (statistics.Scores(*grid).mean for grid in grids)
    row |= {"first_rate": first_rate, "second_rate": second_rate, "claim": claim, "questions": shared}
    row |= dict(zip(["difference", "lower", "upper"], interval(CONFIDENCE), strict=True))
    row["p"] = statistics.p_value(interval) if least > 1 else np.nan
    row["interval"] = counting.METHODS[claim]
    return row | {"note": note(least, step, both["step"].max(), shared, asked)}


def note(runs: int, step: int, last: int, shared: int, asked: int) -> str:
    """What limits a comparison: the runs of the side with fewer, the step of `last`, and the questions of `asked`."""
    notes = ["one run: about these runs, not about the recipe"] if runs == 1 else []
    notes += [f"{COMPARED} at step {step}, the last that all runs share"] if step < last else []
    notes += [f"{COMPARED} on {shared} of {asked} questions, those that both sides have"] if shared < asked else []
    return "; ".join(notes)
