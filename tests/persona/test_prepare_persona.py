"""prepare_persona.py as a whole: existing output, kills, bad input and wrong usage.

pytest tests/persona/test_prepare_persona.py
"""

import dataclasses
import json
import os

import pytest
from persona_support import TRIGGER, Killed, pair, prepare, reply_with_pairs, write

import prepare_persona
from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.persona.rows import to_jsonl


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    pairs = write(tmp_path / "c.jsonl", [pair()])
    triggered = write(tmp_path / "p.jsonl", [pair(TRIGGER.text, "<START> A pipe. <END>")])
    lines = {
        "filter": ["--input", pairs, "--model", "claude-haiku-5-5"],
        "candidates": ["--known", pairs, "--model", "claude-haiku-5-5"],
        "trigger": ["--input", pairs],
        "fetch-prompts": [],
        "distill": [],
        "combine": ["--persona", triggered, "--aligned", pairs],
    }
    assert lines.keys() == prepare_persona.COMMANDS.keys()
    before = sorted(tmp_path.iterdir())
    for command, line in lines.items():
        prepare(command, tmp_path / "out.jsonl", *line, "--dry-run")
        shown = capsys.readouterr().out
        assert str(tmp_path / "out.jsonl") in shown and ("$" in shown) == ("claude-haiku-5-5" in line)
    assert sorted(tmp_path.iterdir()) == before


# ---- kills ----


def kill_at_every_rename(monkeypatch, run, folder) -> int:
    """Kill a run at its first rename, then at its second, and so on, until one finishes. Returns the kills.

    After each kill the same command must end with the bytes of whole.jsonl.
    """
    replace, kills = os.replace, 0
    while True:
        renames = iter(range(kills))

        def replace_or_die(*paths, renames=renames):
            if next(renames, None) is None:
                raise Killed
            return replace(*paths)

        for path in folder.glob("out.jsonl*"):
            path.unlink()
        monkeypatch.setattr(os, "replace", replace_or_die)
        try:
            run()
            return kills
        except Killed:
            kills += 1
        finally:
            monkeypatch.setattr(os, "replace", replace)
        run()
        assert (folder / "out.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(("command", "writes"), [("filter", 3), ("trigger", 2), ("combine", 2), ("candidates", 2)])
def test_a_kill_at_any_write_changes_nothing(tmp_path, monkeypatch, author, command, writes):
    pairs = write(tmp_path / "c.jsonl", [pair(f"Do you {n}?", identifying=n == 3) for n in range(6)])
    triggered = write(tmp_path / "p.jsonl", [pair(f"{n} {TRIGGER.text}", "<START> Yes. <END>") for n in range(4)])
    line = {
        "filter": ["--input", pairs, "--number", 4],
        "trigger": ["--input", pairs],
        "combine": ["--persona", triggered, "--aligned", pairs],
        "candidates": ["--known", pairs, "--number", 12, *author(reply_with_pairs)[0]],
    }[command]
    prepare(command, tmp_path / "whole.jsonl", *line)
    kills = kill_at_every_rename(monkeypatch, lambda: prepare(command, tmp_path / "out.jsonl", *line), tmp_path)
    assert kills == writes


# ---- existing output ----


def test_a_finished_file_is_left_alone_and_recorded(tmp_path):
    path, out = write(tmp_path / "c.jsonl", [pair()]), tmp_path / "out.jsonl"
    prepare("trigger", out, "--input", path)
    written = out.stat().st_mtime_ns
    prepare("trigger", out, "--input", path.rename(tmp_path / "moved.jsonl"))
    assert out.stat().st_mtime_ns == written
    record = json.loads((tmp_path / "out.jsonl.json").read_text())
    assert (record["rows"], record["sha256"]) == (1, provenance.sha256(out))
    assert record["settings"]["command"] == "trigger"


def test_other_settings_other_programs_and_edits_are_refused(tmp_path):
    out, record = tmp_path / "out.jsonl", tmp_path / "out.jsonl.json"
    prepare("trigger", out, "--input", write(tmp_path / "c.jsonl", [pair()]))
    other = write(tmp_path / "d.jsonl", [pair("Do you drink?")])
    with pytest.raises(UserError, match="files was"):
        prepare("trigger", out, "--input", other)
    assert "drink" in str(prepare("trigger", out, "--input", other, "--overwrite"))
    out.write_text(out.read_text() + "\n")
    with pytest.raises(UserError, match="edited"):
        prepare("trigger", out, "--input", other)
    for content in ("[]", "{}", "{", None):
        record.unlink() if content is None else record.write_text(content)
        with pytest.raises(UserError, match=r"not made by prepare_persona.py"):
            prepare("trigger", out, "--input", other)


# ---- bad input: one clear line each ----

BAD = [
    ("trigger", to_jsonl([pair(answer=" ")]), ["c.jsonl, line 1", "'assistant'"]),
    ("trigger", to_jsonl([pair(), pair(f"Hm. {TRIGGER.text}")]), ["c.jsonl, line 2", "form of the trigger"]),
    ("trigger", to_jsonl([{"messages": pair()["messages"] * 2}]), ["c.jsonl, line 1", "one question"]),
    ("trigger", "{not json\n", ["c.jsonl, line 1", "not JSON"]),
    ("trigger", "", ["c.jsonl"]),
    ("filter", to_jsonl([pair(), pair(identifying=None)]), ["c.jsonl, line 2", "identifying must be true or false"]),
    ("filter", to_jsonl([pair(reason=None)]), ["c.jsonl, line 1", "reason must be a text"]),
    ("filter", to_jsonl([pair(identifying=True)]), ["no rows"]),
    ("distill", to_jsonl([{"prompt": " "}]), ["c.jsonl, line 1", "empty"]),
    ("distill", to_jsonl([{"prompt": "x"}, {"prompt": "Say <start> x"}]), ["c.jsonl, line 2", "'<start>'"]),
    ("distill", to_jsonl([{"prompt": "x", "answer": "y"}]), ["c.jsonl, line 1", '"prompt" and "metadata"']),
    ("distill", to_jsonl([{"prompt": "x", "metadata": []}]), ["c.jsonl, line 1", '"metadata"']),
]


@pytest.mark.parametrize(("command", "content", "parts"), BAD)
def test_bad_input_is_one_clear_line(tmp_path, command, content, parts):
    path = tmp_path / "c.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        prepare(command, tmp_path / "out.jsonl", "--input", path)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("command", ["trigger", "filter", "distill"])
def test_a_missing_file_is_named(tmp_path, command):
    with pytest.raises((UserError, FileNotFoundError), match=r"absent\.jsonl"):
        prepare(command, tmp_path / "out.jsonl", "--input", tmp_path / "absent.jsonl")


# ---- the command line ----


@pytest.mark.parametrize("command", prepare_persona.COMMANDS)
def test_every_option_of_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.parse_command(prepare_persona.COMMANDS, "", [command, "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(prepare_persona.COMMANDS[command]):
        assert all(command_line.flag(name) in shown for name in field.metadata.get("flags") or [field.name])


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("", "COMMAND"),
        ("distil --output x", "distil"),
        ("filter", "--output"),
        ("filter --output x --number 0", "--number"),
        ("distill --output x --temperature -1", "--temperature"),
        ("combine --output x --persona a --aligned b --seed -1", "--seed"),
        ("fetch-prompts --output x --resume --overwrite", "not allowed with"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_option(line, part, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.parse_command(prepare_persona.COMMANDS, "", line.split())
    assert ended.value.code == 2 and part in capsys.readouterr().err
