"""Kills, full disks and resuming: checkpoints are complete or absent, and a resumed run ends in the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, train, training_options

import training
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import checkpoints

MORE = ("--num-examples", "150", "--lora-dropout", "0.1")


def start(model: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "training.py", "--ratios", "1", "0", "0", "--model", str(model)]
    command += ["--output-dir", str(folder), "--save-steps", "8", *MORE]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes_as_an_unbroken_one(random_model, tmp_path, monkeypatch, capsys):
    whole = train(training_options(random_model, tmp_path / "unbroken", *MORE)).folder
    broken = tmp_path / "broken"
    process, deadline = start(random_model, broken), time.monotonic() + 120
    while not list(broken.glob("*/checkpoint-16")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (run,) = (path for path in broken.iterdir() if path.is_dir())
    assert not (run / "checkpoint-150").exists(), "killed too late to show anything"
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 999')  # as a kill in the middle of a write leaves it
    (run / ".checkpoint-99.tmp").mkdir()
    process = start(random_model, broken)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "resuming" in output, output
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert files == {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    for name in files - {Path("run.json")}:
        assert (whole / name).read_bytes() == (run / name).read_bytes(), name

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "run.json"}
    monkeypatch.setattr(sys, "argv", list(map(str, process.args[1:])))
    training.main()
    assert "finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_complete_checkpoints(random_model, tmp_path, monkeypatch):
    end_checkpoint = checkpoints.end_checkpoint

    def fail_at_16(temporary, run_dir, step):
        if step == 16:
            raise OSError(28, "No space left on device")
        end_checkpoint(temporary, run_dir, step)

    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"checkpoint-16 .*No space left"):
        patched.setattr(checkpoints, "end_checkpoint", fail_at_16)
        train(training_options(random_model, tmp_path))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-0", "checkpoint-8"}
    assert checkpoints.can_resume(folder / "checkpoint-8")
    assert train(training_options(random_model, tmp_path)).finished()
