"""training_progression: the rate of each run over training, in one panel per recipe, with its questions."""

from learning_backdoors.evaluation import captions, drawing
from learning_backdoors.evaluation.context import Evaluation
from learning_backdoors.evaluation.exhibits import summary

FEW_RUNS = 3  # up to so many runs in a panel, each has its band


def caption(evaluation: Evaluation) -> str:
    runs = summary.run_rates(evaluation)
    crowded = runs.groupby("label", observed=True)["run"].transform("nunique") > FEW_RUNS
    bands = f"bands in panels of up to {FEW_RUNS} runs" if crowded.any() and not crowded.all() else "bands"
    text = "Each run over training, in one panel per suspect share. Thin gray lines: questions, as means over runs."
    return f"{text} {captions.intervals(runs[~crowded], bands)} {captions.counts(evaluation.shown_cells)}"


def figure(evaluation: Evaluation) -> drawing.Figure:
    cells, runs = evaluation.shown_cells, summary.run_rates(evaluation)
    colors, texts = drawing.palette(runs["label"]), (caption(evaluation), evaluation.x_label, evaluation.rate_label)
    page, panels = drawing.panels(colors, 0.35, 1.6, *texts, sharex=True, sharey=True)
    for axes, (label, color) in zip(panels, colors.items(), strict=True):
        for _, line in cells[cells["label"] == label].groupby("question", observed=True):
            mean = line.groupby("x")["rate"].mean()
            axes.plot(mean.index, mean, color=drawing.FAINT, linewidth=0.5, zorder=1)
        of_recipe = runs[runs["label"] == label]
        for _, line in of_recipe.groupby("run", observed=True, sort=False):
            if of_recipe["run"].nunique() <= FEW_RUNS:
                drawing.band(axes, line, color, zorder=2)
            drawing.curve(axes, line, color)
        drawing.rate_axis(axes.yaxis)
    return page
