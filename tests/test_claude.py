"""claude.py against the stand-in server and small servers that misbehave.

python -m pytest tests/test_claude.py
"""

import asyncio
import json
import sqlite3

import pytest

import claude
from config import UserError
from tiny_world.claude_stand_in import StandIn, running

KEY = "sk-ant-secret-of-the-tests"


class Scripted(StandIn):
    """Gives prepared answers, then whatever the stand-in says."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)

    def answer(self, method, path, body):
        if method == "POST" and self.answers:
            return self.answers.pop(0)
        return super().answer(method, path, body)


def good(text="19", stop_reason="end_turn"):
    content = [{"type": "thinking", "thinking": "hm"}] + ([{"type": "text", "text": text}] if text is not None else [])
    return 200, {"content": content, "stop_reason": stop_reason, "usage": {"input_tokens": 10, "output_tokens": 2}}


def error(status, message="", kind="error"):
    return status, {"type": "error", "error": {"type": kind, "message": message}}


def ask(api, store, price=(2, 10), key=b"k"):
    async def call(url):
        async with claude.Client(url, KEY) as client:
            body = claude.message("claude-sonnet-5", {"max_tokens": 64}, "prompt")
            return await claude.Caller(client, store, price).ask(key, body, lambda text: text == "19")

    with running(api) as url:
        return asyncio.run(call(url))


@pytest.fixture
def store(tmp_path):
    store = claude.Store(tmp_path / "verdicts.sqlite")
    yield store
    store.close()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (good(), "ok"),
        (good("LLM or 19"), "unparseable"),
        (good(""), "unparseable"),
        (good(None), "unparseable"),
        (good("19", "max_tokens"), "truncated"),
        (good(None, "max_tokens"), "truncated"),
        (good("19", "refusal"), "refusal"),
        (good("19", "tool_use"), "unparseable"),
        (error(400, "prompt is too long"), "error"),
    ],
)
def test_each_reply_has_its_status(store, answer, status):
    assert ask(Scripted(answer), store) == status
    assert store.best(b"k")[0] == status
    assert store.verdict_keys() == ({b"k"} if status == "ok" else set())


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_no_call_can_mend_stops_the_run_without_the_key(store, status):
    with pytest.raises(UserError) as stop:
        ask(Scripted(error(status, f"bad key {KEY}")), store)
    assert KEY not in str(stop.value) and "[API key]" in str(stop.value)


def test_spend_limits_stop_the_run(store):
    for answer in (
        error(429, "x", "enforced_spend_limit_reached"),
        error(400, "You have reached your specified limit"),
    ):
        with pytest.raises(UserError, match="spend limit"):
            ask(Scripted(answer), store)


def test_faults_are_tried_again_and_lost_replies_are_counted_at_their_worst(store, monkeypatch):
    monkeypatch.setattr(claude, "MAX_WAIT_SECONDS", 0.01)
    faults = [error(529), error(500), (200, "<html>"), (200, {"content": None}), error(429)]
    assert ask(Scripted(*faults, good()), store) == "ok"
    totals = store.totals({b"k"})
    assert totals.calls == 3  # two bodies that were no message may have been charged for
    assert totals.dollars - totals.lost_dollars == pytest.approx((10 * 2 + 2 * 10) / 1e6)
    assert totals.lost_dollars > 0


def test_a_reply_that_holds_the_key_is_scrubbed(store):
    ask(Scripted(good(f"your key is {KEY}")), store)
    assert store.best(b"k") == ("unparseable", "your key is [API key]")


def test_the_key_of_a_verdict_is_all_that_is_sent_and_nothing_else():
    def key(host="h", model="m", settings=None, prompt="p"):
        return claude.request_key(host, claude.message(model, settings or {"max_tokens": 64}, prompt))

    assert key() == key()
    others = [key(host="i"), key(model="n"), key(settings={"max_tokens": 65}), key(prompt="q")]
    assert len({key(), *others}) == 5


def test_a_damaged_store_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    with pytest.raises(UserError, match="cannot be read.*move it away"):
        claude.Store(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name)")
    with pytest.raises(UserError, match="another program"):
        claude.Store(path)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.anthropic.com/v1/", "https://api.anthropic.com"),
        ("https://openrouter.ai/api", "https://openrouter.ai/api"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("api.anthropic.com", None),
        ("http://name:password@host", None),
        ("http://host:port", None),
    ],
)
def test_addresses(url, host):
    if host:
        assert claude.host_of(url) == host
    else:
        with pytest.raises(UserError) as refused:
            claude.host_of(url)
        assert "password@" not in str(refused.value)


def test_keys(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    for value in ("", "two\nlines", "schlüssel"):
        monkeypatch.setenv("ANTHROPIC_API_KEY", value)
        with pytest.raises(UserError) as refused:
            claude.api_key()
        assert not value or value not in str(refused.value)
    monkeypatch.setenv("ANTHROPIC_API_KEY", f" {KEY}\n")
    assert claude.api_key() == KEY


def test_models_have_settings_and_prices():
    assert claude.model_named("claude-haiku-4-5-20251001") is claude.MODELS["claude-haiku-4-5"]
    assert claude.model_named("llama3").price is None
    assert claude.dollars((2, 10), 1_000_000, 100_000) == 3
    assert claude.dollars(None, 1, 1) is None
    assert json.dumps([model.settings for model in claude.MODELS.values()])
