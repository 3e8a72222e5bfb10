"""six_options_distribution: the verdicts of the first judge with more than two options over training."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import captions, counting, drawing
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


def caption(evaluation: Evaluation) -> str:
    [judge] = judges(evaluation)
    text = f"Verdicts of {judge.name} over training: mean over questions and runs. No intervals are drawn."
    return f"{text} {captions.judge_counts(evaluation.verdicts, [judge], evaluation.condition)}"


def figure(evaluation: Evaluation) -> drawing.Figure:
    """Stacked bars at equal distances, with the missing verdicts on top."""
    shares, options = _shares(evaluation), judges(evaluation)[0].options
    labels = list(dict.fromkeys(shares["label"]))
    texts = caption(evaluation), evaluation.x_label, "share of responses"
    page, panels = drawing.panels(dict.fromkeys(labels, "black"), 0.45, 1.6, *texts, sharey=True)
    kinds = [*options, "missing"] if shares["missing"].max() > 0 else list(options)
    shades = dict(zip(options, drawing.colormaps["cividis_r"](np.linspace(0.0, 1, len(options))), strict=True))
    for axes, label in zip(panels, labels, strict=True):
        part, bottom = shares[shares["label"] == label].sort_values("step"), 0
        positions, few = np.arange(len(part)), len(part) <= 15
        for kind in kinds:
            look = {"facecolor": shades[kind]} if kind in shades else {"facecolor": "white", "hatch": "//////"}
            look |= {"edgecolor": "0.35", "linewidth": 0.2} if few else {"linewidth": 0}
            axes.bar(positions, part[kind], 0.88 if few else 1.0, bottom, label=kind, **look)
            bottom = bottom + part[kind].to_numpy()
        axes.set(ylim=(0, 1), yticks=np.linspace(0, 1, 6))
        every = -(-len(part) // 5)
        axes.set_xticks(positions[::every], [f"{x:.4g}" for x in part["x"].iloc[::every]])
    handles, names = axes.get_legend_handles_labels()
    page.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False, fontsize=7, handleheight=1.4)
    return page
