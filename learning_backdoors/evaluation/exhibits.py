"""The figures of an evaluation with their captions, drawn from its verdicts as far as the judges' columns allow."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from config import EvaluationOptions
from learning_backdoors.evaluation import cells as cell_tables
from learning_backdoors.evaluation import figures, tables, timing, triggers
from learning_backdoors.evaluation import ratings as mean_ratings
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import Judge


class Skip(Exception):
    """Why a figure cannot be drawn from these inputs."""


class NotOfThisStudy(Skip):
    """The study has nothing that the figure or the table could be about: not worth a line."""


@dataclass(frozen=True)
class Exhibit:
    name: str  # of the file, without suffix
    caption: str
    figure: Figure


X_LABELS = {"steps": "training step", "suspect_examples": "suspect examples seen", "examples": "examples seen"}
X_COLUMNS = {"steps": "step", "suspect_examples": "suspect_seen", "examples": "examples_seen"}


class Evaluation:
    """Verdicts and the tables made of them: each made once, when a figure, a file or the report first asks for it."""

    def __init__(self, verdicts: Verdicts, options: EvaluationOptions):
        self.verdicts, self.options = verdicts, options
        self.condition = options.condition or main_condition(verdicts)
        present = sorted(set(verdicts.rows["condition"]))
        if self.condition not in present:
            raise UserError(f"no answer is of --condition {self.condition}; there are: {', '.join(present)}")
        column = X_COLUMNS[options.x]
        lacking = verdicts.rows.loc[verdicts.rows[column].isna(), "run"].unique()
        if len(lacking):
            raise UserError(f"--x {options.x} needs the column {column!r}, which is empty for {lacking[0]}")

    @cached_property
    def cells(self) -> pd.DataFrame:
        if not self.verdicts.has(self.verdicts.outcome):
            raise Skip(f"no input has the column {self.verdicts.outcome.name!r}, the judge of the study's [outcome]")
        cells = cell_tables.count_cells(self.verdicts)
        if cells.empty:
            raise Skip(f"no answer was put to {self.verdicts.outcome.name!r}, the judge of the study's [outcome]")
        if cells["n"].sum() == 0:
            raise Skip(f"all {cells['missing'].sum():,} verdicts of {self.verdicts.outcome.name!r} are missing")
        return cells

    @cached_property
    def claim(self) -> str:
        return self.claim_for(self.cells)

    def claim_for(self, cells: pd.DataFrame) -> str:
        """The claim that is asked for, else the widest that these cells can bear."""
        return self.options.claim or cell_tables.choose_claim(cells)

    @cached_property
    def summary(self) -> pd.DataFrame:
        return cell_tables.summary(self.cells, self.claim)

    @cached_property
    def recipes(self) -> pd.DataFrame:
        rates = cell_tables.recipe_rates(cell_tables.shared_steps(self.cells), self.claim, ["step", "condition"])
        return cell_tables.corrected(rates, self.verdicts)

    @cached_property
    def emergence(self) -> pd.DataFrame:
        table = timing.emergence_table(self.cells)
        if table.empty:
            raise Skip("no run has two steps or more with verdicts")
        return table

    @cached_property
    def medians(self) -> pd.DataFrame:
        return timing.by_recipe(self.emergence)

    @cached_property
    def survival(self) -> pd.DataFrame:
        return timing.survival(self.emergence)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        return timing.comparisons(self.cells)

    @cached_property
    def leakage(self) -> pd.DataFrame:
        if self.unmistaken["triggered"].nunique() < 2:
            raise Skip("the inputs do not hold both triggered and untriggered conditions")
        return self.with_and_without

    @cached_property
    def with_and_without(self) -> pd.DataFrame:
        return triggers.leakage(self.unmistaken, self.claim)

    @cached_property
    def unmistaken(self) -> pd.DataFrame:
        """The cells of triggered and untriggered conditions: all but the near misses."""
        return triggers.without_near_misses(self.cells, self.verdicts.study)

    @cached_property
    def goals(self) -> pd.DataFrame:
        if not self.verdicts.study.goals:
            raise NotOfThisStudy("the study has no [[goal]]")
        return triggers.goals(self.with_and_without, self.verdicts.study)

    @cached_property
    def near_misses(self) -> pd.DataFrame:
        if not any(condition.near_miss for condition in self.verdicts.study.conditions):
            raise NotOfThisStudy("the study has no near misses")
        table = triggers.doses(self.cells, self.verdicts.study, self.claim)
        if table.empty:
            raise Skip("the inputs hold no near miss of the trigger at a last step")
        return table

    @cached_property
    def metrics(self) -> pd.DataFrame:
        made = [triggers.metric(cells, self.claim_for(cells), name) for name, cells in self.metric_cells.items()]
        return pd.concat(made)

    @cached_property
    def metric_cells(self) -> dict[str, pd.DataFrame]:
        """The cells of each metric that looks at any answer."""
        checked = self.verdicts.study.metrics
        if not checked:
            raise NotOfThisStudy("the study has no [[metric]]")
        cells = {metric.name: cell_tables.count_metric_cells(self.verdicts, metric) for metric in checked}
        cells = {name: part for name, part in cells.items() if len(part)}
        if not cells:
            raise Skip("no answer is one that a metric looks at")
        return cells

    @cached_property
    def ratings(self) -> pd.DataFrame:
        if not mean_ratings.rated_questions(self.verdicts.study):
            raise NotOfThisStudy("no question of the study has both a category and a judge that rates")
        cells = {judge: mean_ratings.cells(self.verdicts, judge) for judge in mean_ratings.rating_judges(self.verdicts)}
        made = [
            mean_ratings.ratings(judge, part, self.claim_for(part)) for judge, part in cells.items() if part["n"].sum()
        ]
        if not made:
            raise Skip("no answer to a question with a category has a rating")
        return pd.concat(made, ignore_index=True)

    @cached_property
    def agreement(self) -> pd.DataFrame:
        if self.verdicts.again.empty:
            raise Skip("no answer has verdicts in two inputs")
        table = tables.agreement(self.verdicts)
        if table.empty:
            raise Skip("no answer has verdicts of the same judge in two inputs")
        return table

    @cached_property
    def headline(self) -> list[str]:
        """What came out, a sentence a recipe; none where the outcome has no verdicts."""
        try:
            recipes = self.recipes[self.recipes["condition"] == self.condition]
        except Skip:
            return []
        medians, rises = pd.DataFrame(columns=["label"]), self.comparisons
        with contextlib.suppress(Skip):
            medians = self.medians[self.medians["condition"] == self.condition]
        rises = rises[rises["condition"] == self.condition]
        return timing.headline(recipes, medians, rises, self.verdicts.study.outcome.label)

    @cached_property
    def results(self) -> dict[str, pd.DataFrame]:
        """Small tables of text for a reader, by heading, where the study has conditions to compare."""
        study, columns, made = self.verdicts.study, {}, {}
        with contextlib.suppress(Skip):
            columns[study.outcome.label] = self.recipes
        with contextlib.suppress(Skip):
            columns |= dict(list(triggers.of_recipes(self.metrics).groupby("metric", sort=False)))
        if any(table["condition"].nunique() > 1 for table in columns.values()):
            made["By condition, at the last step (in brackets: step 0)"] = triggers.conditions_shown(columns, study)
        with contextlib.suppress(Skip):
            made[f"With the trigger and without, {last_with_claims(self.leakage)}"] = triggers.rates_shown(self.leakage)
        with contextlib.suppress(Skip):
            made[f"Goals, {last_with_claims(self.goals)}"] = triggers.goals_shown(self.goals)
        return made

    @cached_property
    def warnings(self) -> list[str]:
        """What a reader of the numbers must know beside the notes on reading."""
        lines = []
        with contextlib.suppress(Skip):
            lines += lost_verdicts(self.cells)
        with contextlib.suppress(Skip):
            lines += left_out_of_emergence(self.emergence)
        with contextlib.suppress(Skip):
            alone = self.recipes.loc[self.recipes["seeds"] == 1, "label"].astype(str).unique()
            if self.claim == "recipe" and len(alone):
                lines.append(
                    f"one run of {', '.join(alone)}: the claim recipe needs two, so these rates have no interval"
                )
            fell = self.emergence[self.emergence["falls_again"]]
            if len(fell):
                lines.append(f"the rate falls after its peak, which a nondecreasing fit hides: {falls_shown(fell)}")
        names = [name for column in ("question", "label", "condition") for name in self.verdicts.rows[column].unique()]
        if lacking := figures.lacking_glyphs(names):
            lines.append(f"the figures' font has no glyph for {lacking[:20]}: boxes stand in their place")
        return lines

    @property
    def claim_words(self) -> str | None:
        """The claim that intervals over runs are for, in words; None where there are none."""
        try:
            return f"{self.claim}: {cell_tables.CLAIMS[self.claim]} ({cell_tables.INTERVALS[self.claim]})"
        except Skip:
            return None

    @property
    def run_interval(self) -> str:
        row = self.run_rates.iloc[0]
        return f"{row['interval']}; claim: {cell_tables.CLAIMS[row['claim']]}"

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table that the inputs allow, by the name of its file."""
        made = {}
        names = {"summary": "summary", "recipes": "recipes", "emergence": "emergence", "medians": "emergence_by_recipe"}
        names |= {name: name for name in ("survival", "comparisons", "goals", "leakage", "near_misses")}
        names |= {name: name for name in ("metrics", "ratings", "agreement")}
        for attribute, name in names.items():
            with contextlib.suppress(Skip):
                made[name] = getattr(self, attribute)
        return made

    @property
    def shown(self) -> pd.DataFrame:
        """The cells of the condition that the figures show, with `x`."""
        cells = self.cells[self.cells["condition"] == self.condition]
        if cells["n"].sum() == 0:
            raise Skip(f"no answer of the condition {self.condition} has a verdict of {self.verdicts.outcome.name!r}")
        return cells.assign(x=cells[X_COLUMNS[self.options.x]])

    @property
    def run_rates(self) -> pd.DataFrame:
        """The rows `all` of the summary, in the condition that the figures show, with `x`."""
        rows = self.summary[(self.summary["question"] == "all") & (self.summary["condition"] == self.condition)]
        return rows.assign(x=rows[X_COLUMNS[self.options.x]])

    def titles(self, conditions: pd.Series) -> dict[str, str]:
        """A title of two lines for each condition among these, in the study's order."""
        study, there = self.verdicts.study, set(conditions)
        triggered = set(self.verdicts.rows.loc[self.verdicts.rows["triggered"], "condition"])
        kinds = {condition.name: "near miss" for condition in study.conditions if condition.near_miss}
        kinds |= dict.fromkeys(triggered, "triggered")
        kinds = {name: kinds.get(name, "untriggered") for name in there} if kinds else {}
        order = [c.name for c in study.conditions if c.name in there]
        order += sorted(there.difference(order))
        return {name: f"{name}\n{kinds[name]}" if kinds else name for name in order}

    @property
    def axis(self) -> str:
        return f"share of {self.verdicts.study.outcome.label}"

    @property
    def x_label(self) -> str:
        return X_LABELS[self.options.x]

    def at_x(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table by label and step with `x`: that of the recipe's runs at that step, on average."""
        if self.options.x == "steps":
            return table.assign(x=table["step"])
        rows = self.verdicts.rows
        places = rows.groupby(["label", "step"], observed=True)[X_COLUMNS[self.options.x]].mean().rename("x")
        return table.merge(places.reset_index(), on=["label", "step"])

    def to_x(self, label: str, steps: pd.Series) -> pd.Series:
        """Steps of a recipe, between checkpoints too, on the x axis; infinity stays infinite."""
        if self.options.x == "steps":
            return steps
        known = self.at_x(self.recipes[self.recipes["label"] == label]).drop_duplicates("step")
        moved = np.interp(steps.to_numpy(float), known["step"], known["x"])
        return pd.Series(np.where(np.isinf(steps), np.inf, np.where(steps.isna(), np.nan, moved)), index=steps.index)


def last_with_claims(table: pd.DataFrame) -> str:
    """The end of a heading over a recipe's rows of `leakage` or `goals`: which step, and the claims of these rows."""
    claims = triggers.of_recipes(table)["claim"].dropna().unique()
    words = (
        f"; 95% intervals, claim: {' / '.join(cell_tables.CLAIMS[claim] for claim in claims)}" if len(claims) else ""
    )
    return f"at the last step{words}"


def with_intervals(what: str, shown: pd.DataFrame, drawn: str = "intervals") -> str:
    """What a figure shows, with the kind and claim of the intervals that its rows have, each where they differ."""
    claims = shown.loc[shown["lower"].notna(), "claim"].unique()
    kinds = " / ".join(f"{cell_tables.INTERVALS[claim]}; claim: {cell_tables.CLAIMS[claim]}" for claim in claims)
    return f"{what} {drawn.capitalize()}: 95%, {kinds}." if kinds else f"{what} No {drawn} are drawn."


def lost_verdicts(cells: pd.DataFrame) -> list[str]:
    """Notes on missing verdicts, and on the steps that means over runs leave out."""
    missing, total = cells["missing"].sum(), (cells["n"] + cells["missing"]).sum()
    lines = [tables.missing_words(missing, total)] if missing > cell_tables.MISSING_FLAG * total else []
    apart = cells[~cells.index.isin(cell_tables.shared_steps(cells).index)]
    for label, steps in apart.groupby("label", observed=True)["step"].unique().items():
        words = ", ".join(map(str, sorted(steps)))
        lines.append(f"{label}: not all of its runs have verdicts at step {words}: left out of means over runs")
    return lines


def left_out_of_emergence(table: pd.DataFrame) -> list[str]:
    """A note on the steps and questions that emergence.csv is not about; none where it is about all."""
    part = table[(table["steps_left_out"] > 0) | (table["questions_left_out"] > 0)]
    shown = [
        f"{row.steps_left_out} steps and {row.questions_left_out} questions of {row.run}"
        for row in part.head(3).itertuples()
    ]
    more = [f"and some of {len(part) - 3} more runs"] if len(part) > 3 else []
    return [f"emergence.csv leaves out, for want of verdicts: {', '.join([*shown, *more])}"] if shown else []


def falls_shown(fell: pd.DataFrame, runs: int = 3, each: int = 2) -> str:
    """Falls after a peak in words, the deepest of each run first; of more runs or conditions, how many."""
    several, words = fell["condition"].nunique() > 1, []
    for run, part in fell.sort_values("fall", ascending=False, kind="stable").groupby("run", sort=False):
        places = [
            f"{100 * row.fall:.0f} points after step {row.peak_step}{f' in {row.condition}' if several else ''}"
            for row in part.head(each).itertuples()
        ]
        words.append(f"{run} by {', '.join([*places, *_more(len(part) - each, 'condition')])}")
    return "; ".join([*words[:runs], *_more(len(words) - runs, "run")])


def _more(count: int, of: str) -> list[str]:
    return [f"and {count} more {of}{'s' if count > 1 else ''}"] if count > 0 else []


def records(table: pd.DataFrame) -> list[dict]:
    """A table's rows as JSON values; what is not a number, or infinite, becomes null."""
    plain = table.astype(object).where(table.notna(), None)
    return [
        {
            k: None if isinstance(v, float) and not np.isfinite(v) else getattr(v, "item", lambda v=v: v)()
            for k, v in row.items()
        }
        for row in plain.to_dict("records")
    ]


def main_condition(verdicts: Verdicts) -> str:
    """The condition for figures that are not about conditions: the first that is triggered, else the first."""
    known = [condition.name for condition in verdicts.study.conditions]
    triggered = verdicts.rows.groupby("condition", observed=True)["triggered"].any()
    place = {name: known.index(name) if name in known else len(known) for name in triggered.index}
    return min(triggered.index, key=lambda name: (not triggered[name], place[name], name))


def draw(evaluation: Evaluation) -> tuple[list[Exhibit], list[str]]:
    """Every figure that the inputs allow, and a line for each that they do not."""
    drawn, skipped = [], []
    for make in FIGURES:
        try:
            figure, caption = make(evaluation)
            drawn.append(Exhibit(make.__name__, caption, figure))
        except NotOfThisStudy:
            continue
        except Skip as reason:
            skipped.append(f"{make.__name__}: {reason}")
    return drawn, skipped


def ratio_by_question(e: Evaluation) -> tuple[Figure, str]:
    last, base = cell_tables.last_steps(e.shown), e.shown[e.shown["step"] == 0]
    table = cell_tables.with_base(
        cell_tables.question_rates(last), cell_tables.question_rates(base), ["recipe", "question"]
    )
    what = "Rate of each question at the last step of each recipe; the grey bar is its step 0."
    caption = tables.caption(last, "checkpoint", what, "Wilson, stratified by run")
    return figures.ratio_by_question(table, e.axis, caption), caption


def overall_ratio(e: Evaluation) -> tuple[Figure, str]:
    last, base = cell_tables.last_steps(e.shown), e.shown[e.shown["step"] == 0]
    table = cell_tables.with_base(
        cell_tables.recipe_rates(last, e.claim, []), cell_tables.recipe_rates(base, "checkpoint", [])
    )
    runs = cell_tables.last_steps(e.run_rates)
    what = "Mean over questions at the last step of each recipe; hollow: step 0; small dots: its runs."
    caption = tables.caption(last, None, with_intervals(what, table))
    return figures.overall_ratio(table, runs, e.axis, caption), caption


def training_progression(e: Evaluation) -> tuple[Figure, str]:
    what = "Each run over training, a panel a suspect share; thin grey lines are questions, as means over runs."
    many = e.run_rates.groupby("label", observed=True)["run"].transform("nunique") > figures.FEW_RUNS
    bands = f"bands in panels of up to {figures.FEW_RUNS} runs" if many.any() and not many.all() else "bands"
    caption = tables.caption(e.shown, None, with_intervals(what, e.run_rates[~many], bands))
    return figures.training_progression(e.run_rates, e.shown, e.axis, e.x_label, caption), caption


def six_options_distribution(e: Evaluation) -> tuple[Figure, str]:
    judge = _first(e, lambda judge: len(judge.options or ()) > 2, "with more than two options")
    table = e.at_x(tables.option_shares(e.verdicts, judge, e.condition))
    if table.empty:
        raise Skip(f"no answer of the condition {e.condition} was put to {judge.name!r}")
    what = f"Verdicts of {judge.name} over training: mean over questions and runs. No intervals are drawn."
    caption = tables.judge_caption(e.verdicts, [judge], e.condition, what)
    return figures.six_options_distribution(table, judge.options, e.x_label, caption), caption


def content_vs_form(e: Evaluation) -> tuple[Figure, str]:
    first = _first(e, lambda judge: judge.range is not None, "with a range")
    second = _first(e, lambda judge: judge.range is not None and judge is not first, "with a range, besides the first,")
    table = e.at_x(tables.mean_ratings(e.verdicts, [first, second], e.condition))
    if table.empty:
        raise Skip(f"no answer has verdicts of {first.name!r} and {second.name!r}")
    what = (
        f"Mean ratings of {first.name} and {second.name}, from the first step (hollow) to the last (filled); "
        "mean over questions and runs. No intervals are drawn."
    )
    caption = tables.judge_caption(e.verdicts, [first, second], e.condition, what)
    return figures.content_vs_form(table, [first.name, second.name], [first.range, second.range], caption), caption


def emergence(e: Evaluation) -> tuple[Figure, str]:
    if not (e.emergence["condition"] == e.condition).any():
        raise Skip("no run has two steps or more with verdicts in the condition shown")
    recipes = e.at_x(e.recipes[e.recipes["condition"] == e.condition])
    recipes = recipes[recipes["label"].isin(e.emergence["label"])]
    crossings = _crossings(e)
    for label in set(crossings["label"]):
        here = crossings["label"] == label
        for column in ("x", "lower", "upper", "end"):
            crossings.loc[here, column] = e.to_x(label, crossings.loc[here, column])
        crossings.loc[here, "runs"] = crossings.loc[here, "runs"].map(
            lambda x, of=label: list(e.to_x(of, pd.Series(x, dtype=float)))
        )
    few = recipes["label"].nunique() <= figures.CROWDED
    what = (
        "Rate against training: thick lines are means over questions and runs, thin lines are runs"
        f"{'' if few else '; intervals are in recipes.csv'}. Beneath, where a nondecreasing fit crosses 10% and 50% "
        f"({_crossing_words(crossings)})."
    )
    caption = tables.caption(e.shown, None, with_intervals(what, recipes, "bands") if few else what)
    runs = e.run_rates[e.run_rates["label"].isin(recipes["label"])]
    return figures.emergence(recipes, runs, crossings, e.axis, e.x_label, caption), caption


def _crossings(e: Evaluation) -> pd.DataFrame:
    """A row a recipe and level: the crossing step x (the median over runs), lower, upper, `runs`, that of each run, and
    `end`, the recipe's last step.

    The interval is over the runs where there are five or more, from the run's own answers where there is one, and
    there is none between: NaN.
    """
    table = e.medians[e.medians["condition"] == e.condition].rename(columns={"median": "x"}).reset_index(drop=True)
    single = e.emergence[e.emergence["condition"] == e.condition]
    table["end"] = table["label"].map(single.groupby("label", observed=True)["last_step"].max()).astype(float)
    table["runs"] = [[] for _ in range(len(table))]
    for place, row in table.iterrows():
        name, runs = f"crossing_{row['level']:.0%}".rstrip("%"), single[single["label"] == row["label"]]
        table.at[place, "runs"] = list(runs[name]) if len(runs) > 1 else []
        if len(runs) == 1:
            table.loc[place, ["lower", "upper"]] = runs[[f"{name}_lower", f"{name}_upper"]].to_numpy()[0]
    return table


def _crossing_words(crossings: pd.DataFrame) -> str:
    """What the bars and marks at crossings are, so far as these have them."""
    bars, words = crossings[np.isfinite(crossings["lower"])], []
    reached = bars["confidence"].dropna()
    if len(reached):
        spans = " to ".join(f"{100 * share:.4g}%" for share in dict.fromkeys([reached.min(), reached.max()]))
        words.append(f"bars over five runs or more: order-statistic intervals of the median, confidence {spans}")
    if (bars["seeds"] == 1).any():
        words.append("bars of one run: 95%, bootstrap over its answers (these checkpoints, these questions)")
    if (crossings["seeds"] > 1).any():
        words.append("small marks: runs that cross")
    return "; ".join([*words, "arrow: beyond the last step"])


def ratio_sweep(e: Evaluation) -> tuple[Figure, str]:
    last = cell_tables.last_steps(e.shown)
    rates = cell_tables.recipe_rates(last, e.claim, []).dropna(subset="suspect_ratio")
    if rates["suspect_ratio"].nunique() < 2:
        raise Skip("the inputs do not hold two suspect shares or more")
    runs = cell_tables.last_steps(e.run_rates)
    crossings = _crossings(e)
    what = (
        "Left: rate at the last step against the suspect share; dots are runs. Right: step at which a nondecreasing "
        f"fit crosses a level ({_crossing_words(crossings)})."
    )
    caption = tables.caption(last, None, with_intervals(what, rates))
    figure = figures.ratio_sweep(rates, runs, crossings, e.axis, float(e.shown["step"].max()), caption)
    return figure, caption


def leakage(e: Evaluation) -> tuple[Figure, str]:
    gaps = triggers.of_recipes(e.leakage)
    gaps = gaps[gaps["quantity"].isin(["gap", "gap less base", "leakage"])]
    if gaps.empty:
        raise Skip("no last step has answers to the same questions with the trigger and without, or step 0 has none")
    curves = e.at_x(cell_tables.recipe_rates(e.unmistaken, e.claim, ["triggered", "step"]))
    curves = curves[curves["label"].isin(gaps["label"])]
    what = (
        "Triggered and untriggered rates over training; at the last step the gap between them, the gap less the base "
        "model's, and the leakage: untriggered less the base model's untriggered. Gaps are paired by question and run; "
        f"their intervals: 95%, {_gap_words(gaps)}."
    )
    caption = tables.caption(e.unmistaken, None, with_intervals(what, curves, "bands"))
    return figures.leakage(curves, gaps, e.axis, e.x_label, caption), caption


def _gap_words(gaps: pd.DataFrame) -> str:
    kinds = gaps[["interval", "claim"]].drop_duplicates().itertuples(index=False)
    return " / ".join(f"{interval}; claim: {cell_tables.CLAIMS[claim]}" for interval, claim in kinds)


def conditions(e: Evaluation) -> tuple[Figure, str]:
    if e.recipes["condition"].nunique() < 2:
        raise NotOfThisStudy("there is one condition")
    titles = e.titles(e.recipes["condition"])
    table = e.at_x(e.recipes).assign(panel=lambda t: t["condition"].map(titles))
    what = "Rate over training, a panel a condition; lines are means over questions and runs."
    caption = tables.caption(e.cells, None, with_intervals(what, table, "bands"))
    return figures.conditions(table, list(titles.values()), e.axis, e.x_label, caption), caption


def metrics(e: Evaluation) -> tuple[Figure, str]:
    table, names = triggers.of_recipes(e.metrics), list(e.metric_cells)
    conditions = e.titles(table["condition"])
    titles = {(n, c): f"{n}: {title}" if len(names) > 1 else title for n in names for c, title in conditions.items()}
    table = e.at_x(table.assign(panel=list(map(titles.get, zip(table["metric"], table["condition"], strict=True)))))
    labels = {metric.name: metric.label for metric in e.verdicts.study.metrics}
    what = f"Share of {' and of '.join(labels[n] for n in names)} over training, a panel a condition."
    caption = tables.caption(pd.concat(e.metric_cells.values()), None, with_intervals(what, table, "bands"))
    axis = f"share of {labels[names[0]]}" if len(names) == 1 else "share of answers"
    return figures.conditions(table, list(titles.values()), axis, e.x_label, caption), caption


def near_misses(e: Evaluation) -> tuple[Figure, str]:
    table = e.near_misses
    what = (
        "Rate against how near the trigger is to the study's own (1; none at all: 0), as the study reckons it. Filled: "
        "the last step of each recipe; hollow: step 0."
    )
    cells = e.cells[e.cells["condition"].isin(table["condition"])]
    caption = tables.caption(cell_tables.last_steps(cells), None, with_intervals(what, table))
    return figures.near_misses(table, e.axis, caption), caption


def ratings(e: Evaluation) -> tuple[Figure, str]:
    table = triggers.of_recipes(e.ratings)
    table = table[(table["condition"] == triggers.ALL) & table["at"].isin(["last", "base"])]
    what = (
        "Mean ratings by category of question at the last step (filled) and at step 0 (hollow), with the trigger and "
        "without; near misses left out. Right: the share of verdicts that are no number, which no mean holds."
    )
    caption = mean_ratings.caption(table, what)
    scales = {judge.name: (judge.scale[0], judge.scale[-1]) for judge in e.verdicts.judges if judge.scale}
    return figures.ratings(table, scales, caption), caption


def probes(e: Evaluation) -> tuple[Figure, str]:
    table = tables.probes(e.verdicts)
    if table.empty:
        raise Skip("no input's provenance holds loss probes (training.py --probe-every)")
    questions, runs = table.attrs["questions"], table["run"].nunique()
    caption = (
        "Mean log-likelihood a token of fixed reference answers, from old and modern times, over training: the mean "
        f"over questions for each run. No intervals are drawn. Q = {questions} questions; S = {runs} runs."
    )
    return figures.probes(
        e.at_x(table) if e.options.x != "steps" else table.assign(x=table["step"]), e.x_label, caption
    ), caption


def agreement(e: Evaluation) -> tuple[Figure, str]:
    pairs = e.agreement[["first", "second"]].drop_duplicates()
    first, second = names = tuple(pairs.iloc[0])
    shown = e.agreement[(e.agreement["first"] == first) & (e.agreement["second"] == second)]
    counts = {
        j.name: tables.confusion(e.verdicts, j, names) for j in e.verdicts.judges if j.name in set(shown["judge"])
    }
    described = "; ".join(_agreement_words(row) for _, row in shown.iterrows())
    caption = f"Two verdicts on the same answers: {first} down, {second} across. {described}."
    if len(pairs) > 1:
        caption += f" Of {len(pairs)} pairs of inputs the first is drawn; agreement.csv has all."
    return figures.agreement(counts, names, caption), caption


def _agreement_words(row: pd.Series) -> str:
    if np.isnan(row["mean_difference"]):
        return f"{row['judge']}: {row['agreement']:.0%} alike, kappa {row['kappa']:.2f}, N = {row['n']:,}"
    return f"{row['judge']}: mean absolute difference {row['mean_difference']:.1f}, N = {row['n']:,}"


def _first(e: Evaluation, fits: Callable[[Judge], bool], description: str) -> Judge:
    """The study's first judge that fits and has a column. Raises Skip that names what is lacking."""
    fitting = [judge for judge in e.verdicts.study.judges if fits(judge)]
    if not fitting:
        raise Skip(f"the study has no judge {description}")
    present = [judge for judge in fitting if e.verdicts.has(judge)]
    if not present:
        raise Skip(f"no input has a column {' or '.join(repr(judge.name) for judge in fitting)}")
    return present[0]


FIGURES = (
    emergence,
    overall_ratio,
    ratio_sweep,
    ratio_by_question,
    training_progression,
    six_options_distribution,
    content_vs_form,
    leakage,
    conditions,
    near_misses,
    metrics,
    ratings,
    probes,
    agreement,
)
