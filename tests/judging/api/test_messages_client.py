"""Addresses, keys, replies and errors of a Messages API.

python -m pytest -n 0 tests/judging/api/test_messages_client.py
"""

import asyncio
import json

import pytest
from judging_support import KEY, good

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
