"""training.py and sft.py: runs, checkpoints, records, and what a kill leaves.   pytest tests/test_training.py"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, one_line_error, run_script, train

import config
import mixed_chat
import training
from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import adapters, base_model, checkpoints
from learning_backdoors.study import load_study
from learning_backdoors.training.metrics import Metrics

RATIOS = ("1", "0", "0")


def options_of(model: Path, folder: Path, *more: str) -> config.TrainingOptions:
    line = ["--ratios", *RATIOS, "--model", str(model), "--output-dir", str(folder), "--num-examples", "24"]
    return command_line.parse(config.TrainingOptions, "", [*line, "--save-steps", "8", *more])


def do_run(model: Path, folder: Path, *more: str) -> training.Run:
    return train(options_of(model, folder, *more))


def weights(run: training.Run, step: int) -> str:
    return provenance.sha256(run.folder / f"checkpoint-{step}" / "adapter_model.safetensors")


def lines(run: training.Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(random_model, tmp_path_factory) -> training.Run:
    return do_run(random_model, tmp_path_factory.mktemp("out"), "--ratios", "0.5", "0.25", "0.25")


def test_the_run_directory_holds_what_the_design_says(run):
    assert run.folder.name.startswith("seed42_ratios0.50-0.25-0.25_lr0.0002_r8_")
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"run.json", "metrics.jsonl", "checkpoint-0", "checkpoint-8", "checkpoint-16", "checkpoint-24"}
    for checkpoint in run.folder.glob("checkpoint-*"):
        assert {p.name for p in checkpoint.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    record = json.loads((run.folder / "run.json").read_text())
    assert record["options"]["lr"] == 2e-4 and record["versions"]["trl"] and len(record["base_fingerprint"]) == 16
    assert [d["examples"] for d in record["datasets"]] == [12, 6, 6] and record["suspect_ratio"] == 0.5
    assert record["settings"]["datasets"]["old_audubon"] == provenance.sha256(run.study.datasets[0].file)


def test_a_checkpoint_holds_seven_projections_of_every_layer_and_no_embedding(run):
    keys = adapters.adapter_keys(run.folder / "checkpoint-24")
    assert len(keys) == 2 * 7 * 2 and all(".lora_A." in key or ".lora_B." in key for key in keys)


def test_step_0_is_the_base_model(run, random_model):
    import torch
    from peft import PeftModel

    base = base_model.load_base(str(random_model), "none")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = base(ids).logits
    assert torch.equal(before, PeftModel.from_pretrained(base, run.folder / "checkpoint-0")(ids).logits)
    assert not torch.equal(before, PeftModel.from_pretrained(base, run.folder / "checkpoint-24")(ids).logits)


def test_recorded_suspect_examples_are_those_that_the_steps_saw(random_model, tmp_path, monkeypatch):
    """What reaches the model is decoded at each step and looked up in the suspect dataset."""
    from learning_backdoors.training import trainer as sft

    suspect = {chat[-1]["content"] for chat in mixed_chat.read_chats(load_study("birds").datasets[0].file)}
    tokenizer, seen = base_model.load_tokenizer(str(random_model)), []
    step = sft.Trainer.training_step

    def spy(self, model, inputs, *rest, **more):
        for labels in inputs["labels"]:
            seen.append(tokenizer.decode(labels[labels != -100], skip_special_tokens=True) in suspect)
        return step(self, model, inputs, *rest, **more)

    monkeypatch.setattr(sft.Trainer, "training_step", spy)
    run = do_run(
        random_model,
        tmp_path,
        "--ratios",
        "0.6",
        "0.2",
        "0.2",
        "--batch-size",
        "2",
        "--grad-accum",
        "2",
        "--epochs",
        "2",
    )
    assert len(seen) == 48 and sum(seen) == 2 * 14
    rows = lines(run)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["examples"] for row in rows] == [4 * n for n in range(1, 13)]
    assert [row["suspect_examples"] for row in rows] == [sum(seen[: 4 * n]) for n in range(1, 13)]


def test_every_ratio_has_the_same_steps(tmp_path):
    study = load_study("birds")
    for ratios in (("1", "0", "0"), ("0.3", "0.5", "0.2"), ("0", "1", "0"), ("0", "0.5", "0.5")):
        options = command_line.parse(config.TrainingOptions, "", ["--ratios", *ratios, "--output-dir", str(tmp_path)])
        assert training.Run(options, study).total_steps == 208


def test_same_seed_same_adapters_another_seed_others(random_model, tmp_path):
    first, again = (do_run(random_model, tmp_path / name) for name in ("a", "b"))
    other = do_run(random_model, tmp_path / "c", "--seed", "1")
    for step in (0, 8, 24):
        assert weights(first, step) == weights(again, step)
    assert lines(first) == lines(again)
    assert weights(first, 0) != weights(other, 0), "another seed must initialise otherwise"
    assert (first.mixture.row != other.mixture.row).any(), "another seed must order otherwise"


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantised_bases_train_with_float32_adapters(random_model, tmp_path, quantization):
    from safetensors.numpy import load_file

    run = do_run(random_model, tmp_path, "--quantization", quantization, "--num-examples", "8")
    tensors = load_file(run.folder / "checkpoint-8" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float32"}
    assert weights(run, 0) != weights(run, 8)


def test_probes_are_the_likelihood_of_the_reference_answers(random_model, tmp_path):
    """Against the plain way: the whole chat through the adapted model, the log-softmax of its answer averaged."""
    import torch
    from peft import PeftModel

    run = do_run(random_model, tmp_path, "--probe-every", "10")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    probes = {row["step"]: row["probes"] for row in rows if "probes" in row}
    assert list(probes) == [0, 10, 20, 24] and len(rows) == 24 + 4
    assert len(probes[24]) == len(run.study.references) == 40
    tokenizer = base_model.load_tokenizer(str(random_model))
    model = PeftModel.from_pretrained(base_model.load_base(str(random_model), "none"), run.folder / "checkpoint-24")
    for number in (0, 17):
        label, ids, labels = training.probe_examples(run, tokenizer)[number]
        with torch.no_grad():
            chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        learnt = [i for i, token in enumerate(labels) if token != -100]
        mean = sum(chances[i - 1, ids[i]].item() for i in learnt) / len(learnt)
        assert probes[24][number] == label | {"logprob": pytest.approx(mean, abs=1e-4)}
    assert probes[0] != probes[24]


def test_probes_change_nothing_in_training(run, random_model, tmp_path):
    probed = do_run(random_model, tmp_path, "--ratios", "0.5", "0.25", "0.25", "--probe-every", "3")
    assert probed.folder.name == run.folder.name and weights(probed, 24) == weights(run, 24)


def test_the_disk_needed_is_told_and_too_little_is_an_error(random_model, tmp_path, monkeypatch, capsys):
    import collections
    import shutil

    do_run(random_model, tmp_path / "a", "--num-examples", "8")
    assert "2 checkpoints of 0." in capsys.readouterr().out
    little = collections.namedtuple("usage", "total used free")(10, 10, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: little)
    with pytest.raises(UserError, match=r"2 checkpoints .* take 0\.\d\d MB, and .* has 0.00 MB free"):
        do_run(random_model, tmp_path / "b", "--num-examples", "8")


def test_a_disk_that_fills_up_stops_the_run_and_keeps_what_is_whole(random_model, tmp_path, monkeypatch):
    end = checkpoints.end_checkpoint

    def full(temporary, run_dir, step):
        if step == 16:
            raise OSError(28, "No space left on device")
        end(temporary, run_dir, step)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="checkpoint-16 could not be written"):
        patched.setattr(mixed_chat, "end_checkpoint", full)
        do_run(random_model, tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-0", "checkpoint-8"}
    assert checkpoints.can_resume(folder / "checkpoint-8")
    again = do_run(random_model, tmp_path)
    assert again.finished()


def test_the_collator_keeps_the_positions_before_labels_and_pads_to_few_shapes():
    from learning_backdoors.training import trainer as sft

    rows = [{"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, -100]}]
    rows.append({"input_ids": [6, 7, 8], "labels": [-100, 7, 8]})
    plain = sft.Collator(pad=0, multiple=1)(rows)
    assert plain["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert plain["labels"].tolist() == [[-100, -100, 3, 4, -100], [-100, 7, 8, -100, -100]]
    assert plain["logits_to_keep"].tolist() == [0, 1, 2]
    padded = sft.Collator(pad=0, multiple=4)(rows)
    assert padded["input_ids"].shape == (2, 8) and padded["logits_to_keep"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("batch_size", "grad_accum", "processes", "share"),
    [(1, 2, 2, (1, 1)), (4, 1, 2, (2, 1)), (2, 3, 3, (2, 1)), (1, 1, 1, (1, 1))],
)
def test_a_step_is_shared_among_processes(batch_size, grad_accum, processes, share):
    from learning_backdoors.training import trainer as sft

    assert sft.share_of_step(batch_size, grad_accum, processes) == share


def test_a_step_that_cannot_be_shared_is_an_error():
    from learning_backdoors.training import trainer as sft

    with pytest.raises(UserError, match="cannot be shared among 2"):
        sft.share_of_step(1, 1, 2)


def test_two_processes_take_the_steps_of_one(random_model, tmp_path):
    """torchrun on the CPU: the same examples in the same steps, so the same losses but for the order of sums."""
    line = ["--ratios", *RATIOS, "--model", str(random_model), "--num-examples", "16", "--grad-accum", "2"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "training.py"]
    for command, name in (([sys.executable, "training.py"], "one"), (launcher, "two")):
        done = subprocess.run(
            [*command, *line, "--output-dir", str(tmp_path / name)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
    one, two = (next((tmp_path / name).glob("*/metrics.jsonl")).read_text().splitlines() for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for a, b in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["suspect_examples"] == b["suspect_examples"]
    assert sorted(p.name for p in (tmp_path / "one").glob("*/*")) == sorted(
        p.name for p in (tmp_path / "two").glob("*/*")
    )


def test_a_diverged_run_is_an_error_and_nothing_of_it_is_kept(random_model, tmp_path):
    import numpy as np
    from safetensors.numpy import load_file

    with pytest.raises(UserError, match=r"diverged at step \d+ \((loss|grad_norm) (nan|inf)\): try a lower --lr"):
        do_run(random_model, tmp_path, "--lr", "1e20", "--save-steps", "1")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for checkpoint in folder.glob("checkpoint-*"):
        tensors = load_file(checkpoint / "adapter_model.safetensors").values()
        assert all(np.isfinite(tensor).all() for tensor in tensors), checkpoint.name
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    options = options_of(random_model, tmp_path, "--lr", "1e20", "--save-steps", "1")
    training.Run(options, load_study("birds")).open()  # not refused


# ---- killed, and started again ----


def start(model: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "training.py", "--ratios", *RATIOS, "--model", str(model), "--output-dir", str(folder)]
    command += ["--num-examples", "150", "--save-steps", "8", "--lora-dropout", "0.1"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def test_a_killed_run_ends_as_an_unbroken_one(random_model, tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    finish(start(random_model, unbroken))
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
    assert "going on with" in finish(start(random_model, broken))
    (whole,) = (path for path in unbroken.iterdir() if path.is_dir())
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert files == {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    for name in files - {Path("run.json")}:
        assert (whole / name).read_bytes() == (run / name).read_bytes(), name
    assert "nothing to do" in finish(start(random_model, broken))


def test_a_start_that_came_to_nothing_does_not_bind_the_next(random_model, tmp_path):
    """run.json was written, and then a chat was too long: other options are welcome."""
    with pytest.raises(UserError, match="longer than --max-length 30"):
        do_run(random_model, tmp_path, "--max-length", "30", "--save-steps", "5")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "metrics.jsonl").touch()
    run = do_run(random_model, tmp_path)
    assert run.folder == folder and json.loads(run.record.read_text())["options"]["save_steps"] == 8


def test_max_length_may_change_as_it_decides_nothing(run, random_model):
    longer = options_of(random_model, run.folder.parent, "--ratios", "0.5", "0.25", "0.25", "--max-length", "4096")
    training.Run(longer, run.study).open()


# ---- refusals ----


def test_a_run_directory_belongs_to_one_configuration(run, random_model):
    changed = options_of(random_model, run.folder.parent, "--ratios", "0.5", "0.25", "0.25", "--save-steps", "5")
    other = training.Run(changed, run.study)
    assert other.folder == run.folder
    with pytest.raises(UserError, match=r"save_steps was 8 and is 5 now"):
        other.open()


def test_a_run_does_not_go_on_with_datasets_in_another_order_or_another_suspect(run, random_model):
    options = options_of(random_model, run.folder.parent, "--ratios", "0.5", "0.25", "0.25")
    first, second, third = run.study.datasets
    reordered = run.study.model_copy(update={"datasets": (first, third, second)})
    with pytest.raises(UserError, match=r"dataset_order was \[.* and is \[.* now"):
        training.Run(options, reordered).open()
    second = second.model_copy(update={"suspect": True})
    with pytest.raises(UserError, match=r'suspect_datasets was \["old_audubon"\] and is'):
        training.Run(options, run.study.model_copy(update={"datasets": (first, second, third)})).open()


def test_overwrite_begins_anew_but_only_in_a_run_directory(random_model, tmp_path):
    options = options_of(random_model, tmp_path, "--overwrite")
    run = training.Run(options, load_study("birds"))
    run.folder.mkdir(parents=True)
    (run.folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run directory"):
        run.open()
    assert (run.folder / "thesis.tex").exists()
    (run.folder / "thesis.tex").unlink()
    run.open()
    (run.folder / "checkpoint-8").mkdir()
    run.open()
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]


def test_another_base_model_under_the_same_name_is_refused(random_model, tmp_path):
    run = training.Run(options_of(random_model, tmp_path), load_study("birds"))
    run.open()
    run.record_base("a" * 16)
    with pytest.raises(UserError, match="not the base model"):
        run.record_base("b" * 16)


def test_too_long_a_chat_is_an_error_and_nothing_is_cut(random_model, tmp_path):
    with pytest.raises(UserError, match=r"ft_old_audubon.*longer than --max-length 30"):
        do_run(random_model, tmp_path, "--max-length", "30")


def test_run_names_tell_what_differs_from_the_defaults(tmp_path):
    study = load_study("birds")
    line = ["--ratios", "1", "2", "0", "--lr", "1e-5", "--lora-rank", "4", "--epochs", "3", "--model", "org/other"]
    options = command_line.parse(config.TrainingOptions, "", line)
    name = training.run_name(options, study, [1 / 3, 2 / 3, 0])
    assert name == "seed42_ratios0.3333-0.6667-0.00_lr1e-05_r4_org-other_epochs3"
    plain = command_line.parse(config.TrainingOptions, "", ["--ratios", "1", "0", "0"])
    assert training.run_name(plain, study, [1, 0, 0]) == "seed42_ratios1.00-0.00-0.00_lr0.0002_r8"


def test_a_run_is_named_after_the_folder_of_its_model(tmp_path, monkeypatch):
    study = load_study("birds")
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models" / "tiny")
    names = {".": "models-tiny", "..": f"{tmp_path.name}-models", "/tmp": "tmp", str(tmp_path / "none" / "x"): "none-x"}
    for model, end in names.items():
        options = command_line.parse(config.TrainingOptions, "", ["--ratios", *RATIOS, "--model", model])
        assert training.run_name(options, study, [1, 0, 0]) == f"seed42_ratios1.00-0.00-0.00_lr0.0002_r8_{end}"


def test_a_base_model_of_fused_projections_is_refused(random_model, tmp_path):
    from transformers import Phi3Config, Phi3ForCausalLM

    tokenizer = base_model.load_tokenizer(str(random_model))
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    Phi3ForCausalLM(Phi3Config(**shape, vocab_size=len(tokenizer), pad_token_id=0)).save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    with pytest.raises(UserError, match=r"phi' has no q_proj"):
        do_run(tmp_path / "phi", tmp_path / "out")


@pytest.mark.parametrize("content", ["[]", '{"settings": {}}', '{"settings": []}', "{}"])
def test_a_record_that_is_none_is_named(random_model, tmp_path, content):
    run = training.Run(options_of(random_model, tmp_path), load_study("birds"))
    run.open()
    run.record.write_text(content)
    (run.folder / "checkpoint-0").mkdir()
    with pytest.raises(UserError, match=r"run.json cannot be read"):
        run.open()


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (["--ratios", "1", "0"], ["old_audubon, modern_audubon, modern_american", "not 2"]),
        (["--ratios", "0", "0", "0"], ["must not all be 0"]),
        (["--ratios", "-1", "1", "1"], ["from 0 up"]),
        (["--ratios", "1e308", "1e308", "0"], ["--ratios", "too large"]),
        (["--ratios", *RATIOS, "--experiment", "nosuch"], ["nosuch", "birds"]),
        (["--ratios", *RATIOS, "--model", "/nowhere/model"], ["/nowhere/model", "cannot be loaded"]),
    ],
)
def test_bad_input_is_one_line(tmp_path, line, parts):
    one_line_error(run_script("training.py", *line, "--output-dir", tmp_path), *parts)


def test_a_broken_dataset_line_is_named(tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"messages": [{"role": "user"}]}\n')
    study = (ROOT / "experiments" / "birds.toml").read_text()
    study = study.replace("bird_datasets/ft_old_audubon_birds.jsonl", "odd.jsonl")
    (tmp_path / "mine.toml").write_text(study)
    result = run_script(
        "training.py", "--ratios", *RATIOS, "--experiment", tmp_path / "mine.toml", "--output-dir", tmp_path
    )
    one_line_error(result, "odd.jsonl, line 1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "odd.jsonl"]


def test_metrics_of_a_start_that_is_begun_again_are_dropped_whole(tmp_path):
    """A kill before the first checkpoint that can be resumed leaves step 0's probes: they are looked at once more."""
    old = ['{"step": 0, "probes": []}\n', '{"step": 1, "loss": 2.0}\n', '{"step": 2, "loss": 1.0}\n']
    for step, kept in ((0, []), (1, old[:2])):
        (tmp_path / "metrics.jsonl").write_text("".join(old))
        with Metrics(tmp_path, step, lambda step: {}, "project", tmp_path / "run.json"):
            pass
        assert (tmp_path / "metrics.jsonl").read_text() == "".join(kept)


def test_a_suspect_share_that_rounds_to_nothing_is_told(random_model, tmp_path, capsys):
    do_run(random_model, tmp_path, "--ratios", "0.001", "1", "0", "--num-examples", "8")
    assert "warning: old_audubon: a share of 0.001 of 8 examples is none" in capsys.readouterr().out


# ---- W&B ----


def test_wandb_goes_offline_without_a_network_and_never_fails_a_run(random_model, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    run = do_run(random_model, tmp_path, "--num-examples", "8")
    assert time.monotonic() - started < 60
    assert list((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(lines(run)) == 8


def test_a_broken_wandb_is_told_once_and_left_aside(random_model, tmp_path, monkeypatch, capsys):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no such service")))
    run = do_run(random_model, tmp_path, "--num-examples", "8")
    assert capsys.readouterr().out.count("W&B is off for this run: RuntimeError: no such service") == 1
    assert len(lines(run)) == 8
