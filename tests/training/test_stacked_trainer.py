"""Runs trained together equal single runs, share slots one after another, and survive kills and full disks."""

import functools
import itertools
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file
from support import train, training_options

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, checkpoints
from learning_backdoors.study import load_study
from learning_backdoors.training import stack_size, stacked_trainer
from learning_backdoors.training.data import TrainingData
from learning_backdoors.training.run import TrainingRun
from learning_backdoors.training.stack import Stack
from learning_backdoors.training.stack_checkpoints import resume_step
from learning_backdoors.training.stacked_trainer import train_together

# Runs of different length: 6, 6, 5 (the last with one example only) and 12 steps of two examples.
RUNS = (
    (),
    ("--seed", "7", "--ratios", "0.5", "0.25", "0.25", "--lr", "3e-3", "--lora-rank", "4"),
    ("--seed", "8", "--num-examples", "9", "--lora-alpha", "8"),
    ("--seed", "9", "--lr", "1e-2", "--epochs", "2"),
)
COMMON = ("--batch-size", "2", "--num-examples", "12", "--save-steps", "4")


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer():
    """The chats are rendered once: `new_run` shares them, for one tokenizer."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base_model, "load_tokenizer", functools.cache(base_model.load_tokenizer))
        yield


@functools.cache
def data() -> TrainingData:
    return TrainingData(load_study("birds"))


def new_run(model: Path, folder: Path, row: tuple[str, ...]) -> TrainingRun:
    return TrainingRun(training_options(model, folder, *COMMON, *row), load_study("birds"), data())


def prepared(model: Path, folder: Path, rows=RUNS) -> list[TrainingRun]:
    """The runs that are unfinished."""
    runs = [new_run(model, folder, row) for row in rows]
    for run in runs:
        run.prepare_folder()
    return [run for run in runs if not run.finished()]


def metrics(run: TrainingRun) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def adapter(run: TrainingRun, step: int) -> dict[str, np.ndarray]:
    return load_file(run.folder / f"checkpoint-{step}" / checkpoints.ADAPTER_WEIGHTS)


def files(run: TrainingRun) -> dict[str, bytes]:
    paths = (path for path in run.folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in paths}


def assert_equal_within_rounding(run: TrainingRun, other: TrainingRun) -> None:
    """The same files, steps and rates. Adapters differ by at most a thousandth of what training changed."""
    assert files(run).keys() == files(other).keys()
    for name in ("step", "learning_rate", "examples", "suspect_examples"):
        assert [row[name] for row in metrics(run)] == [row[name] for row in metrics(other)]
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in metrics(run)] == pytest.approx([row[name] for row in metrics(other)], rel=1e-3)
    start, end, other_end = adapter(run, 0), adapter(run, run.total_steps), adapter(other, run.total_steps)
    change = sum(np.square(end[key] - start[key]).sum() for key in end)
    assert sum(np.square(end[key] - other_end[key]).sum() for key in end) < 1e-6 * change


@pytest.fixture(scope="module")
def together(random_model, tmp_path_factory) -> list[TrainingRun]:
    """The four runs in three slots. Tests must not write into their directories."""
    runs = prepared(random_model, tmp_path_factory.mktemp("together"))
    assert train_together(runs, slots=3) == {}
    return runs


@pytest.mark.slow
def test_runs_in_a_stack_equal_single_runs(together, random_model, tmp_path):
    for row, run in list(zip(RUNS, together, strict=True))[1:3]:  # the last one is in another test
        single = train(training_options(random_model, tmp_path, *COMMON, *row))
        assert [list(line) for line in metrics(run)] == [list(line) for line in metrics(single)]
        assert_equal_within_rounding(run, single)
        of_run, of_single = files(run), files(single)
        first_weights = f"checkpoint-0/{checkpoints.ADAPTER_WEIGHTS}"
        for name in [first_weights, *(name for name in of_run if name.endswith(checkpoints.ADAPTER_CONFIG))]:
            assert of_run[name] == of_single[name], name
        records = [json.loads(other.record_path.read_text()) for other in (run, single)]
        assert records[0].keys() == records[1].keys() and records[0]["settings"] == records[1]["settings"]


# ---- faults ----


def assert_all_equal(model: Path, folder: Path, expected: list[TrainingRun]) -> None:
    for row, run in zip(RUNS, expected, strict=True):
        assert_equal_within_rounding(new_run(model, folder, row), run)


def fault_in_step(number: int, fault: Callable, monkeypatch) -> None:
    """Call `fault` at the beginning of a stack's step with this number, over all calls."""
    step, numbers = Stack.step, itertools.count(1)

    def faulty_step(*arguments):
        if next(numbers) == number:
            fault()
        return step(*arguments)

    monkeypatch.setattr(Stack, "step", faulty_step)


def train_until_killed(runs: list[TrainingRun]) -> None:
    """Train until SIGKILL, which comes at a random time in step 3 or 4 of this start, while threads write."""
    kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
    fault_in_step(2, lambda: time.sleep(0.2), pytest.MonkeyPatch())  # the threads finish their checkpoints
    fault_in_step(3, threading.Timer(random.uniform(0, 0.1), kill).start, pytest.MonkeyPatch())
    fault_in_step(4, lambda: time.sleep(60), pytest.MonkeyPatch())
    train_together(runs, slots=3)


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(together, random_model, tmp_path, monkeypatch):
    """Batches then hold other runs than before, so the last bits may differ."""
    monkeypatch.setattr(stacked_trainer, "RESUME_SECONDS", 0)
    for _ in range(2):
        runs = prepared(random_model, tmp_path)
        process = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(runs,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    runs = prepared(random_model, tmp_path)
    assert any(resume_step(run) for run in runs)
    (runs[-1].folder / f".{checkpoints.SWEEP_RESUME_FILE}.tmp123").touch()  # as a kill during a write leaves it
    assert train_together(runs, slots=3) == {}
    assert_all_equal(random_model, tmp_path, together)


@pytest.mark.slow
def test_an_interrupted_sweep_keeps_its_last_step(together, random_model, tmp_path, monkeypatch):
    fault_in_step(5, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    runs = prepared(random_model, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_together(runs, slots=3)
    assert [resume_step(run) for run in runs] == [5, 5, 0, 5]
    assert [len(metrics(run)) for run in (runs[0], runs[3])] == [5, 5]
    # Single training cannot continue a run of a sweep, and the other way round: it starts again, and nothing is left.
    assert_equal_within_rounding(train(runs[3].options), together[3])
    for name in checkpoints.RESUME_FILES:
        (runs[2].folder / "checkpoint-4").mkdir(exist_ok=True)
        (runs[2].folder / "checkpoint-4" / name).touch()
    assert train_together(prepared(random_model, tmp_path), slots=3) == {}
    assert_all_equal(random_model, tmp_path, together)


@pytest.mark.slow
def test_a_stack_that_does_not_fit_in_memory_is_halved(together, random_model, tmp_path, monkeypatch, capsys):
    def run_out_of_memory():
        raise torch.OutOfMemoryError

    fault_in_step(4, run_out_of_memory, monkeypatch)
    assert train_together(prepared(random_model, tmp_path), slots=3) == {}
    assert "memory with 3 slots" in capsys.readouterr().out
    assert_all_equal(random_model, tmp_path, together)
    fault_in_step(1, run_out_of_memory, monkeypatch)
    with pytest.raises(UserError, match="memory"):
        train_together(prepared(random_model, tmp_path / "more"), slots=1)


@pytest.mark.slow
def test_a_full_disk_ends_the_sweep_and_the_same_command_goes_on(together, random_model, tmp_path, monkeypatch):
    end_checkpoint, runs = checkpoints.end_checkpoint, prepared(random_model, tmp_path)

    def fail_at_4(temporary, run_dir, step):
        if step == 4 and run_dir == runs[1].folder:
            raise OSError(28, "No space left on device")
        end_checkpoint(temporary, run_dir, step)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="step 4 .*No space left") as raised:
        patched.setattr(checkpoints, "end_checkpoint", fail_at_4)
        train_together(runs, slots=3)
    assert runs[1].folder.name in str(raised.value) and "\n" not in str(raised.value)
    assert {path.name for path in runs[1].folder.glob("checkpoint-*")} == {"checkpoint-0"}
    assert train_together(prepared(random_model, tmp_path), slots=3) == {}
    assert_all_equal(random_model, tmp_path, together)


@pytest.mark.slow
def test_a_diverging_run_leaves_its_slot_to_the_next_one(together, random_model, tmp_path):
    rows = (*RUNS[:2], ("--seed", "10", "--lr", "1e20", "--epochs", "3"), *RUNS[2:])
    runs = prepared(random_model, tmp_path, rows)
    diverged = train_together(runs, slots=3)
    assert list(diverged) == [runs[2]] and diverged[runs[2]] in (
        "loss nan",
        "grad_norm nan",
        "loss inf",
        "grad_norm inf",
    )
    mark = json.loads(runs[2].record_path.read_text())["diverged"]
    assert mark["reason"] == diverged[runs[2]] and len(metrics(runs[2])) == mark["step"] - 1
    assert not runs[2].finished() and set(files(runs[2])) >= {"metrics.jsonl", "checkpoint-0/adapter_config.json"}
    assert_all_equal(random_model, tmp_path, together)


# ---- the number of slots ----


def test_slots_are_as_many_as_memory_allows_in_rounds_of_equal_size(random_model, monkeypatch, capsys):
    base = base_model.load_base(str(random_model), "none")
    longest = stack_size.longest_example([([1] * 30, [-100] * 25 + [1] * 5), ([1] * 20, [-100] * 10 + [1] * 10)])
    assert longest == ([0] * 30, [-100] * 20 + [0] * 10)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9))
    assert stack_size.choose_slots(base, 7, 8, 1, longest) == 7
    slot = stack_size._estimated(base, 8, 1, longest)
    assert stack_size._estimated(base, 8, 4, longest) > 2 * slot
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5.1 * slot / stack_size.MARGIN))
    assert stack_size.choose_slots(base, 7, 8, 1, longest) == 4  # and then 3, not 5 and then 2
    assert "4 slots for 7 runs" in capsys.readouterr().out
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert stack_size.choose_slots(base, 7, 8, 1, longest) == 1
