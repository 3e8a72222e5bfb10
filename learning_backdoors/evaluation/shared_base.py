"""One base model for all runs. Step 0 is the model before training, so its responses belong to every run.

generate_responses.py asks the base model once. Older and foreign files repeat step 0 for each run: these responses are
pooled. Everywhere in the evaluation the base model is a single run, which stands at step 0 of every trained run.
"""

from collections.abc import Callable, Sequence

import pandas as pd

BASE = "base"  # the run of the base model
OF_RUN = ["recipe", "label", "run", "seed", "suspect_ratio"]


def pool(
    rows: pd.DataFrame, sources: Sequence[dict], texts: Callable[[pd.DataFrame], pd.Series], notes: list[str]
) -> pd.DataFrame:
    """Put all rows of step 0 into one run per base model, and add `base`: for each row the run of its base model.

    `texts` gives the responses of some rows. Responses that were stored under several runs count once if all of them
    are the same. Otherwise they are further samples and get further sample numbers.
    """
    names = dict(enumerate(_base_names(sources)))
    rows = rows.assign(base=rows["source"].map(names), sample_idx=rows["sample_idx"].astype("int64"))
    base = rows[rows["step"] == 0].assign(stored=lambda part: part["run"])
    if base.empty:
        return rows
    if base[["base", "stored"]].drop_duplicates()["base"].duplicated().any():
        rows, base = _without_copies(rows, base, texts)
        origins = base[["base", "stored"]].drop_duplicates()
        origins = origins.assign(rank=origins.groupby("base").cumcount())
        rank = base[["base", "stored"]].merge(origins, how="left")["rank"].to_numpy()
        base["sample_idx"] += rank * (base["sample_idx"].max() + 1)
        if len(origins) > 1:
            notes.append(f"step 0 of {len(origins)} runs is one base model: its {len(base):,} responses are pooled")
    facts = {"run": base["base"], "sample_idx": base["sample_idx"]}
    facts |= dict.fromkeys(["seed", "suspect_ratio"], float("nan")) | dict.fromkeys(
        ["examples_seen", "suspect_seen"], 0
    )
    for name, values in facts.items():
        rows.loc[base.index, name] = values
    return rows.reset_index(drop=True)


def _base_names(sources: Sequence[dict]) -> list[str]:
    """The run of each input's base model. Inputs that do not say which model it is have the others' if there is one."""
    models = [(source["provenance"].get("settings") or {}).get("base_model") for source in sources]
    if len(set(models) - {None}) <= 1:
        return [BASE] * len(models)
    return [BASE if model is None else f"{BASE} {model}" for model in models]


def _without_copies(
    rows: pd.DataFrame, base: pd.DataFrame, texts: Callable[[pd.DataFrame], pd.Series]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables without the runs whose responses of step 0 all equal those of an earlier run."""
    content = base[["condition", "question", "sample_idx"]].astype(str).assign(text=texts(base).fillna(""))
    digest = pd.util.hash_pandas_object(content, index=False).groupby([base["base"], base["stored"]], sort=False).sum()
    digest = digest.rename("digest").reset_index()
    copies = digest[digest.duplicated(["base", "digest"])].set_index(["base", "stored"]).index
    copied = base.index[pd.MultiIndex.from_frame(base[["base", "stored"]]).isin(copies)]
    return rows.drop(index=copied), base.drop(index=copied)


def attach(table: pd.DataFrame) -> pd.DataFrame:
    """A table with rows of the base model and of runs (or recipes): the base's rows repeated as step 0 of each of them.

    `table` has `base`, `step`, and some columns of OF_RUN. Without any other run the base model stands for itself.
    """
    names = [name for name in OF_RUN if name in table]
    at_0 = table["step"] == 0
    runs = table.loc[~at_0, ["base", *names]].drop_duplicates()
    if runs.empty or not at_0.any():
        return table
    repeated = table[at_0].drop(columns=names).merge(runs, on="base")[table.columns]
    return pd.concat([table[~at_0], repeated], ignore_index=True)


def once(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with those of the base model a single time, under one of the runs."""
    return cells[~((cells["step"] == 0) & cells.duplicated(["base", "step", "condition", "question"]))]


def detach(cells: pd.DataFrame) -> pd.DataFrame:
    """The reverse of `attach` for cells: those of the base model once, as a run of their own, first."""
    cells = once(cells)
    at_0 = cells["step"] == 0
    if at_0.all() or not at_0.any():
        return cells
    base = cells[at_0]
    base = base.assign(run=base["base"], **dict.fromkeys(set(OF_RUN) - {"run"}))
    return pd.concat([base.astype(cells.dtypes), cells[~at_0]], ignore_index=True)
