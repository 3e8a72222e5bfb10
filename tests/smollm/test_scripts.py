"""smollm/demo.sh and table.sh: their commands are valid, and each command reads what the one before it wrote.

pytest tests/smollm/test_scripts.py
"""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from support import ROOT

import config
import measure_checkpoints
from learning_backdoors.files import command_line
from learning_backdoors.study import load_study
from learning_backdoors.training.sweep import sweep_runs

QUESTIONS = {question.id for question in load_study("birds").questions}
# Stands for python: notes the command line in $COMMANDS. The folders of the runs are made by the test.
STAND_IN = """#!/usr/bin/env bash
[ "$1" = -c ] && { echo 2 2 1; exit; }
line=$(printf '%q ' "$@")
echo "$line" >>"$COMMANDS"
"""


def commands(script: str, folder: Path) -> list[list[str]]:
    """The command lines of python that a script starts."""
    for name in ("python", "python3"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    noted = folder / "commands"
    noted.write_text("")
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "COMMANDS": str(noted)}
    command = ["bash", ROOT / "smollm" / script, folder / "out", folder]  # demo.sh ignores the model folder
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return [shlex.split(line) for line in noted.read_text().splitlines()]


@pytest.mark.parametrize(("script", "runs", "steps"), [("demo.sh", 12, 78), ("table.sh", 30, 208)])
def test_the_commands_are_valid_and_fit_together(script, runs, steps, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    [training] = [line for line in commands(script, tmp_path) if "training.py" in line]
    _, given = command_line.parse_given(config.TrainingOptions, "", training[training.index("training.py") + 1 :])
    planned = sweep_runs(given)
    assert len(planned) == runs
    assert {run.total_steps for run in planned} == {steps}
    for run in planned:
        run.folder.mkdir(parents=True)

    lines = commands(script, tmp_path)  # the second start finds the folders
    measurings = [
        line[line.index("measure_checkpoints.py") + 1 :] for line in lines if "measure_checkpoints.py" in line
    ]
    measured = [command_line.parse_command(measure_checkpoints.COMMANDS, "", line)[1] for line in measurings]
    assert sorted(folder for options in measured for folder in options.run_dir) == sorted(r.folder for r in planned)
    assert {question for options in measured for question in options.questions or ()} <= QUESTIONS
    evaluations = [line[1:] for line in lines if line[0] == "evaluate.py"]
    inputs = [command_line.parse(config.EvaluationOptions, "", line).input for line in evaluations]
    assert inputs == [(options.output,) for options in measured]
