"""Kills, Ctrl-C, a full disk and a server that fails on one prompt: finished work is kept and paid for once.

python -m pytest -n 0 tests/judging/test_judging_interruptions.py
"""

import os
import random
import signal
import time
from unittest import mock

import pytest
from judging_support import judge, judged, write_responses

from benchmarks.judging import kill_when, start, stored
from learning_backdoors.judging import judged_file
from tiny_world import claude_stand_in
from tiny_world.claude_stand_in import StandIn, running


@pytest.mark.slow
def test_after_a_kill_only_calls_in_flight_are_repeated(tmp_path):
    write_responses(tmp_path / "responses.parquet", 150)
    api = StandIn()
    with running(api) as url:
        kill_when(start(tmp_path, url), lambda: len(api.prompts) >= random.Random(1).randrange(100, 450))
        assert not (tmp_path / "judged.parquet").exists()
        judge(tmp_path, url)
    assert len(set(api.prompts)) == 600 and len(api.prompts) <= 600 + 32
    (tmp_path / "whole").mkdir()
    os.link(tmp_path / "responses.parquet", tmp_path / "whole" / "responses.parquet")
    with running(StandIn()) as url:
        judge(tmp_path / "whole", url)
    assert judged(tmp_path).equals(judged(tmp_path / "whole"))


@pytest.mark.slow
def test_ctrl_c_once_finishes_calls_in_flight_and_twice_stops(tmp_path):
    write_responses(tmp_path / "responses.parquet", 100)
    api = StandIn(latency=0.3)
    with running(api) as url:
        process = start(tmp_path, url)
        while len(api.prompts) < 50:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert stored(tmp_path) == len(api.prompts) < 400
        log = (tmp_path / "log.txt").read_text()
        assert "Ctrl-C again" in log and "still to request" in log and "Traceback" not in log
        api.latency = 1
        process = start(tmp_path, url)
        while len(api.prompts) < stored(tmp_path) + 1:
            time.sleep(0.001)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert process.wait(30) == 130
        api.latency = 0
        judge(tmp_path, url)
    assert len(api.prompts) <= 400 + 4  # the calls in flight at the second signal


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_model_is_looked_up_ends_without_a_traceback(tmp_path, number):
    class Interrupting(StandIn):
        process = None

        def handle(self, method, path, headers, body):
            if method == "GET":
                self.process.send_signal(number)
                return claude_stand_in.Answer(200, b"", "hang")
            return super().handle(method, path, headers, body)

    write_responses(tmp_path / "responses.parquet", 10)
    api = Interrupting()
    with running(api) as url:
        api.process = start(tmp_path, url)
        assert api.process.wait(60) == 130
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log and "interrupted" in log.splitlines()[-1] and not api.prompts


def test_sigterm_while_writing_acts_like_ctrl_c(tmp_path):
    write_responses(tmp_path / "responses.parquet", 3)
    with running(StandIn()) as url, mock.patch.object(judged_file, "write_judged") as write:
        write.side_effect = lambda *_: signal.raise_signal(signal.SIGTERM)
        printed = judge(tmp_path, url, expect=130)
    assert "interrupted" in printed


@pytest.mark.parametrize("poisoned", ["row 0.", "row 19."])
def test_a_prompt_the_server_always_fails_on_does_not_stop_the_rest(tmp_path, poisoned):
    class Brittle(StandIn):
        def handle(self, method, path, headers, body):
            if poisoned.encode() in body:
                return claude_stand_in._turned_away("500", headers)
            return super().handle(method, path, headers, body)

    write_responses(tmp_path / "responses.parquet", 20, response=[f"row {n}." for n in range(20)])
    with running(Brittle()) as url:
        printed = judge(tmp_path, url, "--max-wait", "0.05", "--give-up-after", "0.5")
    assert "76 verdicts" in printed and "past_form: 1 error (1 of them: 500 api_error" in printed


def test_each_missing_verdict_has_its_own_final_reason(tmp_path):
    """Retries that later succeeded are no cause, also if they came last."""

    class Moody(StandIn):
        failed = 0

        def handle(self, method, path, headers, body):
            if path == "/v1/messages" and b"too long." in body:
                return claude_stand_in._answer(
                    *claude_stand_in._error(413, "request_too_large", "the prompt is too long")
                )
            if b"last row" in body and self.failed < 4:
                self.failed += 1
                return claude_stand_in._answer(*claude_stand_in._error(500, "api_error", "hiccup"))
            return super().handle(method, path, headers, body)

    texts = [f"This is too long. {n}" if 5 <= n < 12 else f"Steam. {n}" for n in range(29)] + ["Steam, last row."]
    write_responses(tmp_path / "responses.parquet", 30, response=texts)
    api = Moody()
    with running(api) as url:
        printed = judge(tmp_path, url, "--judges", "past_form", "--max-wait", "0.3")
    assert api.failed == 4 and "hiccup" not in printed
    assert "past_form: 7 error (7 of them: 413" in printed
    table = judged(tmp_path)
    reasons = dict(zip(table["response"].to_pylist(), table["past_form_reason"].to_pylist(), strict=True))
    assert all(("413" in reason) == ("too long" in text) for text, reason in reasons.items() if reason)
    assert sum(reason is not None for reason in reasons.values()) == table["past_form"].null_count == 7


@pytest.mark.slow
def test_a_full_disk_is_a_one_line_error(tmp_path):
    write_responses(tmp_path / "responses.parquet", 300)
    limited = ("bash", "-c", 'ulimit -f 300; exec "$@"', "limited")
    with running(StandIn()) as url:
        assert start(tmp_path, url, launcher=limited).wait(60) == 1
        log = (tmp_path / "log.txt").read_text()
        assert "Traceback" not in log and "cannot be used now" in log.splitlines()[-1]
        assert "0 missing" in judge(tmp_path, url)
