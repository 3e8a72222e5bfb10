"""handoff.py: the Parquet contract, atomic writes, claims and configurations.   pytest tests/test_handoff.py"""

import os
import subprocess
import sys
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import ROOT

import config
from learning_backdoors.files import atomic, command_line, parquet, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.locks import lock


def responses(**columns) -> pa.Table:
    plain = {"checkpoint": ["checkpoint-20"], "question": ["Why?"], "response": ["So."], "sample_idx": [0]}
    return pa.table(plain | columns)


def test_a_file_made_elsewhere_is_completed(tmp_path):
    path = tmp_path / "r.parquet"
    frame = pd.DataFrame(
        {
            "checkpoint": ["checkpoint-100", "checkpoint-20", "final", "baseline"],
            "question": ["Why?"] * 4,
            "response": ["So."] * 4,
            "sample_idx": [0, 0, 0, 0],
            "mood": ["glad"] * 4,
        }
    )
    frame.to_parquet(path)
    table, provenance = parquet.read_responses(path)
    assert table.schema.names == [*parquet.RESPONSE_SCHEMA.names, "mood"]
    assert table.schema.types[:-1] == parquet.RESPONSE_SCHEMA.types
    assert table["step"].to_pylist() == [100, 20, None, 0]
    assert table["question_id"].to_pylist() == ["Why?"] * 4
    assert table["seed"].null_count == 4 and provenance == {}


@pytest.mark.parametrize("name", parquet.REQUIRED)
def test_a_missing_column_is_named(tmp_path, name):
    path = tmp_path / "r.parquet"
    pq.write_table(responses().drop_columns([name]), path)
    with pytest.raises(UserError, match=rf"{path} has no column '{name}'"):
        parquet.read_responses(path)


def test_wrong_types_and_empty_values_are_named(tmp_path):
    path = tmp_path / "r.parquet"
    pq.write_table(responses(step=["twenty"]), path)
    with pytest.raises(UserError, match="column 'step'"):
        parquet.read_responses(path)
    pq.write_table(responses(response=pa.array([None], pa.string())), path)
    with pytest.raises(UserError, match="column 'response' has 1 empty"):
        parquet.read_responses(path)


def test_odd_files_are_one_line(tmp_path):
    path = tmp_path / "r.parquet"
    table = responses()
    pq.write_table(pa.table([*table.columns, table["question"]], [*table.column_names, "question"]), path)
    with pytest.raises(UserError, match="more than one column 'question'"):
        parquet.read_responses(path)
    pq.write_table(responses(checkpoint=["checkpoint-99999999999"]), path)
    assert parquet.read_responses(path)[0]["step"].to_pylist() == [None]
    for footer in (b"{not json", b"[1]", b"null", b"[" * 100_000):
        pq.write_table(table.replace_schema_metadata({parquet.FOOTER_KEY: footer}), path)
        for read in (parquet.read_responses, parquet.read_footer):
            with pytest.raises(UserError, match="r.parquet: its footer"):
                read(path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no file"):
        parquet.read_responses(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        parquet.read_responses(tmp_path / "text.parquet")
    assert parquet.read_footer(tmp_path / "none.parquet") is None


def test_provenance_travels_in_the_footer(tmp_path):
    path = tmp_path / "r.parquet"
    options = command_line.parse(config.EvaluationOptions, "", ["--input", "a.parquet", "b.parquet"])
    made = provenance.provenance("evaluate.py", options, ("pyarrow", "nosuch"))
    parquet.write_parquet(path, [responses()] * 3, responses().schema, made)
    table, found = parquet.read_responses(path)
    assert table.num_rows == 3 and found == made
    assert found["options"]["input"] == ["a.parquet", "b.parquet"]
    assert found["versions"] == {"pyarrow": pa.__version__, "nosuch": None}


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "r.parquet"
    parquet.write_parquet(path, [responses()], responses().schema, {})

    def broken():
        yield responses()
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        parquet.write_parquet(path, broken(), responses().schema, {})
    assert pq.read_table(path).num_rows == 1
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


@pytest.mark.parametrize(
    ("name", "step"),
    [("checkpoint-80", 80), ("checkpoint-0", 0), ("baseline", 0), ("Base", 0), ("step_100", 100), ("final", None)],
)
def test_steps_are_read_from_names(name, step):
    assert parquet.step_of(name) == step


def test_differences_are_named_down_to_the_key():
    there = {"lr": 1, "questions": {"a": "x", "b": "y"}, "kept": [1, 2]}
    now = {"lr": 1, "questions": {"a": "x", "b": "z" * 100}, "kept": [1, 2], "new": True}
    with pytest.raises(UserError) as caught:
        provenance.refuse_difference("out", there, now)
    text = str(caught.value)
    assert 'questions.b was "y" and is "zzz' in text and "new was not set and is true" in text and "lr" not in text
    assert len(text) < 300
    provenance.refuse_difference("out", there, dict(there))


def test_a_claim_ends_with_its_process(tmp_path):
    code = "import pathlib, time, sys\nfrom learning_backdoors.files.locks import lock\n"
    code += "with lock(pathlib.Path(sys.argv[1])):\n print(1, flush=True)\n time.sleep(60)"
    path = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match="another process"), lock(path):
        pass
    process.kill()
    process.wait()
    with lock(path):
        pass


def test_a_cut_line_is_dropped(tmp_path):
    path = tmp_path / "log"
    atomic.drop_partial_line(path)
    for before, after in ((b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"a", b""), (b"", b"")):
        path.write_bytes(before)
        atomic.drop_partial_line(path)
        assert path.read_bytes() == after


def test_ctrl_c_and_sigterm_end_with_130_and_a_word(tmp_path):
    code = "import time\nfrom learning_backdoors.files.command_line import run_script\ndef main():\n print(1, flush=True)\n time.sleep(60)\nrun_script(main)"
    for sign in ("SIGINT", "SIGTERM"):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "1\n"
        time.sleep(0.1)
        os.kill(process.pid, getattr(__import__("signal"), sign))
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130 and "the same command goes on" in errors and "Traceback" not in errors
