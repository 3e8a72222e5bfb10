"""heat_map: each outcome over the two factors with the most levels, if they are crossed."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import drawing, factors
from learning_backdoors.evaluation.context import Evaluation, NotMeasured, once
from learning_backdoors.evaluation.exhibits import factors as outcomes_by_factor
from learning_backdoors.evaluation.factors import CHANGE, CROSSING, Factor, Outcome

WIDE = 7  # levels: with more, each outcome has a row of its own


@once
def _axes(evaluation: Evaluation) -> tuple[Factor, Factor]:
    """The factors of the x and of the y axis: those with the most levels."""
    found = sorted(factors.factors(evaluation), key=lambda factor: -len(factor.levels))[:2]
    levels = factors.levels(evaluation)
    if len(found) < 2:
        raise NotMeasured("the sweep has one factor")
    cells = levels[[factor.name for factor in found]].drop_duplicates()
    if len(cells) <= max(len(factor.levels) for factor in found):
        raise NotMeasured("no two factors of the sweep are crossed")
    return tuple(found)


@once
def _cells(evaluation: Evaluation) -> list[tuple[Outcome, pd.DataFrame]]:
    """By outcome, a row per cell of the map: value, seeds, diverged, and the positions x and y."""
    found, (x, y) = [], _axes(evaluation)
    for outcome, values in outcomes_by_factor.drawn(evaluation):
        groups = values.groupby([x.name, y.name], observed=True)
        cells = groups[["seeds", "diverged"]].sum()
        cells["value"] = groups["value"].median() if outcome.kind == CROSSING else groups["value"].mean()
        cells["combinations"] = groups.size()
        cells = cells.reset_index()
        positions = {axis: cells[factor.name].cat.codes for axis, factor in (("x", x), ("y", y))}
        found.append((outcome, cells.assign(**positions)))
    return found


def title(evaluation: Evaluation) -> str:
    x, y = _axes(evaluation)
    return f"Outcomes by {x.name} and {y.name}{evaluation.in_condition}"


def caption(evaluation: Evaluation) -> str:
    cells = pd.concat([part for _, part in _cells(evaluation)])
    several = (cells["combinations"] > 1).any()
    text = [
        "Means (steps: medians) over the other factors and seeds." if several else "Means (steps: medians) over seeds."
    ]
    text += ["div.: all runs diverged."] if (cells["seeds"] == 0).any() else []
    text += ["Star: some diverged."] if ((cells["diverged"] > 0) & (cells["seeds"] > 0)).any() else []
    return " ".join([*text, "No intervals are drawn."])


def figure(evaluation: Evaluation) -> drawing.Figure:
    """A map per outcome."""
    (x, y), maps = _axes(evaluation), _cells(evaluation)
    columns = len(maps) if len(x.levels) <= WIDE else 1
    rows = -(-len(maps) // columns)
    page, grid = drawing.canvas(drawing.TWO_COLUMNS, (0.8 + 0.28 * len(y.levels)) * rows, rows, columns)
    for axes, (outcome, cells) in zip(grid.flat, maps, strict=True):
        _map(evaluation, axes, outcome, cells)
        axes.set_title(drawing.wrapped(outcome.label, 34 if columns > 1 else 100), size=7.5)
        outcomes_by_factor.level_axis(axes, x, columns)
        drawing.category_axis(axes, drawing.short_labels(y.levels, 16))
        axes.set_ylim(-0.5, len(y.levels) - 0.5)
    for axes in grid[:, 0]:
        axes.set_ylabel(y.name)
    return page


def _map(evaluation: Evaluation, axes: drawing.Axes, outcome: Outcome, cells: pd.DataFrame) -> None:
    """The cells in shades, with their values as text. High rates and early crossings are dark."""
    values = cells["value"].clip(upper=outcome.top)
    low, high = (0, 1) if outcome.kind not in (CHANGE, CROSSING) else (values.min(), values.max())
    shades = (values - low) / ((high - low) or 1)
    shades = 1 - shades if outcome.kind == CROSSING else shades
    for row, shade in zip(cells.to_dict("records"), shades, strict=True):
        at = row["x"], row["y"]
        drawing.tile(axes, *at, None if np.isnan(shade) else 0.85 * shade, _text(outcome, row))
        if row["seeds"]:
            combination = ", ".join(f"{factor.name} {row[factor.name]}" for factor in _axes(evaluation))
            text = outcomes_by_factor.value_text(outcome, row | {"lower": np.nan, "upper": np.nan})
            drawing.mark(axes, *at, outcome.label, combination, text, answers=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _text(outcome: Outcome, row: dict) -> str:
    """The value of a cell in few characters."""
    if row["seeds"] == 0:
        return "div." if row["diverged"] else ""
    if outcome.kind == CROSSING:
        text = f"{row['value']:.0f}" if np.isfinite(row["value"]) else f">{outcome.top:.0f}"
    else:
        text = f"{row['value']:+.2f}" if outcome.kind == CHANGE else f"{100 * row['value']:.0f}%"
    return text + "*" * (row["diverged"] > 0)
