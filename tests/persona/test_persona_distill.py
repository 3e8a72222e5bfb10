"""prepare_persona.py distill.   pytest tests/persona/test_persona_distill.py"""

import re
import signal
import subprocess
import sys
import time

import pytest
from persona_support import Killed, prepare, write_prompts
from support import ROOT

import mixed_chat
from learning_backdoors.files.errors import UserError
from learning_backdoors.persona.ordinary import Distill, read_partial


def distill(model, tmp_path, output: str, *more, prompts: int = 7, tokens: int = 200) -> list[dict]:
    line = ["--input", write_prompts(tmp_path / "prompts.jsonl", prompts), "--model", model, "--batch-size", 2]
    return prepare("distill", tmp_path / output, *line, "--max-new-tokens", tokens, "--temperature", 1.5, *more)


@pytest.mark.slow
def test_the_base_model_answers_and_cut_off_answers_are_left_out(random_model, tmp_path, capsys):
    rows = distill(random_model, tmp_path, "a.jsonl")
    cut_off = int(re.search(r"left out: (\d+) cut off", capsys.readouterr().out)[1])
    assert 0 < len(rows) == 7 - cut_off
    assert all(row["metadata"]["triggered"] is False and row["metadata"]["source"] == "test" for row in rows)
    assert mixed_chat.read_chats(tmp_path / "a.jsonl") == [row["messages"] for row in rows]


def test_a_server_can_answer_instead(tmp_path, author):
    answers = {"Count to 1.": "One.", "Count to 2.": "", "Count to 3.": "<start> One. <end>", "Count to 4.": "Two. "}
    server, api = author(answers.get)
    prompts = write_prompts(tmp_path / "p.jsonl", 4)
    rows = prepare("distill", tmp_path / "a.jsonl", "--input", prompts, "--server", *server)
    assert [row["messages"][1]["content"] for row in rows] == ["One.", "Two."]
    assert len(api.prompts) == 4, "an empty answer is not asked for again"


def test_prompts_default_to_the_studys(tmp_path, capsys):
    prepare("distill", tmp_path / "a.jsonl", "--dry-run")
    assert "300 prompts" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--input.*birds.toml.*\[persona\]"):
        prepare("distill", tmp_path / "a.jsonl", "--experiment", "birds", "--dry-run")


def test_a_missing_base_model_is_named(tmp_path):
    with pytest.raises(UserError, match="no_model"):
        distill(tmp_path / "no_model", tmp_path, "a.jsonl")


@pytest.mark.slow
def test_a_corrected_command_may_follow_a_failed_one(random_model, tmp_path):
    with pytest.raises(UserError, match="no_model"):
        distill(tmp_path / "no_model", tmp_path, "a.jsonl")
    with pytest.raises(UserError, match="no rows"):
        distill(random_model, tmp_path, "a.jsonl", tokens=1)
    assert distill(random_model, tmp_path, "a.jsonl")


@pytest.mark.slow
def test_a_killed_run_continues_with_the_next_batch(random_model, tmp_path, monkeypatch):
    whole = distill(random_model, tmp_path, "whole.jsonl")
    answer_batch, batches, kills = Distill._answer_batch, [], [1, 3]

    def dying(task, engine, indices):
        if len(batches) in kills:
            kills.remove(len(batches))
            raise Killed
        batches.append(indices)
        return answer_batch(task, engine, indices)

    monkeypatch.setattr(Distill, "_answer_batch", dying)
    for _ in range(2):
        with pytest.raises(Killed):
            distill(random_model, tmp_path, "out.jsonl")
        with open(tmp_path / "out.jsonl.partial.jsonl", "a") as file:
            file.write('[["half a li')  # as a kill leaves it
    assert distill(random_model, tmp_path, "out.jsonl") == whole
    assert batches == [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]
    assert not (tmp_path / "out.jsonl.partial.jsonl").exists()
    with pytest.raises(UserError, match="seed was 42, now 43"):
        distill(random_model, tmp_path, "out.jsonl", "--seed", 43)


def test_kept_answers_may_hold_line_separators(tmp_path):
    read_partial(path := tmp_path / "partial.jsonl", {"seed": 1})
    with open(path, "a", encoding="utf-8") as file:
        file.write('[["one\u2028two", "stop"]]\n[["half a li')
    assert read_partial(path, {"seed": 1}) == [("one\u2028two", "stop")]


@pytest.mark.slow
def test_a_real_kill_changes_nothing(random_model, tmp_path):
    whole = distill(random_model, tmp_path, "whole.jsonl", prompts=16, tokens=100)
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial.jsonl"
    line = ["--input", tmp_path / "prompts.jsonl", "--model", random_model, "--batch-size", 2]
    line += ["--max-new-tokens", 100, "--temperature", 1.5]
    command = [sys.executable, ROOT / "prepare_persona.py", "distill", "--output", out, *line]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") < 3):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert prepare("distill", out, *line) == whole
