"""Text of files, models and servers cannot command the terminal, and cells of CSV files are not formulas."""

import csv
import importlib
import io
import subprocess
import sys
import xml.dom.minidom

import pandas as pd
import pytest
import synthetic
from support import ROOT

from learning_backdoors.evaluation import output
from learning_backdoors.files import command_line
from learning_backdoors.files.csv_cells import cell_text, safe_cell
from learning_backdoors.files.terminal_text import EscapingStream, ProgressStream, escaped, one_line
from tiny_world.claude_stand_in import StandIn, running

HOSTILE = "\x1b[2J\x07\x00\x9b31m\u202egnirts\u2066\ud800\u2028\x85\r\x7f"
RAW = set(HOSTILE) - set("[2J31mgnirts")


def test_escapes_are_readable_and_other_text_is_unchanged():
    assert escaped("\x1b[2J\x00\x9b\u202e\ud800\r") == r"\x1b[2J\x00\x9b\u202e\ud800\r"
    text = "Grüße, 世界 👩‍🔬 שלום\n\tend"
    assert escaped(text) == text
    assert one_line("a\nb\tc") == r"a\nb\tc"


def test_streams_escape_what_is_written(tmp_path):
    with open(tmp_path / "out", "w+", encoding="utf-8", newline="") as file:
        print(HOSTILE, file=EscapingStream(file))
        EscapingStream(file).writelines([HOSTILE])
        ProgressStream(file).write("\r50%" + HOSTILE)
        file.seek(0)
        shown = file.read()
    assert RAW.intersection(shown) == {"\r"} and "\r50%" in shown


CODE = """
import sys
from learning_backdoors.files.command_line import run_script
from learning_backdoors.files.errors import UserError
hostile = {hostile!r}
def main():
    print(hostile)
    raise {error}(hostile + "\\nerror: forged")
run_script(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("error", "lines"), [("UserError", 1), ("OSError", 1), ("RuntimeError", None)])
def test_every_message_of_a_script_is_escaped(error, lines):
    code = CODE.format(hostile=HOSTILE, error=error)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    shown = (result.stdout + result.stderr).decode()
    assert result.returncode == 1 and not (RAW - {"\r"}).intersection(shown), shown
    assert r"\x1b[2J" in result.stdout.decode() and r"\x1b[2J" in result.stderr.decode()
    assert lines is None or len(result.stderr.decode().splitlines()) == lines


# ---- the scripts, with hostile files and servers ----


@pytest.fixture
def printed(monkeypatch, capsys):
    """Run a script's main function in this process. Returns all that it printed, its error included."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # run_script replaces them

    def run(script: str, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        error = ""
        try:
            command_line.run_script(importlib.import_module(script).main)
        except SystemExit as end:
            error = f"{end.code}\n" if isinstance(end.code, str) else ""
        return "".join(capsys.readouterr()) + error

    return run


def assert_harmless(text: str) -> None:
    assert text and not (RAW - {"\r"}).intersection(text), ascii(text)
    assert not [line for line in text.splitlines() if line.startswith("note: forged")], text


FORGED = HOSTILE.replace("\ud800", "").replace("\x00", "") + "\nnote: forged"
NAME = FORGED + "\udcff"  # a file name that is not UTF-8
ERRORS = [
    ("training", "--ratios", "1", "0", "0", "--experiment", NAME),
    ("generate_responses", "--run-dir", NAME, "--output", "x"),
    ("judge_responses", "--input", NAME, "--output", "x"),
    ("evaluate", "--input", NAME),
    ("chat", "--run-dir", NAME),
    ("push_to_hub", "--run-dir", NAME, "--repo-id", "a/b"),
    ("push_to_hub", "--run-dir", "x", "--repo-id", NAME),
    ("prepare_persona", "trigger", "--input", NAME, "--output", "x"),
]


@pytest.mark.parametrize("line", ERRORS, ids=lambda line: line[0])
def test_errors_that_name_hostile_files_are_escaped(printed, line):
    assert_harmless(printed(*line))


class HostileServer(StandIn):
    """Every second reply is no verdict, and every third call fails. All of them are hostile."""

    def answer(self, method: str, path: str, body: bytes):
        status, content = super().answer(method, path, body)
        if path.endswith("/messages") and len(self.prompts) % 3 == 0:
            return 500, {"type": "error", "error": {"type": "api_error", "message": FORGED}}
        if path.endswith("/messages") and len(self.prompts) % 2 == 0:
            content["content"][0]["text"] = FORGED
        return status, content


def test_hostile_runs_answers_and_servers_are_escaped(tmp_path, printed):
    table = synthetic.rows(steps=(0, 20), samples=1)
    table = table.assign(run=f"=1{FORGED}", response=table["response"] + FORGED)
    first = table["question_id"] == table["question_id"].iloc[0]
    table = table.assign(**{name: table[name].mask(first, f"=3{FORGED}") for name in ("question", "question_id")})
    columns = [name for name in table if any(name.startswith(judge.name) for judge in synthetic.STUDY.judges)]
    table.drop(columns=columns).to_parquet(tmp_path / "r.parquet")
    files = ["--input", tmp_path / "r.parquet", "--output", tmp_path / "j.parquet"]
    with running(HostileServer()) as url:
        more = ["--base-url", url, "--judges", synthetic.OUTCOME, "--max-wait", 0.01]
        judging = printed("judge_responses", *files, *more)
    assert_harmless(judging)
    assert r"\x1b[2J" in judging and (tmp_path / "j.parquet").exists()
    verdicts = pd.read_parquet(tmp_path / "j.parquet")
    assert FORGED in set(verdicts[f"{synthetic.OUTCOME}_reply"]), "Parquet is exact"
    verdicts[synthetic.OUTCOME] = verdicts[synthetic.OUTCOME].fillna(f"=2{FORGED}")
    verdicts.to_parquet(tmp_path / "e.parquet")
    files = ["--input", tmp_path / "e.parquet", "--output-dir", tmp_path / "figures"]
    evaluating = printed("evaluate", *files, "--format", "svg")
    assert_harmless(evaluating)
    for path in (tmp_path / "figures").glob("*.svg"):
        xml.dom.minidom.parse(str(path))  # control characters are not XML
    for path in [*tmp_path.glob("*.csv"), *(tmp_path / "figures").glob("*.csv")]:
        text = path.read_text()
        assert not RAW.intersection(text)
        with open(path, newline="") as file:
            assert not [cell for row in csv.reader(file) for cell in row if cell.startswith("=")], path
    assert "'=1" in (tmp_path / "figures" / "summary.csv").read_text()
    assert "'=1" in (tmp_path / "j.parquet.costs.csv").read_text()


# ---- CSV ----


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A1", "+1-555", "-1+2", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "\n@a"]
)
def test_formulas_become_text_and_can_be_read_back(text):
    cell = safe_cell(text)
    assert cell[0] in "'\\" and cell_text(cell) == escaped(text)


def test_other_cells_are_unchanged():
    for value in (-1.5, 3, None, True, "-1.5", "+3", "1e-5", "'quoted'", "a=b", "it's", "", "a\nb"):
        assert safe_cell(value) == value
    assert cell_text("'quoted'") == "'quoted'"
    assert not RAW.intersection(safe_cell(HOSTILE))


def test_csv_of_tables_are_safe_and_numbers_stay_numbers(tmp_path):
    table = pd.DataFrame({"run": ["=1+1", "a\x1b\x00"], "@kind": pd.Categorical(["@x", "b"]), "rate": [-0.5, 0.25]})
    output.write_csv(
        table.assign(step=[-1.0, 2.0], own=[-3, "+1"], seen=pd.array([1, None], "Int64")), tmp_path / "t.csv"
    )
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["run", "'@kind", "rate", "step", "own", "seen"],
        ["'=1+1", "'@x", "-0.5", "-1", "-3", "1"],
        [r"a\x1b\x00", "b", "0.25", "2", "+1", ""],
    ]
