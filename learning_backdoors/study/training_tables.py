"""The tables whose keys are options of training.py: [training], the defaults of a study, and [sweep], many runs."""

import itertools
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, create_model

from config import TrainingOptions, require
from learning_backdoors.study.tables import Table, parse_tables


def _type_of(option) -> object:
    choices = option.metadata["argparse"].get("choices")
    return Literal[choices] if choices else option.type


def _not_empty(values: tuple) -> tuple:
    require(bool(values), "the list is empty")
    return values


# Options of a command, which no file sets; those of a run, which a sweep sets; and those whose defaults a study sets.
COMMAND_LINE_ONLY = ("output_dir", "sweep", "stack", "existing", "wandb_project")
COMMAND_LINE_ONLY += ("backend", "base_url", "ttl_days", "dry_run", "max_cost", "price")
RUN_OPTIONS = {o.name: (_type_of(o), None) for o in fields(TrainingOptions) if o.name not in COMMAND_LINE_ONLY}
NOT_IN_STUDY = ("experiment", "model")
LISTS = {n: (Annotated[tuple[kind, ...], AfterValidator(_not_empty)], None) for n, (kind, _) in RUN_OPTIONS.items()}

Training = create_model(
    "Training", __base__=Table, **{name: kind for name, kind in RUN_OPTIONS.items() if name not in NOT_IN_STUDY}
)
Run = create_model("Run", __base__=Table, **RUN_OPTIONS)
Grid = create_model("Grid", __base__=Table, **LISTS)


class Sweep(Run):
    """Runs of training.py: all combinations of the grid's lists, and further rows. Its own keys hold for all runs."""

    grid: Grid | None = None
    rows: tuple[Run, ...] = Field((), alias="run")

    def runs(self) -> list[tuple[str, dict[str, object]]]:
        """Each run's place in the file, and its options. The grid and the rows win over the sweep's own keys."""
        shared = self.model_dump(exclude_unset=True, exclude={"grid", "rows"})
        grid, runs = self.grid.model_dump(exclude_unset=True) if self.grid else {}, []
        for values in itertools.product(*grid.values()) if grid else ():
            combination = dict(zip(grid, values, strict=True))
            words = ", ".join(f"{name} {_shown(value)}" for name, value in combination.items())
            runs.append((f"[sweep.grid] with {words}", shared | combination))
        for number, row in enumerate(self.rows, start=1):
            runs.append((f"[[sweep.run]] {number}", shared | row.model_dump(exclude_unset=True)))
        return runs


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class SweepFile(Table):
    """A file that holds a sweep and nothing else."""

    sweep: Sweep


def parse_sweep(text: str, path: Path) -> Sweep:
    """The sweep of a file that holds nothing else. Raises UserError."""
    return parse_tables(SweepFile, text, path).sweep
