"""metrics: the share of responses for which each metric of the study holds, over training."""

import pandas as pd

from learning_backdoors.evaluation import captions, counting, drawing
from learning_backdoors.evaluation.context import Evaluation, NotInStudy, Unavailable, once

COLUMNS = ["metric", "label", "run", "seeds", "step", "condition", "triggered", "n", "rate", "lower", "upper", "claim"]


@once
def _cells(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """By metric: the cells of the responses it applies to."""
    if not evaluation.study.metrics:
        raise NotInStudy("the study has no [[metric]]")
    cells = {m.name: counting.count_metric_cells(evaluation.verdicts, m) for m in evaluation.study.metrics}
    cells = {name: part for name, part in cells.items() if len(part)}
    if not cells:
        raise Unavailable("no metric of the study applies to these responses")
    return cells


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per metric, run, step and condition. If a recipe has several runs, rows of run `all` too."""
    columns, blocks = ["step", "condition", "triggered"], []
    for name, cells in _cells(evaluation).items():
        claim = evaluation.claim_for(cells)
        several = cells[cells.groupby("recipe", observed=True)["run"].transform("nunique") > 1]
        if len(several):
            blocks.append(counting.recipe_rates(several, claim, columns).assign(run=counting.ALL, metric=name))
        claim = counting.supported_claim(claim, 1, cells["question"].nunique())
        blocks.append(counting.recipe_rates(cells, claim, ["run", *columns]).assign(metric=name))
    return pd.concat(blocks)[COLUMNS]


def caption(evaluation: Evaluation) -> str:
    cells, rates = _cells(evaluation), counting.recipe_rows(table(evaluation))
    shares = " and of ".join(metric.label for metric in evaluation.study.metrics if metric.name in cells)
    text = f"Share of {shares} over training, in one panel per condition."
    return f"{text} {captions.intervals(rates, 'bands')} {captions.counts(pd.concat(cells.values()))}"


def figure(evaluation: Evaluation) -> drawing.Figure:
    rates, names = evaluation.with_x(counting.recipe_rows(table(evaluation))), list(_cells(evaluation))
    panels = {}
    for name in names:
        for condition, title in evaluation.condition_titles(rates["condition"]).items():
            of_panel = (rates["metric"] == name) & (rates["condition"] == condition)
            panels[f"{name}: {title}" if len(names) > 1 else title] = rates[of_panel]
    labels = {metric.name: metric.label for metric in evaluation.study.metrics}
    y_label = f"share of {labels[names[0]]}" if len(names) == 1 else "share of responses"
    return drawing.rate_panels(panels, evaluation.recipe_labels, evaluation.x_label, y_label, caption(evaluation))
