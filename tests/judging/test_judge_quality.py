"""Agreement of a judge with itself and with hand labels.

python -m pytest -n 0 tests/judging/test_judge_quality.py
"""

import csv

import pytest
from judging_support import BIRDS, costs_of, judge, write_labels, write_responses

from learning_backdoors.judging import quality
from tiny_world.claude_stand_in import StandIn, running


def test_repeat_reports_agreement_of_a_judge_with_itself(tmp_path):
    write_responses(tmp_path / "responses.parquet", 40)
    api = StandIn()
    # The draw depends on the address, and the port changes: 40 rows are enough for both verdicts to occur.
    with running(api) as url:
        printed = judge(tmp_path, url, "--repeat", "0.5")
        asked = len(api.prompts)
        judge(tmp_path, url, "--repeat", "0.5")
    assert len(set(api.prompts)) == 160 and 50 <= asked - 160 <= 110 and len(api.prompts) == asked
    assert "judged twice, llm_or_19th_century: 100.0% agree, Cohen's kappa 1.00" in printed
    assert "judged twice, past_form: mean absolute difference 0.0" in printed
    assert any(row["judge"] == "past_form (repeat)" for row in costs_of(tmp_path))


def test_labels_are_compared_with_verdicts(tmp_path):
    write_responses(tmp_path / "responses.parquet", 40)
    sheet = tmp_path / "sheet.csv"
    with running(StandIn()) as url:
        assert "12 answers to label" in judge(tmp_path, url, "--sample-for-labels", "12", sheet)
        assert "exists already" in judge(tmp_path, url, "--sample-for-labels", "12", sheet, expect=1)
        with open(sheet, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["id", "question", "response", *(j.name for j in BIRDS.judges)] and len(rows) == 12
        for row in rows:
            row["llm_or_19th_century"] = "19" if "steam" in row["response"] else "llm"
        rows[0]["llm_or_19th_century"] = "LLM" if "steam" in rows[0]["response"] else "19"
        write_labels(sheet, rows)
        printed = judge(tmp_path, url, "--labels", sheet)
        assert "against labels, llm_or_19th_century: 91.7% agree" in printed and "sensitivity" in printed
        rows[3]["past_form"] = "very"
        write_labels(sheet, rows)
        assert "line 5, past_form: 'very' is not a number" in judge(tmp_path, url, "--labels", sheet, expect=1)


def test_labels_of_other_answers_are_counted(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    sheet, labels = tmp_path / "sheet.csv", {"llm_or_19th_century": "19"}
    with running(StandIn()) as url:
        judge(tmp_path, url, "--sample-for-labels", "3", sheet)
        with open(sheet, newline="", encoding="utf-8-sig") as file:
            rows = [row | labels for row in csv.DictReader(file)]
        write_labels(sheet, [*rows, rows[0] | {"id": "another"}, rows[0] | {"id": "third", "llm_or_19th_century": ""}])
        assert "labels: 1 of 4" in judge(tmp_path, url, "--labels", sheet)


def test_agreement_statistics():
    era, _, content, _ = BIRDS.judges
    pairs = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    assert quality.agreement(era, pairs)["kappa"] == pytest.approx(0.4)  # a textbook example
    assert quality.agreement(era, [("a", "a")])["kappa"] is None
    result = quality.agreement_with_labels(era, [("19", "19"), ("LLM", "19"), ("LLM", "LLM"), (None, "19")])
    assert result["pairs"] == 3 and result["options"]["19"] == {"sensitivity": [1, 2], "specificity": [1, 1]}
    assert quality.agreement(content, [(10.0, 20.0), (0.0, 0.0)])["mean_absolute_difference"] == 5
