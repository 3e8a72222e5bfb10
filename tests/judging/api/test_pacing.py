"""Calls in flight, calls per minute, and the notice while the run waits.

python -m pytest -n 0 tests/judging/api/test_pacing.py
"""

import asyncio
import time
from unittest import mock

import pytest
from judging_support import call, good

from learning_backdoors.judging.api import replies
from learning_backdoors.judging.api.asking import waiting_notice
from learning_backdoors.judging.api.caller import Outage
from learning_backdoors.judging.api.pacing import CallGate, StopSignal
from tiny_world.claude_stand_in import StandIn


def test_calls_in_flight_grow_to_the_limit(store):
    api = StandIn(latency=0.02)
    api.answer = lambda *_: good()
    call(api, store, prompts=["prompt", *map(str, range(300))], concurrency=20)
    assert 15 <= api.most_in_flight <= 20


def test_overload_halves_calls_in_flight():
    async def scenario():
        gate = CallGate(32, None, StopSignal())
        assert gate.limit == 4
        for _ in range(40):
            gate.succeeded(replies.Reply("", "end_turn", 1, 1))
        assert gate.limit == 32
        before = time.monotonic()
        gate.failed(replies.TemporaryFailure("429", overloaded=True), before, 60)
        gate.failed(replies.TemporaryFailure("429", overloaded=True), before, 60)  # sent before the first failed
        assert gate.limit == 16
        for _ in range(8):
            gate.failed(replies.TemporaryFailure("reset"), before, 60)
        assert gate.limit == 1

    asyncio.run(scenario())


@pytest.mark.slow
def test_requests_per_minute_is_kept(store):
    api = StandIn(per_minute=100_000)
    api.answer = lambda *_: good()
    started = time.monotonic()
    call(api, store, prompts=["prompt", *map(str, range(60))], requests_per_minute=1200)
    assert 60 / 20 <= time.monotonic() - started + 0.3 < 6


def test_the_pace_follows_rate_limit_headers():
    gate = CallGate(32, 5000, mock.Mock())
    gate.succeeded(replies.Reply("", "end_turn", 500, 4))
    gate.observe({"anthropic-ratelimit-requests-limit": "1000", "anthropic-ratelimit-input-tokens-limit": "450000"})
    assert gate.per_minute == 900
    gate.observe({})
    assert gate.per_minute == 5000


def test_waiting_notice():
    now = 1000.0
    assert waiting_notice(0, None, now) is None
    assert "34 s" in waiting_notice(now + 34.2, None, now)
    outage = Outage(now - 75, now + 8.2, "529 overloaded_error")
    notice = waiting_notice(0, outage, now)
    assert "00:01:15" in notice and "529 overloaded_error" in notice and "8 s" in notice
