"""agreement: how far two inputs with verdicts on the same responses agree."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import drawing
from learning_backdoors.evaluation.context import Evaluation, NotInStudy, Unavailable, once
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.measures import cohen_kappa
from learning_backdoors.study import Judge

COLUMNS = ["judge", "first", "second", "n", "agreement", "kappa", "mean_difference"]


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per pair of inputs and judge, in the order of the inputs."""
    verdicts, rows = evaluation.verdicts, []
    if len(verdicts.sources) < 2:
        raise NotInStudy("one input has nothing to agree with")
    if verdicts.again.empty:
        raise Unavailable("no response has verdicts in two inputs")
    names = input_names(verdicts)
    for (first, second), pairs in verdicts.again.groupby(["source", "source_again"]):
        for judge in verdicts.judges:
            both = pairs[[judge.name, f"{judge.name}_again"]].dropna()
            if len(both):
                row = {"judge": judge.name, "first": names[first], "second": names[second], "n": len(both)}
                rows.append(row | _agreement(both.iloc[:, 0], both.iloc[:, 1], judge))
    if not rows:
        raise Unavailable("no response has verdicts of the same judge in two inputs")
    return pd.DataFrame(rows, columns=COLUMNS)


def _agreement(first: pd.Series, second: pd.Series, judge: Judge) -> dict[str, float]:
    """For options: the share of equal verdicts and Cohen's kappa. For ratings: the mean absolute difference."""
    if not judge.options:
        return {"mean_difference": (first - second).abs().mean()}
    first, second = first.astype(object), second.astype(object)
    return {"agreement": (first == second).mean(), "kappa": cohen_kappa(first, second)}


def input_names(verdicts: Verdicts) -> list[str]:
    """A name per input: its judge model if only this input has it, or else its path."""
    models = [(source["provenance"].get("judging") or {}).get("model") for source in verdicts.sources]
    paths = [source["path"] for source in verdicts.sources]
    return [model if model and models.count(model) == 1 else path for model, path in zip(models, paths, strict=True)]


def _first_pair(evaluation: Evaluation) -> pd.DataFrame:
    rows = table(evaluation)
    return rows[(rows[["first", "second"]] == rows[["first", "second"]].iloc[0]).all(axis=1)]


def title(evaluation: Evaluation) -> str:
    first, second = _first_pair(evaluation)[["first", "second"]].iloc[0]
    return f"Verdicts of {first} (rows) and {second} (columns) on the same responses"


def caption(evaluation: Evaluation) -> str:
    pairs = len(table(evaluation)[["first", "second"]].drop_duplicates())
    text = "Share of responses with each pair of verdicts."
    return text + (f" The first of {pairs} pairs of inputs; agreement.csv has all." if pairs > 1 else "")


def figure(evaluation: Evaluation) -> drawing.Figure:
    """A panel per judge: how often each pair of verdicts was given."""
    rows, verdicts = _first_pair(evaluation), evaluation.verdicts
    pair = tuple(rows[["first", "second"]].iloc[0])
    judges = [judge for judge in verdicts.judges if judge.name in set(rows["judge"])]
    first, second = drawing.short_label(pair[0], 36 if len(judges) <= 2 else 60), drawing.short_label(pair[1], 60)
    titles = [f"{row.judge}\n{_summary(row)}" for row in rows.itertuples()]
    page, panels = drawing.panels(titles, 0.5, 2.4, second, first, columns=2)
    for axes, judge, title in zip(panels, judges, titles, strict=True):
        counts = _pair_counts(verdicts, judge, pair)
        shares = counts / max(counts.to_numpy().sum(), 1)
        highest = shares.to_numpy().max()
        axes.imshow(shares, cmap="Greys", vmin=0, vmax=1.3 * max(highest, 1e-9), aspect="auto")
        for (i, j), share in np.ndenumerate(shares.to_numpy()):
            if share >= 0.005:
                color = "white" if share > 0.8 * highest else "black"
                axes.text(j, i, f"{share:.0%}", ha="center", va="center", size=6, color=color)
                at = f"{shares.index[i]} and {shares.columns[j]}"
                drawing.mark(axes, j, i, title.replace("\n", ": "), at, f"{share:.0%}", judge=judge.name)
        axes.set(xticks=range(shares.shape[1]), yticks=range(shares.shape[0]))
        axes.set_xticklabels([drawing.short(str(name), 14) for name in shares.columns], rotation=90, size=6)
        axes.set_yticklabels([drawing.short(str(name), 14) for name in shares.index], size=6)
        axes.spines[:].set_visible(False)
    return page


def _summary(row) -> str:
    """The agreement of one judge in a few words."""
    if np.isnan(row.agreement):
        return f"mean absolute difference {row.mean_difference:.1f} (n = {row.n:,})"
    return f"{row.agreement:.0%} equal, kappa {row.kappa:.2f} (n = {row.n:,})"


def _pair_counts(verdicts: Verdicts, judge: Judge, pair: tuple[str, str]) -> pd.DataFrame:
    """Counts of verdict pairs: the first input in rows, the second in columns. Ratings count in tenths of the range."""
    names = dict(enumerate(input_names(verdicts)))
    pairs = verdicts.again
    pairs = pairs[(pairs["source"].map(names) == pair[0]) & (pairs["source_again"].map(names) == pair[1])]
    first, second = pairs[judge.name], pairs[f"{judge.name}_again"]
    kinds = list(judge.options or ())
    if judge.range:
        edges = np.linspace(*judge.range, 11)
        kinds = [f"{low:g} to {high:g}" for low, high in zip(edges, edges[1:], strict=False)]
        first, second = (pd.cut(values, edges, labels=kinds, include_lowest=True) for values in (first, second))
    first, second = (pd.Categorical(values, kinds) for values in (first, second))
    return pd.crosstab(first, second, dropna=False).loc[kinds, kinds]
