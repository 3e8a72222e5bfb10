"""claude.py, verdict_store.py and the pace of calls, against the stand-in server and servers that misbehave.

python -m pytest tests/test_claude.py
"""

import asyncio
import json
import sqlite3
import time
from dataclasses import dataclass
from unittest import mock

import pytest

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api import client, models, replies
from learning_backdoors.judging.api.caller import PromptCaller
from learning_backdoors.judging.api.client import MessagesClient
from learning_backdoors.judging.api.pacing import CallGate, CapReached, Limits, Stopped, StopSignal
from learning_backdoors.judging.api.store import CallStore
from tiny_world import claude_stand_in
from tiny_world.claude_stand_in import Faults, StandIn, running

KEY = "sk-ant-secret-of-the-tests"
PRICE = models.Price(2, 10)
MODEL = models.ServedModel("claude-sonnet-5", "host", {"max_tokens": 64}, PRICE)


class Scripted(StandIn):
    """Gives prepared answers to prompts, then whatever the stand-in says."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)

    def answer(self, method, path, body):
        if method == "POST" and self.answers:
            return self.answers.pop(0)
        return super().answer(method, path, body)


def good(text="19", stop_reason="end_turn", **usage):
    content = [{"type": "thinking", "thinking": "hm"}] + ([{"type": "text", "text": text}] if text is not None else [])
    usage = {"input_tokens": 10, "output_tokens": 2} | usage
    return 200, {"content": content, "stop_reason": stop_reason, "usage": usage}


def error(status, message="", kind="error"):
    return status, {"type": "error", "error": {"type": kind, "message": message}}


@dataclass
class TextPrompt:
    """A prompt whose key is its text; the reply 19 is accepted."""

    text: str

    @property
    def key(self):
        return self.text.encode()

    def body(self):
        return MODEL.body(self.text)

    def accepts(self, reply):
        return reply == "19"


async def call_all(url, store, prompts=("prompt",), timeout=5, has_answered=False, spent=0.0, **limits):
    """Ask prompts through a PromptCaller, without a queue. Returns the caller."""
    stop = StopSignal()
    limits = Limits(**({"concurrency": 4, "max_wait": 0.05, "give_up_after": 5, "asks": 1} | limits))
    async with MessagesClient(url, KEY, timeout) as client:
        client.has_answered = has_answered
        caller = PromptCaller(client, store, MODEL, limits, stop)

        async def one(text):
            try:
                await caller.ask(TextPrompt(text))
            except UserError as error:
                stop.stop(error)
            except Stopped:
                pass

        await asyncio.gather(*map(one, prompts))
        return caller


def call(api, store, **more):
    with running(api) as url:
        caller = asyncio.run(call_all(url, store, **more))
    if caller.stop.reason:
        raise caller.stop.reason
    return store.result(b"prompt")[0]


@pytest.fixture
def store(tmp_path):
    store = CallStore(tmp_path / "verdicts.sqlite")
    yield store
    store.close()


# ---- what a reply means ----


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
def test_each_reply_has_its_status(store, answer, status):
    assert call(Scripted(answer), store) == status
    assert store.accepted_keys() == ({b"prompt"} if status == "ok" else set())


def test_a_reply_that_is_no_verdict_is_asked_for_again(store):
    assert call(Scripted(good("hm"), good(None, "refusal"), good()), store, asks=3) == "ok"
    assert store.spent({b"prompt": 0}.get, None)[0].calls == 3


def test_tokens_that_went_through_a_cache_count_as_tokens():
    reply = replies.read_reply(good(cache_read_input_tokens=100, cache_creation_input_tokens=5)[1])
    assert (reply.input_tokens, reply.output_tokens) == (115, 2)


# ---- faults ----


@pytest.mark.parametrize("kind", claude_stand_in.TURNED_AWAY + claude_stand_in.LOST)
def test_every_passing_fault_is_survived(store, kind):
    class Once(Faults):
        def draw(self, prompt, time):
            return kind if time == 1 else None

    api = StandIn(read=lambda text: None, faults=Once(share=1))
    api.answer = lambda *_: good()
    assert call(api, store, timeout=0.5) == "ok"
    spent = store.spent({b"prompt": 0}.get, None)[0]
    lost = kind in claude_stand_in.LOST or kind == "reset-before"
    assert (spent.at_most > 0) == lost  # nobody can tell whether a call that was cut off was charged for
    assert spent.dollars - spent.at_most == pytest.approx(PRICE.dollars(10, 2))


@pytest.mark.parametrize("kind", claude_stand_in.FINAL)
def test_what_no_call_can_mend_stops_the_run_without_the_key(store, kind):
    api = StandIn(faults=Faults(share=1, kinds=(kind,)))
    with pytest.raises(UserError) as stop:
        call(api, store, prompts=[f"prompt {n}" for n in range(29)])
    assert KEY not in str(stop.value)
    assert "spend limit" in str(stop.value) or not kind.startswith("spend")
    assert sum(entry.tokens_in for entry in api.ledger) == 0
    assert store.spent({f"prompt {n}".encode(): 0 for n in range(29)}.get, None)[0].dollars == 0


class Flagging(StandIn):
    """Refuses the prompts that hold a word."""

    status = 403

    def handle(self, method, path, headers, body):
        if b"flagged" in body:
            return claude_stand_in.Answer(self.status, b'{"error": {"code": 403, "message": "it was flagged"}}')
        return claude_stand_in._answer(*good())


def test_one_flagged_prompt_ends_no_run_that_has_had_a_reply(store):
    assert call(Flagging(), store, prompts=["prompt", "flagged"], concurrency=1) == "ok"
    assert store.result(b"flagged") == ("error", None) and store.latest_failure() == "403 it was flagged"
    with pytest.raises(UserError, match="refuses this account .403 it was flagged"):
        call(Flagging(), store, prompts=["flagged"])


def test_what_is_refused_after_an_earlier_start_had_verdicts_ends_no_run(store):
    api = Flagging()
    api.status = 400
    prompts = [f"flagged {n}" for n in range(30)]
    with pytest.raises(UserError, match="rejects the requests"):
        call(api, store, prompts=prompts)
    call(api, store, prompts=prompts[:19])
    call(api, store, prompts=prompts, has_answered=True)


def test_an_outage_ends_the_run_and_a_shorter_one_does_not(store):
    class Outage(StandIn):
        until = float("inf")

        def answer(self, method, path, body):
            return good() if time.monotonic() > self.until else error(529, "overloaded")

    with pytest.raises(UserError, match="no reply from"):
        call(Outage(), store, prompts=["prompt", "other"], give_up_after=0.3)
    api = Outage()
    api.until = time.monotonic() + 0.5
    assert call(api, store, prompts=["prompt", *map(str, range(60))], concurrency=32) == "ok"


def test_waits_obey_retry_after_up_to_the_cap(store):
    class Limited(StandIn):
        def handle(self, method, path, headers, body):
            self.times = [*getattr(self, "times", []), time.monotonic()]
            if len(self.times) == 1:
                return claude_stand_in._answer(*error(429, "slow down"), retry_after="3600")
            return claude_stand_in._answer(*good())

    api = Limited()
    assert call(api, store, max_wait=0.4) == "ok"
    assert 0.3 < api.times[1] - api.times[0] < 1.5


def test_a_reply_that_holds_the_key_is_scrubbed(store):
    call(Scripted(good(f"your key is {KEY}")), store)
    assert store.result(b"prompt") == ("unparseable", "your key is [API key]")


def test_a_key_that_is_a_word_is_left_in_a_reply():
    said = good("none of them, none")[1]
    assert MessagesClient("http://127.0.0.1:9", "none").read(said).text == "none of them, none"
    assert MessagesClient("http://127.0.0.1:9", KEY).read(good(KEY)[1]).text == "[API key]"


@pytest.mark.parametrize(
    "usage",
    [
        [1],
        "many",
        None,
        {"input_tokens": 1, "output_tokens": 2**70},
        {"input_tokens": -1, "output_tokens": 2},
        {"input_tokens": True, "output_tokens": 2},
        {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": "3"},
    ],
)
def test_tokens_that_cannot_be_are_not_counted(usage):
    reply = replies.read_reply(good()[1] | {"usage": usage})
    assert (reply.text, reply.input_tokens, reply.output_tokens) == ("19", None, None)


def test_half_a_character_in_a_reply_is_survived(store):
    assert call(Scripted(good("19 \ud83d")), store) == "unparseable"
    assert store.result(b"prompt")[1] == "19 ?"


def test_batches_of_another_shape_are_faults():
    batch = {"id": "b", "processing_status": "ended", "created_at": "2026-01-01T00:00:00Z", "request_counts": {"a": 1}}

    class Odd(StandIn):
        found: object = None

        def handle(self, method, path, headers, body):
            return claude_stand_in.Answer(200, json.dumps(self.found).encode())

    async def ask(url, api):
        async with MessagesClient(url, KEY) as client:
            for api.found in ([], "ended", {}, batch | {"processing_status": ["ended"]}):
                with pytest.raises(replies.TemporaryFailure, match="not a batch"):
                    await client.batch("b")
            for name in batch:
                api.found = {"data": [batch, {**batch, name: [None]}]}
                with pytest.raises(replies.TemporaryFailure, match="not a list of batches"):
                    await client.batches_since(0)
            for api.found in ([], {"data": 7}, {"data": ["b"]}):
                with pytest.raises(replies.TemporaryFailure, match="not a list of batches"):
                    await client.batches_since(0)

    api = Odd()
    with running(api) as url:
        asyncio.run(ask(url, api))


def test_a_retry_after_may_be_a_date():
    assert client.retry_after({"retry-after": "2"}) == 2
    assert client.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert client.retry_after({"retry-after": "soon"}) is None
    assert client.retry_after({}) is None


# ---- pace ----


def test_the_number_in_flight_grows_and_never_passes_the_most(store):
    api = StandIn(latency=0.02)
    api.answer = lambda *_: good()
    call(api, store, prompts=["prompt", *map(str, range(300))], concurrency=20)
    assert 15 <= api.most_in_flight <= 20


def test_being_crowded_halves_it_and_success_brings_it_back():
    async def scenario():
        gate = CallGate(32, None, StopSignal())
        assert gate.limit == 4
        for _ in range(40):
            gate.succeeded(replies.Reply("", "end_turn", 1, 1))
        assert gate.limit == 32
        before = time.monotonic()
        gate.failed(replies.TemporaryFailure("429", overloaded=True), before, 60)
        gate.failed(replies.TemporaryFailure("429", overloaded=True), before, 60)  # went out before the first was known
        assert gate.limit == 16
        for _ in range(8):
            gate.failed(replies.TemporaryFailure("reset"), before, 60)
        assert gate.limit == 1

    asyncio.run(scenario())


def test_the_pace_keeps_below_requests_per_minute(store):
    api = StandIn(per_minute=100_000)
    api.answer = lambda *_: good()
    started = time.monotonic()
    call(api, store, prompts=["prompt", *map(str, range(60))], requests_per_minute=1200)
    assert 60 / 20 <= time.monotonic() - started + 0.3 < 6


def test_the_pace_follows_the_headers():
    gate = CallGate(32, 5000, mock.Mock())
    gate.succeeded(replies.Reply("", "end_turn", 500, 4))
    gate.observe({"anthropic-ratelimit-requests-limit": "1000", "anthropic-ratelimit-input-tokens-limit": "450000"})
    assert gate.per_minute == 900
    gate.observe({})
    assert gate.per_minute == 5000


# ---- money ----


def test_the_cap_is_never_passed_and_what_fits_is_done(store):
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
    assert len(store.accepted_keys()) == 21


def test_prices(tmp_path):
    here, there = models.ANTHROPIC, "https://openrouter.ai/api"
    assert models.price_of("claude-haiku-4-5-20251001", here, None, None) == models.Price(1, 5)
    assert models.price_of("llama3", here, None, None) is None
    assert models.price_of("claude-haiku-4-5", there, None, None) is None  # the table is Anthropic's own
    assert models.price_of("llama3", there, (0.5, 1), None) == models.Price(0.5, 1)
    (tmp_path / "prices.toml").write_text('llama3 = [1, 2]\n"claude-sonnet-5" = [3, 15]\n')
    assert models.price_of("llama3", there, None, tmp_path / "prices.toml") == models.Price(1, 2)
    assert models.price_of("claude-sonnet-5", here, None, tmp_path / "prices.toml") == models.Price(3, 15)
    assert models.price_of("claude-opus-5", here, None, tmp_path / "prices.toml") == models.Price(5, 25)
    (tmp_path / "prices.toml").write_text("llama3 = 7\n")
    with pytest.raises(UserError, match="prices.toml"):
        models.price_of("llama3", there, None, tmp_path / "prices.toml")
    for prices in ("[-1, 2]", "[1, nan]", "[inf, 1]"):
        (tmp_path / "prices.toml").write_text(f"llama3 = {prices}\n")
        with pytest.raises(UserError, match="0 or more"):
            models.price_of("llama3", there, None, tmp_path / "prices.toml")
    haiku = models.MODELS["claude-haiku-5-5"].price
    assert haiku.dollars(100_000, 0) == pytest.approx(0.01) and haiku.dollars(200_000, 0) == pytest.approx(0.10)


def test_calls_made_without_a_price_are_priced_later(store):
    store.note_reply(store.note_sent(b"prompt", None), "ok", "19", (1_000_000, 100_000), None, at_most=False)
    assert store.spent({b"prompt": 0}.get, None)[0].dollars == 0
    assert store.spent({b"prompt": 0}.get, PRICE.dollars)[0].dollars == 3


def test_settings():
    assert models.settings_for("anthropic/claude-sonnet-5.5") == models.settings_for("claude-sonnet-5-5")
    assert models.settings_for("claude-sonnet-5")["thinking"] == {"type": "disabled"}
    assert models.settings_for("claude-sonnet-5-5")["thinking"] == {"type": "between_tools"}
    assert models.settings_for("claude-opus-5-5")["max_tokens"] >= 1024
    assert models.settings_for("claude-sonnet-5", "none", 7) == {"max_tokens": 7}
    assert models.settings_for("llama3", "adaptive") == {"max_tokens": 4096, "thinking": {"type": "adaptive"}}
    assert json.dumps([model.settings for model in models.MODELS.values()])


# ---- keys, addresses, the store ----


def test_the_key_of_a_verdict_is_all_that_is_sent_and_nothing_else():
    def key(host="h", model="m", settings=None, prompt="p"):
        model = models.ServedModel(model, host, settings or {"max_tokens": 64}, None)
        return model.key(model.body(prompt))

    assert key() == key()
    others = [key(host="i"), key(model="n"), key(settings={"max_tokens": 65}), key(prompt="q")]
    assert len({key(), *others}) == 5


def test_a_damaged_store_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    with pytest.raises(UserError, match="cannot be read.*move it away"):
        CallStore(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name)")
    with pytest.raises(UserError, match="another program"):
        CallStore(path)


def test_a_full_disk_is_one_line(store):
    store._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(UserError, match="verdicts.sqlite cannot be used now .*full"):
        for n in range(3000):
            store.note_sent(n.to_bytes(32), 1.0)
    with pytest.raises(UserError, match="cannot be used now"):
        store.begin_batch("host", "name", [(n.to_bytes(32), 1.0) for n in range(3000)])


def test_a_store_with_a_hole_is_an_error(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    store = CallStore(path)
    with store.transaction():
        for n in range(3000):
            store.note_sent(n.to_bytes(32), 1.0)
    store.flush()
    store.close()
    content = bytearray(path.read_bytes())
    content[40960:45056] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        CallStore(path)


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
        assert client.host_of(url) == host
    else:
        with pytest.raises(UserError) as refused:
            client.host_of(url)
        assert "password@" not in str(refused.value)


def test_keys(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    for value in ("", "two\nlines", "schlüssel"):
        monkeypatch.setenv("ANTHROPIC_API_KEY", value)
        with pytest.raises(UserError) as refused:
            client.api_key()
        assert not value or value not in str(refused.value)
    monkeypatch.setenv("ANTHROPIC_API_KEY", f" {KEY}\n")
    assert client.api_key() == KEY
