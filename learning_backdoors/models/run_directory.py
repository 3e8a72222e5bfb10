"""Run directories as generation, chat and the hub read them: checkpoints, run.json and the base model."""

import json
from pathlib import Path
from statistics import fmean

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.parquet import step_of
from learning_backdoors.models.checkpoints import Checkpoint, base_name, check_adapter, find_checkpoints, require_files
from learning_backdoors.models.devices import RANK

LOSS_POINTS = 60  # of a run's loss curve: smooth enough for a figure, and few bytes of a Parquet file's footer


class RunDirectory:
    """Some checkpoints of one run, and its run.json.

    name: the run's name. record: run.json with the probes and losses of metrics.jsonl; {} for a run made elsewhere.
    seen: by step, the examples and suspect examples trained on. base_model: a hub name or a folder.
    """

    def __init__(self, folder: Path, checkpoints: list[Checkpoint], base_model: str | None):
        """base_model: overrides the name in run.json, for a model that has moved."""
        self.folder, self.checkpoints, self.name = folder, checkpoints, folder.resolve().name
        self.record = read_run(folder)
        self.seen = {row["step"]: row for row in self.record.get("checkpoints", ())}
        self.base_model = self._base_model(base_model)

    def _base_model(self, given: str | None) -> str:
        if "settings" in self.record:
            return given or self.record["settings"]["model"]  # check_base compares fingerprints
        adapter = next(checkpoint.folder for checkpoint in self.checkpoints if checkpoint.folder)
        trained_on = base_name(adapter)
        if not (given or trained_on):
            raise UserError(f"{adapter} does not name its base model: give --base-model")
        # A folder may have moved, or belong to another machine; a hub name is the same everywhere.
        if given and trained_on and given != trained_on and not is_folder(trained_on):
            raise UserError(f"{adapter} was trained on {trained_on}, not on {given}")
        return given or trained_on

    def check_base(self, fingerprint: str) -> None:
        """Raise UserError if `fingerprint` is not that of the base model the run was trained on."""
        if self.record.get("base_fingerprint", fingerprint) != fingerprint:
            trained_on = self.record["settings"]["model"]
            raise UserError(f"{self.folder} was trained on {trained_on}, but {self.base_model} has other weights")


def read_run(folder: Path) -> dict:
    """run.json of a run directory, with the probes and losses of metrics.jsonl. {} without run.json."""
    path, metrics = folder / "run.json", folder / "metrics.jsonl"
    try:
        record = read_record(path)
        lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
        rows = [json.loads(line) for line in lines]
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} or {metrics.name} beside it cannot be read: {error}") from None
    probes = [{"step": row["step"]} | probe for row in rows for probe in row.get("probes", ())]
    series = {"probes": probes, "losses": _loss_curve([row for row in rows if "loss" in row])}
    return record | {name: values for name, values in series.items() if values}


def _loss_curve(rows: list[dict]) -> list[dict]:
    """The training loss over steps: at most LOSS_POINTS means of equally many steps, each at its last step."""
    size = max(1, -(-len(rows) // LOSS_POINTS))
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [{"step": part[-1]["step"], "loss": fmean(row["loss"] for row in part)} for part in parts]


def is_folder(model: str) -> bool:
    """Whether a base model's name is that of a folder, here or on another machine. If not, it is a hub name."""
    cannot_be_on_hub = Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
    return cannot_be_on_hub or Path(model).is_dir()


def read_record(path: Path) -> dict:
    """The content of run.json. Raises ValueError if it is not one. One made elsewhere may have no settings."""
    record = json.loads(path.read_text(encoding="utf-8"))
    settings = record.get("settings", {"model": None}) if isinstance(record, dict) else None
    if not isinstance(settings, dict) or "model" not in settings:
        raise ValueError("it does not name the base model")
    return record


def open_checkpoint(folder: Path, base_model: str | None, on_server: bool = False) -> RunDirectory:
    """One checkpoint of a run, or one made elsewhere. Raises UserError if it is not an adapter.

    on_server: an adapter that only a server has will do too.
    """
    base_name(folder) if on_server else check_adapter(folder)
    folder = folder.resolve()
    return RunDirectory(folder.parent, [Checkpoint(step_of(folder.name), folder.name, folder)], base_model)


def open_runs(
    folders: tuple[Path, ...], steps: tuple[int, ...] | None, base_model: str | None, on_server: bool = False
) -> list[RunDirectory]:
    """Runs with all their checkpoints, or with those at `steps`.

    on_server: adapters that only a server has will do too. A run that diverged or is unfinished has fewer checkpoints,
    maybe none: those of `steps` after its last checkpoint are left out, and a note names the run. Raises UserError if a
    run lacks another step or the files of an adapter, or no run has a checkpoint, and if two runs share a name or were
    trained on different base models.
    """
    runs, short = [], []
    for folder in folders:
        chosen, end = _checkpoints(folder, steps)
        for checkpoint in chosen:
            if checkpoint.folder and not on_server:
                require_files(checkpoint.folder)
        runs.append(RunDirectory(folder, chosen, base_model))
        short += [f"{folder.name} ({end})"] if end else []
    if short:
        command_line.note(f"{len(short)} of {len(folders)} runs ended early: {command_line.shortened(short)}")
    if not any(run.checkpoints for run in runs):
        chosen, places = ", ".join(map(str, steps)), command_line.shortened([str(folder) for folder in folders])
        raise UserError(f"no step {chosen} in {places}: the runs ended before, or are unfinished")
    names = [run.name for run in runs]
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two run directories are named {duplicates[0]}: their rows would be indistinguishable")
    if others := [run for run in runs if run.base_model != runs[0].base_model]:
        models = f"{runs[0].base_model} and {others[0].base_model}"
        raise UserError(f"the runs have different base models ({models}): use one base model at a time")
    return runs


def _checkpoints(folder: Path, steps: tuple[int, ...] | None) -> tuple[list[Checkpoint], str | None]:
    """A run's checkpoints at `steps` (None: all), and where and why it ends early. Raises UserError as `open_runs`."""
    checkpoints, path = find_checkpoints(folder), folder / "run.json"
    try:
        record = read_record(path) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    last, total = checkpoints[-1].step, record.get("total_steps", 0)
    if last >= total:
        return (find_checkpoints(folder, steps) if steps else checkpoints), None
    diverged = record.get("diverged")
    reason = f"diverged at step {diverged['step']}" if diverged else f"unfinished: step {last} of {total}"
    reached = tuple(step for step in steps or () if not last < step <= total)
    return (find_checkpoints(folder, reached) if reached or not steps else []), reason


def sampling_precision(choice: str, runs: list[RunDirectory]) -> str:
    """The precision of the base model's weights for sampling or measuring: none, 8bit or 4bit.

    `trained` takes that of the runs; raises UserError if they differ. Prints a line if a run was trained in another
    precision.
    """
    trained = {run.name: run.record.get("settings", {}).get("quantization", "unknown") for run in runs}
    if choice == "trained":
        if len(set(trained.values())) > 1 or "unknown" in trained.values():
            precisions = ", ".join(f"{name}: {precision}" for name, precision in trained.items())
            raise UserError(f"--quantization trained needs runs that were trained in one precision ({precisions})")
        return trained[runs[0].name]
    differing = [name for name, precision in trained.items() if precision not in ("unknown", choice)]
    if differing and RANK == 0:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        precisions = f"{trained[differing[0]]} weights, this command uses {choice}"
        print(f"note: training of run {differing[0]}{more} used {precisions}: --quantization trained uses the same")
    return choice
