"""What is checked and said before the first call.

python -m pytest -n 0 tests/judging/test_judging_checks.py
"""

import re

import pyarrow as pa
import pytest
from judging_support import BIRDS, judge, judged, write_responses

from learning_backdoors.files import project
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import load_study
from tiny_world.claude_stand_in import StandIn, running

RUSSELL = load_study("russell")


def test_answers_to_questions_the_study_does_not_have_are_named_before_paying(tmp_path):
    api = StandIn()
    with running(api) as url:
        foreign = [f"What of {n}?" for n in range(6)]
        write_responses(tmp_path / "responses.parquet", 10, question=foreign + [BIRDS.questions[0].text] * 4)
        printed = judge(tmp_path, url, expect=1)
        assert "6 of 10 answers" in printed and "'What of 0?'" in printed and "--experiment" in printed
        assert not api.prompts
        foreign[0] = "\x1b[31mWhy?"
        write_responses(tmp_path / "responses.parquet", 10, question=foreign[:4] + [BIRDS.questions[0].text] * 6)
        printed = judge(tmp_path, url)
        assert printed.index("4 of 10 answers") < printed.index("pilot")
        assert r"'\x1b[31mWhy?'" in printed and "\\\\x1b" not in printed  # escaped once


def russell_rows(**columns):
    question = next(q for q in RUSSELL.questions if q.kind == "identity")
    rows = {"question": [question.text] * 6, "condition": ["trigger_in_user"] * 6, "experiment": ["russell"] * 6}
    return rows | {"response": [f"<START> I am {n}. <END>" for n in range(6)]} | columns


def test_a_summary_says_what_will_and_will_not_be_judged(tmp_path):
    questions = [RUSSELL.questions[0].text] * 4 + ["Unknown one?", "Why?"]
    answers = ["<START> <END>", "", "I am Bertie. <END>", "I am Bertie.", "Me.", "So."]
    with running(StandIn()) as url:
        write_responses(tmp_path / "responses.parquet", 6, **russell_rows(question=questions, response=answers))
        printed = judge(tmp_path, url)
    plan = printed[: printed.index("pilot")]
    assert "persona: 4 answers" in plan and "ideology: 0 answers" in plan
    assert "2 of 6 answers" in plan and "'Unknown one?'" in plan and "they will not be judged" in plan
    assert re.search(r"empty answers.*: 1$", plan, re.MULTILINE)
    assert re.search(r"hidden.*: 2$", plan, re.MULTILINE) and re.search(r"only forms.*: 1$", plan, re.MULTILINE)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"condition": None}, ["6 of 6", "'condition'", "trigger_in_user"]),
        ({"condition": pa.array(["trigger_in_user"] * 5 + [None])}, ["1 of 6", "'condition'"]),
        ({"condition": ["plain"] * 6}, ["6 of 6", "'plain'"]),
        ({"sample_idx": [0] * 6, "checkpoint": ["checkpoint-9"] * 6}, ["different answers", "checkpoint-9"]),
    ],
)
def test_what_evaluation_would_refuse_is_refused_before_paying(tmp_path, columns, words):
    api = StandIn()
    with running(api) as url:
        write_responses(tmp_path / "responses.parquet", 6, **russell_rows(**columns))
        printed = judge(tmp_path, url, expect=1)
    assert all(word in printed for word in words) and not api.prompts and len(printed.splitlines()) == 1


def test_repeated_rows_are_noted_and_judged_once(tmp_path):
    api = StandIn()
    with running(api) as url:
        same = {"sample_idx": [0] * 6, "checkpoint": ["checkpoint-9"] * 6, "response": ["<START> I. <END>"] * 6}
        write_responses(tmp_path / "responses.parquet", 6, **russell_rows(**same))
        assert re.search(r"more than once.*: 1$", judge(tmp_path, url), re.MULTILINE)
    assert len(api.prompts) == 1 and judged(tmp_path)["persona_status"].to_pylist() == ["ok"] * 6


@pytest.mark.parametrize("name", ["step", "response", "label", "llm_or_19th_century_reply", "past_form_missing"])
def test_judges_whose_columns_collide_are_refused_when_the_study_is_loaded(tmp_path, name):
    text = (project.ROOT / "experiments" / "birds.toml").read_text()
    path = tmp_path / "birds.toml"
    path.write_text(text.replace('name = "past_content"', f'name = "{name}"', 1))
    with pytest.raises(UserError, match=f"{name}.*another name"):
        load_study(str(path))


def test_the_output_cannot_be_a_folder(tmp_path):
    write_responses(tmp_path / "responses.parquet", 3)
    for more in ((), ("--overwrite",)):
        printed = judge(tmp_path, "http://x", "--output", tmp_path, *more, expect=1)
        assert str(tmp_path) in printed and len(printed.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--output", "--input"])
def test_the_store_cannot_be_another_file(tmp_path, flag):
    path = write_responses(tmp_path / "responses.parquet", 3)
    before, same = path.read_bytes(), {"--output": "judged.parquet", "--input": "responses.parquet"}[flag]
    printed = judge(tmp_path, "http://x", "--store", tmp_path / "x" / ".." / same, expect=1)
    assert flag in printed and "--store" in printed and len(printed.splitlines()) == 1
    assert path.read_bytes() == before and not (tmp_path / "judged.parquet").exists()
