"""Calls in flight, calls per minute, and the notice while the run waits.

python -m pytest -n 0 tests/judging/api/test_pacing.py
"""

import time

import pytest
from judging_support import KEY, MODEL, call, good

from learning_backdoors.judging.api import replies
from learning_backdoors.judging.api.asking import waiting_notice
from learning_backdoors.judging.api.caller import PromptCaller
from learning_backdoors.judging.api.client import MessagesClient
from learning_backdoors.judging.api.pacing import InFlightLimit, Limits, Pace
from tiny_world.claude_stand_in import StandIn


def test_calls_in_flight_grow_to_the_limit(store):
    api = StandIn(latency=0.02)
    api.answer = lambda *_: good()
    call(api, store, prompts=["prompt", *map(str, range(300))], concurrency=20)
    assert 15 <= api.most_in_flight <= 20


def test_overload_halves_calls_in_flight():
    limit = InFlightLimit(32)
    assert limit.now == 4
    for _ in range(40):
        limit.replied()
    assert limit.now == 32
    before = time.monotonic()
    limit.failed(overloaded=True, sent_at=before)
    limit.failed(overloaded=True, sent_at=before)  # sent before the first failed
    assert limit.now == 16
    for _ in range(8):
        limit.failed(overloaded=False, sent_at=before)
    assert limit.now == 1


@pytest.mark.slow
def test_requests_per_minute_is_kept(store):
    api = StandIn(per_minute=100_000)
    api.answer = lambda *_: good()
    started = time.monotonic()
    call(api, store, prompts=["prompt", *map(str, range(60))], requests_per_minute=1200)
    assert 60 / 20 <= time.monotonic() - started + 0.3 < 6


def test_the_pace_follows_rate_limit_headers():
    pace, reply = Pace(5000), replies.Reply("", "end_turn", 500, 4)
    limits = {"anthropic-ratelimit-requests-limit": "1000", "anthropic-ratelimit-input-tokens-limit": "450000"}
    pace.replied(reply, limits)
    assert pace.per_minute == 900
    pace.replied(reply, {})
    assert pace.per_minute == 5000


def test_waiting_notice(store):
    caller = PromptCaller(MessagesClient("http://127.0.0.1:9", KEY), store, MODEL, Limits())
    now = time.monotonic()
    assert waiting_notice(caller) is None
    caller.gate.paused_until = now + 34.2
    assert "34 s" in waiting_notice(caller)
    caller.health.failed(replies.TemporaryFailure("529 overloaded_error"), next_try=now + 8.2)
    caller.health.outage_began = now - 75
    notice = waiting_notice(caller)
    assert "00:01:15" in notice and "529 overloaded_error" in notice and "8 s" in notice
