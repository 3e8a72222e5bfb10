"""content_vs_form: the mean rating of the first judge with a range against that of the second, over training."""

import pandas as pd

from learning_backdoors.evaluation import captions, counting, drawing
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once
from learning_backdoors.study import Judge


def judges(evaluation: Evaluation) -> tuple[Judge, Judge]:
    """The judges that the figure shows."""
    first = evaluation.first_judge(lambda judge: judge.range, "with a range")
    others = f"with a range besides {first.name!r}"
    return first, evaluation.first_judge(lambda judge: judge.range and judge is not first, others)


@once
def _ratings(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe and step: the mean of each rating, questions weighted equally, and `x`."""
    names = [judge.name for judge in judges(evaluation)]
    rows = evaluation.verdicts.rows
    rows = rows[rows["condition"] == evaluation.condition]
    means = counting.means_over_questions(rows, rows[names]).dropna()
    if means.empty:
        raise Unavailable(f"no response has verdicts of {names[0]!r} and {names[1]!r}")
    return evaluation.with_x(means)


def caption(evaluation: Evaluation) -> str:
    first, second = judges(evaluation)
    text = f"Mean ratings of {first.name} and {second.name}, from the first step (hollow) to the last (filled): "
    text += "mean over questions and runs. No intervals are drawn."
    return f"{text} {captions.judge_counts(evaluation.verdicts, [first, second], evaluation.condition)}"


def figure(evaluation: Evaluation) -> drawing.Figure:
    """A path per recipe."""
    ratings, (first, second) = _ratings(evaluation), judges(evaluation)
    colors, markers = drawing.palette(ratings["label"]), drawing.markers(ratings["label"])
    page, [[axes]] = drawing.canvas(drawing.ONE_COLUMN + 1.0, 3.1, caption(evaluation))
    for label, color in colors.items():
        path = ratings[ratings["label"] == label].sort_values("x")
        x, y = path[first.name].to_numpy(), path[second.name].to_numpy()
        look = {"color": color, "clip_on": False}
        axes.plot(x, y, "-", linewidth=0.9, **look)
        axes.plot(x[1:-1], y[1:-1], ".", markersize=3, **look)
        axes.plot(x[:1], y[:1], markers[label], markersize=4.5, markerfacecolor="white", zorder=4, **look)
        axes.plot(x[-1:], y[-1:], markers[label], markersize=5, zorder=5, label=label, **look)
    axes.plot(first.range, second.range, color="0.85", linewidth=0.6, zorder=0)
    x_label, y_label = (f"{judge.name.replace('_', ' ')} (mean rating)" for judge in (first, second))
    axes.set(xlim=first.range, ylim=second.range, xlabel=x_label, ylabel=y_label)
    axes.set_aspect((first.range[1] - first.range[0]) / (second.range[1] - second.range[0]))
    drawing.grid_lines(axes)
    drawing.legend_beside(page, *axes.get_legend_handles_labels(), "suspect share")
    return page
