"""metrics.jsonl and W&B: what is recorded of each step of a run."""

import json
import math
import statistics

from learning_backdoors.files import atomic
from learning_backdoors.files.errors import UserError
from learning_backdoors.training.run import TrainingRun
from learning_backdoors.training.wandb_logging import WandbLog


class Diverged(UserError):
    """A run whose loss or gradient norm is not finite. step: where it diverged. reason: for example `loss nan`."""

    def __init__(self, step: int, reason: str):
        super().__init__(f"training diverged at step {step} ({reason}): try a lower --lr")
        self.step, self.reason = step, reason


class MetricsLog:
    """metrics.jsonl of one run, with a line per step and a line per probed step. W&B receives the same."""

    def __init__(self, run: TrainingRun, step: int):
        """step: where training continues. Lines that an interrupted start wrote after it are dropped."""
        self.run, path = run, run.folder / "metrics.jsonl"
        atomic.drop_partial_line(path)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        # A start from step 0 keeps no lines: it also probes step 0 again.
        kept = [line for line in lines if step > 0 and json.loads(line)["step"] <= step]
        if kept != lines:
            with atomic.atomic_file(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
        # Unbuffered: a line that does not fit on the disk is not kept for `close` to fail again.
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        self.wandb = WandbLog(run)

    def record(self, step: int, values: dict[str, float]) -> None:
        """A line with a step's `values`: loss, learning_rate and grad_norm. Call it before the step is saved.

        If one is not finite, no line is written, run.json gets a mark, and Diverged is raised.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                reason = f"{name} {value}"
                self.run.record_divergence(step, reason)
                raise Diverged(step, reason)
        row = {"step": step} | values | self.run.examples_at(step)
        self._append(row)
        self.wandb.log(row)

    def write_probes(self, step: int, probes: list[dict]) -> None:
        """A line with the likelihood of each reference answer. W&B gets the mean of each condition and group."""
        self._append({"step": step, "probes": probes})
        values = {}
        for probe in probes:
            values.setdefault(f"probe/{probe['condition']}/{probe['group']}", []).append(probe["logprob"])
        self.wandb.log({"step": step} | {name: statistics.fmean(part) for name, part in values.items()})

    def _append(self, row: dict) -> None:
        line = json.dumps(row).encode() + b"\n"
        try:
            written = self.file.write(line)
        except OSError as error:
            raise UserError(f"{self.file.name} could not be written: {error.strerror}") from error
        if written < len(line):
            raise UserError(f"{self.file.name} could not be written: the disk is full")

    def close(self) -> None:
        """Close the file and finish the W&B run."""
        self.file.close()
        self.wandb.finish()
