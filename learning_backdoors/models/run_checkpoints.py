"""The checkpoints of several runs, with the base model once: what sampling and measuring work through."""

from collections.abc import Sequence

from learning_backdoors.files.errors import UserError
from learning_backdoors.models.checkpoints import Checkpoint, content_hash
from learning_backdoors.models.run_directory import RunDirectory

# The base model is the checkpoint of step 0 of every run. It is used once, and its rows belong to the run "base".
BASE_RUN, BASE = "base", Checkpoint(0, "checkpoint-0", None)

RunCheckpoint = tuple[RunDirectory | None, Checkpoint]  # a checkpoint and its run; None for the base model


def distinct_checkpoints(runs: Sequence[RunDirectory]) -> list[RunCheckpoint]:
    """The base model, if a run has step 0, and all further checkpoints with their runs.

    Raises UserError if a run has the name under which the base model's rows are stored.
    """
    if taken := [run for run in runs if run.name == BASE_RUN]:
        raise UserError(f"{taken[0].folder}: rename this folder. In the output, the base model has this name")
    pairs = [(run, checkpoint) for run in runs for checkpoint in run.checkpoints]
    trained = [pair for pair in pairs if pair[1].name != BASE.name]
    return trained if len(trained) == len(pairs) else [(None, BASE), *trained]


def run_name(run: RunDirectory | None) -> str:
    return run.name if run else BASE_RUN


def checkpoint_columns(run: RunDirectory | None, checkpoint: Checkpoint) -> dict[str, object]:
    """The values of the columns `parquet.CHECKPOINT_FIELDS`."""
    record = run.record if run else {}
    seen = run.seen if run else {0: {"examples": 0, "suspect_examples": 0}}
    examples = seen.get(checkpoint.step, {})
    return {
        "run": run_name(run),
        "checkpoint": checkpoint.name,
        "step": checkpoint.step,
        "seed": record.get("settings", {}).get("seed"),
        "suspect_ratio": record.get("suspect_ratio"),
        "examples_seen": examples.get("examples"),
        "suspect_seen": examples.get("suspect_examples"),
    }


def adapter_hashes(runs: Sequence[RunDirectory]) -> dict[str, str]:
    """`content_hash` of each adapter, by run and checkpoint. A file of rows records them as the setting `adapters`."""
    return {
        f"{run.name}/{checkpoint.name}": content_hash(checkpoint.folder)
        for run, checkpoint in distinct_checkpoints(runs)
        if run
    }
