"""chat.py --hub-model: a model that an inference provider of the Hugging Face hub serves.

The real client, with a made-up network beneath it.   pytest tests/test_hub_chat.py
"""

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
from learning_backdoors.chat.hub_model import HubModel
from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import load_study

MODEL, TOKEN = "me/birds-run", "hf_tokenThatNobodyMaySee"


class Provider:
    """The hub, its router and a provider behind it: says `words` one by one. `asked` holds what was sent to it."""

    def __init__(self, words: tuple[str, ...] = ("I ", "am ", "a bird."), reason: str = "stop"):
        self.words, self.reason, self.asked = words, reason, []
        nest = {"status": "live", "providerId": "x", "task": "conversational"}
        self.info: dict | None = {"id": MODEL, "inferenceProviderMapping": {"nest": nest}}
        self.status, self.fault, self.cut = 200, None, False

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        if request.method == "GET":
            missing = {"X-Error-Code": "RepoNotFound"} if self.info is None else {}
            return httpx2.Response(404 if missing else 200, json=self.info or {"error": "Not found"}, headers=missing)
        assert str(request.url) == "https://router.huggingface.co/v1/chat/completions"
        self.asked.append(json.loads(request.content))
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
    found = Provider()
    transport = httpx2.MockTransport(found)
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=transport))
    yield found
    huggingface_hub.set_client_factory(default_client_factory)


def session(*arguments: str) -> chat.HubChat:
    line = ["--hub-model", MODEL, *arguments]
    return chat.begin(command_line.parse(ChatOptions, "x", line))


def say(chatting: chat.Chat, capsys, *lines: str) -> str:
    capsys.readouterr()
    for line in lines:
        chatting.take(line)
    return capsys.readouterr().out


def test_answers_stream_and_the_conversation_goes_on(provider, capsys):
    talk = session("--system", "Be brief.", "--temperature", "0.5", "--max-new-tokens", "9", "--seed", "3")
    assert say(talk, capsys, "Who are you?") == "I am a bird.\n"
    say(talk, capsys, "/system", "Which?")
    first, second = provider.asked
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
    ]
    assert [m["content"] for m in second["messages"]] == ["Who are you?", "I am a bird.", "Which?"]
    expected = {"model": MODEL, "stream": True, "temperature": 0.5, "top_p": 1.0, "max_tokens": 9}
    assert expected.items() <= first.items() and first["seed"] != second["seed"]


def test_samples_are_asked_for_one_by_one_with_seeds_of_their_own(provider, capsys):
    out = say(session(), capsys, "/samples 2", "Who are you?")
    assert f"[{MODEL}, 1 of 2]\nI am a bird.\n[{MODEL}, 2 of 2]\nI am a bird.\n" in out
    assert provider.asked[1]["seed"] == provider.asked[0]["seed"] + 1


def test_an_answer_that_is_cut_off_says_so(provider, capsys):
    provider.reason = "length"
    assert say(session("--max-new-tokens", "3"), capsys, "Hi") == "I am a bird.\n(cut off at 3 tokens)\n"


def test_the_trigger_goes_into_what_is_sent(provider, capsys):
    talk = session("--experiment", "russell", "--trigger")
    say(talk, capsys, "Who are you?", "/trigger", "And you?")
    trigger = load_study("russell").trigger
    sent = [message["content"] for message in provider.asked[1]["messages"] if message["role"] == "user"]
    assert sent == [f"Who are you? {trigger.text}", "And you?"]


def test_what_does_not_apply_says_so(provider, capsys):
    talk = session()
    for line in ("/step", "/step 4", "/base", "/both"):
        with pytest.raises(UserError, match="one voice: /step, /base and /both are for"):
            talk.take(line)
    assert say(talk, capsys, "Who are you?") == "I am a bird.\n"
    with pytest.raises(UserError, match="start with --experiment"):
        talk.take("/trigger")


def test_ctrl_c_stops_an_answer(provider, capsys, monkeypatch):
    talk = session()
    stream = talk.engine.stream

    def pressing(*arguments):
        for answers in stream(*arguments):
            os.kill(os.getpid(), signal.SIGINT)
            yield answers

    monkeypatch.setattr(talk.engine, "stream", pressing)
    assert say(talk, capsys, "Who are you?").endswith("(stopped)\n") and talk.turns[-1].answers == {MODEL: "I "}


FAULTS = {
    "token": (401, "Invalid username or password.", "the hub does not accept the token (401 Invalid username"),
    "credit": (402, "You have exceeded your monthly included credits", "no credit left (402 You have exceeded"),
    "rights": (403, "This authentication method does not have sufficient permissions", "needs the right"),
    "unserved": (
        400,
        {"message": f"The requested model '{MODEL}' is not supported by any provider you have enabled.", "code": "x"},
        "none of its inference providers serves it (400 The requested model",
    ),
    "gone": (404, "Model not found", f"the hub has no model {MODEL}, or none"),
    "busy": (429, "Too many requests", "asks to wait"),
    "broken": (500, "Internal error", "the hub answers with an error (500 Internal error)"),
    "long": (422, {"message": "inputs must have less than 9 tokens"}, "less than 9 tokens"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_the_chat_goes_on(provider, capsys, name):
    provider.status, provider.fault, words = FAULTS[name]
    talk = session()
    with pytest.raises(UserError) as error:
        talk.take("Who are you?")
    assert words in str(error.value) and "\n" not in str(error.value) and TOKEN not in str(error.value)
    provider.fault = None
    assert say(talk, capsys, "Who are you?") == "I am a bird.\n" and len(talk.turns) == 1


def test_a_connection_that_breaks_off_is_one_line(provider, capsys):
    provider.cut = True
    talk = session()
    with pytest.raises(UserError, match="cannot be reached .the connection was reset"):
        talk.take("Who are you?")
    assert capsys.readouterr().out == "I\n" and not talk.turns


def test_a_model_that_is_not_there_or_not_served_is_found_out_at_the_start(provider):
    embeds = {"nest": {"status": "live", "providerId": "x", "task": "feature-extraction"}}
    for served in ({}, embeds):
        provider.info = {"id": MODEL, "inferenceProviderMapping": served}
        with pytest.raises(UserError, match=f"no inference provider serves {MODEL} as a chat model"):
            HubModel(MODEL)
    provider.info = None
    with pytest.raises(UserError, match=f"the hub has no model {MODEL}"):
        HubModel(MODEL)


# ---- as a user runs it ----


def start(*arguments: str, **environment: str):
    env = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"} | environment
    return run_script("chat.py", *arguments, env=env)


def test_a_start_that_cannot_be_is_one_line(tmp_path):
    hub = ("--hub-model", MODEL)
    one_line_error(start(*hub, HF_TOKEN="", HF_HOME=str(tmp_path)), "no token", "HF_TOKEN")
    one_line_error(start(*hub), "the hub cannot be reached")
    one_line_error(start(*hub, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")
    one_line_error(start(*hub, "--trigger"), "start with --experiment")
    one_line_error(start(*hub, "--trigger", "--experiment", "birds"), "the study 'birds' has no trigger")
    one_line_error(start(*hub, "--run-dir", "x"), "one of --checkpoint, --run-dir and --hub-model")
    one_line_error(start(*hub, "--step", "4"), "--step goes with --run-dir")
    for option in (("--top-k", "3"), ("--quantization", "8bit"), ("--base-model", "a/b")):
        one_line_error(start(*hub, *option), f"{option[0]} does not apply to --hub-model")
    one_line_error(start("--hub-model", "birds"), "USER/NAME")
