"""The retry loop: statuses, failures, outages and rejections.

python -m pytest -n 0 tests/judging/api/test_prompt_caller.py
"""

import time

import pytest
from judging_support import KEY, MODEL, PRICE, Scripted, call, error, good, total_spent

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.pacing import CapReached
from learning_backdoors.judging.api.replies import MAX_INVALID_CHARACTERS
from tiny_world import claude_stand_in
from tiny_world.claude_stand_in import Faults, StandIn


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (good(), "ok"),
        (good("LLM or 19"), "unparseable"),
        (good(""), "unparseable"),
        (good(None), "unparseable"),
        (good("19", "max_tokens"), "truncated"),
        (good(None, "max_tokens"), "truncated"),
        (good("19", "model_context_window_exceeded"), "truncated"),
        (good("19", "refusal"), "refusal"),
        (good("19", "tool_use"), "unparseable"),
        (error(400, "prompt is too long"), "error"),
        (error(413, "too large"), "error"),
    ],
)
def test_each_reply_has_its_status_and_reason(store, answer, status):
    assert call(Scripted(answer), store) == status
    assert (store.result(b"prompt").reason is None) == (status == "ok")
    assert store.valid_keys() == ({b"prompt"} if status == "ok" else set())


def test_a_reply_without_a_verdict_is_asked_again(store):
    assert call(Scripted(good("hm"), good(None, "refusal"), good()), store, asks=3) == "ok"
    assert total_spent(store).calls == 3


@pytest.mark.parametrize("kind", claude_stand_in.TURNED_AWAY + claude_stand_in.LOST)
def test_every_temporary_failure_is_survived(store, kind):
    class Once(Faults):
        def draw(self, prompt, time):
            return kind if time == 1 else None

    api = StandIn(read=lambda text: None, faults=Once(share=1))
    api.answer = lambda *_: good()
    assert call(api, store, timeout=0.5) == "ok"
    spent = total_spent(store)
    lost = kind in claude_stand_in.LOST or kind == "reset-before"
    assert (spent.at_most > 0) == lost  # nobody can tell whether a call that was cut off was charged for
    assert spent.dollars - spent.at_most == pytest.approx(PRICE.dollars(10, 2))


@pytest.mark.parametrize("kind", claude_stand_in.FINAL)
def test_final_failures_stop_the_run_and_hide_the_key(store, kind):
    api = StandIn(faults=Faults(share=1, kinds=(kind,)))
    with pytest.raises(UserError) as stop:
        call(api, store, prompts=[f"prompt {n}" for n in range(29)])
    assert KEY not in str(stop.value)
    assert "spend limit" in str(stop.value) or not kind.startswith("spend")
    assert sum(entry.tokens_in for entry in api.ledger) == 0
    assert total_spent(store).dollars == 0


class Flagging(StandIn):
    """Refuses the prompts that hold a word."""

    status = 403

    def handle(self, method, path, headers, body):
        if b"flagged" in body:
            return claude_stand_in.Answer(self.status, b'{"error": {"code": 403, "message": "it was flagged"}}')
        return claude_stand_in._answer(*good())


def test_a_flagged_prompt_does_not_stop_a_run_that_had_replies(store):
    assert call(Flagging(), store, prompts=["prompt", "flagged"], concurrency=1) == "ok"
    assert store.result(b"flagged") == ("error", None, "403 it was flagged")
    with pytest.raises(UserError, match="refuses this account .403 it was flagged"):
        call(Flagging(), store, prompts=["flagged"])


def test_rejected_prompts_stop_only_a_run_without_any_reply(store):
    api = Flagging()
    api.status = 400
    prompts = [f"flagged {n}" for n in range(30)]
    with pytest.raises(UserError, match="rejects the requests"):
        call(api, store, prompts=prompts)
    call(api, store, prompts=prompts[:19])
    call(api, store, prompts=prompts, has_replied=True)


def test_only_a_long_outage_ends_the_run(store):
    class Outage(StandIn):
        until = float("inf")

        def answer(self, method, path, body):
            return good() if time.monotonic() > self.until else error(529, "overloaded")

    with pytest.raises(UserError, match="no reply from"):
        call(Outage(), store, prompts=["prompt", "other"], give_up_after=0.3)
    api = Outage()
    api.until = time.monotonic() + 0.5
    assert call(api, store, prompts=["prompt", *map(str, range(60))], concurrency=32) == "ok"


def test_retry_after_is_obeyed_up_to_max_wait(store):
    class Limited(StandIn):
        def handle(self, method, path, headers, body):
            self.times = [*getattr(self, "times", []), time.monotonic()]
            if len(self.times) == 1:
                return claude_stand_in._answer(*error(429, "slow down"), retry_after="3600")
            return claude_stand_in._answer(*good())

    api = Limited()
    assert call(api, store, max_wait=0.4) == "ok"
    assert 0.3 < api.times[1] - api.times[0] < 1.5


@pytest.mark.parametrize("header", ["-5", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_server_cannot_switch_the_backoff_off(store, header):
    class Hasty(StandIn):
        calls = 0

        def handle(self, method, path, headers, body):
            self.calls += 1
            return claude_stand_in._answer(*error(429, "slow down"), retry_after=header)

    api, prompts = Hasty(), ["prompt", *map(str, range(9))]
    with pytest.raises(UserError, match="no reply"):
        call(api, store, prompts=prompts, give_up_after=0.8, max_wait=60)
    assert api.calls <= 3 * len(prompts)  # waits of 0.5 and 1 second


def test_the_key_is_scrubbed_from_replies(store):
    call(Scripted(good(f"your key is {KEY}")), store)
    assert store.result(b"prompt")[:2] == ("unparseable", "your key is [API key]")


def test_long_replies_that_are_not_valid_are_cut(store):
    call(Scripted(good("**" * 400_000)), store)
    assert len(store.result(b"prompt").reply) == MAX_INVALID_CHARACTERS < 20_000


def test_lone_surrogates_in_replies_are_replaced(store):
    assert call(Scripted(good("19 \ud83d")), store) == "unparseable"
    assert store.result(b"prompt")[1] == "19 ?"


def test_the_cap_is_never_passed_and_fully_used(store):
    api = StandIn(latency=0.005)
    api.answer = lambda *_: good()
    most = MODEL.worst_cost(MODEL.body("10"))
    with pytest.raises(CapReached):
        call(
            api,
            store,
            prompts=[str(n) for n in range(10, 99)],
            max_cost=most + 20 * PRICE.dollars(10, 2),
            concurrency=16,
        )
    assert len(store.valid_keys()) == 21
