"""The exhibits of an evaluation: one module each, with its name in NAMES, which is in display order.

An exhibit module defines some of these functions of an `Evaluation`:

    table(evaluation) -> DataFrame                 NAME.csv, a table of analysis.json and of the report
    figure(evaluation) -> Figure                   NAME.pdf (or png, svg), and in the report
    title(evaluation) -> str                       required with `figure`: what is seen, and in which condition
    caption(evaluation) -> str                     required with `figure`: the marks, in at most 25 words; what figures
                                                   have in common is in `captions.common`
    brief(evaluation) -> (heading, DataFrame)      a small table of text, printed and at the top of the report

NAME is the module's name. Each function raises `context.Unavailable(reason)` if these inputs do not allow it,
`context.NotMeasured` if no input is of the kind it shows, or `context.NotInStudy` if the study does not define it.
"""

import importlib
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from learning_backdoors.evaluation import drawing
from learning_backdoors.evaluation.context import Evaluation, NotInStudy, NotMeasured, Unavailable

NAMES = (
    "summary",
    "recipes",
    "emergence",
    "emergence_by_recipe",
    "survival",
    "crossing_comparisons",
    "overall_ratio",
    "ratio_sweep",
    "factors",
    "factor_effects",
    "heat_map",
    "ratio_by_question",
    "training_progression",
    "six_options_distribution",
    "content_vs_form",
    "other_judges",
    "comparisons",
    "conditions",
    "leakage",
    "goals",
    "near_misses",
    "metrics",
    "ratings",
    "likelihood",
    "likelihood_comparisons",
    "likelihood_onset",
    "likelihood_and_rate",
    "events",
    "events_by_recipe",
    "event_leads",
    "weights",
    "weights_by_layer",
    "weights_path",
    "weights_cosines",
    "losses",
    "examples",
    "examples_order",
    "influence",
    "agreement",
)
PARTS = ("table", "figure", "title", "caption", "brief")
EXHIBITS = tuple(importlib.import_module(f"{__name__}.{name}") for name in NAMES)


@dataclass
class Exhibits:
    """All that the inputs allow, by exhibit name, in display order."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    briefs: dict[str, tuple[str, pd.DataFrame]] = field(default_factory=dict)  # heading and table
    skipped: dict[str, list[str]] = field(default_factory=dict)  # by reason: the exhibits it prevents


def make(evaluation: Evaluation, exhibits=EXHIBITS) -> Exhibits:
    """Make all parts of all exhibits."""
    made = Exhibits()
    for exhibit in exhibits:
        name = exhibit.__name__.rpartition(".")[-1]
        for part in (part for part in PARTS if hasattr(exhibit, part)):
            if part in ("title", "caption") and name not in made.figures:
                continue
            try:
                with drawing.style():
                    getattr(made, f"{part}s")[name] = getattr(exhibit, part)(evaluation)
            except (NotInStudy, NotMeasured):
                continue
            except Unavailable as reason:
                skipped = f"{name} (figure)" if name in made.tables else name
                if part in ("table", "figure") and skipped not in made.skipped.setdefault(str(reason), []):
                    made.skipped[str(reason)].append(skipped)
    return made
