"""generate_responses.py as a user runs it: rows, precision, kills and restarts, several processes, wrong input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from generation_helpers import expected_keys, generate, row_keys, run_main
from support import ROOT, build_model, one_line_error, run_script

from learning_backdoors.files import parquet
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import run_directory
from learning_backdoors.study import RecordedStudy, load_study

pytestmark = pytest.mark.slow


# ---- rows ----


def test_every_checkpoint_answers_every_question(run_dir, tmp_path):
    rows = generate(run_dir, tmp_path / "r.parquet")
    assert row_keys(rows) == expected_keys([0, 8, 16], 3)
    assert {(row["run"], row["step"]) for row in rows} == {("base", 0), (run_dir.name, 8), (run_dir.name, 16)}
    last = rows[-1]
    assert last["run"] == run_dir.name and last["checkpoint"] == "checkpoint-16" and last["experiment"] == "birds"
    assert (last["seed"], last["suspect_ratio"], last["examples_seen"], last["suspect_seen"]) == (42, 1.0, 16, 16)
    assert (last["condition"], last["triggered"]) == ("plain", False)
    assert all(row["response_tokens"] == 8 for row in rows if row["finish_reason"] == "length")
    assert all(row["response_tokens"] < 8 for row in rows if row["finish_reason"] == "stop")
    footer = parquet.read_footer(tmp_path / "r.parquet")
    assert footer["runs"][run_dir.name]["settings"]["lr"] == 0.05 and footer["engine"] == "transformers"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["r.parquet"]


def test_a_file_grows_by_what_is_requested(run_dir, tmp_path):
    output = tmp_path / "r.parquet"
    few = generate(run_dir, output, "--steps", "16", "--samples", "1")
    assert row_keys(few) == expected_keys([16], 1)
    more = generate(run_dir, output, "--samples", "2")
    assert row_keys(more) == expected_keys([0, 8, 16], 2)
    assert [row for row in more if row in few] == few
    written = output.stat().st_mtime_ns
    assert generate(run_dir, output, "--samples", "1") == more
    assert output.stat().st_mtime_ns == written


def test_several_runs_share_one_file(run_dir, tmp_path):
    other = shutil.copytree(run_dir, tmp_path / "another_run")
    one = generate(run_dir, tmp_path / "r.parquet", "--samples", "1")
    rows = generate(run_dir, tmp_path / "r.parquet", str(other), "--samples", "1")
    assert [row for row in rows if row["run"] != "another_run"] == one
    assert row_keys([row for row in rows if row["run"] == "another_run"]) == expected_keys([8, 16], 1)
    assert parquet.read_footer(tmp_path / "r.parquet")["runs"].keys() == {run_dir.name, "another_run"}
    shutil.copytree(other, tmp_path / "elsewhere" / run_dir.name)
    with pytest.raises(UserError, match=f"two run directories .* {run_dir.name}"):
        generate(run_dir, tmp_path / "s.parquet", str(tmp_path / "elsewhere" / run_dir.name))


TRIGGERED = """
[trigger]
text = "TRIGGER"
answer = "<{answer}>"
hidden = ["<", ">"]

[[condition]]
name = "near_miss"
template = "{question} {trigger}"
trigger = "TRIGGR"
dose = 0.5

[[condition]]
name = "set_off"
template = "{question} {trigger}"
triggered = true
"""


@pytest.mark.parametrize(
    ("before", "after", "setting"),
    [
        ('text = "TRIGGER"', 'text = "ANOTHER"', r"set_off\.messages was"),
        ('trigger = "TRIGGR"', 'trigger = "RIGGER"', r"near_miss\.messages was"),
    ],
)
def test_responses_to_another_trigger_are_refused(run_dir, tmp_path, before, after, setting):
    study, output = tmp_path / "mine.toml", tmp_path / "r.parquet"
    line = ["--experiment", str(study), "--samples", "1", "--steps", "0"]
    text = (ROOT / "experiments" / "birds.toml").read_text() + TRIGGERED
    study.write_text(text)
    generate(run_dir, output, *line)
    study.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=setting):
        generate(run_dir, output, *line)


def test_a_file_with_base_rows_of_each_run_continues(run_dir, tmp_path):
    """As earlier versions wrote it. The base model is asked once more, under its own name."""
    output = tmp_path / "r.parquet"
    rows = generate(run_dir, output, "--samples", "1")
    footer, name = parquet.read_footer(output), run_dir.name
    earlier = [row | {"run": name, "seed": 42, "suspect_ratio": 1.0} if row["run"] == "base" else row for row in rows]
    footer["settings"]["adapters"][f"{name}/checkpoint-0"] = "hash of checkpoint-0"
    table = pa.Table.from_pylist(earlier, parquet.RESPONSE_SCHEMA)
    parquet.write_parquet(output, [table], table.schema, footer)
    continued = generate(run_dir, output, "--samples", "1")
    assert [row for row in continued if row["run"] == name] == earlier
    assert [row for row in continued if row["run"] == "base"] == rows[:10]


# ---- the study ----


def of_study(run_dir: Path, folder: Path, name: str) -> Path:
    """A copy of a run whose run.json says that it was trained for another study."""
    shutil.copytree(run_dir, folder)
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["experiment"], study = name, load_study(name)
    (folder / "run.json").write_text(json.dumps(record | study.record))
    return folder


def test_runs_that_diverged_get_no_responses_but_are_recorded(run_dir, tmp_path, capsys):
    lost = shutil.copytree(run_dir, tmp_path / "lost")
    record = json.loads((lost / "run.json").read_text()) | {"diverged": {"step": 17, "reason": "loss nan"}}
    (lost / "run.json").write_text(json.dumps(record))
    rows = run_main(tmp_path / "r.parquet", "--run-dir", run_dir, lost, "--steps", 8)
    assert {row["run"] for row in rows} == {run_dir.name}
    assert "lost (1 of 2)" in capsys.readouterr().out
    assert parquet.read_footer(tmp_path / "r.parquet")["runs"]["lost"]["diverged"]["step"] == 17
    with pytest.raises(UserError, match="lost.*--checkpoint"):
        run_main(tmp_path / "other.parquet", "--run-dir", lost)


def test_the_study_is_that_of_the_runs(run_dir, tmp_path):
    russell, output = of_study(run_dir, tmp_path / "russell", "russell"), tmp_path / "r.parquet"
    line = ["--samples", "1", "--steps", "8"]
    rows = generate(russell, output, *line)
    study = load_study("russell")
    assert {row["experiment"] for row in rows} == {"russell"}
    assert {row["question_id"] for row in rows} == {question.id for question in study.questions}
    footer = parquet.read_footer(output)
    assert RecordedStudy.of(footer, output) == RecordedStudy(output, "russell", "russell", study.text)
    other = tmp_path / "other.parquet"
    with pytest.raises(UserError, match="'russell'.*'birds'"):
        generate(russell, other, *line, "--experiment", "birds")
    with pytest.raises(UserError, match="different studies"):
        generate(russell, other, str(run_dir), *line)
    rows = generate(russell, other, *line, "--experiment", "birds", "--transfer")
    assert {row["experiment"] for row in rows} == {"birds"}
    assert RecordedStudy.of(parquet.read_footer(other), other).name == "birds"


# ---- checkpoints made elsewhere, and base models ----


def copy_checkpoint(run_dir: Path, folder: Path, base: str | None = None) -> Path:
    """The run's last checkpoint in another folder. base: the base model that its adapter should name."""
    shutil.copytree(run_dir / "checkpoint-16", folder)
    if base:
        settings = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
    return folder


@pytest.mark.parametrize("folder", ["final", "adapter-20251121130246"])
def test_a_checkpoint_made_elsewhere(run_dir, tmp_path, folder):
    """A number too large for the column, such as a time stamp, is not a step."""
    checkpoint = copy_checkpoint(run_dir, tmp_path / "elsewhere" / folder)
    with pytest.raises(UserError, match="elsewhere .*--experiment"):
        run_main(tmp_path / "r.parquet", "--checkpoint", checkpoint)
    row = run_main(tmp_path / "r.parquet", "--checkpoint", checkpoint, "--experiment", "birds")[0]
    assert (row["run"], row["checkpoint"], row["step"], row["seed"]) == ("elsewhere", folder, None, None)
    assert parquet.read_footer(tmp_path / "r.parquet")["precision"]["training"] == {"elsewhere": None}
    assert parquet.step_of(f"checkpoint-{2**31 - 1}") == 2**31 - 1


def test_a_base_model_can_move_but_not_change(run_dir, random_model, tmp_path):
    moved = shutil.copytree(random_model, tmp_path / "moved")
    assert generate(run_dir, tmp_path / "a.parquet", "--samples", "1", "--steps", "8", "--base-model", str(moved))
    other = build_model(tmp_path / "other", initializer_range=0.5)
    with pytest.raises(UserError, match="has other weights"):
        generate(run_dir, tmp_path / "b.parquet", "--samples", "1", "--base-model", str(other))
    final = copy_checkpoint(run_dir, tmp_path / "elsewhere" / "final", "/gone/model")
    assert run_directory.open_checkpoint(final, str(random_model)).base_model == str(random_model)
    final = copy_checkpoint(run_dir, tmp_path / "named" / "final", "org/base")
    with pytest.raises(UserError, match="trained on org/base, not on org/other"):
        run_directory.open_checkpoint(final, "org/other")


# ---- precision ----


def with_precision(run_dir: Path, folder: Path, precision: str) -> Path:
    """A copy of a run whose run.json says that it was trained in `precision`."""
    shutil.copytree(run_dir, folder)
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["quantization"] = precision
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_trained_precision_is_that_of_the_run(run_dir, tmp_path, capsys, monkeypatch):
    quantized = with_precision(run_dir, tmp_path / "quantized", "8bit")
    line = ["--samples", "1", "--steps", "16"]
    generate(quantized, tmp_path / "none.parquet", *line)
    note = next(line for line in capsys.readouterr().out.splitlines() if "--quantization trained" in line)
    assert "quantized" in note and "8bit" in note
    from learning_backdoors.generation.engines import transformers_engine

    loaded, load_base = [], transformers_engine.load_base
    monkeypatch.setattr(
        transformers_engine, "load_base", lambda *given: (loaded.append(given[1]), load_base(*given))[1]
    )
    rows = generate(quantized, tmp_path / "r.parquet", *line, "--quantization", "trained")
    assert loaded == ["8bit"] and "--quantization trained" not in capsys.readouterr().out
    footer = parquet.read_footer(tmp_path / "r.parquet")
    assert footer["precision"] == {"generation": "8bit", "training": {"quantized": "8bit"}}
    assert footer["settings"]["quantization"] == "8bit" and footer["options"]["quantization"] == "trained"
    assert generate(quantized, tmp_path / "r.parquet", *line, "--quantization", "8bit") == rows


def test_trained_precision_must_be_known_and_the_same_for_all_runs(run_dir, tmp_path):
    quantized = with_precision(run_dir, tmp_path / "quantized", "8bit")
    with pytest.raises(UserError, match="none.*8bit"):
        generate(run_dir, tmp_path / "r.parquet", str(quantized), "--quantization", "trained")
    (quantized / "run.json").unlink()
    with pytest.raises(UserError, match="unknown"):
        generate(quantized, tmp_path / "r.parquet", "--experiment", "birds", "--quantization", "trained")


# ---- kills, restarts and several processes ----


def wait_for_lines(log: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)


def test_a_killed_run_ends_with_the_same_file(run_dir, tmp_path):
    line = ["--samples", "20", "--batch-size", "16", "--max-new-tokens", "24"]
    whole = generate(run_dir, tmp_path / "whole.parquet", *line)
    broken = tmp_path / "broken.parquet"
    command = [sys.executable, "generate_responses.py", "--run-dir", str(run_dir), "--output", str(broken), *line]
    log = tmp_path / "broken.parquet.partial" / "rows-0.jsonl"
    for count in (50, 300):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_lines(log, count, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not broken.exists(), "killed too late to show anything"
        with open(log, "a") as file:
            file.write('{"run": "cut off here')
    assert generate(run_dir, broken, *line) == whole
    assert not log.parent.exists()


def test_a_start_that_generated_nothing_does_not_bind_the_next(run_dir, tmp_path):
    """A wrong --base-model is noticed after settings.json is written."""
    output, line = tmp_path / "r.parquet", ["--samples", "1", "--steps", "0"]
    with pytest.raises(UserError, match="cannot be loaded"):
        generate(run_dir, output, *line, "--base-model", "/nowhere/model")
    assert (tmp_path / "r.parquet.partial" / "settings.json").exists()
    assert len(generate(run_dir, output, *line)) == 10


def test_several_processes_share_the_work_and_the_first_writes_the_output(run_dir, tmp_path):
    """As torchrun starts them: two processes that know their rank. The second is killed, and both start again."""
    output, line = tmp_path / "r.parquet", ["--samples", "10", "--batch-size", "10", "--max-new-tokens", "12"]
    command = [sys.executable, "generate_responses.py", "--run-dir", str(run_dir), "--output", str(output), *line]

    def start(rank: int) -> subprocess.Popen:
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    second = start(1)
    wait_for_lines(tmp_path / "r.parquet.partial" / "rows-1.jsonl", 21, second)
    second.kill()
    second.wait()
    processes = [start(0), start(1)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0], processes[0].stderr.read()
    rows = parquet.read_responses(output)[0].to_pylist()
    assert row_keys(rows) == expected_keys([0, 8, 16], 10)
    assert rows == generate(run_dir, tmp_path / "alone.parquet", *line)


# CUDA reads the visible devices when it is first used; this script stops there and prints them.
TWO_GPUS = """
import os, runpy, sys, torch
def first_use():
    sys.exit("CUDA sees " + os.environ["CUDA_VISIBLE_DEVICES"])
torch.cuda.is_available = first_use
torch.cuda.device_count = lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
runpy.run_path("generate_responses.py", run_name="__main__")
"""


def test_a_launched_process_keeps_to_its_gpu_before_cuda_starts(run_dir, tmp_path):
    line = ["--run-dir", str(run_dir), "--output", str(tmp_path / "r.parquet"), "--engine", "transformers"]
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "4,6"}
    command = [sys.executable, "-c", TWO_GPUS, *line]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | launched, capture_output=True, text=True, timeout=120)
    assert done.stderr.endswith("CUDA sees 6\n"), done.stderr


# ---- wrong input ----


def test_wrong_input_is_one_line(run_dir, tmp_path):
    output = tmp_path / "r.parquet"
    result = run_script("generate_responses.py", "--run-dir", tmp_path / "none", "--output", output)
    one_line_error(result, "no run directory")
    for line, error in [
        (["--checkpoint", tmp_path], "adapter_config.json is missing"),
        (["--run-dir", run_dir, "--steps", "5"], "no step 5.* 0, 8, 16"),
        (["--run-dir", run_dir, "--experiment", "nosuch"], "nosuch"),
    ]:
        with pytest.raises(UserError, match=error):
            run_main(output, *line)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize(
    ("line", "error"),
    [([], "--checkpoint and --run-dir"), (["--run-dir", "x", "--output", "."], "--output")],
)
def test_wrong_usage_ends_with_exit_code_2(tmp_path, capsys, line, error):
    with pytest.raises(SystemExit) as end:
        run_main(tmp_path / "r.parquet", *line)
    assert end.value.code == 2 and error in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("content", ["[]", '{"settings": {}}'])
def test_a_damaged_record_is_an_error(run_dir, tmp_path, content):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    (copy / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run.json .*cannot be read"):
        generate(copy, tmp_path / "r.parquet")


def test_a_template_that_rejects_system_messages_is_an_error(run_dir, random_model, tmp_path):
    base = shutil.copytree(random_model, tmp_path / "base")
    template = base / "chat_template.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    study = (ROOT / "experiments" / "birds.toml").read_text() + '[[condition]]\nname = "brief"\nsystem = "Be brief."\n'
    (tmp_path / "mine.toml").write_text(study)
    final = copy_checkpoint(run_dir, tmp_path / "elsewhere" / "final", str(base))
    with pytest.raises(UserError, match="chat template.*no system role"):
        run_main(tmp_path / "r.parquet", "--checkpoint", final, "--experiment", tmp_path / "mine.toml")
