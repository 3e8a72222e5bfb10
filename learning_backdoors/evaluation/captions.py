"""Sentences about figures: what all figures have in common, and the parts that their captions share."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import counting, likelihood, shared_base
from learning_backdoors.evaluation.context import MOST_DRAWN, MOST_IN_PANEL, Evaluation, if_available
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.study import Judge


def common(evaluation: Evaluation) -> str:
    """What holds for all figures unless their captions say otherwise: questions, responses, runs, claim and method."""
    cells = if_available(lambda e: e.cells, evaluation)
    if cells is None:
        return if_available(_of_likelihoods, evaluation) or ""
    claim = evaluation.claim
    method = counting.INTERVALS[claim]
    text = f"{counts(cells)} 95% intervals hold for {counting.CLAIMS[claim]} (claim {claim}; method: {method})."
    return " ".join([text, *left_out(evaluation)])


def left_out(evaluation: Evaluation) -> list[str]:
    """A sentence on the recipes that figures leave out, if there are too many."""
    count = len(evaluation.recipe_labels)
    text = (
        f"Figures by recipe show {MOST_IN_PANEL} to {min(count, MOST_DRAWN)} of the {count} recipes, at equal distances"
    )
    return [f"{text} in the list. Tables have all."] if count > MOST_IN_PANEL else []


def _of_likelihoods(evaluation: Evaluation) -> str:
    """`common` for inputs without rates."""
    changes, claim = likelihood.of_contrasts(evaluation), likelihood.claim(evaluation)
    runs = evaluation.runs.table.loc[changes.index.get_level_values("run").unique()].groupby("recipe", observed=True)
    answers = evaluation.measured("likelihood").drop_duplicates(["question", "group", "answer_idx"])
    count, per_recipe = int(changes.notna().any().sum()), span(runs.size())
    text = f"{count} question{'s'[: count > 1]} with {len(answers)} reference answers, {per_recipe} "
    text += f"run{'s'[: per_recipe != '1']} per recipe. 95% intervals hold for {counting.CLAIMS[claim]} "
    return f"{text}(claim {claim}; method: {likelihood.METHODS[claim]})."


def counts(cells: pd.DataFrame) -> str:
    """The numbers behind figures: questions, responses per question, runs per recipe, and missing verdicts."""
    cells = shared_base.once(cells)
    trained, requested = cells["step"] > 0, cells["n"] + cells["missing"]
    samples = span(requested[trained] if trained.any() else requested)
    of_base = span(requested[~trained]) if not trained.all() else samples
    per = "checkpoint and condition" if cells["condition"].nunique() > 1 else "checkpoint"
    base = f" ({of_base} at step 0)" if of_base != samples else ""
    runs = span(cells[trained].groupby("recipe", observed=True)["run"].nunique()) if trained.any() else "1"
    questions = cells["question"].nunique()
    text = f"{questions} question{'s'[: questions > 1]}, {samples} response{'s'[: samples != '1']} to each per {per}"
    text += f"{base}, {runs} run{'s'[: runs != '1']} per recipe. "
    return text + missing(cells["missing"].sum(), requested.sum())


def judged(verdicts: Verdicts, judges: Sequence[Judge], condition: str) -> str:
    """The questions and the missing verdicts of judges other than the outcome's, in one condition."""
    of_condition = verdicts.rows["condition"] == condition
    requested = np.logical_or.reduce([verdicts.asked(judge) for judge in judges]) & of_condition
    lost = np.logical_or.reduce([verdicts.missing(judge) for judge in judges]) & of_condition
    text = f"{verdicts.rows.loc[requested, 'question'].nunique()} questions"
    return f"{text}; {lost.sum():,} of {requested.sum():,} verdicts missing." if lost.any() else f"{text}."


def intervals(evaluation: Evaluation, rates: pd.DataFrame, drawn: str = "Bars") -> str:
    """What draws the intervals of some rates (columns lower and claim), and their claims if `common` has another."""
    claims = list(rates.loc[rates["lower"].notna(), "claim"].unique())
    if not claims:
        return "No intervals are drawn."
    other = "" if claims == [evaluation.claim] else f" (claim {' / '.join(claims)})"
    return f"{drawn}: 95% intervals{other}."


def bands(evaluation: Evaluation, rates: pd.DataFrame) -> str:
    """`intervals` along curves of recipes, with what --bands says about them."""
    text = intervals(evaluation, rates, "Bands")
    simultaneous = evaluation.options.bands == "simultaneous"
    return text.replace("95% intervals", "95% intervals for all steps together") if simultaneous else text


def last_step(cells: pd.DataFrame) -> str:
    """The last step in words: its number, or `the last step` if it differs between runs."""
    steps = counting.last_steps(cells)["step"].unique()
    return f"step {steps[0]}" if len(steps) == 1 else "the last step"


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
