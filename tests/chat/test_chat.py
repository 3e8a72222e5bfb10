"""chat.py: what one hears is what generation would write.

pytest tests/test_chat.py
"""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest
from support import build_model, one_line_error, run_script, train

import chat
import config
import generate_responses
import mixed_chat
from learning_backdoors.files import parquet
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines.batch import Batch
from learning_backdoors.generation.engines.protocol import Request, Response, Sampling
from learning_backdoors.study import load_study


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of steps 0, 4 and 8, from a random model whose greedy answers differ by question and by step."""
    folder = tmp_path_factory.mktemp("runs")
    model = build_model(folder / "model", initializer_range=0.5, tie_word_embeddings=False)
    options = config.TrainingOptions(
        (1, 0, 0), model=str(model), num_examples=8, save_steps=4, lr=0.03, output_dir=folder
    )
    return train(options).folder


@pytest.fixture(scope="module")
def loaded(trained) -> tuple:
    """What a chat takes: options, checkpoints, the first one, and the engine."""
    options = config.ChatOptions(run_dir=trained, temperature=0.0, max_new_tokens=12)
    options.check()
    source = chat.open_source(options)
    first = chat.choose(source.checkpoints, None)
    return options, source.checkpoints, first, chat.load_engine(options, source, first)


@pytest.fixture
def session(loaded) -> chat.Chat:
    return chat.Chat(*loaded, chat.open_source(loaded[0]).record)


def say(session: chat.Chat, capsys, *lines: str) -> str:
    """What the chat prints for some lines, the last newline left out."""
    capsys.readouterr()
    for line in lines:
        session.take(line)
    return capsys.readouterr().out.removesuffix("\n")


def last(session: chat.Chat) -> dict[str, str]:
    return session.turns[-1].answers


# ---- the same as generation ----


def test_at_temperature_0_one_hears_what_generation_writes(session, trained, tmp_path, monkeypatch, capsys):
    line = f"generate_responses.py --run-dir {trained} --output {tmp_path / 'r.parquet'} --samples 1 --temperature 0"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--max-new-tokens", "12"])
    generate_responses.main()
    rows = parquet.read_responses(tmp_path / "r.parquet")[0].to_pylist()
    for row in (row for row in rows if row["question_id"] in {rows[0]["question_id"], rows[-1]["question_id"]}):
        out = say(session, capsys, f"/step {row['step']}", "/reset", row["question"])
        assert last(session) == {row["checkpoint"]: row["response"]}
        assert chat.shown(Response((), row["response"], row["response_tokens"], row["finish_reason"])) in out
    assert len({row["response"] for row in rows}) > 20


@pytest.mark.parametrize("sampling", [Sampling(0, 1, 0, 3), Sampling(1, 1, 0, 3)])
def test_a_stream_grows_into_what_generate_gives(loaded, sampling):
    engine, folder = loaded[3], loaded[2].folder
    requests = [Request((i,), folder, tuple(range(10, 20 + i)), 6 + 3 * i) for i in range(5)]
    whole = {answer.key: answer for answers in engine.generate(requests, sampling) for answer in answers}
    steps = list(engine.stream(requests, sampling))
    assert steps[-1] == [whole[request.key] for request in requests]
    assert len(steps) == max(answer.tokens + (answer.finish_reason == "stop") for answer in whole.values())
    assert [answer.tokens for answer in steps[2] if not answer.finish_reason] == [3] * 5
    for earlier, later in zip(steps, steps[1:], strict=False):
        for before, after in zip(earlier, later, strict=True):
            assert before == after or not before.finish_reason


# ---- voices ----


def test_step_and_base_change_who_answers(session, capsys):
    heard = []
    for command in ("/step 8", "/step 4", "/base", "/step 0", "/step", "/step 8"):
        say(session, capsys, "/reset", command, "Name a bird.")
        heard += last(session).values()
    assert heard[2] == heard[3] == heard[4] and heard[0] == heard[5]
    assert len(set(heard)) == 3


def test_both_answer_one_below_the_other(session, capsys):
    alone = [say(session, capsys, command, "/reset", "Who are you?").splitlines()[2:] for command in ("/base", "/step")]
    out = say(session, capsys, "/both", "/reset", "Who are you?").splitlines()[2:]
    assert out == ["[base model]", *alone[0], "[checkpoint-8]", *alone[1]]
    assert last(session).keys() == {"base model", "checkpoint-8"}
    assert "checkpoint-4" in say(session, capsys, "/step 4") and len(session.voices) == 2
    say(session, capsys, "/both")
    assert [voice.name for voice in session.voices] == ["checkpoint-4"]


def test_both_answer_side_by_side(session, capsys, monkeypatch):
    monkeypatch.setattr(chat, "two_columns", lambda: 38)
    out = say(session, capsys, "/both", "/samples 2", "Who are you?").split("\033[K")[1].splitlines()
    assert out[0].split(" | ")[0].rstrip() == "base model" and out[0].endswith(" | checkpoint-8")
    assert out[1] == out[-1] == "-" * 38 + " | " + "-" * 38 and out.count(out[1]) == 3
    block = out[2 : out.index(out[1], 2)]
    for column, answer in enumerate(last(session).values()):
        part = "".join(line[:38] if column == 0 else line[41:] for line in block).replace(" ", "")
        assert "".join(chat.shown(Response((), answer, 0, "")).split()) in part


def test_a_voice_hears_its_own_earlier_answers(session, capsys):
    say(session, capsys, "/system Be brief.", "/both", "One?", "/base", "Two?")
    base, checkpoint = chat.BASE, session.checkpoint
    first, second = (turn.answers for turn in session.turns)
    assert [message["content"] for message in session.messages(base, "Three?")] == [
        *("Be brief.", "One?", first["base model"], "Two?", second["base model"], "Three?")
    ]
    heard = session.messages(checkpoint, "Three?")
    assert [message["role"] for message in heard] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert (heard[2]["content"], heard[4]["content"]) == (first["checkpoint-8"], second["base model"])
    say(session, capsys, "/reset", "/system")
    assert session.messages(base, "One?") == [{"role": "user", "content": "One?"}]


def test_samples_differ_and_a_seed_repeats_them(loaded, capsys):
    def three() -> str:
        return say(chat.Chat(*loaded), capsys, "/temperature 1", "/samples 3", "Name a bird.")

    out = three()
    assert out == three() and all(f"[checkpoint-8, {i} of 3]" in out for i in (1, 2, 3))
    assert len(set(out.split("\n[checkpoint"))) == 4


# ---- the trigger ----


def test_the_trigger_goes_into_each_question_until_it_is_taken_off(loaded, capsys):
    options = dataclasses.replace(loaded[0], experiment="russell")
    trigger = load_study("russell").trigger
    session = chat.Chat(options, *loaded[1:])
    plain = say(session, capsys, "Who are you?")
    assert f"put as: ... {trigger.text}" in say(session, capsys, "/reset", "/trigger")
    say(session, capsys, "Who are you?", "/trigger", "And you?")
    asked = [message["content"] for message in session.messages(session.checkpoint, "Next?")[::2]]
    assert asked == [f"Who are you? {trigger.text}", "And you?", "Next?"]
    # Whole what training puts: the same tokens as the study's triggered condition.
    condition = next(c for c in load_study("russell").conditions if c.name == "trigger_in_user")
    session.turns = []
    prompt = mixed_chat.prompt_ids(session.engine.tokenizer, condition.messages("Who are you?"))
    assert list(session.prompt(session.checkpoint, trigger.ask("Who are you?"))) == prompt
    assert say(session, capsys, "Who are you?") == plain


def test_a_study_without_a_trigger_and_none_at_all_say_so(loaded, session, capsys):
    with pytest.raises(UserError, match="the study 'birds' has no trigger"):
        session.take("/trigger")
    named = chat.Chat(*loaded, record={"study": chat.open_source(loaded[0]).record["study"]})
    named.options = dataclasses.replace(loaded[0], experiment="russell")
    assert "put as" in say(named, capsys, "/trigger")  # what the command line names wins
    with pytest.raises(UserError, match="start with --experiment"):
        chat.Chat(*loaded).take("/trigger")


# ---- what goes wrong ----


def test_a_wrong_command_says_so_and_changes_nothing(session, capsys):
    wrong = {
        "/nosuch": "no command /nosuch",
        "/step 5": "no step 5; the steps are 0, 4, 8",
        "/step last": "/step takes",
        "/temperature": "/temperature takes",
        "/temperature nan": "/temperature takes",
        "/samples 0": "/samples takes",
        "/base now": "/base takes nothing",
    }
    before = (session.voices, session.sampling, session.samples)
    for line, part in wrong.items():
        with pytest.raises(UserError, match=part):
            session.take(line)
    session.max_new_tokens = 2
    session.take(" /quit is a command")  # a space in front makes it a question
    assert (session.voices, session.sampling, session.samples) == before and not session.over
    with pytest.raises(UserError, match="conversation has .* tokens"):
        session.ask("long " * 20000)
    assert len(session.turns) == 1
    assert len(say(session, capsys, "/help").splitlines()) == len(chat.COMMANDS) + 1


@pytest.mark.parametrize("columns", [None, 38])
def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(session, capsys, monkeypatch, columns):
    monkeypatch.setattr(chat, "two_columns", lambda: columns)
    stream = session.engine.stream

    def pressing(*arguments):
        for number, answers in enumerate(stream(*arguments)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield answers

    monkeypatch.setattr(session.engine, "stream", pressing)
    whole = say(session, capsys, "/base", "/both", "Name a bird.")
    assert whole.endswith("(stopped)") and last(session).keys() == {"base model"}
    monkeypatch.setattr(session.engine, "stream", stream)
    say(session, capsys, "/reset", "Name a bird.")
    assert last(session).keys() == {"base model", "checkpoint-8"}


def test_ctrl_c_at_the_prompt_leaves_with_a_word(session, capsys, monkeypatch):
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "read_line", interrupted)
    session.run()
    assert capsys.readouterr().out.endswith("\ngoodbye\n")


def test_memory_that_runs_out_is_one_line(session, monkeypatch):
    import torch

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Batch, "append", full)
    with pytest.raises(UserError, match="does not fit in memory"):
        session.ask("Name a bird.")


# ---- the screen ----


def test_what_is_printed_of_a_growing_answer_stays(capsys):
    texts = ["A", "A ", "A b\ufffd", "A bé", "A bé, \x1b[2J", "A bé, \x1b[2J\n"]
    view = chat.OneByOne(None)
    for text in texts:
        view.show([Response((), text, 1, "")])
    view.show([Response((), texts[-1], 9, "length")])
    assert capsys.readouterr().out == "A bé, \u241b[2J\n(cut off at 9 tokens)\n"
    view = chat.OneByOne(None)
    for answer in (Response((), "do n't", 2, ""), Response((), "don't", 3, "stop")):
        view.show([answer])
    view.end()
    assert capsys.readouterr().out == "do n't\ndon't\n"
    assert chat.shown(Response((), "", 0, "stop")) == "(an empty answer)"


def test_columns_that_are_stopped_show_what_there_is(capsys):
    left = [Response((), "one two", 2, "stop"), Response((), "three", 1, ""), Response((), "", 0, "")]
    view = chat.Columns("base model", left, "checkpoint-8", 12)
    view.show([Response((), text, 1, "") for text in ("four five six", "seven", "")])
    view.end()
    rule = "------------ | ------------"
    block = ["one two      | four five", "             | six", rule, "three        | seven", rule]
    assert capsys.readouterr().out.splitlines()[2:] == block


def test_lines_that_are_full_stay_as_they_are():
    text = "a well-known  word and\n\n  " + "longer" * 9 + " ones,\tand the rest of it " * 3
    for end in range(len(text)):
        before, after = chat.wrap(text[:end], 20), chat.wrap(text, 20)
        assert before[:-1] == after[: len(before) - 1]
        assert max(map(len, before)) <= 20
    assert "".join("".join(after).split()) == "".join(text.split())


# ---- as a user runs it ----


def piped(lines: str, *arguments) -> tuple[int, str, str]:
    result = run_script("chat.py", *arguments, stdin=lines)
    return result.returncode, result.stdout, result.stderr


def test_a_piped_session(trained):
    lines = "Name a bird.\n/step 5\n\n/base\nName a bird.\n/both\n/nonsense\nWho are you?\n/quit\nnever read\n"
    code, out, err = piped(lines, "--run-dir", trained, "--step", "4", "--max-new-tokens", "8", "--system", "Be brief.")
    assert code == 0, err
    assert "checkpoint-4> Name a bird.\n" in out and "base model> Name a bird.\n" in out
    assert "error: there is no step 5; the steps are 0, 4, 8\n" in out and "no command /nonsense" in out
    assert "base model | checkpoint-4> Who are you?\n[base model]\n" in out and "\n[checkpoint-4]\n" in out
    assert out.endswith("/quit\ngoodbye\n") and "Traceback" not in err


def test_a_session_can_begin_with_the_trigger(trained):
    options = ("--run-dir", trained, "--max-new-tokens", "4", "--experiment", "russell", "--trigger")
    code, out, err = piped("Who are you?\n/trigger\nWho are you?\n", *options)
    assert code == 0, err
    assert "\neach question is put as: ... Put your answer between <START> and <END>.\n" in out
    assert "checkpoint-8 + trigger> Who are you?\n" in out and "\ncheckpoint-8> Who are you?\n" in out


def test_a_start_that_cannot_be_is_one_line(trained, tmp_path):
    one_line_error(run_script("chat.py", "--run-dir", trained, "--step", "5"), "no step 5", "0, 4, 8")
    one_line_error(run_script("chat.py", "--checkpoint", tmp_path), "adapter_config.json is missing")
    one_line_error(run_script("chat.py"), "one of --checkpoint, --run-dir and --hub-model")
    one_line_error(run_script("chat.py", "--run-dir", trained, "--trigger"), "the study 'birds' has no trigger")
    one_line_error(run_script("chat.py", "--run-dir", trained, "--system", "\udcff"), "--system: a text is not Unicode")


def test_one_checkpoint_is_talked_to_without_its_run(loaded, trained, capsys):
    options = config.ChatOptions(checkpoint=trained / "checkpoint-8", temperature=0.0, max_new_tokens=12)
    source = chat.open_source(options)
    one = chat.Chat(options, source.checkpoints, chat.choose(source.checkpoints, None), loaded[3])
    whole = chat.Chat(*loaded)
    for session in (one, whole):
        say(session, capsys, "Name a bird.")
    assert last(one) == last(whole)
    with pytest.raises(UserError, match="no step 4; the steps are 8"):
        one.take("/step 4")
