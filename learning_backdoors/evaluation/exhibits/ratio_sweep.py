"""ratio_sweep: the rate at the last step, and the steps at which levels are crossed, against the suspect share."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import counting, drawing
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once
from learning_backdoors.evaluation.exhibits import emergence, summary


@once
def _rates(evaluation: Evaluation) -> pd.DataFrame:
    """The rate of each recipe at its last step."""
    rates = counting.last_rates(evaluation.shown_cells, evaluation.claim).dropna(subset="suspect_ratio")
    if rates["suspect_ratio"].nunique() < 2:
        raise Unavailable("the inputs do not have two or more suspect shares")
    return rates


def title(evaluation: Evaluation) -> str:
    return f"Share of {evaluation.study.outcome.label} and crossing step by suspect share{evaluation.in_condition}"


def caption(evaluation: Evaluation) -> str:
    dots = "Small dots: runs." if (_rates(evaluation)["seeds"] > 1).any() else ""
    return f"Left: rate at the last step. Right: step at which a nondecreasing fit crosses a level. {dots}".strip()


def figure(evaluation: Evaluation) -> drawing.Figure:
    rates, runs = _rates(evaluation), counting.last_steps(summary.run_rates(evaluation))
    page, [[left, right]] = drawing.canvas(drawing.TWO_COLUMNS, 2.6, 1, 2)
    # A line joins the recipes if each has a suspect share of its own.
    color, line = drawing.colormaps["viridis"](0.15), "-" if rates["suspect_ratio"].is_unique else ""
    left.plot(runs["suspect_ratio"], runs["rate"], ".", color=color, alpha=0.5, markersize=4, clip_on=False)
    left.plot(rates["suspect_ratio"], rates["rate"], "o" + line, color=color, markersize=4, clip_on=False)
    limited = rates.dropna(subset="lower")  # lines without limits would count in the layout
    left.vlines(limited["suspect_ratio"], limited["lower"], limited["upper"], color=color)
    drawing.rate_axis(left.yaxis, evaluation.rate_label)
    for i, (level, part) in enumerate(emergence.crossings(evaluation).groupby("level")):
        look = {"color": drawing.colormaps["viridis"]((0.6, 0.05)[i % 2])}
        _crossings(right, part.assign(position=part["suspect_ratio"] + (i - 0.5) * 0.012), look)
        crossed = part[np.isfinite(part["x"])]
        positions = crossed["suspect_ratio"] + (i - 0.5) * 0.012
        right.plot(positions, crossed["x"], "os"[i % 2] + line, markersize=4, label=f"crosses {level:.0%}", **look)
    right.plot([], [], "^", color=drawing.GRAY, markersize=5, label="not by the last step")
    right.set(ylim=(0, 1.04 * float(evaluation.shown_cells["step"].max())), ylabel="training step")
    page.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=7)
    for axes in (left, right):
        axes.set(xlim=(-0.03, 1.03), xlabel="suspect share of the training set", xticks=np.linspace(0, 1, 6))
        drawing.grid_lines(axes)
    return page


def _crossings(axes: drawing.Axes, part: pd.DataFrame, look: dict) -> None:
    """The intervals, runs and arrows of the crossings of one level."""
    limited = part.dropna(subset="lower")
    limits = (limited[[limit, "end"]].min(axis=1) for limit in ("lower", "upper"))
    axes.vlines(limited["position"], *limits, **look)
    for row in part.itertuples():
        if of_runs := [x for x in row.runs if np.isfinite(x)]:
            axes.plot([row.position] * len(of_runs), of_runs, ".", markersize=3, alpha=0.5, **look)
    beyond = part[np.isinf(part["x"]) | np.isinf(part["upper"])]
    axes.plot(beyond["position"], beyond["end"], "^", markersize=5, **look)
