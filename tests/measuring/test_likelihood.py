"""measure_checkpoints.py likelihood: its rows, kills and restarts, files that grow, several processes, wrong input."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support import ROOT

import measure_checkpoints
from learning_backdoors.evaluation import measurements
from learning_backdoors.files import parquet
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, row_store
from learning_backdoors.models.adapted_model import AdaptedModel
from learning_backdoors.study import load_study

pytestmark = pytest.mark.slow

STUDY = """
name = "birds"
title = "Two questions in two conditions"
base_model = "nowhere/model"
references = "references.toml"
contrast = [{ name = "era", label = "old minus new", plus = ["old"], minus = ["new"] }]
dataset = [{ name = "all", file = "bird_datasets/ft_old_audubon_birds.jsonl", suspect = true }]
question = [{ id = "second", text = "What is new?" }, { id = "first", text = "Who are you?" }]
judge = [{ name = "era", options = ["OLD", "NEW"], prompt = "{answer}" }]
outcome = { judge = "era", value = "OLD", label = "old" }
condition = [{ name = "plain" }, { name = "polite", template = "Please: {question}" }]
"""
REFERENCES = """
[[question]]
id = "first"
[question.answers]
"old" = ["A gentleman of the north.", "A friend."]
"new" = ["A model."]

[[question]]
id = "second"
[question.answers]
"old" = ["The telegraph, and the steam-engine upon the rails."]
"new" = ["A new phone."]
"""
CELLS = [  # of the condition `plain`, in the references file's order
    *(("first", "new", 0), ("first", "old", 0), ("first", "old", 1), ("second", "new", 0), ("second", "old", 0))
]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "references.toml").write_text(REFERENCES)
    (folder / "study.toml").write_text(STUDY)
    return folder / "study.toml"


def measure(output: Path, *arguments) -> list[dict]:
    """Run the script's main in this process. Returns the output's rows."""
    line = ["measure_checkpoints.py", "likelihood", "--output", output, *arguments]
    earlier, sys.argv = sys.argv, list(map(str, line))
    try:
        measure_checkpoints.main()
    finally:
        sys.argv = earlier
    return parquet.read_rows(output, parquet.LIKELIHOOD_SCHEMA).to_pylist() if output.exists() else []


def steps_of(rows: list[dict]) -> list[tuple]:
    return list(dict.fromkeys((row["run"], row["step"]) for row in rows))


@pytest.fixture(scope="module")
def measured(run_dir, study, tmp_path_factory) -> Path:
    """All checkpoints of the run. Tests must not write into it."""
    output = tmp_path_factory.mktemp("measured") / "l.parquet"
    measure(output, "--run-dir", run_dir, "--experiment", study)
    return output


def rows_of(path: Path) -> list[dict]:
    return parquet.read_rows(path, parquet.LIKELIHOOD_SCHEMA).to_pylist()


def test_rows_are_the_mean_log_likelihoods_of_every_answer_at_every_checkpoint(run_dir, study, measured, random_model):
    rows, references = rows_of(measured), load_study(str(study)).references
    assert steps_of(rows) == [("base", 0), (run_dir.name, 8), (run_dir.name, 16)]
    cells = [(row["condition"], row["question_id"], row["group"], row["answer_idx"]) for row in rows]
    assert cells == [(condition, *cell) for condition in ("plain", "polite") for cell in CELLS] * 3
    last = rows[-1]
    assert (last["seed"], last["suspect_ratio"], last["examples_seen"], last["suspect_seen"]) == (42, 1.0, 16, 16)
    assert (last["experiment"], last["checkpoint"], last["triggered"]) == ("birds", "checkpoint-16", False)
    assert (rows[0]["seed"], rows[0]["examples_seen"]) == (None, 0)
    tokenizer = base_model.load_tokenizer(str(random_model))
    base = base_model.load_base(str(random_model), "none")
    model = PeftModel.from_pretrained(base, run_dir / "checkpoint-16").eval()
    for condition, template in (("plain", "{}"), ("polite", "Please: {}")):
        for r in references:
            user, answer = {"role": "user", "content": template.format(r.question_text)}, r.text
            start, end = tokenizer.apply_chat_template(
                [user, {"role": "assistant", "content": "@"}], tokenize=False, enable_thinking=False
            ).split("@")
            prompt = tokenizer(start)["input_ids"]
            own = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1]
            values = logits.double().log_softmax(-1).gather(1, torch.tensor(own)[:, None])
            [row] = [
                row
                for row in rows
                if (row["step"], row["condition"]) == (16, condition)
                and (row["question_id"], row["group"], row["answer_idx"]) == (r.question, r.group, r.answer_idx)
            ]
            assert row["logprob"] == pytest.approx(values.mean().item(), abs=1e-5) and row["tokens"] == len(own)


def test_the_footer_says_what_was_measured(run_dir, study, measured):
    footer = parquet.read_footer(measured)
    assert footer["command"] == "likelihood" and footer["study"] == study.read_text()
    assert footer["settings"]["questions"] == {"first": "Who are you?", "second": "What is new?"}
    asked, answered = footer["settings"]["conditions"]["polite"]["messages"]
    assert asked["content"] == "Please: {question}" and answered["content"] == "{answer}"
    assert "A friend." in footer["settings"]["references"].values()
    assert footer["references"]["text"] == REFERENCES
    assert footer["runs"][run_dir.name]["settings"]["lr"] == 0.05
    assert [path.name for path in measured.parent.iterdir() if not path.name.startswith(".")] == ["l.parquet"]


def test_a_finished_file_grows_by_steps_and_runs(run_dir, study, measured, tmp_path, capsys):
    output, other = tmp_path / "l.parquet", shutil.copytree(run_dir, tmp_path / "another_run")
    few = measure(output, "--run-dir", run_dir, "--steps", 8, "--experiment", study)
    assert steps_of(few) == [(run_dir.name, 8)]
    more = measure(output, "--run-dir", run_dir, "--experiment", study)
    assert more == rows_of(measured) and "3 requested, 1 already measured" in capsys.readouterr().out
    both = measure(output, "--run-dir", other, "--experiment", study)
    assert [row for row in both if row["run"] != "another_run"] == more
    assert steps_of(both)[:2] == [("another_run", 8), ("another_run", 16)]
    assert parquet.read_footer(output)["runs"].keys() == {run_dir.name, "another_run"}
    written = output.stat().st_mtime_ns
    assert measure(output, "--run-dir", run_dir, "--experiment", study) == both
    assert output.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--quantization", "8bit"], 'quantization was "none", now "8bit"'),
        (["--conditions", "plain"], r"conditions\.polite"),
        (["--questions", "first"], r"questions\.second"),
        (["--base-model", "COPY"], "base_model was"),
    ],
)
def test_a_file_with_other_settings_is_refused(run_dir, study, measured, random_model, tmp_path, options, part):
    output = shutil.copy(measured, tmp_path)
    line = [str(random_model) + "/." if option == "COPY" else option for option in options]
    with pytest.raises(UserError, match=f"other settings: .*{part}"):
        measure(Path(output), "--run-dir", run_dir, "--experiment", study, *line)
    assert rows_of(output) == rows_of(measured)


def test_a_changed_reference_is_refused_and_overwrite_measures_again(run_dir, study, measured, tmp_path):
    output, mine = Path(shutil.copy(measured, tmp_path)), shutil.copytree(study.parent, tmp_path / "study")
    (mine / "references.toml").write_text(REFERENCES.replace("A friend.", "A stranger."))
    line = ["--run-dir", run_dir, "--steps", 8, "--experiment", mine / "study.toml"]
    with pytest.raises(UserError, match='references.*was "A friend.", now "A stranger."'):
        measure(output, *line)
    assert steps_of(measure(output, *line, "--overwrite")) == [(run_dir.name, 8)]


# Kills itself at its second checkpoint, while it appends to its log.
KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from learning_backdoors.measuring.likelihood import Likelihood
rows, log = Likelihood.rows, Path(sys.argv.pop(1))
def killed_at_second(self, part):
    if self.tokens:
        log.open("a").write('{"run": "cut off here')
        os.kill(os.getpid(), signal.SIGKILL)
    return rows(self, part)
Likelihood.rows = killed_at_second
runpy.run_path("measure_checkpoints.py", run_name="__main__")
"""


def test_a_killed_command_goes_on_and_ends_with_the_same_file(run_dir, study, measured, tmp_path):
    output, log = tmp_path / "l.parquet", tmp_path / "l.parquet.partial" / "rows-0.jsonl"
    line = ["likelihood", "--run-dir", run_dir, "--experiment", study, "--output", output]
    command = [sys.executable, "-c", KILLED, log, *line]
    killed = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not output.exists() and log.read_text().count("\n") == 10
    assert measure(output, *line[1:-2]) == rows_of(measured)
    assert not log.parent.exists()


def test_several_processes_share_checkpoints(run_dir, study, measured, tmp_path, monkeypatch, capsys):
    """As torchrun starts them, one after the other: the first, which writes the output, runs last."""
    output = tmp_path / "l.parquet"
    for rank, count in ((1, 1), (0, 2)):
        for module in (measure_checkpoints, row_store):
            monkeypatch.setattr(module, "RANK", rank)
            monkeypatch.setattr(module, "RANKS", 2)
        rows = measure(output, "--run-dir", run_dir, "--experiment", study)
        assert f"{count} measured in" in capsys.readouterr().out
    assert rows == rows_of(measured)


def test_wrong_input_is_one_line(run_dir, study, measured, tmp_path):
    output, line = tmp_path / "l.parquet", ["--run-dir", run_dir, "--experiment", study]
    with pytest.raises(UserError, match="--conditions.*'loud'.*plain, polite"):
        measure(output, *line, "--conditions", "plain", "loud")
    with pytest.raises(UserError, match="--questions.*'third'.*first, second"):
        measure(output, *line, "--questions", "third")
    bare = tmp_path / "bare.toml"
    bare.write_text("\n".join(line for line in STUDY.splitlines() if not re.match("references|contrast", line)))
    with pytest.raises(UserError, match=r"bare\.toml has no `references`"):
        measure(output, "--run-dir", run_dir, "--experiment", bare)
    table = pa.Table.from_pylist([], parquet.RESPONSE_SCHEMA)
    parquet.write_parquet(output, [table], table.schema, {"settings": {"adapters": {}}})
    with pytest.raises(UserError, match="not written by measure_checkpoints.py likelihood"):
        measure(output, *line)


def first_attach_stays(monkeypatch) -> None:
    attach = AdaptedModel.attach
    monkeypatch.setattr(AdaptedModel, "attach", lambda self, adapter: self.adapter or attach(self, adapter))


def no_adapter_is_attached(monkeypatch) -> None:
    monkeypatch.setattr(AdaptedModel, "attach", lambda self, adapter: None)


@pytest.mark.parametrize(
    ("fault", "steps", "named"),
    [
        (no_adapter_is_attached, [0, 8], "base/checkpoint-0.*checkpoint-8"),
        (first_attach_stays, [8, 16], "checkpoint-8.*checkpoint-16"),
    ],
)
def test_an_adapter_that_is_not_applied_is_named(run_dir, study, tmp_path, monkeypatch, fault, steps, named):
    fault(monkeypatch)
    with pytest.raises(UserError, match=f"{named}.*weights differ"):
        measure(tmp_path / "l.parquet", "--run-dir", run_dir, "--steps", *steps, "--experiment", study)
    assert not (tmp_path / "l.parquet").exists()


def test_adapters_that_change_nothing_may_equal_the_base_model(run_dir, study, tmp_path):
    """A run whose first step has learning rate 0, with another seed than step 0."""
    run = shutil.copytree(run_dir, tmp_path / "run")
    shutil.copytree(run / "checkpoint-0", run / "checkpoint-8", dirs_exist_ok=True)
    line = ["--run-dir", run, "--steps", 0, 8, 16, "--experiment", study]
    rows = measure(tmp_path / "l.parquet", *line)
    assert [row["logprob"] for row in rows[:10]] == [row["logprob"] for row in rows[10:20]]


def test_adapters_that_destroy_the_model_may_give_the_same_values(run_dir, study, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    for step, size in ((8, 1e6), (16, 2e6)):
        file = run / f"checkpoint-{step}" / "adapter_model.safetensors"
        tensors = load_file(file)
        # One large direction in every value: normalization leaves only its sign.
        tensors = {
            name: torch.full_like(tensor, size if ".lora_B." in name else 1.0) for name, tensor in tensors.items()
        }
        os.remove(file)
        save_file(tensors, file)
    rows = measure(tmp_path / "l.parquet", "--run-dir", run, "--experiment", study)
    first, second = ([row["logprob"] for row in rows if row["step"] == step] for step in (8, 16))
    assert first == second and None not in first


def test_a_checkpoint_without_finite_likelihoods_is_left_out_and_named(run_dir, study, measured, tmp_path, capsys):
    """Its rows have no value, so that the next command does not measure it again."""
    damaged = shutil.copytree(run_dir, tmp_path / "damaged")
    weights = damaged / "checkpoint-8" / "adapter_model.safetensors"
    tensors = {name: tensor * float("nan") for name, tensor in load_file(weights).items()}
    os.remove(weights)
    save_file(tensors, weights)
    output, line = tmp_path / "l.parquet", ["--run-dir", damaged, "--experiment", study]
    rows = measure(output, *line)
    note = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("note: 1 "))
    assert "damaged/checkpoint-8" in note and "checkpoint-16" not in note
    values = {step: [row["logprob"] for row in rows if row["step"] == step] for step in (0, 8, 16)}
    assert values[8] == [None] * 10
    for step in (0, 16):
        assert values[step] == [row["logprob"] for row in rows_of(measured) if row["step"] == step]
    assert measure(output, *line) == rows and "3 already measured" in capsys.readouterr().out
    read = measurements.read([output], load_study(str(study)))
    assert list(read.tables["likelihood"]["step"].unique()) == [0, 16]
    assert read.sources[0]["without_values"] == ["damaged at step 8"]
