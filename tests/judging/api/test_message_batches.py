"""Message Batches: sent once, found again after kills and lost replies, collected later.

python -m pytest -n 0 tests/judging/api/test_message_batches.py
"""

import asyncio
import json
import os
import signal
import time

import pytest
from judging_support import IN_OPEN_BATCHES, costs_of, judge, write_responses

from benchmarks.judging import AT_PRICE, kill_when, start, stored
from tiny_world import claude_stand_in
from tiny_world.claude_stand_in import Faults, StandIn, running


@pytest.mark.slow
def test_unfinished_batches_are_left_and_collected_later(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    api = StandIn(batch_seconds=1000)
    with running(api) as url:
        process = start(tmp_path, url, "--batch", *AT_PRICE)
        while stored(tmp_path, IN_OPEN_BATCHES) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        printed = judge(tmp_path, url, *AT_PRICE)
        assert "20 more are in unfinished batches" in printed and not (tmp_path / "judged.parquet").exists()
        api.batch_seconds = 0
        printed = judge(tmp_path, url, *AT_PRICE)  # ended batches are collected without --batch, too
        assert "40 verdicts" in printed
    assert len(api.batches) == 1 and len(api.prompts) == 40
    dollars = sum(float(row["dollars"]) for row in costs_of(tmp_path))
    full = [(entry.tokens_in * 2e-6 + entry.tokens_out * 1e-5, entry.batch) for entry in api.ledger]
    assert dollars == pytest.approx(sum(cost / 2 if batch else cost for cost, batch in full))


@pytest.mark.slow
def test_a_batch_whose_creation_reply_is_lost_is_found(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    api = StandIn(faults=Faults(batch_lost=True))
    with running(api) as url:
        assert "40 verdicts" in judge(tmp_path, url, "--batch", "--max-wait", "0.5")
    assert len(api.batches) == 1


@pytest.mark.slow
def test_foreign_batches_of_the_same_size_are_recognized(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    api = StandIn(faults=Faults(batch_lost=True), batch_seconds=0)

    def create_foreign(number):
        params = {"model": "claude-sonnet-5", "messages": [{"role": "user", "content": str(number)}]}
        requests = [{"custom_id": f"theirs-{number}-{n}", "params": params} for n in range(20)]
        api.handle("POST", "/v1/messages/batches", {}, json.dumps({"requests": requests}).encode())

    with running(api) as url:
        process = start(tmp_path, url, "--batch")
        while not api.batches:
            time.sleep(0.001)
        process.kill()
        process.wait()
        for number in range(30):  # a page of the list has twenty
            create_foreign(number)
        assert "40 verdicts" in judge(tmp_path, url, "--batch", "--max-wait", "0.5")
    assert len(api.batches) == 31


@pytest.mark.slow
def test_prompts_of_a_lost_batch_are_asked_again(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    api = StandIn(batch_seconds=1000)
    with running(api) as url:
        kill_when(start(tmp_path, url, "--batch", *AT_PRICE), lambda: stored(tmp_path, IN_OPEN_BATCHES) == 20)
        api.batches.clear()
        printed = judge(tmp_path, url, *AT_PRICE)
    assert "is lost" in printed and "40 verdicts" in printed and "at most" in printed


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["results_url", "results"])
def test_prompts_of_a_batch_without_results_are_asked_again(tmp_path, gone):
    class Archived(StandIn):
        def handle(self, method, path, headers, body):
            answer = super().handle(method, path, headers, body)
            if len(self.batches) == 1 and path.endswith("/results"):
                return claude_stand_in._answer(*claude_stand_in._error(404, "not_found_error", "they are gone"))
            if path.endswith("msgbatch_000000") and gone == "results_url":
                return claude_stand_in._answer(200, json.loads(answer.content) | {"results_url": None})
            return answer

    write_responses(tmp_path / "responses.parquet", 10)
    api = Archived(batch_seconds=0)
    with running(api) as url:
        printed = judge(tmp_path, url, "--batch", *AT_PRICE, "--max-wait", "0.3", "--give-up-after", "3")
    assert "batch msgbatch_000000 is lost" in printed and "40 verdicts" in printed and "at most" in printed
    assert len(api.batches) == 2


def test_a_rerun_with_batches_needs_no_live_call(tmp_path):
    class Refusing(StandIn):
        def answer(self, method, path, body):
            status, answer = super().answer(method, path, body)
            if b"refused" in body:
                claude_stand_in._spoil(answer, "refusal")
            return status, answer

    texts = [f"Steam. {n}" for n in range(9)] + ["To be refused."]
    write_responses(tmp_path / "responses.parquet", 10, response=texts)
    api = Refusing(batch_seconds=0)
    with running(api) as url:
        judge(tmp_path, url, "--batch")
        live = [entry for entry in api.ledger if not entry.batch]
        assert "36 verdicts" in judge(tmp_path, url, "--batch", "--asks", "1")
    assert [entry for entry in api.ledger if not entry.batch] == live


@pytest.mark.slow
def test_a_batch_created_after_its_call_timed_out_is_found(tmp_path):
    class Slow(StandIn):
        creations = 0

        def _create_batch(self, body):
            self.creations += 1
            if self.creations > 1:
                return super()._create_batch(body)
            asyncio.get_running_loop().call_later(2, super()._create_batch, body)
            return claude_stand_in.Answer(200, b"", "hang")

    write_responses(tmp_path / "responses.parquet", 10)
    api = Slow(batch_seconds=0)
    with running(api) as url:
        assert "40 verdicts" in judge(tmp_path, url, "--batch", "--timeout", "1", "--max-wait", "0.5")
    assert api.creations == len(api.batches) == 1


@pytest.mark.slow
def test_batches_without_needed_verdicts_do_not_delay_the_output(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    api = StandIn(batch_seconds=1000)
    with running(api) as url:
        judge(tmp_path, url)
        (tmp_path / "judged.parquet.verdicts.sqlite").unlink()
        os.rename(tmp_path / "judged.parquet", tmp_path / "finished.parquet")
        kill_when(start(tmp_path, url, "--batch"), lambda: stored(tmp_path, IN_OPEN_BATCHES) == 20)
        os.rename(tmp_path / "finished.parquet", tmp_path / "judged.parquet")
        printed = judge(tmp_path, url, "--batch")
        assert "40 verdicts" in printed and "still to request" not in printed
        api.batch_seconds = 0
        assert "collected" in judge(tmp_path, url)
        assert "collected" not in judge(tmp_path, url, key="")


def test_a_server_without_batches_is_reported(tmp_path):
    class Plain(StandIn):
        def handle(self, method, path, headers, body):
            return super().handle(method, path.replace("batches", "none"), headers, body)

    write_responses(tmp_path / "responses.parquet", 10)
    with running(Plain()) as url:
        assert "run without --batch" in judge(tmp_path, url, "--batch", expect=1)
        assert "0 missing" in judge(tmp_path, url)


def test_the_pilot_finds_bad_settings_before_a_batch_is_sent(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    api = StandIn(faults=Faults(share=1, kinds=("thinking",)))
    with running(api) as url:
        printed = judge(tmp_path, url, "--batch", expect=1)
    assert "no verdict" in printed and "max_tokens" in printed and not api.batches
