"""training_progression: the rate of each run over training, in one panel per recipe, with its questions."""

from learning_backdoors.evaluation import captions, drawing
from learning_backdoors.evaluation.context import Evaluation
from learning_backdoors.evaluation.exhibits import summary

FEW_RUNS = 3  # up to so many runs in a panel, each has its band


def title(evaluation: Evaluation) -> str:
    return f"Share of {evaluation.study.outcome.label} over training, by run{evaluation.in_condition}"


def caption(evaluation: Evaluation) -> str:
    runs = summary.run_rates(evaluation)
    crowded = runs.groupby("label", observed=True)["run"].transform("nunique") > FEW_RUNS
    bands = f"Bands (up to {FEW_RUNS} runs)" if crowded.any() else "Bands"
    text = captions.intervals(evaluation, runs[~crowded], bands)
    return f"Colored lines: runs. Thin gray lines: questions, as means over runs. {text}"


def figure(evaluation: Evaluation) -> drawing.Figure:
    cells, runs = evaluation.shown_cells, summary.run_rates(evaluation)
    axis_labels, layout = (evaluation.x_label, evaluation.rate_label), {"sharex": True, "sharey": True}
    page, panels = evaluation.recipe_panels(runs, 0.35, 1.6, *axis_labels, **layout)
    for label, axes in panels:
        for _, line in cells[cells["label"] == label].groupby("question", observed=True):
            mean = line.groupby("x")["rate"].mean()
            axes.plot(mean.index, mean, color=drawing.FAINT, linewidth=0.35, zorder=1)
        of_recipe = runs[runs["label"] == label]
        for run, line in of_recipe.groupby("run", observed=True, sort=False):
            if of_recipe["run"].nunique() <= FEW_RUNS:
                drawing.band(axes, line, evaluation.colors[label], zorder=2)
            drawing.curve(axes, line, evaluation.colors[label])
            name = ", ".join(dict.fromkeys([evaluation.names[label], str(run)]))
            drawing.mark_rates(axes, line, name, run=run, condition=evaluation.condition)
        drawing.rate_axis(axes.yaxis)
    return page
