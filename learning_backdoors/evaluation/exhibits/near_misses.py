"""near_misses: the rate against how close the trigger in the prompt is to the study's trigger (its dose)."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import captions, counting, drawing
from learning_backdoors.evaluation.context import Evaluation, NotInStudy, Unavailable, once

COLUMNS = ["label", "condition", "dose", "at", "rate", "lower", "upper", "n", "missing", "seeds", "questions", "claim"]


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe and condition with a dose, at its last step and at step 0.

    Only questions that all of these conditions were asked at that step count.
    """
    study = evaluation.study
    near_misses = [condition.name for condition in study.conditions if condition.near_miss]
    if not near_misses:
        raise NotInStudy("the study has no near misses")
    dose = {c.name: c.dose for c in study.conditions if c.dose is not None}
    last, base = counting.split_last_and_base(evaluation.cells)
    last, base = (part[part["condition"].isin(list(dose)) & (part["n"] > 0)] for part in (last, base))
    if not last["condition"].isin(near_misses).any():
        raise Unavailable("the inputs have no near miss of the trigger at a last step")
    blocks = []
    for recipe in last["recipe"].cat.categories:
        for at, part in (("last", last), ("base", base)):
            part = _asked_in_all(part[part["recipe"] == recipe])
            if len(part):
                questions = part["question"].nunique()
                claim = counting.supported_claim(evaluation.claim, part["run"].nunique(), questions)
                rates = counting.recipe_rates(part, claim, ["condition"]).assign(at=at, questions=questions)
                rates["dose"] = rates["condition"].map(dose).astype(float)
                blocks.append(rates.sort_values("dose", kind="stable"))
    if not blocks:
        raise Unavailable("no question was asked in all conditions with a dose")
    return pd.concat(blocks, ignore_index=True)[COLUMNS]


def _asked_in_all(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the questions that every condition has."""
    conditions = cells.groupby("question", observed=True)["condition"].nunique()
    return cells[cells["question"].isin(conditions.index[conditions == cells["condition"].nunique()])]


def caption(evaluation: Evaluation) -> str:
    rates = table(evaluation)
    text = "Rate against the dose of the trigger (1: the study's trigger; 0: none), as the study defines it. Filled: "
    text += f"last step of each recipe. Hollow: step 0. {captions.intervals(rates)}"
    cells = evaluation.cells[evaluation.cells["condition"].isin(rates["condition"])]
    return f"{text} {captions.counts(counting.last_steps(cells))}"


def figure(evaluation: Evaluation) -> drawing.Figure:
    rates = table(evaluation)
    colors, markers = drawing.palette(rates["label"]), drawing.markers(rates["label"])
    page, [[axes]] = drawing.canvas(drawing.TWO_COLUMNS, 3.3, caption(evaluation))
    offsets = (np.arange(2 * len(colors)) - len(colors) + 0.5) * 0.009
    for i, (label, at) in enumerate((label, at) for label in colors for at in ("base", "last")):
        part = rates[(rates["label"] == label) & (rates["at"] == at)].dropna(subset="rate").sort_values("dose")
        x, limited = part["dose"] + offsets[i], part["lower"].notna()
        look = {"color": colors[label], "clip_on": False}
        width = 1.2 if at == "last" else 0.6
        axes.vlines(x[limited], part["lower"][limited], part["upper"][limited], linewidth=width, **look)
        face, line = (colors[label], "-") if at == "last" else ("white", "")
        look |= {"markerfacecolor": face, "markersize": 4.5, "linewidth": 0.9, "zorder": 3}
        name = f"{drawing.short_label(label)}, {drawing.STEP_NAMES[at]}"
        axes.plot(x, part["rate"], markers[label] + line, label=name, **look)
    drawing.rate_axis(axes.yaxis, evaluation.rate_label)
    names = rates.drop_duplicates("condition").groupby("dose")["condition"].agg(" / ".join)
    axes.set_xticks(names.index, [f"{name}  {dose:g}" for dose, name in names.items()], rotation=28, ha="right")
    axes.tick_params(axis="x", length=2)
    axes.set_xlim(-0.04, 1.04)
    drawing.legend_above(page, *axes.get_legend_handles_labels())
    return page
