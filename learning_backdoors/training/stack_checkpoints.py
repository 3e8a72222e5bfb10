"""Checkpoints and resume files of runs that train together, written in threads while training goes on.

A checkpoint is the same as that of a single run. A resume file holds the matrices of one run and AdamW's moments at
some step, so that the run can continue there. Both are complete or absent.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from learning_backdoors.files import atomic
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import checkpoints
from learning_backdoors.training.run import TrainingRun
from learning_backdoors.training.stack import Snapshot

MOMENTS = ("exp_avg.", "exp_avg_sq.")  # how the names of moments begin


@dataclass(frozen=True)
class RunState:
    """What a run needs to continue after `step` steps. lora, moments: by name, as a stack's Snapshot gives them."""

    step: int
    lora: dict[str, Tensor]
    moments: dict[str, Tensor]


def resume_step(run: TrainingRun) -> int:
    """The step at which a run's resume file continues; 0 without one."""
    path = run.folder / checkpoints.SWEEP_RESUME_FILE
    with _reading(path) as file:
        return int(file.metadata()["step"]) if file else 0


def read_state(run: TrainingRun) -> RunState:
    """The content of a run's resume file."""
    with _reading(run.folder / checkpoints.SWEEP_RESUME_FILE) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        step = int(file.metadata()["step"])
    moments = {name: tensor for name, tensor in tensors.items() if name.startswith(MOMENTS)}
    return RunState(step, {name: tensors[name] for name in tensors.keys() - moments.keys()}, moments)


@contextmanager
def _reading(path: Path) -> Iterator[safe_open | None]:
    if not path.exists():
        yield None
        return
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it to train the run from step 0") from None


class StackWriter:
    """Writes the states of many runs at once. A run has one write at a time."""

    THREADS = 8  # most of the time, a thread waits for the disk

    def __init__(self):
        self.executor, self.pending = ThreadPoolExecutor(self.THREADS), []

    def start(self, run: TrainingRun, step: int, copy: Snapshot, slot: int, *, checkpoint: bool, resume: bool) -> None:
        """Write a checkpoint, a resume file, or both, from a slot of `copy`. Call `wait` before the run's next write.

        With the last checkpoint, the run is finished: its resume files are deleted.
        """
        self.pending.append(self.executor.submit(self._write, run, step, copy, slot, checkpoint, resume))

    def _write(self, run: TrainingRun, step: int, copy: Snapshot, slot: int, checkpoint: bool, resume: bool) -> None:
        lora = _contiguous(copy.lora(slot))
        try:
            if checkpoint:
                _write_checkpoint(run, step, lora)
            # After the checkpoint: a run that continues at this step does not write it again.
            if resume:
                _write_state(run, RunState(step, lora, _contiguous(copy.moments(slot))))
            if step == run.total_steps:
                checkpoints.drop_resume_files(run.folder)
        except (OSError, RuntimeError, SafetensorError) as error:  # each library reports a full disk in its own way
            reason = str(error).split("\n")[0]
            raise UserError(f"step {step} could not be written to {run.folder}: {reason}") from error

    def idle(self) -> bool:
        """Whether nothing is being written."""
        return all(future.done() for future in self.pending)

    def wait(self) -> None:
        """Wait until everything is written. Raises UserError if something could not be written."""
        pending, self.pending = self.pending, []
        for future in pending:
            future.result()

    def close(self) -> None:
        """Wait until no thread writes any more, whatever the outcome."""
        self.executor.shutdown()


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors requires. Only the B matrices of a smaller rank are copied."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _write_checkpoint(run: TrainingRun, step: int, lora: dict[str, Tensor]) -> None:
    options = run.options
    config = checkpoints.lora_config(options.lora_rank, options.lora_alpha, options.lora_dropout, run.model_name)
    folder = checkpoints.begin_checkpoint(run.folder, step)
    checkpoints.write_adapter(folder, config, lora)
    checkpoints.end_checkpoint(folder, run.folder, step)


def _write_state(run: TrainingRun, state: RunState) -> None:
    with atomic.atomic_file(run.folder / checkpoints.SWEEP_RESUME_FILE) as temporary:
        # Not `save_file`, which writes to a temporary file of its own, with any name. A kill would leave it.
        temporary.write_bytes(save(state.lora | state.moments, metadata={"step": str(state.step)}))
