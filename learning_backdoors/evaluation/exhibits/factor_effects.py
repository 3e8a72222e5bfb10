"""factor_effects: the main effect of each factor of a sweep on each outcome, matched on the other factors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import captions, counting, drawing, factors, statistics, text_tables
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once
from learning_backdoors.evaluation.exhibits import factors as outcomes_by_factor
from learning_backdoors.evaluation.factors import CROSSING, EMERGENCE, RATE, Factor, Outcome

ADJACENT, ENDS, FIRST = "adjacent levels", "highest and lowest level", "with the first level"
UNITS = {RATE: "share", EMERGENCE: "share of runs", CROSSING: "ratio of steps", factors.CHANGE: "nats per token"}
ALPHA = 0.05
OVER_BLOCKS = "t over the combinations' differences"  # if a combination has one run


class Method(NamedTuple):
    """How the effect on a kind of outcome is computed from the runs' values in each block. `name` is for the table."""

    name: str
    compute: Callable[[list[np.ndarray], list[np.ndarray]], statistics.Effect]


def _shares(high: list[np.ndarray], low: list[np.ndarray]) -> statistics.Effect:
    return statistics.share_effect(*(np.array([[side.sum(), len(side)] for side in level]).T for level in (high, low)))


METHODS = {
    RATE: Method("MOVER over the combinations' intervals for the claim recipe", None),
    factors.CHANGE: Method("t over runs", statistics.mean_effect),
    CROSSING: Method("t over the logarithms of the runs' steps", statistics.crossing_effect),
    EMERGENCE: Method("stratified score interval", _shares),
}
COLUMNS = ["outcome", "unit", "factor", "comparison", "first", "second", "condition", "first_value", "second_value"]
COLUMNS += ["effect", "lower", "upper", "p", "p_holm", "method", "blocks", "seeds", "second_seeds", "until_step"]
COLUMNS += ["note"]


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per outcome, factor and pair of levels, in the condition that figures show. Claim: recipe.

    `effect` is the first level's value minus the second's, or their ratio for crossing steps: the mean over `blocks`,
    the combinations of the other factors that have both levels. `p_holm` is adjusted by Holm's method over all rows of
    an outcome.
    """
    rows, levels = [], factors.levels(evaluation)
    for outcome in factors.outcomes(evaluation):
        measured = levels[levels.index.isin(outcome.runs.index)]
        for factor in factors.factors(evaluation):
            for comparison, first, second in pairs(factor):
                about = {"outcome": outcome.name, "unit": UNITS[outcome.kind], "factor": factor.name}
                about |= {"comparison": comparison, "first": first, "second": second}
                sides, lost = blocks(measured, factor.name, first, second)
                rows.append(about | _effect(evaluation, outcome, sides, lost))
    if not rows:
        raise Unavailable("the inputs have no outcome of the sweep's runs")
    result = pd.DataFrame(rows).assign(condition=evaluation.condition).reindex(columns=COLUMNS)
    return result.assign(p_holm=result.groupby("outcome", sort=False)["p"].transform(statistics.holm))


def pairs(factor: Factor) -> list[tuple[str, str, str]]:
    """(comparison, level, level to compare it with): neighbors and the two ends; of names, each with the first."""
    if not factor.ordered:
        return [(FIRST, level, factor.levels[0]) for level in factor.levels[1:]]
    found = [(ADJACENT, high, low) for low, high in zip(factor.levels, factor.levels[1:], strict=False)]
    return found + ([(ENDS, factor.levels[-1], factor.levels[0])] if len(factor.levels) > 2 else [])


def blocks(levels: pd.DataFrame, factor: str, first: str, second: str) -> tuple[list[tuple[list, list]], int]:
    """The runs with the two levels, for each combination of the other factors that has both; and how many have one."""
    both, others = levels[levels[factor].isin([first, second])], [name for name in levels if name != factor]
    block = both.groupby(others, observed=True, sort=False).ngroup() if others else pd.Series(0, both.index)
    runs = {True: {}, False: {}}  # by whether the level is the first one: the runs of each block
    for run, number, is_first in zip(both.index, block, both[factor] == first, strict=True):
        runs[is_first].setdefault(number, []).append(run)
    found = [(of_first, runs[False][number]) for number, of_first in runs[True].items() if number in runs[False]]
    return found, block.nunique() - len(found)


def _effect(evaluation: Evaluation, outcome: Outcome, sides: list[tuple[list, list]], lost: int) -> dict:
    """The columns about the numbers of one row. `sides`: the runs of the two levels in each block."""
    if not sides:
        return {"blocks": 0, "note": "refused: no combination of the other factors has both levels"}
    high, low = zip(*sides, strict=True)
    row = {"blocks": len(sides), "seeds": sum(map(len, high)), "second_seeds": sum(map(len, low))}
    runs = outcome.runs.loc[[run for side in (*high, *low) for run in side]]
    notes = [f"{lost} combinations of the other factors have only one of the levels"] if lost else []
    if outcome.kind == CROSSING:
        row["until_step"] = int(runs["step"].min())
        runs = runs.assign(value=runs["value"].clip(1, row["until_step"]))
    elif runs["step"].nunique() > 1:
        notes.append(f"the runs' last steps differ: {captions.span(runs['step'])}")
    value = runs["value"].to_dict()
    values = [[np.array([value[run] for run in side]) for side in of_level] for of_level in (high, low)]
    if outcome.kind == RATE:
        grids = _grids(evaluation, [*high, *low])
        if not grids[0].size:
            return row | {"note": "refused: the runs were not asked the same questions"}
        effect, p = statistics.rate_effect(grids[: len(high)], grids[len(high) :])
    else:
        effect, p = METHODS[outcome.kind].compute(*values)
    single = outcome.kind != EMERGENCE and statistics.single(high, low)
    row["method"] = OVER_BLOCKS if single else METHODS[outcome.kind].name
    notes += [] if p >= 0 else ["too few runs, or runs that do not vary"]
    to, back = (np.log, np.exp) if outcome.kind == CROSSING else (np.asarray, float)
    row |= {
        name: back(np.mean([to(side).mean() for side in of_level]))
        for name, of_level in zip(["first_value", "second_value"], values, strict=True)
    }
    return row | dict(zip(["effect", "lower", "upper", "p"], [*effect, p], strict=True)) | {"note": "; ".join(notes)}


def _grids(evaluation: Evaluation, sides: Sequence[list]) -> list[np.ndarray]:
    """(positives, n) of each side's runs at their last steps, over the questions that all sides have."""
    return counting.same_questions([factors.cells_of(evaluation, side) for side in sides])


@once
def sentence(evaluation: Evaluation) -> str:
    """One sentence for the headline: the effect of each factor on the last rate (or change), or that none is shown.

    Of several pairs of levels, the highest and lowest level if they differ, else the pair with the least p-value.
    """
    outcome, _ = outcomes_by_factor.drawn(evaluation)[0]
    rows = table(evaluation)
    rows = rows[(rows["outcome"] == outcome.name) & rows["p"].notna()]
    if rows.empty:
        raise Unavailable("no main effect of a factor can be tested")
    texts, none = [], []
    for name, of_factor in rows.groupby("factor", sort=False):
        found = of_factor[of_factor["p_holm"] < ALPHA].sort_values("p", kind="stable")
        ends = found[found["comparison"] == ENDS]
        if found.empty:
            none.append(name)
        for row in (ends if len(ends) else found).head(1).itertuples():
            texts.append(f"{name} {row.first} against {row.second} {effect_text(outcome.kind, row)}")
    tests = f"({len(rows)} test{'s' if len(rows) > 1 else ''}, Holm)"
    if not texts:
        return f"No main effect of {' or '.join(none)} on the {outcome.label} is shown {tests}."
    without = f" No main effect of {' or '.join(none)} is shown." if none else ""
    return f"Main effects on the {outcome.label}, matched on the other factors {tests}: {'; '.join(texts)}.{without}"


@once
def _drawn(evaluation: Evaluation) -> list[tuple[Outcome, pd.DataFrame]]:
    """The outcomes that figures draw, with their rows that have an effect."""
    rows = table(evaluation)
    names = [outcome for outcome, _ in outcomes_by_factor.drawn(evaluation)]
    found = [(outcome, rows[(rows["outcome"] == outcome.name) & rows["effect"].notna()]) for outcome in names]
    if all(part.empty for _, part in found):
        raise Unavailable("no two levels of a factor are matched on the other factors")
    return found


def title(evaluation: Evaluation) -> str:
    return f"Main effects of the sweep's factors{evaluation.in_condition}"


def caption(evaluation: Evaluation) -> str:
    text = "First level minus second (steps: divided by), matched on the other factors. Bars: 95% intervals. "
    return text + "Full: adjusted p below 0.05. Claim recipe."


def figure(evaluation: Evaluation) -> drawing.Figure:
    """A panel per outcome, a row per pair of levels."""
    outcomes = _drawn(evaluation)
    rows = pd.concat([part for _, part in outcomes]).drop_duplicates(["factor", "first", "second"])
    keys = {key: i for i, key in enumerate(zip(rows["factor"], rows["first"], rows["second"], strict=True))}
    size = drawing.TWO_COLUMNS, 0.75 + 0.17 * len(keys)
    page, [panels] = drawing.canvas(*size, 1, len(outcomes), sharey=True)
    for axes, (outcome, part) in zip(panels, outcomes, strict=True):
        axes.axvline(1 if outcome.kind == CROSSING else 0, color=drawing.GRAY, linewidth=0.6, zorder=1)
        for row in part.itertuples():
            _draw(evaluation, axes, outcome, row, keys[row.factor, row.first, row.second])
        axes.set_title(drawing.wrapped(outcome.label, 34), size=7.5)
        axes.set_xlabel({CROSSING: "ratio of steps", factors.CHANGE: "nats per token"}.get(outcome.kind, "points"))
        axes.tick_params(axis="y", length=0)
        drawing.grid_lines(axes, "x")
    drawing.category_axis(panels[0], [f"{factor}: {first} against {second}" for factor, first, second in keys])
    return page


def _draw(evaluation: Evaluation, axes: drawing.Axes, outcome: Outcome, row, y: int) -> None:
    """One effect with its interval. Shares in points, ratios on a logarithmic axis."""
    scale = 1 if outcome.kind in (CROSSING, factors.CHANGE) else 100
    effect, lower, upper = (scale * value for value in (row.effect, row.lower, row.upper))
    if outcome.kind == CROSSING:
        drawing.ratio_axis(axes.xaxis)
    if not np.isnan(lower):
        axes.hlines(y, lower, upper, color="0.1", linewidth=1)
    face = "0.1" if row.p_holm < ALPHA else "white"
    axes.plot(effect, y, "o", color="0.1", markerfacecolor=face, markersize=4, zorder=4)
    series = f"{row.factor}: {row.first} against {row.second}"
    p = f", adjusted p {row.p_holm:.2g}" if row.p_holm >= 0 else ""
    drawing.mark(axes, effect, y, outcome.label, series, effect_text(outcome.kind, row) + p, answers=False)


def effect_text(kind: str, row) -> str:
    """An effect with its limits, such as `+30 points [20, 41]`. `row`: a row of `table`."""
    limits = row.effect, row.lower, row.upper
    if kind == CROSSING:
        return f"{row.effect:.2f} times" + (f" [{row.lower:.2f}, {row.upper:.2f}]" if row.lower >= 0 else "")
    return text_tables.nats(*limits) + " nats" if kind == factors.CHANGE else text_tables.points(*limits, "+")
