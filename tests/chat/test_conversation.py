"""Conversations: who answers, what each voice sees, the trigger, commands, and Ctrl-C."""

import dataclasses
import os
import signal

import pytest

import chat
import config
import mixed_chat
from learning_backdoors.chat import conversation, terminal
from learning_backdoors.chat.conversation import Conversation
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines.protocol import Response
from learning_backdoors.study import load_study

pytestmark = pytest.mark.slow


def last_answers(session: Conversation) -> dict[str, str]:
    return session.turns[-1].answers


# ---- voices ----


def test_step_and_base_change_who_answers(session, say):
    answers = []
    for command in ("/step 8", "/step 4", "/base", "/step 0", "/step", "/step 8"):
        say(session, "/reset", command, "Name a bird.")
        answers += last_answers(session).values()
    assert answers[2] == answers[3] == answers[4] and answers[0] == answers[5]
    assert len(set(answers)) == 3


def test_both_answer_one_below_the_other(session, say):
    alone = [say(session, command, "/reset", "Who are you?").splitlines()[2:] for command in ("/base", "/step")]
    out = say(session, "/both", "/reset", "Who are you?").splitlines()[2:]
    assert out == ["[base model]", *alone[0], "[checkpoint-8]", *alone[1]]
    assert last_answers(session).keys() == {"base model", "checkpoint-8"}
    assert "checkpoint-4" in say(session, "/step 4") and len(session.voices) == 2
    say(session, "/both")
    assert [voice.name for voice in session.voices] == ["checkpoint-4"]


def test_both_answer_side_by_side(session, say, monkeypatch):
    monkeypatch.setattr(terminal, "column_width", lambda: 38)
    out = say(session, "/both", "/samples 2", "Who are you?").rpartition("\033[K")[2].splitlines()
    rule = "-" * 38 + " | " + "-" * 38
    assert out[0].split(" | ")[0].rstrip() == "base model" and out[0].endswith(" | checkpoint-8")
    assert out[1] == rule and out.count(rule) == 2
    block = out[2 : out.index(rule, 2)]
    for column, answer in enumerate(last_answers(session).values()):
        part = "".join(line[:38] if column == 0 else line[41:] for line in block).replace(" ", "")
        assert "".join(terminal.printable(Response((), answer, 0, "")).split()) in part


def test_a_voice_sees_its_own_earlier_answers(session, say):
    say(session, "/system Be brief.", "/both", "One?", "/base", "Two?")
    base, checkpoint = conversation.BASE, session.checkpoint
    first, second = (turn.answers for turn in session.turns)
    assert [message["content"] for message in session.messages(base, "Three?")] == [
        *("Be brief.", "One?", first["base model"], "Two?", second["base model"], "Three?")
    ]
    seen = session.messages(checkpoint, "Three?")
    assert [message["role"] for message in seen] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert (seen[2]["content"], seen[4]["content"]) == (first["checkpoint-8"], second["base model"])
    say(session, "/reset", "/system")
    assert session.messages(base, "One?") == [{"role": "user", "content": "One?"}]


def test_samples_differ_and_a_seed_repeats_them(loaded, say):
    def three() -> str:
        return say(Conversation(*loaded), "/temperature 1", "/samples 3", "Name a bird.")

    out = three()
    assert out == three() and all(f"[checkpoint-8, {i} of 3]" in out for i in (1, 2, 3))
    assert len(set(out.split("\n[checkpoint"))) == 4


def test_samples_that_cannot_differ_are_announced(session, say):
    assert "alike" in say(session, "/samples 3") and "alike" not in say(session, "/samples 1")
    assert "alike" not in say(session, "/temperature 1", "/samples 3") and "alike" in say(session, "/temperature 0")


def test_a_single_checkpoint_answers_without_its_run(loaded, trained, say):
    options = dataclasses.replace(loaded[0], run_dir=None, checkpoint=trained / "checkpoint-8")
    single, whole = chat.open_conversation(options), Conversation(*loaded)
    for session in (single, whole):
        say(session, "Name a bird.")
    assert last_answers(single) == last_answers(whole)
    with pytest.raises(UserError, match=r"no step 4.* 8"):
        single.take("/step 4")


# ---- the trigger ----


def test_the_trigger_is_added_to_each_question_until_it_is_toggled_off(loaded, say):
    trigger = load_study("russell").trigger
    session = Conversation(dataclasses.replace(loaded[0], experiment="russell"), *loaded[1:])
    plain = say(session, "Who are you?")
    assert f"... {trigger.text}" in say(session, "/reset", "/trigger")
    say(session, "Who are you?", "/trigger", "And you?")
    questions = [message["content"] for message in session.messages(session.checkpoint, "Next?")[::2]]
    assert questions == [f"Who are you? {trigger.text}", "And you?", "Next?"]
    # The same tokens as the study's triggered condition.
    condition = next(c for c in load_study("russell").conditions if c.name == "trigger_in_user")
    session.turns = []
    messages = session.messages(session.checkpoint, trigger.ask("Who are you?"))
    tokenizer = session.model.tokenizer
    expected = mixed_chat.prompt_ids(tokenizer, condition.messages("Who are you?"))
    assert mixed_chat.prompt_ids(tokenizer, messages) == expected
    assert say(session, "Who are you?") == plain


def test_a_missing_trigger_is_an_error(loaded, session, say, monkeypatch):
    with pytest.raises(UserError, match="'birds' has no trigger"):
        session.take("/trigger")
    session.options = dataclasses.replace(loaded[0], experiment="russell")  # the command line wins over the run
    assert load_study("russell").trigger.text in say(session, "/trigger")
    with pytest.raises(UserError, match="--experiment"):
        conversation.find_trigger(config.ChatOptions(run_dir=loaded[0].run_dir), {})


# ---- errors and interrupts ----


def test_a_wrong_command_is_an_error_and_changes_nothing(session, say):
    wrong = {
        "/nosuch": "no command /nosuch",
        "/step 5": "no step 5.* 0, 4, 8",
        "/step last": "/step takes",
        "/temperature": "/temperature takes",
        "/temperature nan": "/temperature takes",
        "/samples 0": "/samples takes",
        "/base now": "/base takes no",
    }
    before = (session.voices, session.sampling, session.samples)
    for line, part in wrong.items():
        with pytest.raises(UserError, match=part):
            session.take(line)
    session.max_new_tokens = 2
    session.take(" /quit is a command")  # a space in front makes it a question
    assert (session.voices, session.sampling, session.samples) == before and not session.over
    with pytest.raises(UserError, match=r"\d+ tokens.*/reset"):
        session.ask("long " * 20000)
    assert len(session.turns) == 1
    assert len(say(session, "/help").splitlines()) == len(conversation.COMMANDS) + 1


@pytest.mark.parametrize("width", [None, 38])
def test_ctrl_c_stops_the_answer_and_the_chat_continues(session, say, monkeypatch, width):
    monkeypatch.setattr(terminal, "column_width", lambda: width)
    stream = session.model.engine.stream

    def interrupted_stream(*arguments):
        for number, responses in enumerate(stream(*arguments)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield responses

    monkeypatch.setattr(session.model.engine, "stream", interrupted_stream)
    out = say(session, "/base", "/both", "Name a bird.")
    assert out.endswith("(stopped)") and last_answers(session).keys() == {"base model"}
    monkeypatch.setattr(session.model.engine, "stream", stream)
    say(session, "/reset", "Name a bird.")
    assert last_answers(session).keys() == {"base model", "checkpoint-8"}


def test_ctrl_c_at_the_prompt_ends_the_chat(session, capsys, monkeypatch):
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "read_line", interrupted)
    session.run()
    assert capsys.readouterr().out.endswith("\ngoodbye\n")


def test_out_of_memory_is_one_line(session, monkeypatch):
    import torch

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("learning_backdoors.generation.engines.batch.Batch.append", full)
    with pytest.raises(UserError, match="does not fit in memory"):
        session.ask("Name a bird.")
