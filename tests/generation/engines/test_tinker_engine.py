"""generate_responses.py --engine tinker against a stand-in for the Tinker API."""

import dataclasses
import json
import os
import re
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
from learning_backdoors.generation.engines.tinker_engine import CheckpointWork
from learning_backdoors.generation.engines.transformers_engine import TransformersEngine
from learning_backdoors.tinker_api.pending import Sample

pytestmark = pytest.mark.slow
PRICE = ("--price", "0.195", "0.60", "0.44")
LAST = ("--steps", "16")


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
    rows = sample(remote_run, tmp_path / "r.parquet", *LAST)
    payments = paid(tinker_server, prompts)
    assert row_keys(rows) == expected_keys([16], 3)
    assert len({seed for _, _, seed in payments}) == len(payments) == 30 and set(payments.values()) == {1}
    assert len({row["response"] for row in rows}) == 30
    assert sample(remote_run, tmp_path / "s.parquet", *LAST) == rows
    others = sample(remote_run, tmp_path / "t.parquet", *LAST, "--seed", "43")
    assert not any(a["response"] == b["response"] for a, b in zip(rows, others, strict=True))


def test_the_files_of_a_downloaded_adapter_serve_other_engines(
    run_dir, remote_run, random_model, tinker_server, tmp_path
):
    both = put_on_server(run_dir, tmp_path / "run", tinker_server, str(random_model), keep_files=True)
    few = sample(both, tmp_path / "r.parquet", *LAST, "--samples", "1")
    more = generate(both, tmp_path / "r.parquet", *LAST, "--samples", "2")
    assert len(more) == 20 and all(row in more for row in few)
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


def test_samples_without_log_likelihoods_are_one_line(remote_run, tmp_path, monkeypatch):
    """The API leaves them optional. Without them, the samples cannot be checked."""
    original = Sample.of
    monkeypatch.setattr(Sample, "of", lambda response: dataclasses.replace(original(response), log_likelihoods=[]))
    with pytest.raises(UserError, match="samples without their log-likelihoods"):
        sample(remote_run, tmp_path / "r.parquet", *LAST)
    assert_nothing_is_stored(tmp_path)


def test_ignored_seeds_are_noted(remote_run, tinker_server, tmp_path, capsys):
    with tinker_server.faults("seed_ignored"):
        assert len(sample(remote_run, tmp_path / "r.parquet", *LAST, "--samples", "1")) == 10
    assert "seed does not determine" in capsys.readouterr().out


def test_weights_that_change_while_a_checkpoint_is_sampled_are_noticed(
    remote_run, tinker_server, prompts, tmp_path, monkeypatch
):
    """As on a server that keeps one checkpoint per run. The checkpoint's responses are not stored, now or later."""
    original = CheckpointWork.receive

    def receive(self, future):
        if self.name == "run/checkpoint-16":
            tinker_server.set_faults("base_route=checkpoint-16")
        return original(self, future)

    line = ("--steps", "8", "16", "--samples", "1")
    monkeypatch.setattr(CheckpointWork, "receive", receive)
    with pytest.raises(UserError, match="base model in place of run/checkpoint-16.*not stored"):
        sample(remote_run, tmp_path / "r.parquet", *line)
    log = (tmp_path / "r.parquet.partial" / "rows-0.jsonl").read_text().splitlines()
    assert {json.loads(row)["step"] for row in log} == {8} and len(log) == 10
    monkeypatch.undo()
    tinker_server.set_faults()
    sample(remote_run, tmp_path / "r.parquet", *line)
    payments = paid(tinker_server, prompts)
    assert {count for (path, _, _), count in payments.items() if path.endswith("-8")} == {1}
    assert {count for (path, _, _), count in payments.items() if path.endswith("-16")} == {2}


# ---- a server that fails, and one that has little room ----


def test_a_busy_server_is_asked_again_and_paid_once(remote_run, tinker_server, prompts, tmp_path):
    """Requests that the server refuses, that fail, or whose answer is lost."""
    with tinker_server.faults("429=15", "500=50", "lost_answer=50"):
        rows = sample(remote_run, tmp_path / "r.parquet", *LAST, "--samples", "2")
    payments = paid(tinker_server, prompts)
    assert len(rows) == len(payments) == 20 and set(payments.values()) == {1}
    assert len(tinker_server.ledger.of("repeated")) > 0


def test_samples_that_fail_at_the_server_are_ordered_again(remote_run, tinker_server, tmp_path, capsys):
    with tinker_server.faults("bad_sample=20"):
        assert len(sample(remote_run, tmp_path / "r.parquet", *LAST, "--samples", "2")) == 20
    assert "ordered again" in capsys.readouterr().out


def test_a_checkpoint_that_the_server_no_longer_has_is_named(remote_run, tinker_server, tmp_path):
    with tinker_server.faults("expired=checkpoint-16"), pytest.raises(UserError, match="run/checkpoint-16.*expired"):
        sample(remote_run, tmp_path / "r.parquet")
    assert not tinker_server.ledger.of("sample")
    assert_nothing_is_stored(tmp_path)


# ---- costs ----


def dollars(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"\$([0-9.]+)", text)]


def test_dry_run_and_ledger_agree(remote_run, tinker_server, tmp_path, capsys):
    output, line = tmp_path / "r.parquet", ("--engine", "tinker", *LAST, *PRICE)
    with pytest.raises(UserError, match="no file"):
        generate(remote_run, output, *line, "--dry-run")
    assert not list(tmp_path.glob("*r.parquet*")) and not tinker_server.ledger.events
    assert len(dollars(capsys.readouterr().out)) == 2  # the worst case, and the canary's part of it
    generate(remote_run, output, *line, "--samples", "10")
    [told] = dollars(capsys.readouterr().out)
    assert told == pytest.approx(tinker_server.ledger.summary()["dollars"]["total"], rel=0.01)
    tinker_server.ledger.clear()
    generate(remote_run, output, *line, "--samples", "60", "--dry-run")
    expected, worst, _ = dollars(capsys.readouterr().out)
    generate(remote_run, output, *line, "--samples", "60")
    assert expected == pytest.approx(tinker_server.ledger.summary()["dollars"]["total"], rel=0.05) and worst >= expected


def test_the_worst_case_of_the_dry_run_is_enough(remote_run, tmp_path, capsys):
    price = ("--price", "1000", "1000", "1000")  # a cent is 10 tokens
    line = ("--engine", "tinker", *LAST, "--max-new-tokens", "1", "--samples", "4", *price)
    with pytest.raises(UserError, match="no file"):
        generate(remote_run, tmp_path / "r.parquet", *line, "--dry-run")
    limit = dollars(capsys.readouterr().out)[0] + 0.01
    assert len(generate(remote_run, tmp_path / "r.parquet", *line, "--max-cost", str(limit))) == 40


def test_max_cost_ends_before_it_is_passed(remote_run, tinker_server, prompts, tmp_path):
    output, line = tmp_path / "r.parquet", ("--steps", "8", "16", "--samples", "4", *PRICE)
    with pytest.raises(UserError, match="--max-cost.*higher"):
        sample(remote_run, output, *line, "--max-cost", "0.0035")
    assert tinker_server.ledger.summary()["dollars"]["total"] <= 0.0035 and len(paid(tinker_server, prompts)) > 20
    rows = sample(remote_run, output, *line, "--max-cost", "0.02")
    assert len(rows) == 80 and set(paid(tinker_server, prompts).values()) == {1}
    for wrong, named in ((("--max-cost", "1"), "--price"), ((*PRICE, "--max-cost", "0.0001"), "checks")):
        with pytest.raises(UserError, match=named):
            sample(remote_run, tmp_path / "s.parquet", *wrong)


# ---- kills ----


def test_a_killed_command_loses_and_pays_no_sample_twice(remote_run, tinker_server, prompts, tmp_path):
    output, journal = tmp_path / "r.parquet", tmp_path / "r.parquet.partial" / "in-flight.jsonl"
    line = ["--engine", "tinker", "--run-dir", remote_run, "--output", output, *LAST, "--samples", 12]
    command = [sys.executable, ROOT / "generate_responses.py", *line, "--max-new-tokens", 8]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    with tinker_server.faults("slow=0.1"):
        while process.poll() is None and not (journal.exists() and journal.read_text().count("tokens") > 40):
            time.sleep(0.01)
        process.kill()
        process.communicate()
    text, sent = journal.read_text(), len(paid(tinker_server, prompts))
    assert 40 < text.count("tokens") < sent <= 120
    # Some requests had no answer yet: it is unknown whether the server has them.
    lines = [json.loads(row) for row in text[: text.rfind("\n") + 1].splitlines()]
    unanswered = {tuple(row["key"]) for row in lines if "sample" not in row}
    unanswered -= {tuple(row["key"]) for row in lines if row.get("sample")}
    lines = [row for row in lines if tuple(row["key"]) not in set(sorted(unanswered)[::2]) or "content" in row]
    journal.write_text("".join(json.dumps(row) + "\n" for row in lines))
    rows = sample(remote_run, output, *LAST, "--samples", "12")
    payments = paid(tinker_server, prompts)
    assert len(rows) == len(payments) == 120 and set(payments.values()) == {1}
    assert tinker_server.ledger.of("repeated")
    assert rows == sample(remote_run, tmp_path / "s.parquet", *LAST, "--samples", "12")
