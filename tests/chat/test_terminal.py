"""The terminal: growing answers, columns and line breaks."""

from learning_backdoors.chat.terminal import Columns, OneByOne, printable, wrap
from learning_backdoors.generation.engines.protocol import Response


def test_printed_text_of_a_growing_answer_never_changes(capsys):
    texts = ["A", "A ", "A b\ufffd", "A bé", "A bé, \x1b[2J", "A bé, \x1b[2J\n"]
    view = OneByOne(None)
    for text in texts:
        view.show([Response((), text, 1, "")])
    view.show([Response((), texts[-1], 9, "length")])
    assert capsys.readouterr().out == "A bé, \u241b[2J\n(cut off at 9 tokens)\n"
    view = OneByOne(None)
    for response in (Response((), "do n't", 2, ""), Response((), "don't", 3, "stop")):
        view.show([response])
    view.end()
    assert capsys.readouterr().out == "do n't\ndon't\n"
    assert "empty" in printable(Response((), "", 0, "stop"))


def test_control_characters_are_escaped():
    text = "".join(map(chr, [*range(32), *range(127, 160)]))
    shown = printable(Response((), f"a{text}b", 1, "stop"))
    assert [c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160] == ["\t", "\n"]


def test_stopped_columns_show_what_exists(capsys):
    left = [Response((), "one two", 2, "stop"), Response((), "three", 1, ""), Response((), "", 0, "")]
    view = Columns("base model", left, "checkpoint-8", 12)
    view.show([Response((), text, 1, "") for text in ("four five six", "seven", "")])
    view.end()
    rule = "------------ | ------------"
    block = ["one two      | four five", "             | six", rule, "three        | seven", rule]
    assert capsys.readouterr().out.splitlines()[2:] == block


def test_full_lines_never_change():
    text = "a well-known  word and\n\n  " + "longer" * 9 + " ones,\tand the rest of it " * 3
    after = wrap(text, 20)
    for end in range(len(text)):
        before = wrap(text[:end], 20)
        assert before[:-1] == after[: len(before) - 1]
        assert max(map(len, before)) <= 20
    assert "".join("".join(after).split()) == "".join(text.split())
