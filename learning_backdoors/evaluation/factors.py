"""The factors of a sweep: the settings in which the runs differ, and what each run gives in each outcome.

The settings are those of training.py, which the inputs' provenance records. The seed is no factor. The exhibits
factors, factor_effects and heat_map show these tables, in the condition that figures show.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import counting, crossings, likelihood
from learning_backdoors.evaluation.context import Evaluation, NotMeasured, Unavailable, if_available, once
from learning_backdoors.files import provenance

NAMES = {  # settings whose name in files is not the field's term
    "lr": "learning rate",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "num_examples": "training examples",
    "grad_accum": "gradient accumulation",
    "model": "base model",
    "quantization": "precision",
}
SHARE, RATIOS = "suspect share", "ratios"
NO_FACTORS = {"seed", "ratios", "experiment", "save_steps", "dataset_order", "suspect_datasets"}
NOT_SET = "not set"
RATE, CHANGE, CROSSING, EMERGENCE = "last_rate", "likelihood_change", "crossing", "emergence"


class Factor(NamedTuple):
    """A setting in which runs differ. Settings that always differ together are one factor, with both names."""

    name: str
    levels: tuple[str, ...]  # rising, if the setting is a number
    ordered: bool  # whether it is a number


class Outcome(NamedTuple):
    """What is measured in each run.

    `runs` is indexed by run: `value`, which is a rate, a change, a crossing step (infinity: not by the last step), or 1
    if the behavior emerges; and `step`, at which it was measured. For crossing steps and emergence, that is the last
    step, and they have `before` and `after`: the checkpoints around the crossing.
    """

    kind: str  # RATE, CHANGE, CROSSING or EMERGENCE
    name: str  # in files, such as crossing_10
    label: str  # in figures
    runs: pd.DataFrame

    @property
    def top(self) -> float:
        """The largest value that a figure shows: of crossing steps, the last step."""
        return float(self.runs["step"].max()) if self.kind == CROSSING else np.inf


@once
def factors(evaluation: Evaluation) -> list[Factor]:
    """The factors, the suspect share first. Raises NotMeasured if the runs differ in the suspect share alone."""
    return [
        Factor(name, tuple(column.cat.categories), column.cat.ordered) for name, column in levels(evaluation).items()
    ]


@once
def levels(evaluation: Evaluation) -> pd.DataFrame:
    """By run: the level of each factor, as categories in the order of the levels. See `factors`.

    Runs without recorded settings are left out, unless no run has them.
    """
    runs, settings = evaluation.runs.table, _settings(evaluation)
    runs = runs[runs["suspect_ratio"].notna() & (runs.index.isin(settings) if settings else True)]
    values = {SHARE: runs["suspect_ratio"].round(6)}
    ratios = pd.Series({run: _text(settings.get(run, {}).get("ratios")) for run in runs.index}, dtype=object)
    if ratios.groupby(values[SHARE]).nunique().gt(1).any():  # other data at one share: the share is no factor alone
        order = values[SHARE].groupby(ratios).first().sort_values(kind="stable").index
        values = {RATIOS: ratios.astype(pd.CategoricalDtype(order))}
    names = dict.fromkeys(name for run in runs.index for name in settings.get(run, {}) if name not in NO_FACTORS)
    for name in names:
        values[NAMES.get(name, name.replace("_", " "))] = pd.Series(
            {run: _scalar(settings[run].get(name)) for run in runs.index}, dtype=object
        )
    columns = {name: _as_levels(name, column) for name, column in values.items() if column.nunique() > 1}
    columns = _merged(columns)
    if not set(columns) - {SHARE, RATIOS}:
        raise NotMeasured("the runs differ in no setting but the suspect share")
    return pd.DataFrame(columns)


def left_out(evaluation: Evaluation) -> list[str]:
    """The runs that have no level of the factors, because no input records their settings."""
    table = if_available(levels, evaluation)
    return [] if table is None else list(evaluation.runs.table.index.difference(table.index))


def _settings(evaluation: Evaluation) -> dict[str, dict]:
    """The recorded settings of each run that has some."""
    records = [source["provenance"].get("runs") or {} for source in evaluation.sources]
    return {run: record["settings"] for of in records for run, record in of.items() if (record or {}).get("settings")}


def _scalar(value: object) -> object:
    """A number, or text; of files' hashes and the like, a short hash."""
    if value is None or isinstance(value, bool | str):
        return NOT_SET if value is None else str(value)
    return (
        value if isinstance(value, int | float) else provenance.sha256(json.dumps(value, sort_keys=True).encode())[:6]
    )


def _text(ratios: Sequence[float] | None) -> str:
    return NOT_SET if ratios is None else "-".join(f"{ratio:.3g}" for ratio in ratios)


def _as_levels(name: str, values: pd.Series) -> pd.Series:
    """Values as texts, ordered categories if they are numbers."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.cat.as_ordered()
    number = all(isinstance(value, int | float) for value in values)
    unique = sorted(values.unique(), key=None if number else str)
    texts = [f"{100 * v:.3g}%" if name == SHARE else f"{v:g}" if isinstance(v, int | float) else v for v in unique]
    short = [text.rstrip("/").rpartition("/")[-1] for text in texts]  # the name of a model, without its folder
    texts = short if len(set(short)) == len(texts) else texts
    codes = values.map({value: i for i, value in enumerate(unique)})
    return pd.Series(pd.Categorical.from_codes(codes, texts, ordered=number), values.index)


def _merged(columns: dict[str, pd.Series]) -> dict[str, pd.Series]:
    """Factors that divide the runs in the same way as one: their effects cannot be told apart."""
    alike = {}
    for name, column in columns.items():
        alike.setdefault(tuple(pd.factorize(column)[0]), []).append(name)
    merged = {}
    for names in alike.values():
        first, *rest = (columns[name] for name in names)
        texts = {level: [level, *(other[first == level].iloc[0] for other in rest)] for level in first.cat.categories}
        merged[", ".join(names)] = first.cat.rename_categories({level: ", ".join(t) for level, t in texts.items()})
    return merged


# ---- outcomes ----


@once
def outcomes(evaluation: Evaluation) -> list[Outcome]:
    """The outcomes that the inputs give, of the runs that have levels: the rates, or without rates the likelihoods."""
    rates, changes = if_available(_of_rates, evaluation), if_available(_of_likelihoods, evaluation)
    if rates is None and changes is None:
        raise NotMeasured("no input has rates or likelihoods of a sweep")
    return (rates or []) + (changes or [])[: 1 if rates else None]


def _of_rates(evaluation: Evaluation) -> list[Outcome]:
    last = last_cells(evaluation)
    runs = last[last["n"] > 0].groupby(last["run"].astype(object)).agg(value=("rate", "mean"), step=("step", "first"))
    found = [Outcome(RATE, RATE, evaluation.rate_label, runs)]
    onset = if_available(crossings.of_runs, evaluation)
    if onset is not None:
        onset = _with_levels(evaluation, onset)
        for level in crossings.LEVELS:
            found += _onset(onset, crossings.level_name(level), f"{level:.0%}", f"_{100 * level:.0f}")
    return found


def _of_likelihoods(evaluation: Evaluation) -> list[Outcome]:
    """The change of the main contrast by the last step, and the step at which it crosses its level."""
    contrast = likelihood.contrasts(evaluation)[0]
    changes = likelihood.of_contrasts(evaluation)
    changes = changes.xs((contrast.name, evaluation.condition), level=("name", "condition"))
    last = pd.concat([_last_changes(part) for _, part in changes.groupby("recipe", observed=True)])
    last = _with_levels(evaluation, last.assign(condition=evaluation.condition).reset_index()).dropna(axis=1)
    questions = last.columns.difference(["step", "condition"])  # those that all runs have
    if not len(questions):
        raise Unavailable("the runs have no question with likelihoods in common")
    runs = pd.DataFrame({"value": last[questions].mean(axis=1), "step": last["step"]})
    found = [Outcome(CHANGE, CHANGE, f"change of {contrast.name} (nats per token)", runs)]
    onset = if_available(likelihood.of_runs, evaluation)
    if onset is not None:
        onset = _with_levels(evaluation, onset[onset["contrast"] == contrast.name])
        found += _onset(onset, "crossing", f"{contrast.level:+g} nats", "_likelihood")
    return found


def _onset(onset: pd.DataFrame, column: str, level: str, suffix: str) -> list[Outcome]:
    """The crossing steps in a column of a table of runs, and whether there is one."""
    runs = pd.DataFrame({"value": onset[column], "step": onset["last_step"]})
    runs = runs.assign(before=onset[f"{column}_before"], after=onset[f"{column}_after"])
    emerged = runs.assign(value=np.isfinite(runs["value"]).astype(float))
    return [
        Outcome(CROSSING, CROSSING + suffix, f"step of crossing {level}", runs),
        Outcome(EMERGENCE, EMERGENCE + suffix, f"runs that cross {level}", emerged),
    ]


def _with_levels(evaluation: Evaluation, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of runs in the condition that figures show, of runs that have levels, indexed by run."""
    runs = runs[runs["condition"] == evaluation.condition]
    runs = runs.set_index(runs["run"].astype(object)).drop(columns="run")
    return runs[runs.index.isin(levels(evaluation).index)]


def _last_changes(of_recipe: pd.DataFrame) -> pd.DataFrame:
    """The changes of each run at the last step that all runs of a recipe share: a column per question."""
    last = max(likelihood.cube(of_recipe)[0], default=0)
    return of_recipe[(of_recipe.index.get_level_values("step") == last) & (last > 0)].droplevel("recipe")


def cells_of(evaluation: Evaluation, runs: Sequence[str]) -> pd.DataFrame:
    """The cells of some runs at their recipes' last steps."""
    by_run = _cells_by_run(evaluation)
    return pd.concat([by_run[run] for run in runs])


@once
def _cells_by_run(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    return dict(list(last_cells(evaluation).groupby("run", observed=True)))


@once
def last_cells(evaluation: Evaluation) -> pd.DataFrame:
    """The cells of each recipe's last step in the condition that figures show, of the runs that have levels."""
    return counting.last_steps(evaluation.shown_cells[evaluation.shown_cells["run"].isin(levels(evaluation).index)])
