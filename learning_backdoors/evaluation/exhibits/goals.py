"""goals: whether each goal of the study is met at the last step."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import counting, text_tables
from learning_backdoors.evaluation.context import Evaluation, NotInStudy, once
from learning_backdoors.evaluation.exhibits import leakage
from learning_backdoors.study import Goal

MET, NOT_MET, UNDECIDED, NOT_MEASURED = "met", "not met", "undecided", "not measured"
COLUMNS = ["goal", "label", "run", "measure", "estimate", "lower", "upper", "wanted", "verdict"]
COLUMNS += ["wanted_strong", "verdict_strong", "claim", "interval", "seeds", "questions", "n", "missing"]
COLUMNS += counting.WORST


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per goal, recipe and run. The measure of a goal is a quantity of `leakage.rates`."""
    if not evaluation.study.goals:
        raise NotInStudy("the study has no [[goal]]")
    rows = []
    for goal in evaluation.study.goals:
        for (label, run), part in leakage.rates(evaluation).groupby(["label", "run"], observed=True, sort=False):
            measured = part[part["quantity"] == goal.measure].drop(columns="quantity").to_dict("records")
            row = {"goal": goal.name, "label": label, "run": run, "measure": goal.measure}
            row |= measured[0] if measured else {}
            rows.append(row | _verdicts(goal, row))
    return pd.DataFrame(rows, columns=COLUMNS)


def _verdicts(goal: Goal, row: dict) -> dict:
    verdicts = {}
    for suffix, bound in (("", goal.limit), ("_strong", goal.strong)):
        if bound is not None:
            verdicts[f"wanted{suffix}"] = f"{'over' if goal.above else 'under'} {bound:g}"
            measured = "estimate" in row
            verdict = decide(row["lower"], row["upper"], bound, goal.above) if measured else NOT_MEASURED
            verdicts[f"verdict{suffix}"] = verdict
    return verdicts


def decide(lower: float, upper: float, bound: float, above: bool) -> str:
    """Whether an interval is above (or below) a bound: met, not met, or undecided if it includes the bound or is NaN.

    A limit equal to the bound is neither above nor below it.
    """
    beyond, short = (lower > bound, upper <= bound) if above else (upper < bound, lower >= bound)
    return MET if beyond else NOT_MET if short else UNDECIDED


def brief(evaluation: Evaluation) -> tuple[str, pd.DataFrame]:
    rows = counting.recipe_rows(table(evaluation))
    columns = {"goal": rows["goal"], "measured": text_tables.intervals(rows, "estimate")}
    for suffix, title in (("", "wanted"), ("_strong", "strong")):
        wanted = rows[f"wanted{suffix}"].str.replace(r"\S+$", lambda bound: f"{float(bound[0]):.0%}", regex=True)
        columns[title] = wanted.str.cat(rows[f"verdict{suffix}"], ": ").fillna("")
    if (rows["missing"] > counting.MISSING_FLAG * (rows["n"] + rows["missing"])).any():
        columns["for any value of missing verdicts"] = [
            "-" if np.isnan(low) else f"{text_tables.percent(low)} to {text_tables.percent(high)}"
            for low, high in rows[["worst_low", "worst_high"]].to_numpy(float)
        ]
    return f"Goals, {leakage.last_step_and_claims(rows)}", text_tables.by_recipe(rows, columns)
