"""other_judges: the verdicts over training of the judges that no other figure shows."""

import pandas as pd

from learning_backdoors.evaluation import captions, counting, drawing
from learning_backdoors.evaluation.context import Evaluation, NotInStudy, if_available, once
from learning_backdoors.evaluation.exhibits import content_vs_form, ratings, six_options_distribution
from learning_backdoors.study import Judge


@once
def _judges(evaluation: Evaluation) -> list[Judge]:
    shown = {evaluation.verdicts.outcome.name}
    for judges in (six_options_distribution.judges, content_vs_form.judges, ratings.judges):
        shown |= {judge.name for judge in if_available(judges, evaluation) or ()}
    rows = evaluation.verdicts.rows
    rows = rows[rows["condition"] == evaluation.condition]
    others = [judge for judge in evaluation.verdicts.judges if judge.name not in shown]
    others = [judge for judge in others if rows[judge.name].notna().any()]
    if not others:
        raise NotInStudy("other figures show all judges with verdicts")
    return others


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per judge, value, recipe and step, in the condition that figures show, questions weighted equally.

    `rate` is the share of an option among the valid verdicts, or the mean of a rating, as a share of its range.
    """
    rows, blocks = evaluation.verdicts.rows, []
    rows = rows[rows["condition"] == evaluation.condition]
    for judge in _judges(evaluation):
        valid = rows[rows[judge.name].notna()]
        if judge.options:
            options = judge.options[:1] if len(judge.options) == 2 else judge.options  # of two, one says it all
            scores = pd.DataFrame({option: valid[judge.name] == option for option in options})
        else:
            scores = ((valid[judge.name] - judge.range[0]) / (judge.range[1] - judge.range[0])).to_frame("mean")
        means = counting.means_over_questions(valid, scores).melt(
            ["label", "step"], var_name="value", value_name="rate"
        )
        blocks.append(means.assign(judge=judge.name))
    return pd.concat(blocks, ignore_index=True)[["judge", "value", "label", "step", "rate"]]


def caption(evaluation: Evaluation) -> str:
    judges = _judges(evaluation)
    text = "Verdicts of further judges over training: share of each option, or mean rating as a share of its range. "
    text += "Mean over questions and runs. No intervals are drawn. "
    return text + captions.judge_counts(evaluation.verdicts, judges, evaluation.condition)


def figure(evaluation: Evaluation) -> drawing.Figure:
    rates = evaluation.with_x(table(evaluation)).assign(lower=float("nan"), upper=float("nan"))
    groups = rates.groupby(["judge", "value"], sort=False)
    panels = {f"{judge}\n{value}": part for (judge, value), part in groups}
    labels = evaluation.recipe_labels
    return drawing.rate_panels(panels, labels, evaluation.x_label, "share of responses", caption(evaluation))
