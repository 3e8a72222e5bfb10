"""A sweep: the runs of a [sweep] table, which of them are to be trained, and which can be trained together."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from config import TrainingOptions, require
from learning_backdoors.files import command_line
from learning_backdoors.files.atomic import lock
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model
from learning_backdoors.study import load_study, load_sweep
from learning_backdoors.training.data import TrainingData
from learning_backdoors.training.run import TrainingRun

# ---- the runs of a sweep ----


def sweep_runs(given: dict) -> list[TrainingRun]:
    """The runs of the sweep file given["sweep"], the longest of each group first.

    given: options on the command line, which hold for all runs. Raises UserError with the file and the place in it.
    """
    path, study_of = given["sweep"], functools.cache(load_study)
    data_of = functools.cache(lambda experiment: TrainingData(study_of(experiment)))
    rows = load_sweep(path).runs()
    if on_both_sides := sorted(given.keys() & set().union(*(row for _, row in rows))):
        raise UserError(f"{path}: {on_both_sides[0]} is also on the command line: give it in one place")
    runs, places = [], {}  # places: by run directory
    for place, row in rows:
        try:
            options = _options(row, given, study_of)
            run = TrainingRun(options, study_of(options.experiment), data_of(options.experiment))
        except (ValueError, UserError) as error:
            raise UserError(f"{path}: {place}: {error}") from None
        if run.folder in places:
            raise UserError(f"{path}: two runs are {run.folder.name}: {places[run.folder]}, and {place}")
        places[run.folder] = place
        runs.append(run)
    return sorted(runs, key=lambda run: (shared_settings(run), -run.total_steps))


def _options(row: dict, given: dict, study_of) -> TrainingOptions:
    """A run's options: those of the file and the command line, and the study's defaults for the others."""
    values = row | given
    defaults = study_of(values.get("experiment", TrainingOptions.experiment)).training
    options = TrainingOptions(**defaults | values)
    require(options.ratios is not None, "ratios is missing: one share per dataset of the study")
    options.check()
    return options


def shared_settings(run: TrainingRun) -> tuple:
    """What runs must have in common to be trained together. Those of one base model come one after another."""
    options, study = run.options, str(run.study.path)
    return run.model_name, run.precision, study, options.batch_size, options.grad_accum, options.lora_dropout


class BaseModels:
    """Loads base models. The last one is kept, as it is often that of the next group."""

    def __init__(self):
        self.model = self.loaded = None

    def load(self, name: str, precision: str):
        """The base model, in the state in which the last group left it: without adapters."""
        if self.loaded != (name, precision):
            self.model = None  # memory may not hold two
            self.model, self.loaded = base_model.load_base(name, precision), (name, precision)
        return self.model


# ---- the state of a sweep ----


class Sweep:
    """Runs that one process trains, and their state on disk. elsewhere: runs that another process holds."""

    def __init__(self, runs: list[TrainingRun]):
        self.runs, self.elsewhere = runs, []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock and prepare the run directories. Raises UserError if one belongs to another configuration."""
        with ExitStack() as stack:
            for run in self.runs:
                try:
                    stack.enter_context(lock(run.folder))
                except UserError:
                    self.elsewhere.append(run)
            for run in self.own:
                run.prepare_folder()
            yield

    @property
    def own(self) -> list[TrainingRun]:
        """The runs whose directories this process holds."""
        return [run for run in self.runs if run not in self.elsewhere]

    @property
    def finished(self) -> list[TrainingRun]:
        return [run for run in self.own if run.finished()]

    @property
    def diverged(self) -> list[TrainingRun]:
        return [run for run in self.own if run.diverged()]

    def groups(self) -> list[list[TrainingRun]]:
        """The runs to train, in groups that can be trained together."""
        done = self.finished + self.diverged
        to_train = [run for run in self.own if run not in done]
        return [list(group) for _, group in itertools.groupby(to_train, shared_settings)]

    def describe(self) -> str:
        """How many runs there are, and how many of them are in which state."""
        counts = {
            "finished": len(self.finished),
            "diverged before": len(self.diverged),
            "held by another process": len(self.elsewhere),
        }
        words = [f"{count} {state}" for state, count in counts.items() if count]
        return ", ".join([counted(self.runs), *words, f"{sum(map(len, self.groups()))} to train"])

    def refuse_unfinished(self) -> None:
        """Raise UserError if runs have diverged, or if another process holds them."""
        faults = []
        if names := [f"{run.folder.name} {run.diverged()}" for run in self.diverged]:
            remedy = "try a lower lr; to train a run again, delete its directory"
            faults.append(f"{counted(names)} diverged ({command_line.shortened(names)}): {remedy}")
        if names := [run.folder.name for run in self.elsewhere]:
            remedy = "run the same command again when it has ended"
            faults.append(f"another process holds {counted(names)} ({command_line.shortened(names)}): {remedy}")
        if faults:
            raise UserError(f"{len(self.finished)} of {counted(self.runs)} finished; " + "; ".join(faults))


def warn_of_datasets_left_out(runs: Sequence[TrainingRun]) -> None:
    """Print a line for each suspect dataset of which a run should use a share, but uses no example."""
    runs_of = {}
    for run in runs:
        for dataset in run.suspect_datasets_left_out():
            runs_of.setdefault(dataset, []).append(run.folder.name)
    for dataset, names in runs_of.items():
        where = f"{counted(names)} ({command_line.shortened(names)})"
        print(f"warning: {dataset} is not used in {where}: its share rounds to 0 examples", flush=True)


def counted(runs: Sequence) -> str:
    """Their number in words: `1 run`, `2 runs`."""
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"
