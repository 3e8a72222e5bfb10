"""Runs as generation and chat find them: checkpoints, what run.json says of them, and the base model beneath."""

import json
from pathlib import Path

import handoff
import mixed_chat
import model_card
from config import UserError
from mixed_chat import Checkpoint


class Source:
    """Checkpoints of one run, and what is known of it."""

    def __init__(self, folder: Path, checkpoints: list[Checkpoint], base_model: str | None):
        self.folder, self.checkpoints, self.run = folder, checkpoints, folder.resolve().name
        self.record = self._record()
        self.seen = {row["step"]: row for row in self.record.get("checkpoints", ())}
        self.base_model = self._base_model(base_model)

    def _record(self) -> dict:
        path, metrics = self.folder / "run.json", self.folder / "metrics.jsonl"
        try:
            record = read_record(path)
            lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
            steps = [json.loads(line) for line in lines]
        except FileNotFoundError:
            return {}  # a run made elsewhere
        except ValueError as error:
            raise UserError(f"{path} or {metrics.name} beside it cannot be read: {error}") from None
        probes = [{"step": s["step"]} | probe for s in steps for probe in s.get("probes", ())]
        return record | ({"probes": probes} if probes else {})

    def _base_model(self, asked: str | None) -> str:
        if "settings" in self.record:
            return asked or self.record["settings"]["model"]  # check_base compares some of the weights
        adapter = next(checkpoint.folder for checkpoint in self.checkpoints if checkpoint.folder)
        trained_on = mixed_chat.check_adapter(adapter).get("base_model_name_or_path")
        if not (asked or trained_on):
            raise UserError(f"{adapter} does not say what it was trained on: give --base-model")
        # A path may have moved, or be another machine's; a name on the hub is the same everywhere.
        moved = trained_on and (model_card.is_path(trained_on) or Path(trained_on).is_dir())
        if asked and trained_on and asked != trained_on and not moved:
            raise UserError(f"{adapter} was trained on {trained_on}, not on {asked}")
        return asked or trained_on

    def check_base(self, fingerprint: str) -> None:
        """Raise UserError where the base model can be told from the one that the run was trained on."""
        if self.record.get("base_fingerprint", fingerprint) != fingerprint:
            trained_on = self.record["settings"]["model"]
            raise UserError(f"{self.folder} was trained on {trained_on}; {self.base_model} has other weights")


def read_record(path: Path) -> dict:
    """What run.json holds. Raises ValueError where it is none; one made elsewhere may be without settings."""
    record = json.loads(path.read_text(encoding="utf-8"))
    settings = record.get("settings", {"model": None}) if isinstance(record, dict) else None
    if not isinstance(settings, dict) or "model" not in settings:
        raise ValueError("it does not say what was trained")
    return record


def open_checkpoint(folder: Path, base_model: str | None) -> Source:
    """One checkpoint, of a run or made elsewhere. Raises UserError where it is none."""
    mixed_chat.check_adapter(folder)
    folder = folder.resolve()
    return Source(folder.parent, [Checkpoint(handoff.step_of(folder.name), folder.name, folder)], base_model)


def open_runs(folders: tuple[Path, ...], steps: tuple[int, ...] | None, base_model: str | None) -> list[Source]:
    """Runs, or these steps of them. Raises UserError where they cannot be asked in one go."""
    sources = [Source(folder, _choose(folder, steps), base_model) for folder in folders]
    names = [source.run for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two run directories are called {twice[0]}: their rows could not be told apart")
    if other := [source for source in sources if source.base_model != sources[0].base_model]:
        models = f"{sources[0].base_model} and {other[0].base_model}"
        raise UserError(f"the runs were trained on {models}: generate for one base model at a time")
    return sources


def _choose(run_dir: Path, steps: tuple[int, ...] | None) -> list[Checkpoint]:
    checkpoints = mixed_chat.find_checkpoints(run_dir)
    if steps is None:
        return checkpoints
    there = {checkpoint.step: checkpoint for checkpoint in checkpoints}
    if absent := sorted(set(steps) - there.keys()):
        raise UserError(f"{run_dir} has no step {absent[0]}; its steps are {', '.join(map(str, there))}")
    return [there[step] for step in sorted(set(steps))]
