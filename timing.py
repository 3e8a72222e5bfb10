"""Tables of when the behaviour emerges, what differs from what, and the headline in words."""

import numpy as np
import pandas as pd

import emergence
import tables
from emergence import Interval

LEVELS = (0.1, 0.5)
DRAWS = 400  # bootstrap samples a run: the 2.5% point is the tenth smallest


def emergence_table(cells: pd.DataFrame) -> pd.DataFrame:
    """The table emergence.csv: a row a run and condition of two steps or more, and what emergence.py finds.

    Crossings are in steps, by `emergence.crossing_interval`; infinity is "not by the last step" (`censored`).
    crossing_X_suspect_examples is the same place in suspect examples seen, where the input knows them.
    """
    rows = []
    for (_, run, condition), part in cells.groupby(["recipe", "run", "condition"], observed=True, sort=True):
        positives, n = tables.grids(part, "step")
        asked = (n > 0).all(axis=0)
        if len(n) >= 2 and asked.any():
            known = part.iloc[0][["recipe", "label", "seed", "suspect_ratio"]].to_dict()
            steps = np.sort(part["step"].unique()).astype(float)
            found = _emergence(steps, positives[:, asked], n[:, asked], suspect_seen(part))
            rows.append({"run": run, "condition": condition} | known | found)
    return pd.DataFrame(rows)


def suspect_seen(part: pd.DataFrame) -> np.ndarray:
    return part.groupby("step")["suspect_seen"].first().to_numpy(float)


def _emergence(steps: np.ndarray, positives: np.ndarray, n: np.ndarray, suspect: np.ndarray) -> dict:
    """What is found in one run, (T, Q)."""
    found, rates = (
        {"steps": len(steps), "first_step": int(steps[0]), "last_step": int(steps[-1])},
        (positives / n).mean(axis=1),
    )
    fit = emergence.isotonic(rates, n.sum(axis=1))
    for level in LEVELS:
        name = f"crossing_{level:.0%}".rstrip("%")
        crossing = emergence.crossing_interval(steps, positives, n, level, DRAWS)
        before, after = emergence.bracket(steps, fit, level)
        values = [*crossing, before, after, np.isinf(crossing.estimate)]
        found |= dict(
            zip(
                [name] + [f"{name}_{s}" for s in ("lower", "upper", "before", "after", "censored")], values, strict=True
            )
        )
        found[f"{name}_suspect_examples"] = np.interp(crossing.estimate, steps, suspect, right=np.inf)
    seen = emergence.detection(positives, n) if steps[0] == 0 else None
    found["detection_step"] = np.nan if seen is None else steps[seen]
    found["detection_after"] = np.nan if seen is None else steps[seen - 1]
    rise = emergence.rise(steps, positives.sum(axis=1), n.sum(axis=1))
    found |= {"rise": rise.kind, "rise_midpoint": rise.midpoint, "rise_width": rise.width}
    found |= {"change_after": steps[rise.change_after], "change_before": steps[rise.change_after + 1]}
    peak, drop, falls = emergence.fall(positives, n)
    found |= {"gradual_over_abrupt_bic": rise.evidence, "base": rates[0], "final": rates[-1]}
    return found | {"peak": rates[peak], "peak_step": int(steps[peak]), "falls_again": falls, "fall": drop}


def by_recipe(table: pd.DataFrame) -> pd.DataFrame:
    """The table emergence_by_recipe.csv: for each recipe, condition and level, the median crossing step over its runs.

    `crossed` of `seeds` runs crossed by their last step; the others stay in the count as infinite. The interval is of
    order statistics and needs five runs; `confidence` is what it really has.
    """
    rows = []
    for (recipe, condition), part in table.groupby(["recipe", "condition"], observed=True, sort=False):
        for level in LEVELS:
            name = f"crossing_{level:.0%}".rstrip("%")
            columns = [part[column] for column in (name, f"{name}_before", f"{name}_after")]
            interval, confidence = emergence.median_interval(*columns)
            known = {"recipe": recipe, "label": part["label"].iloc[0], "suspect_ratio": part["suspect_ratio"].iloc[0]}
            counts = {"condition": condition, "level": level, "seeds": len(part)}
            counts["crossed"] = int((~part[f"{name}_censored"]).sum())
            limits = dict(zip(["median", "lower", "upper"], interval, strict=True))
            rows.append(known | counts | limits | {"confidence": confidence})
    return pd.DataFrame(rows)


def survival(table: pd.DataFrame) -> pd.DataFrame:
    """The table survival.csv: Kaplan-Meier over the runs of each recipe, condition and level.

    `not_crossed` is the share of runs that have not crossed the level by that step, with its 95% limits.
    """
    blocks = []
    for (label, condition), part in table.groupby(["label", "condition"], observed=True, sort=False):
        for level in LEVELS:
            name = f"crossing_{level:.0%}".rstrip("%")
            crossed = ~part[f"{name}_censored"].astype(bool)
            columns = emergence.kaplan_meier(part[name].where(crossed, part["last_step"]), crossed)
            block = pd.DataFrame(np.transpose(columns), columns=["step", "not_crossed", "lower", "upper"])
            blocks.append(block.assign(label=label, condition=condition, level=level, seeds=len(part)))
    return pd.concat(blocks, ignore_index=True)


# ---- comparisons ----


def comparisons(cells: pd.DataFrame) -> pd.DataFrame:
    """The table comparisons.csv: recipe against recipe at the last step, and each recipe's last step against step 0.

    With two runs or more on each side the runs are the unit (claim recipe): Welch's t between recipes, paired t within
    one. With fewer, the questions are, paired (claim questions). p-values are adjusted by Holm's method in the table.
    """
    rows = []
    for condition, part in cells.groupby("condition", observed=True):
        trained = part[part["run"].isin(tables.trained_runs(part))]
        last = {label: rows for label, rows in tables.last_steps(trained).groupby("label", observed=True, sort=True)}
        labels = list(last)
        for i, first in enumerate(labels):
            rows += [_between(first, second, last[first], last[second], condition) for second in labels[i + 1 :]]
            base = trained[
                (trained["label"] == first) & (trained["step"] == 0) & trained["run"].isin(last[first]["run"])
            ]
            if len(base) and (last[first]["step"] > 0).all():
                rows.append(_within(first, last[first], base, condition))
    table = pd.DataFrame(rows, columns=COMPARISON)
    table["p_holm"] = emergence.holm(table["p"])
    return table


COMPARISON = ["comparison", "first", "second", "condition", "difference", "lower", "upper", "p", "p_holm"]
COMPARISON += ["claim", "interval", "seeds", "questions"]


def _between(first: str, second: str, one: pd.DataFrame, two: pd.DataFrame, condition: str) -> dict:
    means = [part.groupby("run", observed=True)["rate"].mean().dropna() for part in (one, two)]
    if min(map(len, means)) >= 2:
        interval, p = emergence.welch(*means)
        return _row(
            "recipes, last step", first, second, condition, interval, p, "recipe", "Welch's t on runs", means[0], one
        )
    return _by_question("recipes, last step", first, second, one, two, condition)


def _within(label: str, last: pd.DataFrame, base: pd.DataFrame, condition: str) -> dict:
    gaps = last.groupby("run", observed=True)["rate"].mean() - base.groupby("run", observed=True)["rate"].mean()
    gaps = gaps.dropna()
    if len(gaps) >= 2:
        interval, p = emergence.t_interval(gaps), emergence.paired_p(gaps)
        return _row(
            "last step - step 0", label, label, condition, interval, p, "recipe", "paired t on runs", gaps, last
        )
    return _by_question("last step - step 0", label, label, last, base, condition)


def _by_question(kind: str, first: str, second: str, one: pd.DataFrame, two: pd.DataFrame, condition: str) -> dict:
    gaps = (
        one.groupby("question", observed=True)["rate"].mean() - two.groupby("question", observed=True)["rate"].mean()
    ).dropna()
    interval, p = (
        (emergence.t_interval(gaps), emergence.paired_p(gaps)) if len(gaps) else (Interval(*[np.nan] * 3), np.nan)
    )
    return _row(
        kind, first, second, condition, interval, p, "questions", "paired t on questions", one["run"].unique(), one
    )


def _row(kind, first, second, condition, interval: Interval, p: float, claim: str, how: str, seeds, cells) -> dict:
    counts = {"seeds": len(seeds), "questions": cells["question"].nunique()}
    limits = {"difference": interval.estimate, "lower": interval.lower, "upper": interval.upper, "p": p}
    return (
        {"comparison": kind, "first": first, "second": second, "condition": condition}
        | limits
        | {"claim": claim, "interval": how}
        | counts
    )


# ---- in words ----


def headline(
    recipes: pd.DataFrame, medians: pd.DataFrame, runs: pd.DataFrame, label: str, level: float = LEVELS[0]
) -> list[str]:
    """A sentence for each recipe: does the behaviour emerge, when, and how sure is that. All tables in one condition.

    It emerges where the lower limit at the last step is above `level`, and does not where the upper limit is below. In
    between, a recipe none of whose `runs` was ever told from its base model shows no rise; another one is undecided.
    """
    sentences = []
    for name, part in recipes.groupby("label", observed=True, sort=False):
        first, last = part.iloc[0], part.iloc[-1]
        if last["step"] == 0:
            continue
        start = f", from {first['rate']:.0%} at step 0" if first["step"] == 0 else ""
        rate = f"{last['rate']:.0%} of answers at step {last['step']} are {label}{_limits(last)}{start}"
        lower = last["rate"] if np.isnan(last["lower"]) else last["lower"]
        if lower > level:
            verdict = f"it emerges. {rate}{_when(medians, name)}"
        elif last["upper"] < level:
            verdict = f"it does not emerge by step {last['step']}. {rate}: under {level:.0%}"
        elif first["step"] == 0 and not runs.loc[runs["label"] == name, "detection_step"].notna().any():
            verdict = f"no rise is seen by step {last['step']}. {rate}"
        else:
            verdict = f"undecided. {rate}: {level:.0%} can be neither claimed nor ruled out"
        sentences.append(f"{'Suspect share ' if str(name).endswith('%') else ''}{name}: {verdict}.")
    return sentences


def _limits(row: pd.Series) -> str:
    return "" if np.isnan(row["lower"]) else f" (95% interval {row['lower']:.0%} to {row['upper']:.0%})"


def _when(medians: pd.DataFrame, label: str) -> str:
    words = []
    for row in medians[medians["label"] == label].itertuples():
        if np.isinf(row.median):
            some = f" in {row.seeds - row.crossed} of {row.seeds} runs" if row.seeds > 1 else ""
            words.append(f"{row.level:.0%} is not crossed by the last step{some}")
        else:
            limits = (
                "" if np.isnan(row.lower) else f" ({row.confidence:.0%} interval {row.lower:.0f} to {row.upper:.0f})"
            )
            words.append(f"{row.level:.0%} is crossed near step {row.median:.0f}{limits}")
    return "; " + ", ".join(words) if words else ""
