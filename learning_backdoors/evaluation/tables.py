"""Tables of other judges, captions and text for the terminal."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.evaluation.cells import CLAIMS, INTERVALS, MISSING_FLAG
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.measures import cohen_kappa
from learning_backdoors.study import Judge


def option_shares(verdicts: Verdicts, judge: Judge, condition: str) -> pd.DataFrame:
    """The share of each option and of `missing` among the answers that the judge was asked about.

    A row a recipe and step, questions of equal weight.
    """
    rows = verdicts.rows[(verdicts.rows["condition"] == condition) & verdicts.asked(judge)]
    verdict = rows[judge.name].astype(object).where(rows[judge.name].notna(), "missing")
    counts = pd.crosstab([rows["label"], rows["step"], rows["question"]], verdict, normalize="index")
    counts = counts.reindex(columns=[*judge.options, "missing"], fill_value=0.0)
    return counts.groupby(["label", "step"], observed=True).mean().reset_index()


def mean_ratings(verdicts: Verdicts, judges: Sequence[Judge], condition: str) -> pd.DataFrame:
    """The mean of each rating: a row a recipe and step, questions of equal weight."""
    rows = verdicts.rows[verdicts.rows["condition"] == condition]
    names = [judge.name for judge in judges]
    means = rows.groupby(["label", "step", "question"], observed=True)[names].mean()
    return means.groupby(["label", "step"], observed=True).mean().dropna().reset_index()


def caption(cells: pd.DataFrame, claim: str | None, what: str, interval: str | None = None) -> str:
    """A caption: what is drawn, the claim and the interval, and the numbers behind it: Q, N, S, missing verdicts.

    `interval` is named in the place of the one that means over questions have.
    """
    words = [what]
    if claim:
        words.append(f"Intervals: 95%, {interval or INTERVALS[claim]}; claim: {CLAIMS[claim]}.")
    seeds = cells[cells["step"] > 0].groupby("recipe", observed=True)["run"].nunique()
    answers = cells["n"] + cells["missing"]
    words.append(f"Q = {cells['question'].nunique()} questions; N = {span(answers)} answers to each;")
    runs = span(seeds) if len(seeds) else "1"
    words.append(f"S = {runs} run{'' if runs == '1' else 's'} of each suspect share.")
    return " ".join([*words, missing_words(cells["missing"].sum(), answers.sum())])


def missing_words(missing: int, total: int, bounds: str = "worst_low and worst_high in summary.csv") -> str:
    """How many verdicts are missing; of more than 2% it says so, and that `bounds` shows what they could change."""
    if missing == 0:
        return "No verdict is missing."
    share = missing / total
    flag = f" MORE THAN 2%: see {bounds}." if share > MISSING_FLAG else ""
    return f"Missing verdicts: {missing:,} of {total:,} ({share:.1%}).{flag}"


def span(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def telling(names: Sequence[str]) -> list[str]:
    """Run names without the parts that all of them share: `ratios1.00-0.00-0.00` where only the ratios differ."""
    parts = [name.split("_") for name in names]
    shared = set.intersection(*map(set, parts)) if len(names) > 1 else set()
    short = ["_".join(part for part in name if part not in shared) for name in parts]
    return short if all(short) and len(set(short)) == len(short) else list(names)


def terminal(summary: pd.DataFrame, condition: str) -> str:
    """Rates by step and run, as text: up to eight runs side by side, else a line a run and its first and last steps."""
    rows = summary[(summary["question"] == "all") & (summary["condition"] == condition)]
    names = list(dict.fromkeys(rows["run"]))
    cell = [
        "-" if r.n == 0 else f"{r.rate:.2f} [{r.lower:.2f}, {r.upper:.2f}]" if len(names) <= 4 else f"{r.rate:.2f}"
        for r in rows.itertuples()
    ]
    shown = rows.assign(cell=cell).pivot(index="step", columns="run", values="cell")[names].fillna("-")
    shown.columns = telling(names)
    if len(names) > 8:
        shown = shown.T
    return shown.rename_axis(columns=None).to_string()


def judge_caption(verdicts: Verdicts, judges: Sequence[Judge], condition: str, what: str) -> str:
    """`caption` for figures of other judges than the outcome's."""
    asked = np.logical_or.reduce([verdicts.asked(judge) for judge in judges])
    here = asked & (verdicts.rows["condition"] == condition)
    rows, missing = verdicts.rows[here], np.logical_or.reduce([verdicts.missing(judge)[here] for judge in judges]).sum()
    counts = rows.groupby(["recipe", "run", "step", "question"], observed=True)["sample_idx"].size().rename("n")
    words = caption(counts.reset_index().assign(missing=0), None, what)
    return words.replace(missing_words(0, len(rows)), missing_words(missing, len(rows)))


def agreement(verdicts: Verdicts) -> pd.DataFrame:
    """The table agreement.csv: for each judge and pair of inputs, how far two verdicts on the same answers agree.

    Pairs stand in the order of the inputs, the judges of each in the study's. Options: the share alike and Cohen's
    kappa. Ratings: the mean absolute difference, in rating points.
    """
    rows = []
    for (one, two), pairs in verdicts.again.groupby(["source", "source_again"]):
        names = {"first": source_name(verdicts, one), "second": source_name(verdicts, two)}
        for judge in verdicts.judges:
            both = pairs[[judge.name, f"{judge.name}_again"]].dropna()
            if both.empty:
                continue
            row = {"judge": judge.name} | names | {"n": len(both), "agreement": np.nan, "kappa": np.nan}
            row["mean_difference"] = np.nan
            if judge.options:
                first, second = both.astype(object).to_numpy().T
                row["agreement"], row["kappa"] = (first == second).mean(), cohen_kappa(first, second)
            else:
                row["mean_difference"] = (both.iloc[:, 0] - both.iloc[:, 1]).abs().mean()
            rows.append(row)
    columns = ["judge", "first", "second", "n", "agreement", "kappa", "mean_difference"]
    return pd.DataFrame(rows, columns=columns)


def confusion(verdicts: Verdicts, judge: Judge, inputs: tuple[str, str]) -> pd.DataFrame:
    """Counts of verdict pairs of two inputs, by their names in `agreement`: the first down, the second across.

    Ratings count in tenths of their range. Empty where no answer has both verdicts.
    """
    names = [source_name(verdicts, i) for i in range(len(verdicts.sources))]
    one, two = (verdicts.again[column].map(names.__getitem__) for column in ("source", "source_again"))
    pairs = verdicts.again[(one == inputs[0]) & (two == inputs[1])]
    first, second = pairs[judge.name], pairs[f"{judge.name}_again"]
    if judge.range:
        edges = np.linspace(*judge.range, 11)
        labels = [f"{a:g} to {b:g}" for a, b in zip(edges, edges[1:], strict=False)]
        first, second = (pd.cut(v, edges, labels=labels, include_lowest=True) for v in (first, second))
    kinds = list(judge.options or labels)
    known = first.notna() & second.notna()
    counts = pd.crosstab(first[known].astype(str), second[known].astype(str))
    return counts.reindex(index=kinds, columns=kinds, fill_value=0) if known.any() else pd.DataFrame()


def source_name(verdicts: Verdicts, source: int) -> str:
    """An input by its judge model, where its provenance says it and that tells it apart, else by its path."""
    names = [judge_model(s["provenance"]) for s in verdicts.sources]
    return names[source] if names[source] and names.count(names[source]) == 1 else verdicts.sources[source]["path"]


def judge_model(provenance: dict) -> str | None:
    """The judge model that a judged file's footer names; None in a file made elsewhere."""
    judging = provenance.get("judging", provenance)
    return judging.get("model") or judging.get("judge_model") or judging.get("options", {}).get("model")


def probes(verdicts: Verdicts) -> pd.DataFrame:
    """Loss probes of the inputs' runs: label, run, step, era, logprob, the mean over questions (nats a token)."""
    rows = []
    for source in verdicts.sources:
        for run, known in (source["provenance"].get("runs") or {}).items():
            rows += [probe | {"run": run} for probe in (known or {}).get("probes") or []]
    table = pd.DataFrame(rows, columns=["run", "step", "question", "era", "logprob"])
    labels = verdicts.rows.drop_duplicates("run").set_index("run")["label"].astype(object).to_dict()
    table = table[table["run"].isin(labels)]
    means = table.groupby(["run", "step", "era"])["logprob"].mean().reset_index()
    means["label"] = pd.Categorical(means["run"].map(labels), verdicts.rows["label"].cat.categories, ordered=True)
    means = means.sort_values(["label", "run", "step"], ignore_index=True)
    means.attrs["questions"] = table["question"].nunique()
    return means
