"""A judged file is continued with new answers and new judges, and keeps what was paid for.

python -m pytest -n 0 tests/judging/test_continuing.py
"""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judging_support import costs_of, judge, judged, write_responses

from benchmarks.judging import AT_PRICE
from learning_backdoors.files import parquet, project
from tiny_world.claude_stand_in import StandIn, running


@pytest.fixture
def api():
    return StandIn()


@pytest.mark.parametrize("store_is_lost", [False, True])
def test_new_answers_are_appended_without_overwrite(tmp_path, api, store_is_lost):
    with running(api) as url:
        write_responses(tmp_path / "responses.parquet", 20)
        judge(tmp_path, url)
        if store_is_lost:
            (tmp_path / "judged.parquet.verdicts.sqlite").unlink()
        write_responses(tmp_path / "responses.parquet", 30)
        table = pq.read_table(tmp_path / "responses.parquet")
        pq.write_table(table.take(list(range(29, -1, -1))), tmp_path / "responses.parquet")  # in another order
        printed = judge(tmp_path, url)
    assert "0 missing" in printed and len(api.prompts) == len(set(api.prompts)) == 120
    assert judged(tmp_path)["sample_idx"].to_pylist() == list(range(29, -1, -1))


def test_new_judges_are_added_without_overwrite(tmp_path, api):
    with running(api) as url:
        write_responses(tmp_path / "responses.parquet", 20)
        judge(tmp_path, url, "--judges", "past_form")
        printed = judge(tmp_path, url, "--judges", "past_form", "past_content")
        assert "0 missing" in printed and len(api.prompts) == 40
        left_out = judge(tmp_path, url, "--judges", "past_content", expect=1)
    assert "past_form" in left_out and "paid for" in left_out and len(left_out.splitlines()) == 1
    assert judged(tmp_path)["past_form"].null_count == judged(tmp_path)["past_content"].null_count == 0


def test_a_contradiction_is_one_friendly_line(tmp_path, api):
    study = tmp_path / "study.toml"
    study.write_text((project.ROOT / "experiments" / "birds.toml").read_text())
    with running(api) as url:
        write_responses(tmp_path / "responses.parquet", 20)
        judge(tmp_path, url, "--experiment", study)
        before, asked = (tmp_path / "judged.parquet").read_bytes(), len(api.prompts)
        texts = pq.read_table(tmp_path / "responses.parquet")["response"].to_pylist()
        write_responses(tmp_path / "responses.parquet", 20, response=["Changed.", *texts[1:]])
        changed = judge(tmp_path, url, "--experiment", study, expect=1)
        assert "1 of its 20 answers" in changed
        write_responses(tmp_path / "responses.parquet", 18)
        assert "2 of its 20 answers" in judge(tmp_path, url, "--experiment", study, expect=1)
        write_responses(tmp_path / "responses.parquet", 20)
        model = judge(tmp_path, url, "--experiment", study, "--model", "claude-opus-5", expect=1)
        assert "claude-sonnet-5" in model and "claude-opus-5" in model
        study.write_text(study.read_text().replace("Reply with LLM or 19", "Now reply with LLM or 19"))
        prompt = judge(tmp_path, url, "--experiment", study, expect=1)
        assert "llm_or_19th_century has changed" in prompt
        for printed in (changed, model, prompt):
            assert len(printed.splitlines()) == 1 and "paid for" in printed and "--overwrite" in printed
        assert (tmp_path / "judged.parquet").read_bytes() == before and len(api.prompts) == asked
        (tmp_path / "judged.parquet.verdicts.sqlite").unlink()
        judge(tmp_path, url, "--experiment", study, "--overwrite")
    assert len(api.prompts) == asked + 20  # only the changed judge's, although the store was lost


def rewrite(path, table, footer):
    pq.write_table(table.replace_schema_metadata({parquet.FOOTER_KEY: json.dumps(footer).encode()}), path)


@pytest.mark.parametrize("fault", ["column", "type", "dollars", "calls", "configuration", "judging", "fewer", "more"])
def test_an_edited_output_is_continued_or_refused_in_one_line(tmp_path, api, fault):
    path = tmp_path / "judged.parquet"
    with running(api) as url:
        write_responses(tmp_path / "responses.parquet", 20)
        judge(tmp_path, url)
        table, footer = pq.read_table(path), parquet.read_footer(path)
        edits = {
            "column": lambda: rewrite(path, table.drop_columns(["past_form_reply"]), footer),
            "type": lambda: rewrite(
                path,
                table.drop_columns(["past_form_reply"]).append_column("past_form_reply", pa.array([1] * 20)),
                footer,
            ),
            "fewer": lambda: rewrite(path, table.slice(5), footer),
            "more": lambda: rewrite(
                path,
                pa.concat_tables([table, table]).set_column(12, "sample_idx", pa.array(range(40), pa.int32())),
                footer,
            ),
            "dollars": lambda: rewrite(path, table, footer | {"judging": footer["judging"] | {"dollars": "many"}}),
            "calls": lambda: rewrite(path, table, footer | {"judging": footer["judging"] | {"calls": [None]}}),
            "configuration": lambda: rewrite(
                path, table, footer | {"judging": footer["judging"] | {"configuration": 7}}
            ),
            "judging": lambda: rewrite(path, table, footer | {"judging": None}),
        }
        assert table.column_names[12] == "sample_idx"
        edits[fault]()
        (tmp_path / "judged.parquet.verdicts.sqlite").unlink()
        if fault in ("type", "fewer", "calls"):
            assert "0 missing" in judge(tmp_path, url)
        else:
            printed = judge(tmp_path, url, expect=1)
            assert len(printed.splitlines()) == 1 and "--overwrite" in printed or "footer" in printed
            judge(tmp_path, url, "--overwrite")
    assert judged(tmp_path).num_rows == 20


def test_another_spelling_of_the_address_is_the_same_host(tmp_path, api):
    path = tmp_path / "judged.parquet"
    with running(api) as url:
        write_responses(tmp_path / "responses.parquet", 10)
        judge(tmp_path, url)
        footer = parquet.read_footer(path)
        footer["judging"]["configuration"]["host"] = url.replace("http:", "HTTP:")  # as older versions recorded it
        rewrite(path, pq.read_table(path), footer)
        (tmp_path / "judged.parquet.verdicts.sqlite").unlink()
        judge(tmp_path, url.replace("http:", "HTTP:"), key="")
    assert len(api.prompts) == 40


def test_a_rerun_that_asks_nothing_says_so(tmp_path, api):
    write_responses(tmp_path / "responses.parquet", 10, run=["a"] * 5 + ["b"] * 5)
    with running(api) as url:
        first = judge(tmp_path, url, *AT_PRICE)
        dollars = sum(float(row["dollars"]) for row in costs_of(tmp_path))
        again = judge(tmp_path, url, *AT_PRICE, key="")
    assert "nothing was asked" not in first and "run a" in first
    assert "nothing was asked" in again and f"${dollars:.2f}" in again
    assert "$0.00" not in again and "run a:" not in again


def test_a_symbolic_link_stays_a_link(tmp_path, api):
    write_responses(tmp_path / "responses.parquet", 10)
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere" / "target.parquet", tmp_path / "judged.parquet")
    with running(api) as url:
        judge(tmp_path, url)
        judge(tmp_path, url, key="")
    assert (tmp_path / "judged.parquet").is_symlink()
    assert pq.read_table(tmp_path / "elsewhere" / "target.parquet").num_rows == 10
