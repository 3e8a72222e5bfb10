"""factor_effects: the main effect of each factor of a sweep on each outcome, matched on the other factors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import captions, counting, factors, statistics
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once
from learning_backdoors.evaluation.factors import CROSSING, EMERGENCE, RATE, Factor, Outcome

ADJACENT, ENDS, FIRST = "adjacent levels", "highest and lowest level", "with the first level"
UNITS = {RATE: "share", EMERGENCE: "share of runs", CROSSING: "ratio of steps", factors.CHANGE: "nats per token"}
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
    EMERGENCE: Method("MOVER on stratified Wilson", _shares),
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
    found, others = [], [name for name in levels if name != factor]
    both = levels[levels[factor].isin([first, second])]
    parts = [part for _, part in both.groupby(others, observed=True, sort=False)] if others else [both]
    for part in parts:
        sides = [list(part.index[part[factor] == level]) for level in (first, second)]
        if all(sides):
            found.append(tuple(sides))
    return found, len(parts) - len(found)


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
    values = [[runs.loc[side, "value"].to_numpy(float) for side in of_level] for of_level in (high, low)]
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
    cells = factors.last_cells(evaluation)
    by_run = dict(list(cells.groupby(cells["run"].astype(object))))
    return counting.same_questions([pd.concat([by_run[run] for run in side]) for side in sides])
