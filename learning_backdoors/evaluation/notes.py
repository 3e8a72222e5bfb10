"""Notes for a reader of the numbers: what was left out, what is missing, and what the figures may hide."""

import pandas as pd

from learning_backdoors.evaluation import captions, counting, crossings, drawing, factors, shared_base
from learning_backdoors.evaluation.context import Evaluation, if_available
from learning_backdoors.evaluation.exhibits import recipes


def notes(evaluation: Evaluation) -> list[str]:
    """The notes on reading the inputs, then those on the results. One line each."""
    reading = evaluation.verdicts.notes if evaluation.has_verdicts else ["no input has judged responses: no rates"]
    lines = [
        *reading,
        *_runs(evaluation),
        *_precision(evaluation),
        *_without_values(evaluation),
        *_measured_models(evaluation),
    ]
    cells = if_available(lambda e: e.cells, evaluation)
    if cells is not None:
        lines += [*_lost_verdicts(cells), *_early_ends(cells)]
    onset = if_available(crossings.of_runs, evaluation)
    if onset is not None:
        incomplete = onset[(onset["steps_left_out"] > 0) | (onset["questions_left_out"] > 0)]
        if len(incomplete):
            runs = ", ".join([*incomplete["run"].unique()[:3], *captions.more(incomplete["run"].nunique() - 3, "run")])
            lines.append(f"emergence.csv leaves out steps or questions, because verdicts are missing: {runs}")
    rates = if_available(recipes.table, evaluation)
    if rates is not None and evaluation.claim in counting.BASE_CLAIMS:
        single = rates.loc[(rates["seeds"] == 1) & (rates["step"] > 0), "label"].astype(str).unique()
        if len(single):
            lines.append(f"no interval for {', '.join(single)}, because the claim {evaluation.claim} needs two runs")
    if onset is not None and onset["falls_again"].any():
        falls = describe_falls(onset[onset["falls_again"]])
        lines.append(f"the rate falls after its peak, and crossing steps do not show it: {falls}")
    lines += captions.left_out(evaluation)
    questions = evaluation.verdicts.rows["question"].cat.categories if evaluation.has_verdicts else ()
    glyphs = drawing.missing_glyphs([*questions, *evaluation.recipe_labels, *evaluation.conditions.index])
    if glyphs:
        lines.append(f"the figures' font has no glyph for {glyphs[:20]}: PDF and PNG figures show boxes instead")
    return lines


def _runs(evaluation: Evaluation) -> list[str]:
    """The runs whose training diverged, and the recipes that have no other run; and the runs without settings."""
    table, lines = evaluation.runs.table, []
    diverged = table[table["diverged"].notna()]
    if len(diverged):
        names = [f"{run} (step {step:.0f})" for run, step in diverged["diverged"].head(3).items()]
        text = f"{len(diverged)} of {len(table)} runs diverged in training and are left out: "
        lines.append(text + ", ".join([*names, *captions.more(len(diverged) - 3, "run")]))
    lost = table.loc[table["recipe"].isin(_all_diverged(table)), "label"].astype(str).unique()
    if len(lost):
        names = ", ".join([*lost[:3], *captions.more(len(lost) - 3, "recipe")])
        lines.append(f"all runs of these recipes diverged: {names}")
    if unknown := factors.left_out(evaluation):
        names = ", ".join([*unknown[:3], *captions.more(len(unknown) - 3, "run")])
        lines.append(f"the exhibits about factors leave out runs without recorded settings: {names}")
    return lines


def _all_diverged(table: pd.DataFrame) -> pd.Index:
    """The recipes of which all runs diverged."""
    all_of = table.groupby("recipe", observed=True)["diverged"].apply(lambda steps: steps.notna().all())
    return all_of.index[all_of]


def precisions(evaluation: Evaluation) -> dict[str, dict]:
    """By input: the precision of the base model's weights in generation, and in training by run, if recorded."""
    inputs = {source["path"]: source["provenance"].get("precision") for source in evaluation.sources}
    return {path: precision for path, precision in inputs.items() if precision}


def _precision(evaluation: Evaluation) -> list[str]:
    lines = []
    for path, precision in precisions(evaluation).items():
        generation, training = precision.get("generation"), precision.get("training") or {}
        others = sorted({trained for trained in training.values() if trained and trained != generation})
        if generation and others:
            runs = sum(trained in others for trained in training.values())
            lines.append(
                f"{path}: responses were generated with base model precision {generation}, but {runs} of "
                f"{len(training)} runs were trained with {', '.join(others)}"
            )
    return lines


def _without_values(evaluation: Evaluation) -> list[str]:
    """The checkpoints that are left out of measured files, because their adapters give no finite values."""
    lines = []
    for source in evaluation.sources:
        if names := source["without_values"]:
            text = f"{source['path']}: {len(names)} checkpoints have no finite values and are left out: "
            lines.append(text + ", ".join([*names[:3], *captions.more(len(names) - 3, "checkpoint")]))
    return lines


def _measured_models(evaluation: Evaluation) -> list[str]:
    """The base model and its precision in each file of likelihoods or losses, if files differ."""
    lines = []
    for kind in ("likelihood", "examples"):
        models = {}
        for source in (source for source in evaluation.sources if source["kind"] == kind):
            settings = source["provenance"].get("settings") or {}
            models[source["path"]] = f"{settings.get('base_model')} (quantization {settings.get('quantization')})"
        if len(set(models.values())) > 1:
            texts = ", ".join(f"{path}: {model}" for path, model in models.items())
            lines.append(f"these files were measured with different base models: {texts}")
    return lines


def _lost_verdicts(cells: pd.DataFrame) -> list[str]:
    """Missing verdicts above 2%, and the steps that means over runs leave out."""
    cells = shared_base.detach(cells)
    missing, total = cells["missing"].sum(), (cells["n"] + cells["missing"]).sum()
    lines = [captions.missing(missing, total)] if missing > counting.MISSING_FLAG * total else []
    uneven = cells[~cells.index.isin(counting.shared_steps(cells).index)]
    for label, steps in uneven.groupby("label", observed=True)["step"].unique().items():
        steps = ", ".join(map(str, sorted(steps)))
        lines.append(f"{label}: means over runs leave out step {steps}, because not all runs have verdicts there")
    return lines


def _early_ends(cells: pd.DataFrame) -> list[str]:
    """The recipes whose runs end at different steps: where they are compared, and which runs are left out."""
    lines, judged = [], cells[cells["n"] > 0]
    for label, part in judged.groupby("label", observed=True):
        ends, step = part.groupby("run", observed=True)["step"].max(), counting.last_step(part)
        if ends.nunique() == 1:
            continue
        left_out = set(ends.index) - set(part.loc[part["step"] == step, "run"])
        early = ends[(ends < ends.max()) & ~ends.index.isin(left_out)]
        texts = [f"{run} ends at step {end}" for run, end in early.items()]
        texts += [f"{run} has no verdicts there and is left out" for run in sorted(left_out)]
        lines.append(f"{label}: the last step is taken as {step}, because {'; '.join(texts)}")
    return lines


def describe_falls(falls: pd.DataFrame, shown: int = 3) -> str:
    """Falls after a peak, the deepest first. Those beyond `shown` are counted."""
    falls = falls.sort_values("fall", ascending=False, kind="stable")
    texts = [
        f"{row.run} in {row.condition} by {100 * row.fall:.0f} points after step {row.peak_step}"
        for row in falls.head(shown).itertuples()
    ]
    return ", ".join(texts + captions.more(len(falls) - shown, "fall"))
