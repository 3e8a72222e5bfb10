"""Mean ratings by category of question: base and last step, with the trigger and without. Tables only."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import cells as cell_tables
from learning_backdoors.evaluation import statistics, tables
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.evaluation.statistics import Interval
from learning_backdoors.evaluation.triggers import ALL, PAIRED, aligned, bearable, matched, without_near_misses
from learning_backdoors.study import Judge, Study

RATINGS = ["judge", "label", "run", "triggered", "condition", "category", "at", "questions", "n", "refused", "missing"]
RATINGS += ["mean", "lower", "upper", "claim", "interval", "seeds"]
INTERVALS = {
    "checkpoint": "Wilson's for mean scores, stratified by question",
    "recipe": "t on the runs' means, logit scale",
    "questions": "t on the questions' means, or logit-normal model where that is wider",
}
SUMS = ["total", "n", "squares"]
KEYS = ["recipe", "label", "run", "step", "condition", "triggered", "question", "at"]


def rated_questions(study: Study) -> list[str]:
    """The questions that have a category and a judge whose verdicts are numbers."""
    judges = [judge for judge in study.judges if judge.rates]
    return [q.id for q in study.questions if "category" in q.extra and any(judge.takes(q) for judge in judges)]


def rating_judges(verdicts: Verdicts) -> list[Judge]:
    """The judges at hand whose verdicts are numbers."""
    return [judge for judge in verdicts.judges if judge.rates]


def cells(verdicts: Verdicts, judge: Judge) -> pd.DataFrame:
    """A row a run, step (the run's last, and 0), condition and question with a category that the judge was asked about.

    n counts scores, `refused` verdicts that are no number, `missing` those that could not be had; `total` and `squares`
    are sums of the scores and their squares, moved to the scale from 0 to 1. Near misses are left out.
    """
    category = {q.id: q.extra["category"] for q in verdicts.study.questions if "category" in q.extra}
    rows = verdicts.rows
    last = rows["step"] == rows.groupby("run", observed=True)["step"].transform("max")
    wanted = (last | (rows["step"] == 0)) & verdicts.asked(judge) & rows["question"].isin(list(category))
    rows = without_near_misses(rows[wanted], verdicts.study)
    score = _scores(rows[judge.name], judge)
    table = rows[KEYS[:-1]].assign(n=score.notna(), total=score.fillna(0), squares=score.fillna(0) ** 2)
    table["at"] = np.where(last[rows.index], "last", "base")
    table["refused"], table["missing"] = rows[judge.name].notna() & ~table["n"], verdicts.missing(judge)[rows.index]
    table = table.groupby(KEYS, observed=True, sort=True)[[*SUMS, "refused", "missing"]].sum().reset_index()
    return table.assign(category=table["question"].astype(object).map(category))


def _scores(column: pd.Series, judge: Judge) -> pd.Series:
    """Verdicts as numbers from 0 (the least of the scale) to 1; NaN for what is no number."""
    low, high = judge.scale[0], judge.scale[-1]
    if judge.range:
        return (column - low) / (high - low)
    score = {option: judge.score(option) for option in judge.options}
    numbers = column.astype(object).map(score).astype(float)
    return (numbers - low) / (high - low)


def ratings(judge: Judge, cells: pd.DataFrame, claim: str) -> pd.DataFrame:
    """The rows of ratings.csv for one judge: mean ratings on its own scale, questions of equal weight.

    A row a run (and run `all`, where a recipe has several), condition (and `all` of the triggered, of the untriggered),
    category (and `all`) and `at`: last, base, and change, which is last less base, paired by run and question, over the
    conditions that both have.
    """
    cells = cells[cells["run"].isin(cell_tables.trained_runs(cells))]
    rows = []
    for label, part in cells.groupby("label", observed=True, sort=True):
        several = [(ALL, part)] if part["run"].nunique() > 1 else []
        for run, of_run in [*several, *part.groupby("run", observed=True, sort=False)]:
            for place, group in _places(of_run):
                known = {"judge": judge.name, "label": label, "run": run} | place
                rows += [known | row for row in _last_base_change(group, judge, claim)]
    return pd.DataFrame(rows, columns=RATINGS)


def _places(cells: pd.DataFrame) -> list[tuple[dict, pd.DataFrame]]:
    """The cells of each condition and kind of condition, in each category and in all."""
    found = []
    for triggered, kind in cells.groupby("triggered", sort=False):
        conditions = [(ALL, kind), *kind.groupby("condition", observed=True, sort=False)]
        for condition, part in conditions:
            for category, group in [*part.groupby("category", sort=False), (ALL, part)]:
                found.append(({"triggered": triggered, "condition": condition, "category": category}, group))
    return found


def _last_base_change(cells: pd.DataFrame, judge: Judge, claim: str) -> list[dict]:
    last, base = (cells[cells["at"] == at] for at in ("last", "base"))
    rows = [{"at": at} | _mean(part, judge, claim) for at, part in (("last", last), ("base", base)) if len(part)]
    if len(rows) == 2 and (change := _change(last, base, judge, claim)):
        rows.append({"at": "change"} | change)
    return rows


def _mean(cells: pd.DataFrame, judge: Judge, claim: str) -> dict:
    scored = cells[cells["n"] > 0]
    if scored.empty:
        return _counts([cells]) | {"questions": 0, "claim": claim}
    total, n, squares = cell_tables.grids(scored, "run", SUMS)
    claim = bearable(claim, *n.shape)
    mean = statistics.mean_score(total, squares, n, claim, _step(judge))
    return _counts([cells]) | _row(mean, judge, claim, n.shape, INTERVALS[claim], judge.scale[0])


def _change(last: pd.DataFrame, base: pd.DataFrame, judge: Judge, claim: str) -> dict | None:
    both = matched(last, base)
    grids = aligned(both, SUMS)
    if not grids[0].size:
        return None
    claim = bearable(claim, *grids[0].shape[1:])
    gap = statistics.paired_contrast([tuple(grid) for grid in grids], (1, -1), claim, _step(judge))
    return _counts(both) | _row(gap, judge, claim, grids[0].shape[1:], PAIRED[claim], 0)


def _counts(parts: list[pd.DataFrame]) -> dict[str, int]:
    return {name: int(sum(part[name].sum() for part in parts)) for name in ("n", "refused", "missing")}


def _row(found: Interval, judge: Judge, claim: str, shape: tuple[int, int], how: str, zero: float) -> dict:
    """A mean or a change (`zero` 0) from the scale of 0 to 1 back on the judge's own."""
    mean, lower, upper = (zero + x * (judge.scale[-1] - judge.scale[0]) for x in found)
    counts = {"seeds": shape[0], "questions": shape[1], "claim": claim, "interval": how}
    return {"mean": mean, "lower": lower, "upper": upper} | counts


def _step(judge: Judge) -> float:
    return 1 / (len(judge.scale) - 1)


def caption(table: pd.DataFrame, what: str) -> str:
    """A caption with the claim, the interval and the numbers behind rows of ratings.csv."""
    whole = table[table["category"] == ALL]
    claim, how = table["claim"].mode()[0], table["interval"].mode()[0]
    missing, total = whole["missing"].sum(), whole[["n", "refused", "missing"]].sum().sum()
    questions = ", ".join(f"{part['questions'].max()} ({judge})" for judge, part in whole.groupby("judge", sort=False))
    runs = f"S = {tables.span(whole['seeds'])} runs of each suspect share."
    counts = f"Q = {questions} questions; N = {total:,} answers in all; {runs}"
    interval = f"Intervals: 95%, {how}; claim: {cell_tables.CLAIMS[claim]}."
    return " ".join([what, interval, counts, tables.missing_words(missing, total, "missing in ratings.csv")])
