"""The figures of an evaluation with their captions, drawn from its verdicts as far as the judges' columns allow."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

import figures
import tables
from config import Judge
from verdicts import Verdicts


class Skip(Exception):
    """Why a figure cannot be drawn from these inputs."""


@dataclass(frozen=True)
class Exhibit:
    name: str  # of the file, without suffix
    caption: str
    figure: Figure


class Evaluation:
    """Verdicts and the tables made of them: each made once, when a figure, a file or the report first asks for it."""

    def __init__(self, verdicts: Verdicts):
        self.verdicts = verdicts
        present = set(verdicts.rows["condition"])
        named = [c.name for c in sorted(verdicts.study.conditions, key=lambda c: not c.triggered) if c.name in present]
        # The figures that are not about conditions show one: the first that is triggered, else the first.
        self.condition = named[0] if named else min(present)

    @cached_property
    def cells(self) -> pd.DataFrame:
        if not self.verdicts.has(self.verdicts.outcome):
            raise Skip(f"no input has the column {self.verdicts.outcome.name!r}, the judge of the study's [outcome]")
        cells = tables.cells(self.verdicts)
        if cells["n"].sum() == 0:
            raise Skip(f"all {cells['missing'].sum():,} verdicts of {self.verdicts.outcome.name!r} are missing")
        return cells

    @cached_property
    def claim(self) -> str:
        return tables.choose_claim(self.cells)

    @cached_property
    def summary(self) -> pd.DataFrame:
        return tables.summary(self.cells, self.claim)

    @cached_property
    def recipes(self) -> pd.DataFrame:
        return tables.recipe_rates(self.cells, self.claim, ["step", "condition"])

    @property
    def shown(self) -> pd.DataFrame:
        """The cells of the condition that the figures show."""
        return self.cells[self.cells["condition"] == self.condition]

    @property
    def run_rates(self) -> pd.DataFrame:
        """The rows `all` of the summary, in the condition that the figures show."""
        return self.summary[(self.summary["question"] == "all") & (self.summary["condition"] == self.condition)]

    @property
    def axis(self) -> str:
        return f"share of {self.verdicts.study.outcome.label}"


def draw(evaluation: Evaluation) -> tuple[list[Exhibit], list[str]]:
    """Every figure that the inputs allow, and a line for each that they do not."""
    drawn, skipped = [], []
    for make in FIGURES:
        try:
            figure, caption = make(evaluation)
            drawn.append(Exhibit(make.__name__, caption, figure))
        except Skip as reason:
            skipped.append(f"{make.__name__}: {reason}")
    return drawn, skipped


def ratio_by_question(e: Evaluation) -> tuple[Figure, str]:
    last, base = tables.last_steps(e.shown), e.shown[e.shown["step"] == 0]
    table = tables.with_base(tables.question_rates(last), tables.question_rates(base), ["recipe", "question"])
    what = "Rate of each question at the last step of each recipe; the grey bar is its step 0."
    caption = tables.caption(last, "checkpoint", what)
    return figures.ratio_by_question(table, e.axis, caption), caption


def overall_ratio(e: Evaluation) -> tuple[Figure, str]:
    last, base = tables.last_steps(e.shown), e.shown[e.shown["step"] == 0]
    table = tables.with_base(tables.recipe_rates(last, e.claim, []), tables.recipe_rates(base, "checkpoint", []))
    runs = e.run_rates[e.run_rates["step"] == e.run_rates.groupby("run", observed=True)["step"].transform("max")]
    what = "Mean over questions at the last step of each recipe; hollow: step 0; small dots: its runs."
    caption = tables.caption(last, e.claim, what)
    return figures.overall_ratio(table, runs, e.axis, caption), caption


def training_progression(e: Evaluation) -> tuple[Figure, str]:
    what = "Each run over training, a panel a suspect share; thin grey lines are questions."
    caption = tables.caption(e.shown, e.run_rates["claim"].iloc[0], what)
    runs, cells = (table.assign(x=table["step"]) for table in (e.run_rates, e.shown))
    return figures.training_progression(runs, cells, e.axis, "training step", caption), caption


def six_options_distribution(e: Evaluation) -> tuple[Figure, str]:
    judge = _first(e, lambda judge: len(judge.options or ()) > 2, "with more than two options")
    table = tables.option_shares(e.verdicts, judge, e.condition).assign(x=lambda t: t["step"])
    what = f"Verdicts of {judge.name} over training: mean over questions and runs. No intervals are drawn."
    caption = tables.judge_caption(e.verdicts, [judge], e.condition, what)
    return figures.six_options_distribution(table, judge.options, "training step", caption), caption


def content_vs_form(e: Evaluation) -> tuple[Figure, str]:
    first = _first(e, lambda judge: judge.range is not None, "with a range")
    second = _first(e, lambda judge: judge.range is not None and judge is not first, "with a range, besides the first,")
    table = tables.mean_ratings(e.verdicts, [first, second], e.condition).assign(x=lambda t: t["step"])
    if table.empty:
        raise Skip(f"no answer has verdicts of {first.name!r} and {second.name!r}")
    what = (
        f"Mean ratings of {first.name} and {second.name}, from step 0 (hollow) to the last step (filled); "
        "mean over questions and runs. No intervals are drawn."
    )
    caption = tables.judge_caption(e.verdicts, [first, second], e.condition, what)
    return figures.content_vs_form(table, [first.name, second.name], [first.range, second.range], caption), caption


def _first(e: Evaluation, fits: Callable[[Judge], bool], description: str) -> Judge:
    """The study's first judge that fits and has a column. Raises Skip that names what is lacking."""
    fitting = [judge for judge in e.verdicts.study.judges if fits(judge)]
    if not fitting:
        raise Skip(f"the study has no judge {description}")
    present = [judge for judge in fitting if e.verdicts.has(judge)]
    if not present:
        raise Skip(f"no input has a column {' or '.join(repr(judge.name) for judge in fitting)}")
    return present[0]


FIGURES = (ratio_by_question, overall_ratio, six_options_distribution, content_vs_form, training_progression)
