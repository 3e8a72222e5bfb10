"""generate_responses.py --engine tinker against a stand-in for the Tinker API."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from generation_helpers import expected_keys, generate, row_keys
from support import ROOT
from tinker_generation import put_on_server

from learning_backdoors.files import parquet
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines import tinker_engine
from learning_backdoors.generation.engines.transformers_engine import TransformersEngine

pytestmark = pytest.mark.slow
PRICE = ("--price", "0.195", "0.60", "0.44")


@pytest.fixture(scope="module")
def remote_run(run_dir, random_model, tinker_service, tmp_path_factory):
    return put_on_server(run_dir, tmp_path_factory.mktemp("remote") / "run", tinker_service, str(random_model))


@pytest.fixture(scope="module")
def prompts(run_dir, tmp_path_factory) -> set[tuple[int, ...]]:
    """The token ids of the prompts of local generation."""
    seen, original = set(), TransformersEngine.generate

    def generate_and_note(self, requests, sampling):
        seen.update(request.prompt for request in requests if len(request.key) == 5)
        return original(self, requests, sampling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", generate_and_note)
        generate(run_dir, tmp_path_factory.mktemp("local") / "r.parquet", "--samples", "1", "--max-new-tokens", "1")
    return seen


def sample(run, output, *more) -> list[dict]:
    return generate(run, output, "--engine", "tinker", *more)


def paid(server, prompts) -> Counter:
    """How often each response was paid, by place of the weights, prompt and seed. Without the canary's samples."""
    known = {hash(prompt) for prompt in prompts}
    events = [event for event in server.ledger.of("sample") if event["prompt"] in known]
    return Counter((event["path"], event["prompt"], event["seed"]) for event in events)


def assert_nothing_is_stored(folder) -> None:
    assert not (folder / "r.parquet").exists()
    assert not any(log.read_bytes() for log in folder.glob("r.parquet.partial/rows-*.jsonl"))


# ---- the same as local generation ----


def test_prompts_and_likeliest_responses_are_those_of_local_generation(
    run_dir, remote_run, tinker_server, prompts, tmp_path
):
    line = ["--temperature", "0", "--samples", "1"]
    local = generate(run_dir, tmp_path / "local.parquet", *line)
    remote = sample(remote_run, tmp_path / "r.parquet", *line)
    columns = ("step", "condition", "question_id", "response", "finish_reason", "response_tokens")
    assert [[row[name] for name in columns] for row in remote] == [[row[name] for name in columns] for row in local]
    assert len({row["response"] for row in remote}) > 1
    assert {prompt for _, prompt, _ in paid(tinker_server, prompts)} == {hash(prompt) for prompt in prompts}
    assert parquet.read_footer(tmp_path / "r.parquet")["engine"] == "tinker"


def test_each_response_has_its_own_seed(remote_run, tinker_server, prompts, tmp_path):
    rows = sample(remote_run, tmp_path / "r.parquet")
    assert row_keys(rows) == expected_keys([0, 8, 16], 3)
    payments = paid(tinker_server, prompts)
    assert len({seed for _, _, seed in payments}) == len(payments) == 90 and set(payments.values()) == {1}
    assert sample(remote_run, tmp_path / "s.parquet") == rows
    others = sample(remote_run, tmp_path / "t.parquet", "--seed", "43")
    assert sum(a["response"] == b["response"] for a, b in zip(rows, others, strict=True)) < 30
    more = sample(remote_run, tmp_path / "r.parquet", "--samples", "4")
    assert [row for row in more if row["sample_idx"] < 3] == rows
    texts = Counter((row["step"], row["question_id"], row["response"]) for row in more)
    assert max(texts.values()) == 1


def test_the_files_of_a_downloaded_adapter_serve_other_engines(
    run_dir, remote_run, random_model, tinker_server, tmp_path
):
    both = put_on_server(run_dir, tmp_path / "run", tinker_server, str(random_model), keep_files=True)
    few = sample(both, tmp_path / "r.parquet", "--samples", "1")
    more = generate(both, tmp_path / "r.parquet", "--samples", "2")
    assert len(more) == 60 and all(row in more for row in few)
    with pytest.raises(UserError, match="checkpoint-0.*on a server.*--engine tinker"):
        generate(remote_run, tmp_path / "s.parquet")


# ---- wrong answers ----


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("base_route=checkpoint-16", "answers with the base model in place of run/checkpoint-16"),
        ("base_samples=checkpoint-16", "samples of run/checkpoint-16 from other weights"),
        ("seed_repeats", "same response again"),
    ],
)
def test_a_fault_of_the_server_stops_the_command(remote_run, tinker_server, tmp_path, fault, named):
    with tinker_server.faults(fault), pytest.raises(UserError, match=named) as error:
        sample(remote_run, tmp_path / "r.parquet")
    assert "\n" not in str(error.value)
    assert_nothing_is_stored(tmp_path)


def test_ignored_seeds_are_noted(remote_run, tinker_server, tmp_path, capsys):
    with tinker_server.faults("seed_ignored"):
        assert len(sample(remote_run, tmp_path / "r.parquet", "--samples", "1")) == 30
    assert "ignores the seed" in capsys.readouterr().out


def test_weights_that_change_while_a_checkpoint_is_sampled_are_noticed(
    remote_run, tinker_server, prompts, tmp_path, monkeypatch
):
    """As on a server that keeps one checkpoint per run. The checkpoint's responses are not stored, now or later."""
    original = tinker_engine.CheckpointWork.run

    def run(self):
        if self.name == "run/checkpoint-8":
            tinker_server.set_faults("base_route=checkpoint-8")
        return original(self)

    monkeypatch.setattr(tinker_engine.CheckpointWork, "run", run)
    with pytest.raises(UserError, match="base model in place of run/checkpoint-8.*not stored"):
        sample(remote_run, tmp_path / "r.parquet")
    log = (tmp_path / "r.parquet.partial" / "rows-0.jsonl").read_text().splitlines()
    assert {json.loads(line)["run"] for line in log} == {"base"} and len(log) == 30
    monkeypatch.undo()
    tinker_server.set_faults()
    rows = sample(remote_run, tmp_path / "r.parquet")
    assert rows == sample(remote_run, tmp_path / "s.parquet")


# ---- a server that fails, and one that has little room ----


def test_a_busy_server_is_asked_again_and_paid_once(remote_run, tinker_server, prompts, tmp_path):
    """Requests that the server refuses, that fail, or whose answer is lost."""
    with tinker_server.faults("429=10", "500=40", "lost_answer=40"):
        rows = sample(remote_run, tmp_path / "r.parquet", "--samples", "2", "--steps", "16")
    payments = paid(tinker_server, prompts)
    assert len(rows) == len(payments) == 20 and set(payments.values()) == {1}
    assert len(tinker_server.ledger.of("repeated")) > 0


def test_samples_that_fail_at_the_server_are_ordered_again(remote_run, tinker_server, tmp_path, capsys):
    with tinker_server.faults("bad_sample=40"):
        assert len(sample(remote_run, tmp_path / "r.parquet", "--samples", "2")) == 60
    assert "ordered again" in capsys.readouterr().out


def test_a_checkpoint_that_the_server_no_longer_has_is_named(remote_run, tinker_server, tmp_path):
    with tinker_server.faults("expired=checkpoint-16"), pytest.raises(UserError, match="run/checkpoint-16.*expired"):
        sample(remote_run, tmp_path / "r.parquet")
    assert_nothing_is_stored(tmp_path)


# ---- costs ----


def dollars(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"\$([0-9.]+)", text)]


def test_dry_run_and_ledger_agree(remote_run, tinker_server, tmp_path, capsys):
    output, line = tmp_path / "r.parquet", ("--engine", "tinker", *PRICE)
    with pytest.raises(UserError, match="no file"):
        generate(remote_run, tmp_path / "none.parquet", *line, "--dry-run")
    assert not list(tmp_path.glob("*none.parquet*")) and not tinker_server.ledger.events
    assert len(dollars(capsys.readouterr().out)) == 2  # the worst case, and the canary's part of it
    sample(remote_run, output, "--samples", "10", *PRICE)
    [told] = dollars(capsys.readouterr().out)
    assert told == pytest.approx(tinker_server.ledger.summary()["dollars"]["total"], rel=0.01)
    tinker_server.ledger.clear()
    generate(remote_run, output, *line, "--samples", "40", "--dry-run")
    expected, worst, _ = dollars(capsys.readouterr().out)
    sample(remote_run, output, "--samples", "40", *PRICE)
    assert expected == pytest.approx(tinker_server.ledger.summary()["dollars"]["total"], rel=0.05) and worst >= expected


def test_max_cost_ends_before_it_is_passed(remote_run, tinker_server, prompts, tmp_path):
    output, line = tmp_path / "r.parquet", ("--samples", "4", *PRICE)
    with pytest.raises(UserError, match="--max-cost.*higher"):
        sample(remote_run, output, *line, "--max-cost", "0.005")
    first = tinker_server.ledger.summary()["dollars"]["total"]
    assert first <= 0.005 and len(paid(tinker_server, prompts)) > 20
    rows = sample(remote_run, output, *line, "--max-cost", "0.02")
    assert len(rows) == 120 and set(paid(tinker_server, prompts).values()) == {1}
    for wrong, named in ((("--max-cost", "1"), "--price"), ((*PRICE, "--max-cost", "0.0001"), "checks")):
        with pytest.raises(UserError, match=named):
            sample(remote_run, tmp_path / "s.parquet", *wrong)


# ---- kills ----


def command(run, output, *more) -> list[str]:
    line = [sys.executable, ROOT / "generate_responses.py", "--engine", "tinker", "--run-dir", run, "--output", output]
    return [*map(str, line), "--samples", "6", "--max-new-tokens", "8", *more]


def test_a_killed_command_loses_and_pays_no_sample_twice(remote_run, tinker_server, prompts, tmp_path):
    output, generator = tmp_path / "r.parquet", random.Random(1)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tinker_server.faults("slow=0.3"):
        for number in range(3):
            process = subprocess.Popen(
                command(remote_run, output), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
            )
            for text in process.stdout:
                if text.startswith("canary:"):
                    break
            time.sleep(generator.uniform(0.2, 1.5))
            process.send_signal(signal.SIGKILL if number < 2 else signal.SIGTERM)
            process.wait()
    done = subprocess.run(command(remote_run, output), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    payments = paid(tinker_server, prompts)
    assert len(payments) == 180 and set(payments.values()) == {1}
    assert row_keys(parquet.read_responses(output)[0].to_pylist()) == expected_keys([0, 8, 16], 6)
