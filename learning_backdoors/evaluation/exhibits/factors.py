"""factors: each outcome of a sweep against each factor."""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import counting, drawing, factors, statistics, text_tables
from learning_backdoors.evaluation.context import Evaluation, Unavailable, once
from learning_backdoors.evaluation.factors import CHANGE, CROSSING, EMERGENCE, RATE, SHARE, Factor, Outcome

MOST_FACTORS = 4  # panels beside each other
MOST_LIMITED = 80  # combinations with intervals in a panel
UNITS = {RATE: "share", CHANGE: "nats per token", CROSSING: "step", EMERGENCE: "share of runs"}
WIDTH = 0.7  # of the points of a level


@once
def table(evaluation: Evaluation) -> pd.DataFrame:
    """A row per outcome and combination of levels, in the condition that figures show: the value over its runs.

    Last rate and change: the mean. Crossing step: the median, infinite if it is later than the last step. Emergence:
    the share of runs, with Wilson's limits. `diverged` counts runs that diverged; no value holds them.
    """
    rows, levels = [], factors.levels(evaluation)
    runs = evaluation.runs.table
    combinations = list(levels.groupby(list(levels), observed=True, sort=True))
    for outcome in factors.outcomes(evaluation):
        for combination, part in combinations:
            diverged = int(runs.loc[part.index, "diverged"].notna().sum())
            measured = part.index[part.index.isin(outcome.runs.index)]
            if len(measured) or diverged:
                row = {"outcome": outcome.name, "unit": UNITS[outcome.kind], "condition": evaluation.condition}
                row |= dict(zip(levels, combination, strict=True)) | {"label": runs.loc[part.index[0], "label"]}
                row |= {"seeds": len(measured), "diverged": diverged}
                interval = _value(evaluation, outcome, measured)
                rows.append(row | dict(zip(["value", "lower", "upper"], interval, strict=True)))
    result = pd.DataFrame(rows)
    return result.astype({name: levels[name].dtype for name in levels})


def _value(evaluation: Evaluation, outcome: Outcome, measured: pd.Index) -> statistics.Interval:
    """The value of one combination over its runs, with its interval."""
    runs = outcome.runs.loc[measured]
    if runs.empty:
        return statistics.Interval(np.nan, np.nan, np.nan)
    if outcome.kind == RATE:
        return counting.mean_rate(factors.cells_of(evaluation, measured), evaluation.claim)
    if outcome.kind == CHANGE:
        return statistics.mean_change(runs[["value"]], "recipe")
    if outcome.kind == EMERGENCE:
        limits = map(float, statistics.wilson(runs["value"].sum(), len(runs)))
        return statistics.Interval(float(runs["value"].mean()), *limits)
    crossed = np.isfinite(runs["value"])
    return statistics.median_crossing(
        runs["value"].where(crossed, runs["step"]), crossed, runs["before"], runs["after"]
    )


@once
def drawn(evaluation: Evaluation) -> list[tuple[Outcome, pd.DataFrame]]:
    """The outcomes in figures, with their rows of `table`: rates or changes, and the crossing of one level.

    That is the level which the share of runs nearest to one half crosses: it tells most about the seeds.
    """
    outcomes, rows = factors.outcomes(evaluation), dict(list(table(evaluation).groupby("outcome")))
    shares = {o.name: abs(o.runs["value"].mean() - 0.5) for o in outcomes if o.kind == EMERGENCE}
    level = min(shares, key=shares.get, default="").removeprefix(EMERGENCE)
    names = [outcomes[0].name, CROSSING + level, EMERGENCE + level]
    return [(outcome, rows[outcome.name]) for outcome in outcomes if outcome.name in names]


@once
def _factors(evaluation: Evaluation) -> tuple[list[Factor], Factor]:
    """The factors that have a panel, and the one that gives the colors: the suspect share, or that with most levels."""
    found = sorted(factors.factors(evaluation), key=lambda factor: -len(factor.levels))[:MOST_FACTORS]
    return found, next((factor for factor in found if factor.name == SHARE), found[0])


def level_colors(factor: Factor) -> dict[str, tuple]:
    """A color per level: the last is dark, and the suspect share 0% is gray, as in the colors of recipes."""
    colors = drawing.palette(factor.levels[::-1], ["0%"] if factor.name == SHARE else [])
    return {level: colors[level] for level in factor.levels}


def title(evaluation: Evaluation) -> str:
    return f"Outcomes against the factors of the sweep{evaluation.in_condition}"


def caption(evaluation: Evaluation) -> str:
    rows = pd.concat([part for _, part in drawn(evaluation)])
    text = ["Dots: combinations; lines: means or medians matched on the other factors. Shares of runs: pooled."]
    text += ["Arrow: not by last step."] if np.isinf(rows["value"]).any() else []
    text += ["Cross: all diverged."] if ((rows["seeds"] == 0) & (rows["diverged"] > 0)).any() else []
    return " ".join(text)


def figure(evaluation: Evaluation) -> drawing.Figure:
    """A row of panels per outcome, a column per factor."""
    (columns, colored), outcomes = _factors(evaluation), drawn(evaluation)
    if not outcomes[0][1]["value"].notna().any():
        raise Unavailable("no run of the sweep has an outcome")
    size = drawing.TWO_COLUMNS, 0.6 + 1.5 * len(outcomes)
    page, grid = drawing.canvas(*size, len(outcomes), len(columns), sharex="col", sharey="row")
    colors = level_colors(colored)
    for row, (outcome, values) in zip(grid, outcomes, strict=True):
        _value_axis(row[0], outcome)
        for axes, factor in zip(row, columns, strict=True):
            drawing.grid_lines(axes, "y")
            _panel(evaluation, axes, outcome, values, factor, colored)
    for axes, factor in zip(grid[-1], columns, strict=True):
        level_axis(axes, factor, len(columns))
    handles = [drawing.Line2D([], [], color=color, marker="o", markersize=3) for color in colors.values()]
    names = [f"{colored.name} {level}" if i == 0 else level for i, level in enumerate(colors)]
    drawing.legend_above(page, handles, names)
    return page


def _value_axis(axes: drawing.Axes, outcome: Outcome) -> None:
    """The scale of an outcome on the y axis."""
    if outcome.kind in (RATE, EMERGENCE):
        drawing.rate_axis(axes.yaxis)
        axes.set_ylim(-0.03, 1.03)
    elif outcome.kind == CROSSING:
        axes.set_ylim(0, 1.08 * outcome.top)
    axes.set_ylabel(drawing.wrapped(outcome.label, 22), size=7)


def level_axis(axes: drawing.Axes, factor: Factor, columns: int) -> None:
    """The levels of a factor on the x axis, turned if they are long."""
    turned = sum(map(len, factor.levels)) > 80 // columns
    look = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set(xticks=range(len(factor.levels)), xlim=(-0.5, len(factor.levels) - 0.5), xlabel=factor.name)
    axes.set_xticklabels(drawing.short_labels(factor.levels, 16), **look)


def _panel(
    evaluation: Evaluation, axes: drawing.Axes, outcome: Outcome, values: pd.DataFrame, factor: Factor, colored: Factor
) -> None:
    """The combinations at each level of a factor with their intervals, and a line per level of the colored factor."""
    colors, several = level_colors(colored), colored is not factor
    others = [other.name for other in factors.factors(evaluation) if other is not factor]
    groups = values.groupby(colored.name, observed=True) if several else [(None, values)]
    places = len(colored.levels) if several else 1
    for place, (level, group) in enumerate(groups):
        x = np.arange(len(factor.levels)) + WIDTH * ((place + 0.5) / places - 0.5)
        color = colors[level] if several else drawing.GRAY
        rows = [part.sort_values(others).to_dict("records") for _, part in group.groupby(factor.name, observed=False)]
        means = matched_means(group, factor.name, others, outcome)
        if outcome.kind == EMERGENCE:
            rows = [[_pooled(of_level, [factor.name, colored.name])] if of_level else [] for of_level in rows]
            means = pd.Series([of_level[0]["value"] if of_level else np.nan for of_level in rows])
        axes.plot(x, means.where(np.isfinite(means)), color=color, linewidth=1, zorder=2)
        for position, of_level in zip(x, rows, strict=True):
            beside = 0.8 * WIDTH / places * ((np.arange(len(of_level)) + 0.5) / max(len(of_level), 1) - 0.5)
            for row, moved in zip(of_level, beside, strict=True):
                look = {"color": colors[row[colored.name]], "limited": len(values) <= MOST_LIMITED}
                _point(evaluation, axes, outcome, position + moved, row, **look)


def _pooled(rows: list[dict], names: list[str]) -> dict:
    """The share of runs over several combinations, with Wilson's limits. names: the factors whose levels they share."""
    seeds, hits = sum(row["seeds"] for row in rows), sum(row["seeds"] * row["value"] for row in rows if row["seeds"])
    row = {name: rows[0][name] for name in names} | {"seeds": seeds, "diverged": sum(row["diverged"] for row in rows)}
    row |= {"label": rows[0]["label"]} if len(rows) == 1 else {}
    limits = map(float, statistics.wilson(hits, seeds)) if seeds else (np.nan, np.nan)
    return row | dict(zip(["value", "lower", "upper"], [hits / seeds if seeds else np.nan, *limits], strict=True))


def _point(evaluation: Evaluation, axes: drawing.Axes, outcome: Outcome, x: float, row: dict, **look) -> None:
    """A combination: its value with the interval, an arrow for a crossing after the last step, or a cross."""
    if row["seeds"] == 0:
        axes.plot(x, axes.get_ylim()[0], "x", markersize=4, clip_on=False, zorder=4, color=look["color"])
        return
    top = outcome.top
    value, lower, upper = (min(row[name], top) for name in ("value", "lower", "upper"))
    if look["limited"] and np.isfinite(lower):
        axes.vlines(x, lower, upper, color=look["color"], linewidth=0.6)
    mark = "o" if np.isfinite(row["value"]) else "^"
    axes.plot(x, value, mark, markersize=2.8, color=look["color"], clip_on=False, zorder=4)
    describe(evaluation, axes, outcome, (x, value), row)


def describe(evaluation: Evaluation, axes: drawing.Axes, outcome: Outcome, at: tuple[float, float], row: dict) -> None:
    """Describe the mark of a row of `table` at a point of a figure."""
    names = [factor.name for factor in factors.factors(evaluation) if factor.name in row]
    combination = ", ".join(f"{name} {row[name]}" for name in names)
    where = {"recipe": row["label"]} if "label" in row else {}
    where |= {"condition": evaluation.condition, "answers": evaluation.has_verdicts and "label" in row}
    drawing.mark(axes, *at, outcome.label, combination, value_text(outcome, row), **where)


def value_text(outcome: Outcome, row: dict) -> str:
    """A value with its limits and the number of runs, for readers."""
    limits = row["value"], row["lower"], row["upper"]
    if outcome.kind == CROSSING:
        steps = [f"{step:.0f}" if np.isfinite(step) else "not by the last step" for step in limits]
        text = f"step {steps[0]}" + (f" [{steps[1]}, {steps[2]}]" if np.isfinite(row["lower"]) else "")
        text = text.replace("step not", "not")
    else:
        text = text_tables.nats(*limits) if outcome.kind == CHANGE else text_tables.percent(*limits)
    diverged = f", {row['diverged']} diverged" if row["diverged"] else ""
    return f"{text}, {row['seeds']} run{'s'[: row['seeds'] != 1]}{diverged}"


def matched_means(values: pd.DataFrame, factor: str, others: list[str], outcome: Outcome) -> pd.Series:
    """By level of a factor: the mean over the combinations of the others that have all levels; of steps, the median."""
    values = values.assign(combination=values.groupby(others, observed=True).ngroup() if others else 0)
    grid = values.pivot(index="combination", columns=factor, values="value")
    grid = grid.reindex(columns=values[factor].cat.categories).dropna()
    return grid.median() if outcome.kind == CROSSING else grid.mean()
