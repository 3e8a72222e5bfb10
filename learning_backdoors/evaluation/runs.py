"""The runs that all inputs describe together: recipes, labels, and how many examples each checkpoint has seen.

Runs are identified by name. A run that several inputs describe is one run, and their descriptions must agree.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError

OF_RUN, OF_CHECKPOINT = ["seed", "suspect_ratio"], ["examples_seen", "suspect_seen"]
COLUMNS = ["run", "step", *OF_RUN, *OF_CHECKPOINT]


@dataclass
class Runs:
    """`table`: by run, recipe and label (ordered categories, falling suspect share), seed and suspect_ratio.

    `table` also has `diverged`: the step at which the training of a run diverged, else null.
    `checkpoints`: by run and step, examples_seen and suspect_seen. Each value is null if no input says it. The base
    model is step 0 of every run. It is a run of its own only if nothing else was judged.
    """

    table: pd.DataFrame
    checkpoints: pd.DataFrame

    def describe(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Add recipe and label to rows with the column `run`. They are null for the base model."""
        names, of_rows = self.table[["recipe", "label"]], rows["run"].astype(object)
        values = {name: of_rows.map(column.astype(object)) for name, column in names.items()}
        return rows.assign(**{name: values[name].astype(names[name].dtype) for name in values})

    def join(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows with the columns `run` and `step` in the order of `table`, with its columns. Other runs are left out."""
        rows = rows.merge(self.table.reset_index(), on="run")
        return rows.sort_values(["recipe", "seed", "run", "step"], ignore_index=True, kind="stable")


def collect(
    inputs: Sequence[tuple[str, pd.DataFrame]], alone: Collection[str] = (), diverged: Mapping[str, int] | None = None
) -> Runs:
    """The runs of all inputs. An input is its path, and rows with COLUMNS; several rows may have one checkpoint.

    alone: base models that stand for themselves although there are runs. diverged: by run, the step at which its
    training diverged. Raises UserError if two inputs describe a run differently.
    """
    rows = pd.concat([part[COLUMNS].drop_duplicates().assign(input=path) for path, part in inputs], ignore_index=True)
    rows = rows.astype(dict.fromkeys([*OF_RUN, *OF_CHECKPOINT], float))
    trained = rows["step"] > 0
    rows = rows[trained | rows["run"].isin(alone)] if trained.any() else rows
    _refuse_conflicts(rows, OF_RUN, ["run"])
    _refuse_conflicts(rows, OF_CHECKPOINT, ["run", "step"])
    table = rows.groupby("run", observed=True, sort=False)[OF_RUN].first()
    checkpoints = rows.groupby(["run", "step"], observed=True)[OF_CHECKPOINT].first()
    before = pd.MultiIndex.from_product([table.index, [0]], names=["run", "step"]).difference(checkpoints.index)
    checkpoints = pd.concat([checkpoints, pd.DataFrame(0.0, before, OF_CHECKPOINT)]).sort_index()
    table["diverged"] = table.index.map(diverged or {}).astype(float)
    return Runs(_with_recipes(table), checkpoints)


def _refuse_conflicts(rows: pd.DataFrame, columns: Sequence[str], keys: Sequence[str]) -> None:
    if rows["input"].nunique() < 2:
        return
    values = rows.groupby([*keys, "input"], observed=True)[columns].first()
    for name in columns:
        different = values[name].groupby(list(keys), observed=True, sort=False).nunique() > 1
        if different.any():
            key = different.idxmax()
            run, *step = key if isinstance(key, tuple) else (key,)
            first, second, *_ = values[name].loc[key].dropna().drop_duplicates().items()
            at = f" at step {step[0]}" if step else ""
            both = f"{first[1]:g} in {first[0]}, but {second[1]:g} in {second[0]}"
            raise UserError(f"{run}: {name}{at} is {both}. Runs with one name must be one run: use one input at a time")


def refuse_other_settings(inputs: Sequence[tuple[str, dict]]) -> None:
    """Raise UserError if two inputs (path and provenance) record different training settings of one run."""
    settings = {}
    for path, made_by in inputs:
        for run, record in (made_by.get("runs") or {}).items():
            if own := (record or {}).get("settings"):
                first, known = settings.setdefault(run, (path, own))
                if words := provenance.differences(known, own):
                    raise UserError(f"{run} is not the same run in {first} and in {path}: {words}")


def _with_recipes(table: pd.DataFrame) -> pd.DataFrame:
    """Add `recipe`, the run's name without its seed, and `label`, a short name for figures."""
    seed = re.compile(r"[-_ ]?seed[-_ ]?\d+", re.IGNORECASE)
    recipes = pd.Series({run: seed.sub("", run).strip("-_ ") or "all seeds" for run in table.index}, dtype=object)
    share = table.groupby(recipes, sort=False)["suspect_ratio"].first()
    share = share.sort_values(ascending=False, na_position="last", kind="stable")
    order, labels = list(share.index), _labels(share)
    return table.assign(
        recipe=pd.Categorical(recipes, order, ordered=True),
        label=pd.Categorical(recipes.map(labels), [labels[name] for name in order], ordered=True),
    )


def _labels(share: pd.Series) -> dict[str, str]:
    """A label for each recipe: its suspect share, with the distinct parts of its name if others have the same share."""
    percent = {name: None if np.isnan(value) else f"{100 * value:.3g}%" for name, value in share.items()}
    parts = {name: name.split("_") for name in percent}
    labels = {}
    for name, text in percent.items():
        alike = [set(parts[other]) for other in percent if percent[other] == text]
        common = set.intersection(*alike)
        distinct = " ".join(part for part in parts[name] if part not in common) or name
        labels[name] = text if text and len(alike) == 1 else f"{text}, {distinct}" if text else distinct
    return labels
