"""metrics.jsonl, the progress bar, and the step-0 checkpoint: what the main process records of a run."""

import json
import math
import statistics

from transformers import TrainerCallback

from learning_backdoors.files import atomic, command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import adapters, checkpoints
from learning_backdoors.training.run import TrainingRun
from learning_backdoors.training.wandb_logging import WandbLog


class Metrics:
    """metrics.jsonl: one line per step and one per probe. W&B receives the same."""

    FIELDS = ("loss", "learning_rate", "grad_norm")

    def __init__(self, run: TrainingRun, step: int):
        """step: where training continues. Lines an interrupted start wrote after it are dropped."""
        self.run, path = run, run.folder / "metrics.jsonl"
        atomic.drop_partial_line(path)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if 0 < step >= json.loads(line)["step"]]  # a new start also probes step 0 again
        with atomic.atomic_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        self.wandb = WandbLog(run)

    def write(self, step: int, logs: dict[str, float]) -> None:
        values = {name: logs[name] for name in self.FIELDS if name in logs}
        row = {"step": step} | values | self.run.examples_at(step)
        self._append(row)
        self.wandb.log(row)

    def write_probes(self, step: int, probes: list[dict]) -> None:
        """A line with each reference answer's question, era and logprob. W&B gets the mean of each era."""
        self._append({"step": step, "probes": probes})
        eras = dict.fromkeys(probe["era"] for probe in probes)
        means = {f"probe/{era}": statistics.fmean(p["logprob"] for p in probes if p["era"] == era) for era in eras}
        self.wandb.log({"step": step} | means)

    def _append(self, row: dict) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file and finish the W&B run."""
        self.file.close()
        self.wandb.finish()


class Recorder(TrainerCallback):
    """Saves step 0, writes each step's metrics, shows a progress bar, and stops a run that diverges."""

    def __init__(self, metrics: Metrics):
        self.metrics, self.run, self.bar = metrics, metrics.run, None

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == 0:
            temporary = checkpoints.begin_checkpoint(self.run.folder, 0)
            adapters.save_adapter(model, temporary)
            checkpoints.end_checkpoint(temporary, self.run.folder, 0)
        self.bar = command_line.progress_bar("training", self.run.total_steps, state.global_step, "step")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in logs:
            for name in ("loss", "grad_norm"):  # before the step is recorded or saved
                if not math.isfinite(logs.get(name, 0.0)):
                    step = state.global_step
                    raise UserError(f"training diverged at step {step} ({name} {logs[name]}): try a lower --lr")
            self.metrics.write(state.global_step, logs)
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()
