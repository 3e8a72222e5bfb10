"""Addresses, keys, replies and errors of a Messages API.

python -m pytest -n 0 tests/judging/api/test_messages_client.py
"""

import asyncio
import gzip
import json
import tracemalloc

import pytest
from judging_support import KEY, call, error, good, judge, write_responses

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api import client, replies
from learning_backdoors.judging.api.client import MessagesClient
from tiny_world import claude_stand_in
from tiny_world.claude_stand_in import StandIn, running


def test_cached_tokens_are_counted():
    reply = replies.read_reply(good(cache_read_input_tokens=100, cache_creation_input_tokens=5)[1])
    assert (reply.input_tokens, reply.output_tokens) == (115, 2)


def test_short_keys_are_not_scrubbed_from_replies():
    printed = good("none of them, none")[1]
    assert MessagesClient("http://127.0.0.1:9", "none").read(printed).text == "none of them, none"
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
def test_impossible_token_counts_are_ignored(usage):
    reply = replies.read_reply(good()[1] | {"usage": usage})
    assert (reply.text, reply.input_tokens, reply.output_tokens) == ("19", None, None)


def test_malformed_batch_replies_are_temporary_failures():
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


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.anthropic.com/v1/", "https://api.anthropic.com"),
        ("https://openrouter.ai/api", "https://openrouter.ai/api"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("HTTPS://API.Anthropic.com:443/v1", "https://api.anthropic.com"),
        ("http://LocalHost:80/Path", "http://localhost/Path"),
        ("https://[::1]:443", "https://[::1]"),
        ("api.anthropic.com", None),
        ("http://name:password@host", None),
        ("http://host:port", None),
    ],
)
def test_base_urls(url, host):
    if host:
        assert client.host_of(url) == host
    else:
        with pytest.raises(UserError) as refused:
            client.host_of(url)
        assert "password@" not in str(refused.value)


def test_api_keys(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    for value in ("", "two\nlines", "schlüssel"):
        monkeypatch.setenv("ANTHROPIC_API_KEY", value)
        with pytest.raises(UserError) as refused:
            client.api_key()
        assert not value or value not in str(refused.value)
    monkeypatch.setenv("ANTHROPIC_API_KEY", f" {KEY}\n")
    assert client.api_key() == KEY


class Fixed(StandIn):
    """Answers every call in one way, and keeps the calls."""

    def __init__(self, answer):
        super().__init__()
        self.fixed, self.calls = answer, []

    def handle(self, method, path, headers, body):
        self.calls.append((method, path, body))
        return self.fixed


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_prompts_are_not_forwarded_to_another_address(tmp_path, status):
    write_responses(tmp_path / "responses.parquet", 3)
    other = StandIn()
    with running(other) as target:
        api = Fixed(claude_stand_in.Answer(status, b"", headers={"location": f"{target}/v1/messages"}))
        with running(api) as url:
            printed = judge(tmp_path, url, expect=1)
            assert target in printed and "--base-url" in printed
            with pytest.raises(UserError, match="redirects"):
                asyncio.run(_send(url))
    assert not other.ledger and not other.prompts


async def _send(url):
    async with MessagesClient(url, KEY) as client:
        return await client.send({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_reply_of_many_megabytes_does_not_fill_memory(status, compressed):
    text = b"a" * 20_000_000
    headers, content = ({"content-encoding": "gzip"}, gzip.compress(text, 1)) if compressed else ({}, text)
    del text
    with running(Fixed(claude_stand_in.Answer(status, content, headers=headers))) as url:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(replies.TemporaryFailure, match="larger than 1 MB"):
            asyncio.run(_send(url))
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
    assert peak < (10e6 if compressed else 60e6)  # the stand-in's own copies of the content are counted, too


def test_an_endless_line_in_batch_results_is_refused():
    async def read(url):
        async with MessagesClient(url, KEY) as client:
            return [result async for result in client.batch_results("b")]

    api = Fixed(claude_stand_in.Answer(200, b"x" * 5_000_000))
    with running(api) as url, pytest.raises(replies.RequestRejected, match="1 MB"):
        asyncio.run(read(url))


def test_secrets_in_custom_headers_are_not_stored_when_echoed(store, monkeypatch):
    secret, token = "hunter2-of-the-proxy", "second-token-of-the-host"
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", f"X-Proxy: {secret}\nCookie: session={token}; a=b")
    call(Fixed(claude_stand_in._answer(*error(400, f"{secret} and {token} and {KEY}"))), store)
    call(Fixed(claude_stand_in._answer(*good(f"{secret} and {token}"))), store, prompts=["other"])
    stored = store.path.read_bytes() + store.path.with_name(f"{store.path.name}-wal").read_bytes()
    assert b"[API key]" in stored
    for word in (secret, token, KEY):
        assert word.encode() not in stored
