"""The checkpoints of a run directory."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from learning_backdoors.files import atomic
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.parquet import step_of
from learning_backdoors.models.adapters import check_adapter

# Files in the newest checkpoint of an unfinished run only: what exact resuming needs.
RESUME_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


@dataclass(frozen=True)
class Checkpoint:
    """A state of a run. `folder` holds its adapter; None stands for the base model."""

    step: int
    name: str
    folder: Path | None


def find_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The checkpoints of a run by step, with the base model as step 0. Raises UserError if there are none."""
    if not run_dir.is_dir():
        raise UserError(f"no run directory {run_dir}")
    folders = [f for f in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", f.name)]
    by_step = {step: folder for folder in folders if (step := step_of(folder.name)) is not None}
    if not by_step:
        raise UserError(f"{run_dir} holds no checkpoints")
    for folder in by_step.values():
        check_adapter(folder)
    base = {} if 0 in by_step else {0: None}
    return [Checkpoint(step, f"checkpoint-{step}", folder) for step, folder in sorted((base | by_step).items())]


def can_resume(checkpoint: Path | None) -> bool:
    """Whether a checkpoint holds everything that exact resuming needs."""
    return checkpoint is not None and all((checkpoint / name).is_file() for name in RESUME_FILES)


def drop_resume_files(checkpoint: Path | None) -> None:
    """Leave only the adapter in a checkpoint."""
    for file in checkpoint.iterdir() if checkpoint else ():
        if file.name in RESUME_FILES or file.name.startswith("rng_state"):
            file.unlink()


def begin_checkpoint(run_dir: Path, step: int, main: bool = True) -> Path:
    """The folder that `end_checkpoint` will rename. Of several processes, only the main one creates it."""
    temporary = run_dir / f".checkpoint-{step}.tmp"
    if main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    return temporary


def end_checkpoint(temporary: Path, run_dir: Path, step: int) -> None:
    """Flush a filled folder to disk and give it its final name: a checkpoint is complete or absent."""
    folder = run_dir / f"checkpoint-{step}"
    atomic.sync_files(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    atomic.sync_folder(run_dir)
