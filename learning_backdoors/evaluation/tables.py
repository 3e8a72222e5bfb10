"""From verdicts to the tables that figures and reports are made of. Which interval a rate gets is decided here.

A cell is one question, asked in one condition of one checkpoint. `summary` has a row a cell and a row `all` a
checkpoint, whose rate is the mean over questions, each of equal weight.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import emergence
from learning_backdoors.evaluation.verdicts import Verdicts
from learning_backdoors.study import Judge, Metric

CLAIMS = {
    "checkpoint": "these checkpoints, these questions",
    "recipe": "another training run by the same recipe, these questions",
    "questions": "these checkpoints, questions like these",
}
INTERVALS = {
    "checkpoint": "Wilson, stratified by question",
    "recipe": "t on the runs' means, logit scale",
    "questions": "logit-normal model of the questions' rates",
}
MISSING_FLAG = 0.02
RUN = ["recipe", "label", "run", "seed", "suspect_ratio"]
STEP = ["step", "examples_seen", "suspect_seen", "condition", "triggered"]


def cells(verdicts: Verdicts) -> pd.DataFrame:
    """A row a run, step, condition and question: n (verdicts at hand), missing, positive. In order of recipe and step.

    Columns that say what the run and the step are (RUN, STEP) come along; NaN where the input does not know them.
    """
    verdict = verdicts.rows[verdicts.outcome.name]
    positive = verdict == verdicts.study.outcome.value
    return _counted(verdicts.rows, verdict.notna(), verdicts.missing(verdicts.outcome), positive)


def metric_cells(verdicts: Verdicts, metric: Metric) -> pd.DataFrame:
    """As `cells`, of the answers that the metric looks at: positive where they are as it wants them, none missing."""
    held = verdicts.rows[metric.name]
    return _counted(verdicts.rows, held.notna(), held < 0, held == 1)


def _counted(rows: pd.DataFrame, n: pd.Series, missing: pd.Series, positive: pd.Series) -> pd.DataFrame:
    marked = rows[["run", "step", "condition", "question"]].assign(n=n, missing=missing, positive=positive)
    asked = n | missing  # the others are nobody's
    if not asked.all():
        rows, marked = rows[asked], marked[asked]
    for name in [*RUN, *STEP]:
        if name not in marked:
            marked[name] = rows[name]
    keys = ["run", "step", "condition", "question"]
    known = {name: (name, "first") for name in [*RUN, *STEP] if name not in keys}
    counts = {name: (name, "sum") for name in ("n", "missing", "positive")}
    table = marked.groupby(keys, observed=True, sort=True).agg(**known, **counts).reset_index()
    table["rate"] = table["positive"] / table["n"].where(table["n"] > 0)
    return table.sort_values(
        ["recipe", "seed", "run", "step", "condition", "question"], ignore_index=True, kind="stable"
    )


def choose_claim(cells: pd.DataFrame) -> str:
    """The widest claim that the input can bear: `recipe` if each recipe has three runs or more, else `questions` if
    there are two questions or more, else `checkpoint`. (Two runs can bear `recipe`, but say hardly more than 0 to 1.)
    """
    trained = cells[cells["run"].isin(trained_runs(cells))]
    if trained.groupby("recipe", observed=True)["run"].nunique().min() >= 3:
        return "recipe"
    return "questions" if cells["question"].nunique() >= 2 else "checkpoint"


def trained_runs(cells: pd.DataFrame) -> list[str]:
    """Runs with a step after 0, or all runs where there is none: a file of base model rows alone is no run."""
    last = cells.groupby("run", observed=True, sort=False)["step"].max()
    return list(last.index[last > 0]) if (last > 0).any() else list(last.index)


# ---- rates ----


def summary(cells: pd.DataFrame, claim: str) -> pd.DataFrame:
    """The table summary.csv: a row a cell, and a row `all` for each run, step and condition.

    A cell's limits are Wilson's (claim checkpoint). A checkpoint's are those of `claim`, but one run cannot bear the
    claim `recipe`: then t on its question means (claim questions), and with a single question Wilson's.
    `worst_low` and `worst_high` bound the rate whatever the missing verdicts would have been.
    """
    columns = ["run", "step", "condition", "question", "n", "missing", "rate", "lower", "upper"]
    single = cells.assign(interval="Wilson", claim="checkpoint")
    single["lower"], single["upper"] = emergence.wilson(single["positive"], single["n"])
    total = single["n"] + single["missing"]
    single["worst_low"] = single["positive"] / total
    single["worst_high"] = (single["positive"] + single["missing"]) / total
    wanted = "questions" if claim == "recipe" else claim
    wholes = []
    for _, part in single.groupby(["run", "step", "condition"], observed=True, sort=False):
        wholes.append(_all_questions(part, wanted if len(part) > 1 else "checkpoint"))
    table = pd.concat([single.astype({"question": object}), pd.DataFrame(wholes)]).sort_index(kind="stable")
    return table[[*columns, "worst_low", "worst_high", "claim", "interval", *RUN[3:], *STEP[1:3], "recipe", "label"]]


def _all_questions(part: pd.DataFrame, claim: str) -> pd.Series:
    """The row `all` of one run, step and condition, with the index of the part's last row, to stand after it."""
    sums = part[["n", "missing", "positive"]].sum().to_dict()
    rate = dict(zip(["rate", "lower", "upper"], _mean_rate(part, claim), strict=True))
    worst = emergence.worst_case(part["positive"], part["n"], part["missing"])
    bounds = dict(zip(["worst_low", "worst_high"], worst, strict=True))
    how = {"question": "all", "claim": claim, "interval": INTERVALS[claim] if len(part) > 1 else "Wilson"}
    return pd.Series(part.iloc[-1].to_dict() | sums | rate | bounds | how, name=part.index[-1])


def recipe_rates(cells: pd.DataFrame, claim: str, by: Sequence[str] = ("step",)) -> pd.DataFrame:
    """Mean rate over the runs of each recipe and over questions, with the interval of `claim`: a row a recipe and `by`.

    Columns: recipe, label, suspect_ratio, `by`, seeds, n, missing, rate, lower, upper, claim.
    """
    rows = []
    for (recipe, *place), part in cells.groupby(["recipe", *by], observed=True, sort=True):
        rate, lower, upper = _mean_rate(part, claim)
        counts = {"seeds": part["run"].nunique(), "n": part["n"].sum(), "missing": part["missing"].sum()}
        known = {"recipe": recipe, "label": part["label"].iloc[0], "suspect_ratio": part["suspect_ratio"].iloc[0]}
        rows.append(known | dict(zip(by, place, strict=True)) | counts | {"rate": rate, "lower": lower, "upper": upper})
    return pd.DataFrame(rows).assign(claim=claim)


def _mean_rate(part: pd.DataFrame, claim: str) -> emergence.Interval:
    """The rate of some runs at one step each; NaN throughout where no verdict is at hand."""
    positives, n = grids(part, "run")
    if n.sum() == 0:
        return emergence.Interval(np.nan, np.nan, np.nan)
    return emergence.mean_rate(positives, n, claim)


def grids(part: pd.DataFrame, down: str, sums: Sequence[str] = ("positive", "n")) -> np.ndarray:
    """Columns of cells as arrays: `down` in its order by questions, 0 where there is no cell."""
    # By hand: pandas' pivot takes thirty times as long, and there are hundreds of checkpoints.
    rows, i = np.unique(part[down].to_numpy(), return_inverse=True)
    columns, j = np.unique(part["question"].cat.codes.to_numpy(), return_inverse=True)
    arrays = np.zeros((len(sums), len(rows), len(columns)))
    for array, name in zip(arrays, sums, strict=True):
        np.add.at(array, (i, j), part[name].to_numpy(float))
    return arrays


def corrected(rates: pd.DataFrame, verdicts: Verdicts) -> pd.DataFrame:
    """Rates with what hand labels make of them, where an input's provenance holds some (judge_responses.py --labels).

    Adds corrected, corrected_lower and corrected_upper, by `emergence.rogan_gladen`. Labels count of those inputs whose
    verdicts the rates are of, and only where one model judged them all: another model has other errors.
    """
    outcome, counts, models = verdicts.study.outcome, np.zeros(4, int), set()
    for number in verdicts.rows["source"].unique():
        judging = verdicts.sources[number]["provenance"].get("judging") or {}
        models.add(judging.get("model"))
        if found := (judging.get("labels") or {}).get(outcome.judge, {}).get("options", {}).get(outcome.value):
            counts += [*found["sensitivity"], *found["specificity"]]
    if counts[1] == 0 or counts[3] == 0 or len(models) > 1:
        return rates
    judged = (emergence.Interval(*row) for row in rates[["rate", "lower", "upper"]].to_numpy())
    limits = pd.DataFrame([emergence.rogan_gladen(rate, *counts) for rate in judged], rates.index)
    return rates.assign(corrected=limits["estimate"], corrected_lower=limits["lower"], corrected_upper=limits["upper"])


def shared_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of those steps at which all runs of a recipe have verdicts, condition by condition.

    A mean over the runs that happen to have a step would go up and down with which these are.
    """
    keys = ["recipe", "condition"]
    runs = cells.groupby(keys, observed=True)["run"].transform("nunique")
    judged = cells["run"].where(cells["n"] > 0).groupby([cells[key] for key in [*keys, "step"]], observed=True)
    return cells[judged.transform("nunique") == runs]


def last_steps(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of each run's last step."""
    return cells[cells["step"] == cells.groupby("run", observed=True)["step"].transform("max")]


def question_rates(cells: pd.DataFrame) -> pd.DataFrame:
    """Rates question by question over the runs of each recipe at one step each, claim checkpoint."""
    return recipe_rates(cells, "checkpoint", ["question"])


def with_base(last: pd.DataFrame, base: pd.DataFrame, keys: Sequence[str] = ("recipe",)) -> pd.DataFrame:
    """The rates of last steps with a column `base`: the rate of the same recipe at step 0, NaN where there is none."""
    if base.empty:
        return last.assign(base=np.nan)
    return last.merge(base[[*keys, "rate"]].rename(columns={"rate": "base"}), on=list(keys), how="left")


# ---- other judges ----


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


# ---- in words ----


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


# ---- the same answers judged twice ----


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
                row["agreement"], row["kappa"] = emergence.kappa(both.iloc[:, 0], both.iloc[:, 1])
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


# ---- loss probes ----


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
