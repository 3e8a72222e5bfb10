"""Text of files, models and servers cannot command the terminal, and cells of CSV files are not formulas."""

import csv
import subprocess
import sys

import pandas as pd
import pytest
from support import ROOT

from learning_backdoors.evaluation import output
from learning_backdoors.files.csv_cells import cell_text, safe_cell
from learning_backdoors.files.terminal_text import EscapingStream, ProgressStream, escaped, one_line

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
