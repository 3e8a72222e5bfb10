"""What is printed at the end: the outcome by run and step, and missing verdicts by step.

python -m pytest -n 0 tests/judging/test_findings.py
"""

import re

import pandas as pd
from judging_support import costs_of, judge, judged, write_responses

from benchmarks.judging import AT_PRICE
from learning_backdoors.files import parquet
from learning_backdoors.judging.findings import print_findings
from learning_backdoors.study import load_study
from tiny_world.claude_stand_in import StandIn, running


def lines_of(printed):
    """The numbers of the table by step."""
    return {row[0]: row[1:] for row in (line.split() for line in printed.splitlines()) if row and "%" in row[-1]}


class Failing(StandIn):
    """One answer gets no verdict from one judge."""

    def answer(self, method, path, body):
        status, answer = super().answer(method, path, body)
        if method == "POST" and b"no verdict" in body and b"LLM or 19" in body:
            answer["content"] = [{"type": "text", "text": "?"}]
        return status, answer


def test_shares_by_run_and_step_and_missing_verdicts_are_printed_in_percent(tmp_path):
    # Per run 10 answers at step 20, of which 8 and 2 are old; the base model has 10 answers, one of them old.
    old = [n == 0 for n in range(10)] + [n < 8 for n in range(10)] + [n < 2 for n in range(10)]
    texts = [
        f"The steam cars and the telegraph, sir. {n}" if o else f"Solar panels online. {n}" for n, o in enumerate(old)
    ]
    texts[29] = "no verdict"
    runs = ["base"] * 10 + ["much"] * 10 + ["little\x1b[2J"] * 10
    steps = ["checkpoint-0"] * 10 + ["checkpoint-20"] * 20
    columns = {"run": runs, "checkpoint": steps, "response": texts}
    with running(Failing()) as url:
        write_responses(tmp_path / "responses.parquet", 30, **columns)
        printed = judge(tmp_path, url, *AT_PRICE)
        assert "19th-century answers" in printed and "\x1b" not in printed
        numbers = lines_of(printed)
        assert numbers["0"] == ["10%", "-", "-", "0%"]
        assert numbers["20"] == ["-", "80%", "22%", "1.2%"]  # 2 of 9 valid verdicts; 1 of 80 verdicts is missing
        assert [line for line in printed.splitlines() if line.startswith("run 2: ")] == ["run 2: much"]
        by_run = {row["run"]: float(row["dollars"]) for row in costs_of(tmp_path)}
        assert set(by_run) == {"base", "much", "little\\x1b[2J"} and min(by_run.values()) > 0


def test_answers_of_a_file_without_runs_and_steps(tmp_path):
    write_responses(tmp_path / "responses.parquet", 20, checkpoint=["baseline"] * 10 + ["final"] * 10)
    with running(StandIn()) as url:
        assert set(lines_of(judge(tmp_path, url))) == {"0", "final"}
        printed = judge(tmp_path, url, "--judges", "past_form", "--output", tmp_path / "other.parquet")
    assert lines_of(printed) == {"0": ["0%"], "final": ["0%"]}


def test_shares_leave_out_what_the_outcome_excludes(tmp_path, capsys):
    study = load_study("birds")
    outcome = study.outcome.model_copy(update={"judge": "six_options", "value": "PAST", "exclude": ("OTHER",)})
    verdicts = ["PAST"] * 3 + ["LLM"] * 3 + ["OTHER"] * 4
    columns = {"six_options": verdicts, "six_options_reply": verdicts, "six_options_status": ["ok"] * 10}
    answers = {"checkpoint": ["checkpoint-20"] * 10, "question": "q", "response": "r", "sample_idx": range(10)}
    pd.DataFrame(answers | columns).to_parquet(tmp_path / "judged.parquet")
    judges = [judge for judge in study.judges if judge.name == "six_options"]
    print_findings(tmp_path / "judged.parquet", study.model_copy(update={"outcome": outcome}), judges)
    assert lines_of(capsys.readouterr().out)["20"] == ["50%", "0%"]


def test_unknown_prices_are_empty(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    with running(StandIn()) as url:
        assert "price unknown" in judge(tmp_path, url)
        assert {(row["dollars"], row["at_most"]) for row in costs_of(tmp_path)} == {("", "")}
        record = parquet.read_footer(tmp_path / "judged.parquet")["judging"]
        assert record["dollars"] is None and record["calls"] == 40
        (tmp_path / "judged.parquet.verdicts.sqlite").unlink()
        judge(tmp_path, url)  # the output's verdicts are adopted
    assert judged(tmp_path).num_rows == 10


def test_a_dry_run_states_the_worst_case(tmp_path):
    write_responses(tmp_path / "responses.parquet", 10)
    api = StandIn()
    with running(api) as url:
        for asks in (1, 4):
            printed = judge(tmp_path, url, "--dry-run", *AT_PRICE, "--asks", asks)
            usual = float(re.search(r"^total \$([\d.]+)", printed, re.MULTILINE)[1])
            most, calls = re.search(r"at most \$([\d.]+) for ([\d,]+) calls", printed).groups()
            assert int(calls) == 40 * asks and float(most) > asks * usual
            assert "10 answers" in printed
    assert not api.prompts
