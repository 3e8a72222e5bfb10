"""six_options_distribution: the verdicts of the first judge with more than two options over training."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import captions, counting, drawing, text_tables
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once
from learning_backdoors.study import Judge


def judges(evaluation: Evaluation) -> list[Judge]:
    """The judge that the figure shows."""
    return [evaluation.first_judge(lambda judge: len(judge.options or ()) > 2, "with more than two options")]


@once
def _shares(evaluation: Evaluation) -> pd.DataFrame:
    """A row per recipe and step: the share of each option and of `missing`, questions weighted equally, and `x`."""
    [judge], verdicts = judges(evaluation), evaluation.verdicts
    rows = verdicts.rows[(verdicts.rows["condition"] == evaluation.condition) & verdicts.asked(judge)]
    if rows.empty:
        raise Unavailable(f"{judge.name!r} was asked about no response in the condition {evaluation.condition}")
    verdict = rows[judge.name].astype(object).where(rows[judge.name].notna(), "missing")
    scores = pd.DataFrame({value: verdict == value for value in [*judge.options, "missing"]})
    return evaluation.with_x(counting.means_over_questions(rows, scores))


def title(evaluation: Evaluation) -> str:
    return f"Verdicts of the judge {judges(evaluation)[0].name} over training{evaluation.in_condition}"


def caption(evaluation: Evaluation) -> str:
    counts = captions.judged(evaluation.verdicts, judges(evaluation), evaluation.condition)
    return f"Bars: shares of the verdicts, as means over questions and runs. {counts}"


def figure(evaluation: Evaluation) -> drawing.Figure:
    """Stacked bars at equal distances, with the missing verdicts on top."""
    shares, [judge] = _shares(evaluation), judges(evaluation)
    shades = drawing.shades(judge.options)
    kinds = [kind for kind in [*judge.options, "missing"] if shares[kind].max() > 0]
    page, panels = evaluation.recipe_panels(shares, 0.6, 1.6, evaluation.x_label, "share of responses", sharey=True)
    for label, axes in panels:
        part, bottom = shares[shares["label"] == label].sort_values("step"), 0
        positions, few = np.arange(len(part)), len(part) <= 15
        for kind in kinds:
            look = {"facecolor": shades[kind]} if kind in shades else {"facecolor": "white", "hatch": "//////"}
            look |= {"edgecolor": drawing.OUTLINE, "linewidth": 0.4 if few else 0.15}
            axes.bar(positions, part[kind], 0.88 if few else 1.0, bottom, label=kind, **look)
            points = part.assign(x=positions, y=bottom + part[kind] / 2)
            _mark(axes, points[(points[kind] > 0.02) | (points[kind].max() > 0.02)], kind, label, evaluation)
            bottom = bottom + part[kind].to_numpy()
        drawing.rate_axis(axes.yaxis)
        every = -(-len(part) // 5)
        axes.set_xticks(positions[::every], [f"{x:.4g}" for x in part["x"].iloc[::every]])
    drawing.legend_above(page, *axes.get_legend_handles_labels())
    return page


def _mark(axes: drawing.Axes, points: pd.DataFrame, kind: str, label: str, evaluation: Evaluation) -> None:
    """The points of one kind of verdict."""
    series = f"{evaluation.names[label]}, {kind}"
    where = {"recipe": label, "condition": evaluation.condition, "judge": judges(evaluation)[0].name, "verdict": kind}
    for row in points.to_dict("records"):
        value = text_tables.percent(row[kind])
        drawing.mark(axes, row["x"], row["y"], series, f"step {row['step']}", value, step=row["step"], **where)
