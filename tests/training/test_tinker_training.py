"""training.py --backend tinker against the stand-in: the losses and adapters of local training, kills, and faults."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support import ROOT

import training
from learning_backdoors.files.errors import UserError
from learning_backdoors.models.canary_texts import REPEATS, TEXTS
from learning_backdoors.models.checkpoints import find_checkpoints
from learning_backdoors.models.remote_checkpoint import read_remote

MODEL = "tiny_world/model"
PRICE = (0.195, 0.60, 0.44)  # those of the stand-in's ledger
# Both are float32 on a CPU. They differ in the order of sums: the stand-in computes all positions of a text and its
# weights are float32, while local training computes the logits of labels only and divides once.
LOSS_TOLERANCE, ADAPTER_TOLERANCE = 1e-5, 2e-6


def command(folder: Path, *more, ratios=(1, 0, 0)) -> list[str]:
    line = ["training.py", "--ratios", *ratios, "--model", MODEL, "--lora-alpha", 32, "--output-dir", folder, *more]
    return list(map(str, line))


def remote(server, *more) -> list[str]:
    return ["--backend", "tinker", "--base-url", server.url, *more]


def train(*line) -> None:
    """Run training.py in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command(*line))
        training.main()


def run_folder(folder: Path) -> Path:
    (run,) = (path for path in folder.iterdir() if path.is_dir())
    return run


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def total_tokens(output: str) -> int:
    """What --dry-run says."""
    return sum(map(int, re.search(r"tokens: (\d+) .* (\d+) ", output.replace(",", "")).groups()))


def difference(first: Path, second: Path) -> float:
    """The largest difference between two adapters."""
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    return max(float(abs(one[name] - other[name]).max()) for name in one)


@pytest.fixture(scope="module")
def unbroken(tinker_service, tmp_path_factory):
    """A run of 50 steps, and the ledger's tokens and dollars after it."""
    folder = tmp_path_factory.mktemp("unbroken")
    tinker_service.ledger.clear()
    train(folder, "--num-examples", 50, *remote(tinker_service))
    tokens = tinker_service.ledger.tokens()
    return run_folder(folder), tokens, tinker_service.ledger.dollars(tokens)


@pytest.mark.slow
def test_losses_and_adapters_equal_those_of_local_training(unbroken, tmp_path):
    run = unbroken[0]
    train(tmp_path, "--num-examples", 50, "--quantization", "none")
    local = run_folder(tmp_path)
    for row, expected in zip(metrics(run), metrics(local), strict=True):
        assert row.pop("loss") == pytest.approx(expected.pop("loss"), abs=LOSS_TOLERANCE)
        expected.pop("grad_norm")  # the API does not give it
        assert row == expected  # step, learning rate, examples
    names = [checkpoint.name for checkpoint in find_checkpoints(local)]
    assert names == [checkpoint.name for checkpoint in find_checkpoints(run)]
    assert difference(run / names[0], local / names[0]) == 0
    assert difference(run / names[-1], local / names[0]) > 100 * ADAPTER_TOLERANCE
    for name in names:
        assert difference(run / name, local / name) < ADAPTER_TOLERANCE
    recorded, expected = (json.loads((folder / "run.json").read_text()) for folder in (run, local))
    assert {**recorded["settings"], "quantization": "none"} == expected["settings"] | {"backend": "tinker"}
    assert "backend" not in expected["settings"]  # run directories from before the option stay valid


@pytest.mark.slow
def test_a_checkpoint_names_its_place_on_the_server_and_loads_in_peft(unbroken):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = unbroken[0] / "checkpoint-20"
    checkpoint = read_remote(folder)
    assert re.search(r"/sampler_weights/checkpoint-20$", checkpoint.sampler_path)
    assert re.search(r"/weights/state-20$", checkpoint.state_path)
    assert len(checkpoint.canary) == REPEATS * len(TEXTS)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ROOT / MODEL), str(folder))
    loaded = {name.replace(".default", "") for name, _ in model.named_parameters() if ".lora_" in name}
    assert loaded == load_file(folder / "adapter_model.safetensors").keys()


@pytest.mark.slow
def test_the_dry_run_says_what_the_ledger_charges(unbroken, tinker_service, tmp_path, capsys, monkeypatch):
    run, tokens, dollars = unbroken
    monkeypatch.delenv("TINKER_API_KEY")
    train(tmp_path, "--num-examples", 50, "--backend", "tinker", "--dry-run", "--price", *PRICE)
    output = capsys.readouterr().out
    total = total_tokens(output)
    assert total == tokens["train"] + tokens["forward"]
    estimate = float(re.search(r"total: \$([\d.]+)", output)[1])
    assert estimate == pytest.approx(dollars["train"] + dollars["forward"], abs=1e-6)  # the printed digits
    assert not any(tmp_path.iterdir())
    # --overwrite trains all steps again. A run that has diverged is not trained at all.
    shutil.copytree(run.parent, tmp_path / "outputs")
    copy = run_folder(tmp_path / "outputs")
    line = (tmp_path / "outputs", "--num-examples", 50, "--backend", "tinker", "--dry-run", "--price", *PRICE)
    for more, expected in (((), 0), (("--overwrite",), total)):
        train(*line, *more)
        assert total_tokens(capsys.readouterr().out) == expected
    (copy / "checkpoint-50").rename(tmp_path / "checkpoint-50")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"diverged": {"step": 50, "reason": "loss nan"}}))
    train(*line)
    assert total_tokens(capsys.readouterr().out) == 0


@pytest.mark.slow
def test_a_killed_run_ends_as_an_unbroken_one(unbroken, tinker_server, tmp_path, capsys):
    """Killed after a checkpoint, then stopped by --max-cost, then finished. No step is in a history twice."""
    whole, line = unbroken[0], [tmp_path, "--num-examples", 50, *remote(tinker_server)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command(*line)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/checkpoint-20")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = run_folder(tmp_path)
    assert not (run / "checkpoint-50").exists(), "killed too late to show anything"

    spent = 1e-6 * PRICE[2] * json.loads((run / "tinker.json").read_text())["tokens"]
    limit = spent + 1e-6 * PRICE[2] * 700  # the check of the optimizer, and some steps
    with pytest.raises(UserError, match="--max-cost .* is reached"):
        train(*line, "--price", *PRICE, "--max-cost", limit)
    state = json.loads((run / "tinker.json").read_text())
    assert 20 <= state["step"] < 50 and state["step"] == metrics(run)[-1]["step"]
    assert state["dollars"] <= limit
    train(*line)
    assert "resuming" in capsys.readouterr().out
    assert metrics(run) == metrics(whole)
    for checkpoint in find_checkpoints(whole)[1:]:
        assert difference(checkpoint.folder, run / checkpoint.name) == 0
    ledger = tinker_server.ledger
    (history,) = [batches for path, batches in ledger.steps()["saved"].items() if path.endswith("/weights/state-50")]
    assert len(history) == 50 == len(set(history))
    tokens = ledger.tokens()
    assert json.loads((run / "tinker.json").read_text())["tokens"] >= tokens["train"] + tokens["forward"]
    paid_again = sum(count - 1 for count in ledger.steps()["paid"].values())
    assert paid_again <= 2 + 4, "more than the steps in flight at the kill, and those since the last state"


@pytest.mark.slow
def test_a_step_that_fails_on_the_server_is_not_counted(unbroken, tinker_server, tmp_path, capsys):
    """The server has applied the optimizer step behind it. Without a restored optimizer, the run must not go on."""
    line = [tmp_path, "--num-examples", 50, *remote(tinker_server)]
    with tinker_server.faults("bad_step=7", "cold_adam"), pytest.raises(UserError, match="not the optimizer's state"):
        train(*line)
    with tinker_server.faults("bad_step=7", "no_metrics"):
        train(*line)
    assert capsys.readouterr().out.count("goes back to step") == 2
    run = run_folder(tmp_path)
    assert metrics(run) == metrics(unbroken[0])
    assert difference(unbroken[0] / "checkpoint-50", run / "checkpoint-50") == 0


FAULTS = {
    "alpha=16": ((), "alpha 16, not of rank 8 and alpha 32"),
    "lm_head=1": ((), "trained the output layer"),
    "unshifted": ((), "shifts the targets once more"),
    "mean_loss": (("--batch-size", 4), "the server's loss is"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_trains_something_else_is_refused(fault, tinker_server, tmp_path):
    more, message = FAULTS[fault]
    with tinker_server.faults(fault), pytest.raises(UserError, match=message):
        train(tmp_path, "--num-examples", 8, *remote(tinker_server, *more))


@pytest.mark.slow
def test_a_server_without_export_and_states_that_are_gone(tinker_server, tmp_path):
    line = [tmp_path, "--num-examples", 4, "--save-steps", 2, *remote(tinker_server)]
    with tinker_server.faults("no_export"):
        train(*line)
    run = run_folder(tmp_path)
    assert [path.name for path in (run / "checkpoint-4").iterdir()] == ["remote.json"]
    (run / "checkpoint-4").rename(tmp_path / "elsewhere")  # as if the run were unfinished
    with tinker_server.faults("expired"), pytest.raises(UserError, match="step 4.*expired.*--overwrite"):
        train(*line)
    with pytest.raises(UserError, match="checkpoint-4 is missing"):
        train(*line)
    state = json.loads((run / "tinker.json").read_text())
    (run / "tinker.json").write_text(json.dumps(state | {"expires": "2026-01-01T00:00:00+00:00"}))
    with pytest.raises(UserError, match="until 2026-01-01.*--ttl-days"):
        train(*line)


@pytest.mark.slow
def test_a_sweep_trains_its_runs_side_by_side(unbroken, tinker_server, tmp_path, capsys):
    """Its runs are those of single commands, and --max-cost counts them together."""
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(
        f'[sweep]\nmodel = "{MODEL}"\nlora_alpha = 32\nratios = [1, 0, 0]\nnum_examples = 50\n'
        "[sweep.grid]\nseed = [42, 7]\n"
    )
    line = ["training.py", "--sweep", sweep, "--output-dir", tmp_path / "outputs", *remote(tinker_server)]

    def train_sweep(*more) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", list(map(str, [*line, *more])))
            training.main()

    with pytest.raises(UserError, match="--max-cost .* is reached"):
        train_sweep("--stack", 2, "--price", *PRICE, "--max-cost", 0.0012)
    tokens = tinker_server.ledger.tokens()
    assert 0.0010 < 1e-6 * PRICE[2] * (tokens["train"] + tokens["forward"]) <= 0.0012
    train_sweep()
    assert "2 runs finished" in capsys.readouterr().out
    (same,) = (tmp_path / "outputs").glob("seed42_*")
    assert metrics(same) == metrics(unbroken[0])
    assert difference(unbroken[0] / "checkpoint-50", same / "checkpoint-50") == 0
    for run in (tmp_path / "outputs").glob("seed*"):
        shutil.rmtree(run)
    tinker_server.ledger.clear()
    with tinker_server.faults("alpha=16"), pytest.raises(UserError, match="alpha 16"):
        train_sweep("--stack", 1)
    assert len(list((tmp_path / "outputs").glob("*/tinker.json"))) == 1  # the other run makes no model on the server


@pytest.mark.slow
def test_a_run_that_diverges_is_marked(tinker_server, tmp_path):
    line = [tmp_path, "--num-examples", 6, "--lr", 1e30, *remote(tinker_server)]
    with pytest.raises(UserError, match="training diverged at step 2"):
        train(*line)
    with pytest.raises(UserError, match="diverged at step 2.*--overwrite"):
        train(*line)
    assert [path.name for path in run_folder(tmp_path).glob("checkpoint-*")] == ["checkpoint-0"]


WRONG_USAGE = {
    ("--lora-alpha", "16"): "--lora-alpha 32",
    ("--lora-dropout", "0.1"): "--lora-dropout",
    ("--quantization", "none"): "--quantization",
    ("--probe-every", "5"): "--probe-every",
    ("--ttl-days", "0.01"): "--ttl-days",
    ("--backend", "local", "--max-cost", "1"): "--max-cost requires --backend tinker",
    ("--backend", "local", "--dry-run"): "--dry-run requires --backend tinker",
}


@pytest.mark.parametrize("more", WRONG_USAGE, ids=" ".join)
def test_options_that_the_api_does_not_have_are_refused(more, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        train(tmp_path, "--backend", "tinker", *more)
    assert exit.value.code == 2
    assert WRONG_USAGE[more] in capsys.readouterr().err.splitlines()[-1]
    assert not any(tmp_path.iterdir())


def test_the_server_and_the_key_are_checked_first(tinker_server, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"does not offer the base model .*{MODEL}"):
        train(tmp_path, *remote(tinker_server, "--model", ROOT / MODEL))
    monkeypatch.setenv("TINKER_API_KEY", "tml-wrong")
    with pytest.raises(UserError, match="rejects the key: check TINKER_API_KEY"):
        train(tmp_path, *remote(tinker_server))
    monkeypatch.setenv("TINKER_API_KEY", "sk-something")
    with pytest.raises(UserError, match="keys begin with tml-"):
        train(tmp_path, *remote(tinker_server))
    monkeypatch.delenv("TINKER_API_KEY")
    with pytest.raises(UserError, match="no API key: set TINKER_API_KEY"):
        train(tmp_path, *remote(tinker_server))
    with pytest.raises(UserError, match="no server of the Tinker API answers"):
        monkeypatch.setenv("TINKER_API_KEY", "tml-test")
        train(tmp_path, "--backend", "tinker", "--base-url", "http://127.0.0.1:9")
