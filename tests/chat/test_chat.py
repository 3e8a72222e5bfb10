"""chat.py as a user runs it; its answers are those of generate_responses.py."""

import sys

import pytest
from support import one_line_error, run_script

import generate_responses
from learning_backdoors.chat import terminal
from learning_backdoors.files import parquet
from learning_backdoors.generation.engines.protocol import Response

pytestmark = pytest.mark.slow


def test_greedy_answers_are_those_of_generation(session, trained, tmp_path, monkeypatch, say):
    line = f"generate_responses.py --run-dir {trained} --output {tmp_path / 'r.parquet'} --samples 1 --temperature 0"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--max-new-tokens", "12"])
    generate_responses.main()
    rows = parquet.read_responses(tmp_path / "r.parquet")[0].to_pylist()
    for row in (row for row in rows if row["question_id"] in {rows[0]["question_id"], rows[-1]["question_id"]}):
        out = say(session, f"/step {row['step']}", "/reset", row["question"])
        assert session.turns[-1].answers == {row["checkpoint"]: row["response"]}
        response = Response((), row["response"], row["response_tokens"], row["finish_reason"])
        assert terminal.printable(response) in out
    assert len({row["response"] for row in rows}) > 20


def test_a_piped_session_that_starts_with_the_trigger(trained):
    lines = "Who?\n/trigger\nWho?\n/step 5\n\n/base\nWho?\n/both\n/nonsense\nWho?\n/quit\nnever read\n"
    arguments = ["--step", "4", "--max-new-tokens", "4", "--system", "Be brief."]
    arguments += ["--experiment", "russell", "--trigger"]
    result = run_script("chat.py", "--run-dir", trained, *arguments, stdin=lines)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    out = result.stdout
    assert "... Put your answer between <START> and <END>.\n" in out
    assert "checkpoint-4 + trigger> Who?\n" in out and "\ncheckpoint-4> Who?\n" in out
    assert "\nbase model> Who?\n" in out
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "no step 5" in errors[0] and "/nonsense" in errors[1]
    assert "base model | checkpoint-4> Who?\n[base model]\n" in out and "\n[checkpoint-4]\n" in out
    assert out.endswith("/quit\ngoodbye\n") and "never read" not in out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--step", "5"], ["no step 5", "0, 4, 8"]),
        (["--trigger"], ["'birds' has no trigger"]),
        (["--system", "\udcff"], ["--system", "Unicode"]),
    ],
)
def test_a_start_that_fails_is_one_line(trained, arguments, parts):
    one_line_error(run_script("chat.py", "--run-dir", trained, *arguments), *parts)


def test_wrong_usage_is_one_line(tmp_path):
    one_line_error(run_script("chat.py", "--checkpoint", tmp_path), "adapter_config.json is missing")
    one_line_error(run_script("chat.py"), "--checkpoint", "--run-dir", "--hub-model")
