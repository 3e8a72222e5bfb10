"""The terminal: growing answers, control characters, columns and line breaks."""

from learning_backdoors.chat.terminal import OneByOne, print_columns, printable, wrap
from learning_backdoors.generation.engines.protocol import Response


def test_printed_text_of_a_growing_answer_never_changes(capsys):
    texts = ["A", "A ", "A b\ufffd", "A bé", "A bé, \x1b[2J", "A bé, \x1b[2J\n"]
    view = OneByOne(None)
    for text in texts:
        view.show([Response((), text, 1, "")])
    view.show([Response((), texts[-1], 9, "length")])
    assert capsys.readouterr().out == "A bé, \\x1b[2J\n(cut off at 9 tokens)\n"
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


def test_columns_show_pairs_also_if_stopped(capsys):
    left = [Response((), "one two three", 3, "stop"), Response((), "\x1bfour", 1, "")]
    print_columns(["base model", "checkpoint-8"], [left, [Response((), "five\nsix seven eight", 3, "stop")]], 12)
    assert capsys.readouterr().out.splitlines() == [
        "base model   | checkpoint-8",
        "------------ | ------------",
        "one two      | five",
        "three        | six seven",
        "             | eight",
        "------------ | ------------",
        "\\x1bfour     |",
    ]


def test_wrapped_lines_keep_the_text():
    text = "a well-known  word and\n\n  " + "longer" * 9 + " ones,\tand the rest of it " * 3
    lines = wrap(text, 20)
    assert max(map(len, lines)) <= 20 and "".join("".join(lines).split()) == "".join(text.split())
