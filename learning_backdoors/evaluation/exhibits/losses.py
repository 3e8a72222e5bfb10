"""losses: the training loss of each run, as training.py measured it."""

import pandas as pd

from learning_backdoors.evaluation import drawing
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once

MARKS = 2000  # in the figure: more would make the report large


@once
def _losses(evaluation: Evaluation) -> pd.DataFrame:
    """The losses in the inputs' provenance: run, label, step, loss (nats per token)."""
    losses = evaluation.of_runs("losses", ["step", "loss"])
    if losses.empty:
        raise Unavailable("no input's provenance has the losses of its runs")
    return losses


def title(evaluation: Evaluation) -> str:
    return "Training loss"


def caption(evaluation: Evaluation) -> str:
    return "Lines: runs, as means of consecutive steps. No intervals are drawn."


def figure(evaluation: Evaluation) -> drawing.Figure:
    """A panel per recipe."""
    losses = _losses(evaluation)
    axis_labels, layout = ("training step", "loss (nats per token)"), {"sharex": True, "sharey": True}
    page, panels = evaluation.recipe_panels(losses, 0.6, 1.7, *axis_labels, **layout)
    every = -(-len(losses) // MARKS)
    for label, axes in panels:
        for run, line in losses[losses["label"] == label].groupby("run", sort=False):
            axes.plot(line["step"], line["loss"], color=evaluation.colors[label], linewidth=1)
            for row in line.iloc[::every].itertuples():
                series = f"{evaluation.names[label]}, {run}"
                drawing.mark(axes, row.step, row.loss, series, f"step {row.step}", f"loss {row.loss:.3g}", run=run)
        drawing.grid_lines(axes, "y")
    panels[0][1].set_ylim(bottom=0)
    return page
