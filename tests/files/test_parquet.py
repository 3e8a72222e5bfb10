"""learning_backdoors/files/parquet.py: reading, completing and writing the files that the stages exchange."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import config
from learning_backdoors.files import command_line, parquet, provenance
from learning_backdoors.files.errors import UserError


def responses(**columns) -> pa.Table:
    required = {"checkpoint": ["checkpoint-20"], "question": ["Why?"], "response": ["So."], "sample_idx": [0]}
    return pa.table(required | columns)


def test_missing_columns_are_derived_or_null(tmp_path):
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
    table, made_by = parquet.read_responses(path)
    assert table.schema.names == [*parquet.RESPONSE_SCHEMA.names, "mood"]
    assert table.schema.types[:-1] == parquet.RESPONSE_SCHEMA.types
    assert table["step"].to_pylist() == [100, 20, None, 0]
    assert table["question_id"].to_pylist() == ["Why?"] * 4
    assert table["seed"].null_count == 4 and made_by == {}


def test_a_selection_of_columns_leaves_the_others_null(tmp_path):
    path = tmp_path / "r.parquet"
    pq.write_table(responses(mood=["glad"]), path)
    table, _ = parquet.read_responses(path, columns=("question",))
    assert table["question"].to_pylist() == ["Why?"]
    assert table["response"].null_count == table["step"].null_count == 1 and "mood" not in table.column_names


@pytest.mark.parametrize("name", parquet.REQUIRED)
def test_errors_name_a_missing_column(tmp_path, name):
    path = tmp_path / "r.parquet"
    pq.write_table(responses().drop_columns([name]), path)
    with pytest.raises(UserError, match=rf"{path}.*'{name}'"):
        parquet.read_responses(path)


def test_errors_name_wrong_types_and_empty_values(tmp_path):
    path = tmp_path / "r.parquet"
    pq.write_table(responses(step=["twenty"]), path)
    with pytest.raises(UserError, match="'step'"):
        parquet.read_responses(path)
    pq.write_table(responses(response=pa.array([None], pa.string())), path)
    with pytest.raises(UserError, match="'response' is null in 1 of"):
        parquet.read_responses(path)


def test_steps_may_be_text(tmp_path):
    path = tmp_path / "r.parquet"
    names = ["baseline", "checkpoint-20", "final", "out/final", "checkpoint-300", "x", "x"]
    steps = ["baseline", "20", "final", "final", None, "checkpoint-7", "20.0"]
    columns = {"checkpoint": names, "question": ["Why?"] * 7, "response": ["So."] * 7, "sample_idx": [0] * 7}
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table(columns | {"step": pa.array(steps, pa.string()).cast(kind)}), path)
        assert parquet.read_responses(path)[0]["step"].to_pylist() == [0, 20, None, None, 300, 7, 20]
    for fault in ("1e3", "-5", "twenty", "20.5"):
        pq.write_table(responses(step=[fault]), path)
        with pytest.raises(UserError, match=f"'step'.*{fault}"):
            parquet.read_responses(path)


@pytest.mark.parametrize(
    ("footer", "key"),
    [
        ({"settings": 5}, "settings"),
        ({"runs": [1]}, "runs"),
        ({"runs": {"a": {"probes": [{"step": "x"}]}}}, "runs.a.probes"),
        ({"precision": {"training": 1}}, "precision.training"),
        ({"judging": {"model": {}}}, "judging.model"),
        ({"judging": {"dollars": "much"}}, "judging.dollars"),
        ({"judging": {"labels": {"j": {"options": {"19": {"sensitivity": [1]}}}}}}, "judging.labels"),
        ({"study": 3}, "study"),
    ],
)
def test_errors_name_the_damaged_key_of_a_footer(tmp_path, footer, key):
    path = tmp_path / "r.parquet"
    pq.write_table(responses().replace_schema_metadata({parquet.FOOTER_KEY: json.dumps(footer).encode()}), path)
    for read in (parquet.read_responses, parquet.read_footer):
        with pytest.raises(UserError, match=rf"r\.parquet.*footer.*{key}"):
            read(path)


def test_errors_name_duplicate_columns_and_foreign_footers(tmp_path):
    path = tmp_path / "r.parquet"
    table = responses()
    pq.write_table(pa.table([*table.columns, table["question"]], [*table.column_names, "question"]), path)
    with pytest.raises(UserError, match="'question'"):
        parquet.read_responses(path)
    for footer in (b"{not json", b"[1]", b"null", b"[" * 100_000):
        pq.write_table(table.replace_schema_metadata({parquet.FOOTER_KEY: footer}), path)
        for read in (parquet.read_responses, parquet.read_footer):
            with pytest.raises(UserError, match=r"r\.parquet.*footer"):
                read(path)


def test_errors_name_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="none.parquet"):
        parquet.read_responses(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    for read in (parquet.read_responses, parquet.read_footer):
        with pytest.raises(UserError, match=r"text\.parquet.*Parquet"):
            read(tmp_path / "text.parquet")
    assert parquet.read_footer(tmp_path / "none.parquet") is None


def test_the_footer_holds_the_provenance(tmp_path):
    path = tmp_path / "r.parquet"
    options = command_line.parse(config.EvaluationOptions, "", ["--input", "a.parquet", "b.parquet"])
    made_by = provenance.provenance("evaluate.py", options, ("pyarrow", "nosuch"))
    parquet.write_parquet(path, [responses()] * 3, responses().schema, made_by)
    table, read_back = parquet.read_responses(path)
    assert table.num_rows == 3 and read_back == parquet.read_footer(path) == made_by
    assert read_back["options"]["input"] == ["a.parquet", "b.parquet"]
    assert read_back["versions"] == {"pyarrow": pa.__version__, "nosuch": None}


def test_a_failed_write_leaves_the_old_file(tmp_path):
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
    [
        ("checkpoint-80", 80),
        ("checkpoint-0", 0),
        ("baseline", 0),
        ("Base", 0),
        ("step_100", 100),
        ("final", None),
        ("checkpoint-99999999999", None),
    ],
)
def test_steps_come_from_checkpoint_names(name, step):
    assert parquet.step_of(name) == step
