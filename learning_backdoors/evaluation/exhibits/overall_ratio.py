"""overall_ratio: the mean rate at the last step of each recipe, its runs, and its step 0."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import captions, counting, drawing
from learning_backdoors.evaluation.context import Evaluation, once
from learning_backdoors.evaluation.exhibits import summary


@once
def _rates(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe: the rate at the last step with its interval, and `base`, the rate at step 0."""
    return counting.last_rates(evaluation.shown_cells, evaluation.claim)


def caption(evaluation: Evaluation) -> str:
    text = "Mean over questions at the last step of each recipe. Hollow: step 0. Small dots: its runs."
    counts = captions.counts(counting.last_steps(evaluation.shown_cells))
    return f"{text} {captions.intervals(_rates(evaluation))} {counts}"


def figure(evaluation: Evaluation) -> drawing.Figure:
    rates, runs = _rates(evaluation), counting.last_steps(summary.run_rates(evaluation))
    colors = drawing.palette(rates["label"])
    size = drawing.ONE_COLUMN + 0.6, 0.75 + 0.34 * max(len(colors), 2)
    page, [[axes]] = drawing.canvas(*size, caption(evaluation))
    for y, row in enumerate(rates.itertuples()):
        color = colors[row.label]
        if not np.isnan(row.lower):
            axes.hlines(y, row.lower, row.upper, color=color, linewidth=1.2, zorder=3)
        dots = runs.loc[runs["label"] == row.label, "rate"]
        if len(dots) > 1:
            axes.plot(dots, np.full(len(dots), y + 0.26), ".", color=color, markersize=3.5, alpha=0.6, clip_on=False)
        look = {"color": "white", "markeredgecolor": drawing.GRAY, "markersize": 4.5}
        axes.plot(row.base, y, "o", clip_on=False, zorder=4, **look)
        axes.plot(row.rate, y, "o", color=color, markersize=5, clip_on=False, zorder=5)
    drawing.rate_axis(axes.xaxis, evaluation.rate_label)
    drawing.category_axis(axes, [drawing.short_label(label) for label in colors])
    axes.set_ylabel("suspect share")
    return page
