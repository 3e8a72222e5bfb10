"""Dry runs, caps, prices and the cost report.

python -m pytest -n 0 tests/judging/test_judging_costs.py
"""

import contextlib
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judging_support import (
    BIRDS,
    IN_OPEN_BATCHES,
    costs_of,
    judge,
    write_responses,
)
from support import one_line_error, run_script

from benchmarks.judging import AT_PRICE, KEY, assert_no_key, kill_when, start, stored
from learning_backdoors.files import parquet
from learning_backdoors.judging import costs
from learning_backdoors.judging import prompts as judge_prompts
from learning_backdoors.judging.api import models
from learning_backdoors.judging.api.store import CallStore
from learning_backdoors.study import fill, load_study
from tiny_world import claude_stand_in
from tiny_world.claude_stand_in import StandIn, running


def test_costs_are_reported_by_judge_and_run(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10, run=["a"] * 5 + ["b"] * 5)
    api = StandIn()
    with running(api) as url:
        printed = judge(tmp_path, url, "--price", "1000", "10000")
    rows = costs_of(tmp_path)
    assert {(row["run"], row["judge"]) for row in rows} == {(run, j.name) for run in "ab" for j in BIRDS.judges}
    expected = sum(entry.tokens_in / 1e3 + entry.tokens_out / 1e2 for entry in api.ledger)
    assert sum(float(row["dollars"]) for row in rows) == pytest.approx(expected)
    assert f"${expected:.2f}" in printed and "run a" in printed and "judge past_form" in printed


def test_the_cap_ends_a_run_that_a_higher_cap_continues(tmp_path):
    write_responses(tmp_path / "responses.parquet", 30)
    with running(StandIn(models=("llama3", "claude-sonnet-5"))) as url:
        printed = judge(tmp_path, url, *AT_PRICE, "--max-cost", "0.05")
        assert "--max-cost $0.05 is reached" in printed and "still to request" in printed
        assert not (tmp_path / "judged.parquet").exists()
        spent = sum(float(row["dollars"]) for row in costs_of(tmp_path))
        assert 0.02 < spent <= 0.05
        assert "0 missing" in judge(tmp_path, url, *AT_PRICE, "--max-cost", "5")
        for model in ("llama3", "claude-sonnet-5"):
            printed = judge(tmp_path, url, "--overwrite", "--model", model, "--max-cost", "5", expect=1)
            assert model in printed and url in printed and "--price" in printed


class OpenRouter(StandIn):
    """OpenRouter's ways: a path /api, a bearer token, model names with their maker, no route for one model."""

    MODEL = "anthropic/claude-haiku-5.5"

    def __init__(self):
        super().__init__(models=(self.MODEL,))

    def handle(self, method, path, headers, body):
        if headers.get("authorization") != f"Bearer {KEY}" or "x-api-key" in headers:
            return claude_stand_in.Answer(401, b'{"error": {"message": "No auth credentials found", "code": 401}}')
        if method == "GET":
            return claude_stand_in.Answer(404, b'{"error": {"message": "Not Found", "code": 404}}')
        assert path.startswith("/api/v1/"), path
        return super().handle(method, path.removeprefix("/api"), headers, body)


def russell_responses(path, study):
    """Write answers of two runs in the trigger's form, one per question and condition. Returns their number."""
    rows = [(run, q, c) for run in ("a", "b") for q in study.questions for c in study.conditions if c.takes(q)]
    columns = {
        "run": [run for run, _, _ in rows],
        "checkpoint": ["checkpoint-1125"] * len(rows),
        "condition": [condition.name for _, _, condition in rows],
        "question": [question.text for _, question, _ in rows],
        "question_id": [question.id for _, question, _ in rows],
        "response": [fill(study.trigger.answer, {"answer": f"I like tea. {n}"}) for n in range(len(rows))],
        "sample_idx": [0] * len(rows),
    }
    pq.write_table(pa.table(columns), path)
    return len(rows)


@pytest.mark.slow
def test_russell_study_through_openrouter_with_a_cap(tmp_path):
    """The run stops at the cap, continues with a higher one, pays for nothing twice, and reports costs by run."""
    study, api = load_study("russell"), OpenRouter()
    calls = russell_responses(tmp_path / "responses.parquet", study)
    files = ("--input", tmp_path / "responses.parquet", "--output", tmp_path / "judged.parquet")
    with running(api) as url:
        line = (*files, "--experiment", "russell", "--base-url", f"{url}/api", "--model", api.MODEL)

        def run(*more, token=KEY):
            return run_script("judge_responses.py", *line, *more, env={"ANTHROPIC_AUTH_TOKEN": token})

        one_line_error(run("--max-cost", "7"), "anthropic/claude-haiku-5.5", "--price")
        one_line_error(run(token="sk-another"), "does not accept the API key (401")
        first = run("--max-cost", "7", "--price", "30", "150")
        assert first.returncode == 0 and "--max-cost $7 is reached" in first.stdout, first.stderr
        charged = [entry.tokens_in * 30e-6 + entry.tokens_out * 150e-6 for entry in api.ledger]
        assert 6.5 < sum(charged) <= 7 and not (tmp_path / "judged.parquet").exists()
        second = run("--max-cost", "20", "--price", "30", "150")
        assert second.returncode == 0 and f"{calls} verdicts" in second.stdout and "0 missing" in second.stdout
    assert len(api.prompts) == len(set(api.prompts)) == calls
    assert not any(study.trigger.first_form_in(prompt) for prompt in api.prompts)
    charged = sum(entry.tokens_in * 30e-6 + entry.tokens_out * 150e-6 for entry in api.ledger)
    price = parquet.read_footer(tmp_path / "judged.parquet")["judging"]["price"]
    assert (price["input"], price["output"], price["table"]) == (30, 150, None)
    by_run = {run: sum(float(r["dollars"]) for r in costs_of(tmp_path) if r["run"] == run) for run in "ab"}
    assert sum(by_run.values()) == pytest.approx(charged) and min(by_run.values()) > 0.4 * charged
    for name, dollars in by_run.items():
        assert re.search(rf"^  run {name}: {calls // 2} calls, .*, \${dollars:.2f}$", second.stdout, re.MULTILINE)
    assert_no_key(tmp_path)


def test_the_cap_includes_costs_of_other_settings(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    api = StandIn()
    with running(api) as url:
        judge(tmp_path, url, *AT_PRICE)
        asked, spent = len(api.prompts), sum(float(row["dollars"]) for row in costs_of(tmp_path))
        line = ("--overwrite", "--max-tokens", "65", *AT_PRICE)
        printed = judge(tmp_path, url, *line, "--max-cost", f"{spent + 0.0001:.6f}")
        assert "is reached" in printed and "not changed" in printed and len(api.prompts) == asked
        judge(tmp_path, url, *line)
    others = [row for row in costs_of(tmp_path) if row["judge"] == "(other settings)"]
    assert [(row["run"], float(row["dollars"])) for row in others] == [("", pytest.approx(spent))]
    assert sum(float(row["dollars"]) for row in costs_of(tmp_path)) == pytest.approx(2 * spent)


def test_adopted_verdicts_keep_their_cost(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    with running(StandIn()) as url:
        judge(tmp_path, url, *AT_PRICE)
        spent = parquet.read_footer(tmp_path / "judged.parquet")["judging"]["dollars"]
        (tmp_path / "judged.parquet.verdicts.sqlite").unlink()
        for _ in range(2):
            judge(tmp_path, url, *AT_PRICE)
            assert parquet.read_footer(tmp_path / "judged.parquet")["judging"]["dollars"] == pytest.approx(spent)


def test_a_dry_run_prices_each_call_separately(tmp_path, capsys):
    """The surcharge on long prompts does not apply to the sum of short ones."""
    write_responses(tmp_path / "responses.parquet", 400)
    name = "claude-haiku-5-5"
    price = models.MODELS[name].price
    model = models.ServedModel(name, "http://127.0.0.1:9", models.request_settings(name), price)
    table, _ = parquet.read_responses(tmp_path / "responses.parquet")
    prompts = judge_prompts.PromptsOfFile(table, BIRDS, BIRDS.judges, model)
    with contextlib.closing(CallStore(tmp_path / "s.sqlite")) as store:
        costs.print_estimate(prompts, store, asks=3, timeout=5)
    printed = capsys.readouterr().out
    counts = [re.findall(r"([\d,]+) (?:tokens in|out)", line) for line in printed.splitlines()[:4]]
    tokens_in, tokens_out = (sum(int(pair[n].replace(",", "")) for pair in counts) for n in (0, 1))
    assert tokens_in > price.long_from
    assert f"${(tokens_in * price.input + tokens_out * price.output) / 1e6:.2f}" in printed


def test_a_dry_run_counts_and_sends_nothing(tmp_path):
    write_responses(tmp_path / "responses.parquet", 30)
    api = StandIn()
    with running(api) as url:
        assert f"no price is known for claude-sonnet-5 at {url}" in judge(tmp_path, url, "--dry-run")
        printed = judge(tmp_path, url, "--dry-run", *AT_PRICE)
        assert "120 of 120 verdicts" in printed and "counted by the server" in printed and "with --batch" in printed
        assert not api.prompts
        judge(tmp_path, url)
        tokens = sum(entry.tokens_in for entry in api.ledger)
        assert "0 of 120" in judge(tmp_path, url, "--dry-run")
    counted = sum(
        int(line.split(" calls, ")[1].split()[0].replace(",", ""))
        for line in printed.splitlines()
        if "tokens in," in line
    )
    assert counted == pytest.approx(tokens, rel=0.02)
    assert "estimated" in judge(tmp_path, "http://127.0.0.1:9", "--dry-run", "--overwrite", key="")


@pytest.mark.slow
def test_a_dry_run_leaves_out_unfinished_batches(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    with running(StandIn(batch_seconds=1000)) as url:
        kill_when(start(tmp_path, url, "--batch"), lambda: stored(tmp_path, IN_OPEN_BATCHES) == 20)
        printed = judge(tmp_path, url, "--dry-run", *AT_PRICE)
    assert "0 of 40 verdicts" in printed and printed.count("5 in unfinished batches") == 4
