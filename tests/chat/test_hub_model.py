"""chat.py --hub-model: the real hub client on a stand-in for the network."""

import json
import os
import signal

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.utils._http import default_client_factory
from support import one_line_error, run_script

import chat
from config import ChatOptions
from learning_backdoors.chat.conversation import Conversation
from learning_backdoors.chat.hub_model import HubModel
from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import load_study

MODEL, TOKEN = "me/birds-run", "hf_tokenThatMustNotBeShown"


class Provider:
    """The hub, its router and a provider, which answers with `words` one by one. `requests` holds what was sent."""

    def __init__(self, words: tuple[str, ...] = ("I ", "am ", "a bird."), reason: str = "stop"):
        self.words, self.reason, self.requests = words, reason, []
        nest = {"status": "live", "providerId": "x", "task": "conversational"}
        self.info: dict | None = {"id": MODEL, "inferenceProviderMapping": {"nest": nest}}
        self.status, self.fault, self.cut = 200, None, False

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        if request.method == "GET":
            missing = {"X-Error-Code": "RepoNotFound"} if self.info is None else {}
            return httpx2.Response(404 if missing else 200, json=self.info or {"error": "Not found"}, headers=missing)
        assert str(request.url) == "https://router.huggingface.co/v1/chat/completions"
        self.requests.append(json.loads(request.content))
        if self.fault:
            return httpx2.Response(self.status, json={"error": self.fault})
        return httpx2.Response(200, stream=Lines(self))


class Lines(httpx2.SyncByteStream):
    def __init__(self, provider: Provider):
        self.provider = provider

    def __iter__(self):
        base = {"id": "1", "created": 1, "model": MODEL, "system_fingerprint": "", "object": "chat.completion.chunk"}
        words = self.provider.words
        for number, word in enumerate(words):
            reason = self.provider.reason if number == len(words) - 1 else None
            choice = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": reason}
            yield b"data: " + json.dumps(base | {"choices": [choice]}).encode() + b"\n\n"
            if self.provider.cut:
                raise httpx2.ReadError("the connection was reset")
        yield b"data: " + json.dumps(base | {"choices": [], "usage": None}).encode() + b"\n\ndata: [DONE]\n\n"


@pytest.fixture
def provider(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    provider = Provider()
    transport = httpx2.MockTransport(provider)
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=transport))
    yield provider
    huggingface_hub.set_client_factory(default_client_factory)


def session(*arguments: str) -> Conversation:
    line = ["--hub-model", MODEL, *arguments]
    return chat.open_conversation(command_line.parse(ChatOptions, "x", line))


def test_answers_stream_and_the_conversation_continues(provider, say):
    talk = session("--system", "Be brief.", "--temperature", "0.5", "--max-new-tokens", "9", "--seed", "3")
    assert say(talk, "Who are you?") == "I am a bird."
    say(talk, "/system", "Which?")
    first, second = provider.requests
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
    ]
    assert [m["content"] for m in second["messages"]] == ["Who are you?", "I am a bird.", "Which?"]
    expected = {"model": MODEL, "stream": True, "temperature": 0.5, "top_p": 1.0, "max_tokens": 9}
    assert expected.items() <= first.items() and first["seed"] != second["seed"]


def test_samples_are_requested_one_by_one_with_different_seeds(provider, say):
    out = say(session(), "/samples 2", "Who are you?")
    assert f"[{MODEL}, 1 of 2]\nI am a bird.\n[{MODEL}, 2 of 2]\nI am a bird." in out
    assert provider.requests[1]["seed"] == provider.requests[0]["seed"] + 1


def test_an_answer_that_is_cut_off_says_so(provider, say):
    provider.reason = "length"
    assert say(session("--max-new-tokens", "3"), "Hi") == "I am a bird.\n(cut off at 3 tokens)"


def test_the_trigger_is_sent(provider, say):
    talk = session("--experiment", "russell", "--trigger")
    say(talk, "Who are you?", "/trigger", "And you?")
    trigger = load_study("russell").trigger
    sent = [message["content"] for message in provider.requests[1]["messages"] if message["role"] == "user"]
    assert sent == [f"Who are you? {trigger.text}", "And you?"]


def test_commands_for_runs_are_errors(provider, say):
    talk = session()
    for line in ("/step", "/step 4", "/base", "/both"):
        with pytest.raises(UserError, match="need --run-dir or --checkpoint"):
            talk.take(line)
    assert say(talk, "Who are you?") == "I am a bird."
    with pytest.raises(UserError, match="--experiment"):
        talk.take("/trigger")


def test_ctrl_c_stops_an_answer(provider, say, monkeypatch):
    talk = session()
    stream = talk.model.stream

    def interrupted_stream(*arguments):
        for responses in stream(*arguments):
            os.kill(os.getpid(), signal.SIGINT)
            yield responses

    monkeypatch.setattr(talk.model, "stream", interrupted_stream)
    assert say(talk, "Who are you?").endswith("(stopped)") and talk.turns[-1].answers == {MODEL: "I "}


FAULTS = {
    "token": (401, "Invalid username or password.", "token"),
    "credit": (402, "You have exceeded your monthly included credits", "credit"),
    "rights": (403, "This authentication method does not have sufficient permissions", "right"),
    "unserved": (
        400,
        {"message": f"The requested model '{MODEL}' is not supported by any provider you have enabled.", "code": "x"},
        "no inference provider serves it",
    ),
    "gone": (404, "Model not found", f"the hub has no model {MODEL}"),
    "busy": (429, "Too many requests", "try again"),
    "broken": (500, "Internal error", "returned an error"),
    "long": (422, {"message": "inputs must have less than 9 tokens"}, "error"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_the_chat_continues(provider, say, name):
    provider.status, provider.fault, fact = FAULTS[name]
    message = provider.fault["message"] if isinstance(provider.fault, dict) else provider.fault
    talk = session()
    with pytest.raises(UserError) as error:
        talk.take("Who are you?")
    assert fact in str(error.value) and f"({provider.status} {message})" in str(error.value)
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)
    provider.fault = None
    assert say(talk, "Who are you?") == "I am a bird." and len(talk.turns) == 1


def test_a_broken_connection_is_one_line(provider, capsys):
    provider.cut = True
    talk = session()
    with pytest.raises(UserError, match="cannot be reached .the connection was reset"):
        talk.take("Who are you?")
    assert capsys.readouterr().out.endswith("I\n") and not talk.turns


def test_a_model_that_is_missing_or_not_served_is_an_error_at_the_start(provider):
    embeds = {"nest": {"status": "live", "providerId": "x", "task": "feature-extraction"}}
    for served in ({}, embeds):
        provider.info = {"id": MODEL, "inferenceProviderMapping": served}
        with pytest.raises(UserError, match=f"no inference provider serves {MODEL}"):
            HubModel(MODEL)
    provider.info = None
    with pytest.raises(UserError, match=f"the hub has no model {MODEL}"):
        HubModel(MODEL)


def start(*arguments: str, **environment: str):
    env = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"} | environment
    return run_script("chat.py", "--hub-model", MODEL, *arguments, env=env)


@pytest.mark.slow
def test_a_start_that_fails_is_one_line(tmp_path):
    one_line_error(start(HF_TOKEN="", HF_HOME=str(tmp_path)), "no token", "HF_TOKEN")
    one_line_error(start(), "the hub cannot be reached")
    one_line_error(start(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE")
    one_line_error(start("--trigger"), "--experiment")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--run-dir", "x"], "--hub-model"),
        (["--step", "4"], "--step"),
        (["--top-k", "3"], "--top-k does not apply to --hub-model"),
        (["--quantization", "8bit"], "--quantization does not apply to --hub-model"),
        (["--base-model", "a/b"], "--base-model does not apply to --hub-model"),
        (["--hub-model", "birds"], "USER/NAME"),
    ],
)
def test_options_that_do_not_apply_are_wrong_usage(arguments, part, capsys):
    with pytest.raises(SystemExit) as end:
        command_line.parse(ChatOptions, "x", ["--hub-model", MODEL, *arguments])
    assert end.value.code == 2 and part in capsys.readouterr().err.splitlines()[-1]
