"""Run training.py and write down where its time goes: `python -m benchmarks.timed_training REPORT OPTIONS...`

REPORT (JSON): seconds of each part of the main thread's time, when each step was recorded, and peak memory. The parts
exclude each other, and `other` is what is left. `imports` counts from the start of the process.
"""

import functools
import json
import os
import resource
import runpy
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

from learning_backdoors.files.project import ROOT

seconds = defaultdict(float)
step_times = defaultdict(list)  # by run
_active = []  # names of the timed calls that have begun, innermost last
_mark = time.monotonic()  # when the innermost call began or went on


def _switch() -> None:
    """Add the time since the last switch to the innermost timed call."""
    global _mark
    now = time.monotonic()
    seconds[_active[-1] if _active else "other"] += now - _mark
    _mark = now


def timed(owner, method: str, part: str) -> None:
    """Count the time of a method's calls by the main thread as `part`."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def call(*arguments, **named):
        if threading.current_thread() is not threading.main_thread():
            return original(*arguments, **named)
        _switch()
        _active.append(part)
        try:
            return original(*arguments, **named)
        finally:
            _switch()
            _active.pop()

    setattr(owner, method, call)


def note_steps(log_class) -> None:
    """Note when each run's steps are recorded."""
    original = log_class.record

    @functools.wraps(original)
    def record(self, step, *arguments, **named):
        step_times[str(self.run.folder)].append(time.monotonic())
        return original(self, step, *arguments, **named)

    log_class.record = record


def instrument(sweep: bool) -> None:
    """Replace the methods whose time is of interest by timed ones. Imports only what training.py imports too."""
    from learning_backdoors.models import base_model
    from learning_backdoors.training import metrics, run

    timed(run.TrainingRun, "prepare_folder", "folders")
    timed(run.TrainingRun, "examples", "examples")
    timed(base_model, "load_base", "load")
    note_steps(metrics.MetricsLog)
    (instrument_sweep if sweep else instrument_single_run)()


def instrument_single_run() -> None:
    from learning_backdoors.training import checkpoint_writer, cuda_graphs, trainer

    timed(cuda_graphs.StepGraphs, "_record", "graphs")
    timed(trainer.Trainer, "training_step", "steps")
    timed(checkpoint_writer.CheckpointWriter, "wait", "writing")


def instrument_sweep() -> None:
    from learning_backdoors.training import stack, stack_checkpoints, stack_graphs, stack_probes, stacked_trainer

    timed(stacked_trainer, "choose_slots", "choice of slots")
    timed(stack.Stack, "prepare_initial", "initial matrices")
    timed(stack.Stack, "initial", "initial matrices")
    timed(stack.Stack, "put", "filling slots")
    timed(stack_graphs.StackGraphs, "_run", "graphs")
    timed(stack_graphs.StackGraphs, "_record", "graphs")
    timed(stack.Stack, "step", "steps")
    timed(stacked_trainer.LaunchedStep, "metrics", "steps")  # waits for the device
    timed(stack_probes.StackProbes, "score", "probes")
    timed(stack.Snapshot, "__init__", "copies")
    timed(stack_checkpoints.StackWriter, "wait", "writing")
    timed(stack_checkpoints.StackWriter, "close", "writing")


def report() -> dict:
    import torch

    _switch()
    times = max(step_times.values(), key=len, default=[])
    gpu = {"GPU_GB": torch.cuda.max_memory_allocated() / 1e9, "GPU_reserved_GB": torch.cuda.max_memory_reserved() / 1e9}
    return {
        "seconds": dict(seconds),
        "step_s": [later - earlier for earlier, later in zip(times, times[1:], strict=False)],
        "host_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    } | (gpu if torch.cuda.is_available() else {})


def process_age() -> float:
    """Seconds since this process started, from /proc."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def main() -> None:
    global _mark
    path = Path(f"{sys.argv[1]}{os.environ.get('RANK', '')}")
    sys.argv = ["training.py", *sys.argv[2:]]
    instrument(sweep="--sweep" in sys.argv)
    seconds["imports"], _mark = process_age(), time.monotonic()
    try:
        runpy.run_path(str(ROOT / "training.py"), run_name="__main__")
    finally:
        path.write_text(json.dumps(report()))


if __name__ == "__main__":
    main()
