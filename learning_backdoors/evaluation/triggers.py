"""What a trigger does: tables of rates with it, without it and with near misses of it, and of the study's goals.

Conditions are of three kinds: triggered, untriggered, and near misses, whose trigger is slightly wrong; these count as
neither. Conditions of a kind count together. Nothing here knows a study: names are its file's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import cells as cell_tables
from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.statistics import Interval
from learning_backdoors.study import Goal, Study

ALL = "all"  # in the place of a run: all runs of the recipe


def without_near_misses(cells: pd.DataFrame, study: Study) -> pd.DataFrame:
    return cells[~cells["condition"].isin([c.name for c in study.conditions if c.near_miss])]


# ---- triggered, untriggered, and what lies between ----


class Term(NamedTuple):
    """A mean rate: of the last step or of the base model's (step 0), with the trigger or without."""

    last: bool
    triggered: bool


LAST, LAST_PLAIN, BASE, BASE_PLAIN = (Term(last, triggered) for last in (True, False) for triggered in (True, False))
QUANTITIES = (
    ("triggered", (LAST,), (1,)),
    ("untriggered", (LAST_PLAIN,), (1,)),
    ("gap", (LAST, LAST_PLAIN), (1, -1)),
    ("gap less base", (LAST, LAST_PLAIN, BASE, BASE_PLAIN), (1, -1, -1, 1)),
    ("leakage", (LAST_PLAIN, BASE_PLAIN), (1, -1)),
)
PAIRED = {
    "checkpoint": "MOVER on stratified Wilson",
    "recipe": "paired t on the runs' differences",
    "questions": "paired t on the questions' differences, or logit-normal model where that is wider",
}


def leakage(cells: pd.DataFrame, claim: str) -> pd.DataFrame:
    """The table leakage.csv: at the last step the triggered and untriggered rates, their gap, the gap less the base
    model's (difference in differences), and the leakage: untriggered less the base model's untriggered rate.

    `cells` hold no near misses. Rates have the interval that `tables` gives any rate; differences are paired by run
    and question, and against the base model by condition too: what was asked on one side alone is left out. A row a
    run and quantity; where a recipe has several runs, rows of run `all` first. `worst_low` and `worst_high` bound the
    estimate whatever the missing verdicts would have been.
    """
    trained = cells[cells["run"].isin(cell_tables.trained_runs(cells))]
    rows = []
    for label, part in trained.groupby("label", observed=True, sort=True):
        runs = [(run, one) for run, one in part.groupby("run", observed=True, sort=False)]
        for run, group in [(ALL, part), *runs] if len(runs) > 1 else runs:
            rows += [{"label": label, "run": run} | row for row in _quantities(group, claim)]
    return pd.DataFrame(rows, columns=LEAKAGE)


LEAKAGE = ["label", "run", "quantity", "estimate", "lower", "upper", "claim", "interval", "seeds", "questions"]
LEAKAGE += ["n", "missing", "worst_low", "worst_high"]


def of_recipes(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table with `label` and `run`, the rows that speak for a recipe: run `all`, or the only run."""
    whole = table["run"] == ALL
    return table[whole | ~table["label"].isin(table.loc[whole, "label"])]


def _quantities(part: pd.DataFrame, claim: str) -> list[dict]:
    """The rows of some runs of one recipe."""
    last = cell_tables.last_steps(part)
    base = part[(part["step"] == 0) & ~part.index.isin(last.index)]
    rows = []
    for name, terms, weights in QUANTITIES:
        groups = _groups(terms, last, base, AT_HAND)
        grids = aligned(groups, ["positive", "n"]) if all(map(len, groups)) else []
        if grids and grids[0].size:
            missing = _with_missing(_groups(terms, last, base, ASKED), weights)
            rows.append({"quantity": name} | _difference(groups, grids, weights, claim) | missing)
    return rows


AT_HAND, ASKED = ("n",), ("n", "missing")  # the counts of which a cell needs some, to count


def _groups(terms: Sequence[Term], last: pd.DataFrame, base: pd.DataFrame, counts: Sequence[str]) -> list:
    """The cells of each term; where last and base are compared, of the same conditions and questions."""
    if not all(term.last for term in terms):
        last, base = matched(last, base, counts)
    return [c[c["triggered"] == term.triggered] for term in terms for c in [last if term.last else base]]


def matched(first: pd.DataFrame, second: pd.DataFrame, counts: Sequence[str] = AT_HAND) -> list[pd.DataFrame]:
    """Of two tables of cells those of runs, conditions and questions of which both have some of `counts`."""
    both = [part[part[list(counts)].sum(axis=1) > 0] for part in (first, second)]
    places = [_place(part, ["run", "condition", "question"]) for part in both]
    return [part[np.isin(mine, other)] for part, mine, other in zip(both, places, places[::-1], strict=True)]


def _place(cells: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """A number for each combination of the keys, which are categories: the same in all tables of one input."""
    columns = [cells[key].cat for key in keys]
    return np.ravel_multi_index([c.codes for c in columns], [len(c.categories) for c in columns])


def _difference(groups: list[pd.DataFrame], grids: list[np.ndarray], weights: Sequence[int], claim: str) -> dict:
    """A weighted sum of rates with its interval, and what it rests on."""
    if len(groups) == 1:
        seeds, questions = (groups[0].loc[groups[0]["n"] > 0, key].nunique() for key in ("run", "question"))
        claim = bearable(claim, seeds, questions)
        [rate] = cell_tables.recipe_rates(groups[0], claim, []).to_dict("records")
        interval, how = Interval(rate["rate"], rate["lower"], rate["upper"]), cell_tables.INTERVALS[claim]
    else:
        seeds, questions = grids[0].shape[1:]
        claim = bearable(claim, seeds, questions)
        interval, how = statistics.paired_contrast(list(map(tuple, grids)), weights, claim), PAIRED[claim]
    return interval._asdict() | {"claim": claim, "interval": how, "seeds": seeds, "questions": questions}


def _with_missing(groups: list[pd.DataFrame], weights: Sequence[int]) -> dict:
    """Verdicts at hand and missing in all that was asked, and the bounds of the weighted sum of rates, whatever the
    missing ones would have been."""
    counts = ["positive", "n", "missing"]
    cells = [group[group["n"] + group["missing"] > 0] for group in groups]
    if len(groups) > 1:  # the same runs and questions on all sides, as in the estimate
        grids = aligned(cells, counts, ASKED)
    else:
        grids = [cells[0].groupby(["run", "question"], observed=True)[counts].sum().to_numpy(float).T]
    worst = [statistics.worst_case(*map(np.ravel, grid)) for grid in grids]
    low = sum(w * (bounds[0] if w > 0 else bounds[1]) for w, bounds in zip(weights, worst, strict=True))
    high = sum(w * (bounds[1] if w > 0 else bounds[0]) for w, bounds in zip(weights, worst, strict=True))
    n, missing = (int(sum(grid[i].sum() for grid in grids)) for i in (1, 2))
    return {"n": n, "missing": missing, "worst_low": low, "worst_high": high}


def bearable(claim: str, runs: int, questions: int) -> str:
    """`claim`, or the next that so many runs and questions can bear."""
    if claim == "recipe" and runs < 2:
        claim = "questions"
    return "checkpoint" if claim == "questions" and questions < 2 else claim


def aligned(parts: Sequence[pd.DataFrame], columns: Sequence[str], counts: Sequence[str] = AT_HAND) -> list[np.ndarray]:
    """Sums of the columns of each part over its conditions, as arrays (columns, S, Q).

    Runs are those that all parts have, questions those of which all of these runs have some of `counts`, which are
    among the columns, in all parts. S or Q may be 0.
    """
    # By hand: pandas takes ten times as long, and ratings have hundreds of places.
    keys = ["run", "question"]
    shape = [len(parts[0][key].cat.categories) for key in keys]
    grids = [np.zeros((len(columns), *shape)) for _ in parts]
    for part, grid in zip(parts, grids, strict=True):
        place = _place(part, keys)
        for sums, name in zip(grid, columns, strict=True):
            np.add.at(sums.reshape(-1), place, part[name].to_numpy(float))
    asked = [sum(grid[columns.index(name)] for name in counts) > 0 for grid in grids]
    runs = np.logical_and.reduce([a.any(axis=1) for a in asked])
    questions = np.logical_and.reduce([a[runs].all(axis=0) for a in asked])
    return [grid[:, runs][:, :, questions] for grid in grids]


# ---- goals ----

# What a goal measures, by its name in leakage.csv. A goal's leakage is the share itself, not less the base model's.
MEASURED = {"triggered": "triggered", "leakage": "untriggered", "gap": "gap"}
GOALS = ["goal", "label", "run", "measure", "estimate", "lower", "upper", "wanted", "verdict"]
GOALS += ["wanted_strong", "verdict_strong", "claim", "interval", "seeds", "questions", "n", "missing"]
GOALS += ["worst_low", "worst_high"]
MET, NOT_MET, UNDECIDED, NOT_MEASURED = "met", "not met", "undecided", "not measured"


def goals(rates: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The table goals.csv: each goal of the study for each run and recipe of the table `leakage`, and what came of it.

    A goal is met where the whole interval lies beyond its bound, not met where the whole lies on the other side, else
    undecided; "not measured" where the answers hold nothing of it. `strong` is the same with the harder bound.
    """
    rows = []
    for goal in study.goals:
        for (label, run), part in rates.groupby(["label", "run"], observed=True, sort=False):
            found = part[part["quantity"] == MEASURED[goal.measure]].drop(columns="quantity").to_dict("records")
            row = {"goal": goal.name, "label": label, "run": run, "measure": MEASURED[goal.measure]}
            rows.append(row | (found[0] if found else {}) | _verdicts(goal, found))
    return pd.DataFrame(rows, columns=GOALS)


def _verdicts(goal: Goal, found: list[dict]) -> dict:
    row = {}
    for suffix, bound in (("", goal.limit), ("_strong", goal.strong)):
        if bound is not None:
            row[f"wanted{suffix}"] = f"{'over' if goal.above else 'under'} {bound:g}"
            limits = [(f["lower"], f["upper"]) for f in found]
            row[f"verdict{suffix}"] = decide(*limits[0], bound, goal.above) if found else NOT_MEASURED
    return row


def decide(lower: float, upper: float, bound: float, above: bool) -> str:
    """Whether a measure lies above (else below) a bound, so far as its interval tells. NaN limits tell nothing.

    At the bound itself is neither above nor below it.
    """
    beyond, short = (lower > bound, upper <= bound) if above else (upper < bound, lower >= bound)
    return MET if beyond else NOT_MET if short else UNDECIDED


# ---- near misses ----


def doses(cells: pd.DataFrame, study: Study, claim: str) -> pd.DataFrame:
    """The table near_misses.csv: the rate at each dose of the trigger, at each recipe's last step and at step 0.

    Conditions with a dose alone, and questions that all of them were asked at that step. `at` is last or base. Empty
    where there is no near miss.
    """
    dose = {c.name: c.dose for c in study.conditions if c.dose is not None}
    cells = cells[cells["run"].isin(cell_tables.trained_runs(cells))]
    last = cell_tables.last_steps(cells)
    base = cells[(cells["step"] == 0) & ~cells.index.isin(last.index)]
    last, base = (part[part["condition"].isin(list(dose)) & (part["n"] > 0)] for part in (last, base))
    if not last["condition"].isin([c.name for c in study.conditions if c.near_miss]).any():
        return pd.DataFrame(columns=DOSES)
    blocks = []
    for recipe in last["recipe"].cat.categories:
        for at, part in (("last", last), ("base", base)):
            part = _asked_in_all(part[part["recipe"] == recipe])
            if len(part):
                questions = part["question"].nunique()
                rates = cell_tables.recipe_rates(part, bearable(claim, part["run"].nunique(), questions), ["condition"])
                rates = rates.assign(at=at, questions=questions, dose=rates["condition"].map(dose).astype(float))
                blocks.append(rates.sort_values("dose", kind="stable"))
    return pd.concat(blocks, ignore_index=True)[DOSES] if blocks else pd.DataFrame(columns=DOSES)


DOSES = ["label", "condition", "dose", "at", "rate", "lower", "upper", "n", "missing", "seeds", "questions", "claim"]


def _asked_in_all(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of those questions that every condition has."""
    conditions = cells.groupby("question", observed=True)["condition"].nunique()
    return cells[cells["question"].isin(conditions.index[conditions == cells["condition"].nunique()])]


# ---- checked metrics ----


METRICS = ["metric", "label", "run", "seeds", "step", "condition", "triggered", "n", "rate", "lower", "upper", "claim"]


def metric(cells: pd.DataFrame, claim: str, name: str) -> pd.DataFrame:
    """The rows of metrics.csv for one metric, from its cells: the share of answers for which it holds.

    A row a run, step and condition; where a recipe has several runs, rows of run `all` too.
    """
    place = ["step", "condition", "triggered"]
    several = cells.groupby("recipe", observed=True)["run"].transform("nunique") > 1
    blocks = [cell_tables.recipe_rates(cells[several], claim, place).assign(run=ALL)] if several.any() else []
    blocks.append(cell_tables.recipe_rates(cells, bearable(claim, 1, cells["question"].nunique()), ["run", *place]))
    return pd.concat(blocks, ignore_index=True).assign(metric=name)[METRICS]


# ---- for a reader ----


def rates_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table `leakage`, its rows for recipes, as columns of text."""
    table = of_recipes(table)
    words = table["quantity"].map(lambda name: WORDS.get(name, name))
    return _shown(table, {"share": words, "measured": _intervals(table, "estimate")})


WORDS = {
    "gap": "gap: triggered less untriggered",
    "gap less base": "gap less the base model's gap",
    "leakage": "untriggered less the base model's",
}


def goals_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table `goals`, its rows for recipes, as columns of text."""
    table = of_recipes(table)
    columns = {"goal": table["goal"], "measured": _intervals(table, "estimate")}
    for suffix, title in (("", "wanted"), ("_strong", "strong")):
        columns[title] = table[f"wanted{suffix}"].str.cat(table[f"verdict{suffix}"], ": ").fillna("")
    if (table["missing"] > cell_tables.MISSING_FLAG * (table["n"] + table["missing"])).any():
        columns["whatever the missing verdicts are"] = [
            "-" if np.isnan(low) else f"{low:.2f} to {high:.2f}"
            for low, high in table[["worst_low", "worst_high"]].to_numpy(float)
        ]
    return _shown(table, columns)


def conditions_shown(columns: dict[str, pd.DataFrame], study: Study) -> pd.DataFrame:
    """Rates by condition at each recipe's last step, and at step 0 in brackets: columns of text, a row a condition.

    `columns`: for each heading a table of label, step, condition, rate, lower, upper, a row each.
    """
    shown = {name: _last_and_base(table) for name, table in columns.items()}
    labels = list(dict.fromkeys(label for table in columns.values() for label in table["label"]))
    order = [condition.name for condition in study.conditions]
    places = {place for cells in shown.values() for place in cells}
    places = sorted(places, key=lambda p: (labels.index(p[0]), order.index(p[1]) if p[1] in order else len(order)))
    table = pd.DataFrame(places, columns=["label", "condition"])
    cells = {name: pd.Series([found.get(place, "-") for place in places]) for name, found in shown.items()}
    return _shown(table, {"condition": table["condition"]} | cells)


def _last_and_base(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    words = {}
    latest = table.groupby("label", observed=True)["step"].max()
    for place, part in table.sort_values("step").groupby(["label", "condition"], observed=True):
        first, last = part.iloc[0], part[part["step"] == latest[place[0]]]
        base = f" ({first['rate']:.2f})" if first["step"] == 0 and latest[place[0]] > 0 else ""
        words[place] = ("-" if last.empty else _intervals(last, "rate").iloc[0]) + base
    return words


def _intervals(table: pd.DataFrame, column: str) -> pd.Series:
    words = [
        "-" if np.isnan(value) else f"{value:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")
        for value, low, high in table[[column, "lower", "upper"]].to_numpy(float).round(2) + 0.0  # no "-0.00"
    ]
    return pd.Series(words, table.index, dtype=object)


def _shown(table: pd.DataFrame, columns: dict[str, pd.Series]) -> pd.DataFrame:
    """The columns, with the recipe's label first where there are several."""
    several = {"data": table["label"]} if table["label"].nunique() > 1 else {}
    return pd.DataFrame(several | columns).astype(str)


def as_text(shown: pd.DataFrame) -> str:
    """Columns of text side by side."""
    blocks = []
    for name, values in shown.items():
        texts = [name, *values]
        blocks.append([text.ljust(max(map(len, texts))) for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*blocks, strict=True))
