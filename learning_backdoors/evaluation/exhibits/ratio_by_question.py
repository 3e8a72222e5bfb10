"""ratio_by_question: the rate of each question at the last step of each recipe."""

import numpy as np

from learning_backdoors.evaluation import captions, counting, drawing
from learning_backdoors.evaluation.context import Evaluation


def caption(evaluation: Evaluation) -> str:
    text = "Rate of each question at the last step of each recipe. Gray bar: step 0. "
    text += f"Intervals: 95%, Wilson, stratified by run; claim: {counting.CLAIMS['checkpoint']}."
    return f"{text} {captions.counts(counting.last_steps(evaluation.shown_cells))}"


def figure(evaluation: Evaluation) -> drawing.Figure:
    rates = counting.last_rates(evaluation.shown_cells, "checkpoint", ["question"])
    questions = list(dict.fromkeys(rates["question"]))
    colors, markers = drawing.palette(rates["label"]), drawing.markers(rates["label"])
    height = 0.75 + len(questions) * max(0.26, 0.075 * len(colors))
    page, [[axes]] = drawing.canvas(drawing.TWO_COLUMNS, height, caption(evaluation))
    offsets = np.linspace(-0.32, 0.32, len(colors)) if len(colors) > 1 else [0.0]
    for (label, color), offset in zip(colors.items(), offsets, strict=True):
        part = rates[rates["label"] == label].dropna(subset="rate")
        y = part["question"].map(questions.index).astype(int) + offset
        axes.hlines(y, part["lower"], part["upper"], color=color, linewidth=1.1)
        axes.plot(part["base"], y, "|", color=drawing.GRAY, markersize=4, markeredgewidth=0.8)
        axes.plot(part["rate"], y, markers[label], color=color, markersize=3.6, label=label, clip_on=False)
    for y in np.arange(len(questions) - 1) + 0.5:
        axes.axhline(y, color="0.92", linewidth=0.6)
    drawing.rate_axis(axes.xaxis, evaluation.rate_label)
    drawing.category_axis(axes, [drawing.short(question) for question in questions])
    drawing.legend_beside(page, *axes.get_legend_handles_labels(), "suspect share")
    return page
