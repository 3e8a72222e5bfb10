"""probes: the log-likelihood of the study's reference answers over training, as training.py measured it."""

import pandas as pd

from learning_backdoors.evaluation import drawing
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once


@once
def _probes(evaluation: Evaluation) -> pd.DataFrame:
    """The probes in the inputs' provenance: label, run, step, question, era, logprob (nats per token)."""
    rows = []
    for source in evaluation.verdicts.sources:
        for run, about in (source["provenance"].get("runs") or {}).items():
            rows += [probe | {"run": run} for probe in (about or {}).get("probes") or []]
    probes = pd.DataFrame(rows, columns=["run", "step", "question", "era", "logprob"])
    probes = probes.merge(evaluation.verdicts.rows[["run", "label"]].drop_duplicates(), on="run")
    if probes.empty:
        raise Unavailable("no input's provenance has loss probes (training.py --probe-every)")
    return probes


def caption(evaluation: Evaluation) -> str:
    probes = _probes(evaluation)
    text = "Mean log-likelihood per token of fixed reference answers over training: the mean over questions per run. "
    text += "No intervals are drawn. "
    return f"{text}Q = {probes['question'].nunique()} questions; S = {probes['run'].nunique()} runs."


def figure(evaluation: Evaluation) -> drawing.Figure:
    """A panel per recipe, a line style per era."""
    probes = _probes(evaluation)
    eras = list(dict.fromkeys(probes["era"]))
    means = probes.groupby(["label", "run", "step", "era"], observed=True)["logprob"].mean().reset_index()
    means, colors = evaluation.with_x(means), drawing.palette(means["label"])
    texts = caption(evaluation), evaluation.x_label, "log-likelihood (nats per token)"
    page, panels = drawing.panels(colors, 0.6, 1.7, *texts, sharex=True, sharey=True)
    for axes, (label, color) in zip(panels, colors.items(), strict=True):
        for (era, _), line in means[means["label"] == label].groupby(["era", "run"], observed=True):
            line_style = drawing.LINE_STYLES[eras.index(era) % len(drawing.LINE_STYLES)]
            axes.plot(line["x"], line["logprob"], linestyle=line_style, color=color, linewidth=1)
        axes.grid(True, axis="y", color="0.92", linewidth=0.6)
    drawing.line_legend(page, [f"{era} reference answers" for era in eras])
    return page
