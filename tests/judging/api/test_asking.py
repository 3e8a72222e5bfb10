"""The asking loop, as persona preparation uses it: prompts in, replies in a store, and what it raises if it ends early.

python -m pytest -n 0 tests/judging/api/test_asking.py
"""

import dataclasses

import pytest
from judging_support import KEY, MODEL, Scripted, TextPrompt, good

from learning_backdoors.judging.api.asking import ask_all
from learning_backdoors.judging.api.pacing import CapReached, Limits
from tiny_world.claude_stand_in import StandIn, running

PROMPTS = [TextPrompt(str(number)) for number in range(10, 20)]
FEW_AT_ONCE = Limits(concurrency=2, max_wait=0.05)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def test_what_is_settled_is_not_asked_again(store, monkeypatch):
    api = Scripted(good(stop_reason="refusal"), *[good()] * 9)
    limits = dataclasses.replace(FEW_AT_ONCE, settled=("ok", "refusal"))
    with running(api) as url:
        model = dataclasses.replace(MODEL, host=url)
        ask_all(PROMPTS, model, store, limits)
        assert not api.answers and len(store.valid_keys()) == 9
        monkeypatch.delenv("ANTHROPIC_API_KEY")  # nothing is left to ask: no key is needed
        ask_all(PROMPTS, model, store, limits)


def test_the_reason_of_an_early_end_is_raised(store):
    api = StandIn()
    api.answer = lambda *_: good()
    limits = dataclasses.replace(FEW_AT_ONCE, max_cost=1.0, spent=1.0)
    with running(api) as url:
        model = dataclasses.replace(MODEL, host=url)
        with pytest.raises(CapReached):
            ask_all(PROMPTS, model, store, limits)
        assert not store.valid_keys()
        ask_all(PROMPTS, model, store, dataclasses.replace(limits, spent=0.5))
    assert len(store.valid_keys()) == 10
