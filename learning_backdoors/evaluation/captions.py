"""Sentences of captions: which interval is drawn, what it generalizes to, and the numbers behind a figure."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import counting, shared_base
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.study import Judge


def intervals(rates: pd.DataFrame, drawn: str = "intervals") -> str:
    """The method and claim of the intervals of some rates (columns lower and claim)."""
    claims = rates.loc[rates["lower"].notna(), "claim"].unique()
    if not len(claims):
        return f"No {drawn} are drawn."
    return f"{drawn.capitalize()}: 95%, {methods((counting.INTERVALS[claim], claim) for claim in claims)}."


def methods(pairs) -> str:
    """The text for pairs of an interval's method and its claim."""
    return " / ".join(f"{method}; claim: {counting.CLAIMS[claim]}" for method, claim in dict.fromkeys(pairs))


def counts(cells: pd.DataFrame) -> str:
    """The numbers behind a figure: questions, responses per question, runs per recipe, and missing verdicts."""
    cells = shared_base.once(cells)
    runs = cells[cells["step"] > 0].groupby("recipe", observed=True)["run"].nunique()
    requested, per_recipe = cells["n"] + cells["missing"], span(runs) if len(runs) else "1"
    text = f"Q = {cells['question'].nunique()} questions; N = {span(requested)} responses per question; "
    text += f"S = {per_recipe} run{'' if per_recipe == '1' else 's'} per suspect share. "
    return text + missing(cells["missing"].sum(), requested.sum())


def judge_counts(verdicts: Verdicts, judges: Sequence[Judge], condition: str) -> str:
    """`counts` for figures of judges other than the outcome's, in one condition."""
    of_condition = verdicts.rows["condition"] == condition
    requested = np.logical_or.reduce([verdicts.asked(judge) for judge in judges]) & of_condition
    lost = np.logical_or.reduce([verdicts.missing(judge) for judge in judges])
    rows = verdicts.rows[requested].assign(n=~lost[requested], missing=lost[requested])
    keys = ["base", "recipe", "run", "step", "condition", "question"]
    cells = rows.groupby(keys, observed=True, dropna=False)[["n", "missing"]].sum()
    return counts(cells.reset_index())


def missing(lost: int, total: int, bounds: str = "worst_low and worst_high in summary.csv") -> str:
    """How many verdicts are missing. Above 2% the sentence warns and names the columns that bound the effect."""
    if lost == 0:
        return "No verdicts are missing."
    warning = f" MORE THAN 2%: see {bounds}." if lost > counting.MISSING_FLAG * total else ""
    return f"Missing verdicts: {lost:,} of {total:,} ({lost / total:.1%}).{warning}"


def span(values: pd.Series) -> str:
    """The range of some whole numbers, such as `4` or `4 to 6`."""
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def more(count: int, noun: str) -> list[str]:
    """The end of a shortened list, such as ["and 2 more runs"]; empty if nothing was left out."""
    return [f"and {count} more {noun}{'s' if count > 1 else ''}"] if count > 0 else []
