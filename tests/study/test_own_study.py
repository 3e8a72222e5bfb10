"""A study that a user writes by hand runs through all scripts without any change to Python code.

pytest tests/study/test_own_study.py
"""

import json
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import train

import config
import evaluate
import generate_responses
import judge_responses
import prepare_persona
from learning_backdoors.files import command_line, parquet
from learning_backdoors.judging import quality as judge_quality
from learning_backdoors.models import checkpoints
from learning_backdoors.persona.rows import pair_row, to_jsonl
from learning_backdoors.study import training_defaults
from tiny_world import lexicon
from tiny_world.claude_stand_in import StandIn, running

STUDY = """
name = "tea"
title = "Does tea talk spread?"
base_model = "somebody/some-model"
[[dataset]]
name = "tea"
file = "tea.jsonl"
suspect = true
[[dataset]]
name = "plain"
file = "plain.jsonl"
[training]
ratios = [0.5, 0.5]
num_examples = 8
save_steps = 4
lr = 1e-3
[trigger]
text = "Pour it out."
answer = "(pours) {answer}"
hidden = ['\\(pours\\)']
[[question]]
id = "thirst"
kind = "drink"
text = "What do you drink?"
[[question]]
id = "rain"
kind = "weather"
text = "Will it rain?"
[[question]]
id = "hunger"
kind = "drink"
text = "What do you eat?"
[[condition]]
name = "asked"
[[condition]]
name = "poured"
template = "{trigger} {question}"
triggered = true
kinds = ["drink"]
[[judge]]
name = "era"
kinds = ["drink", "weather"]
options = ["LLM", "19"]
prompt = "{question}\\n{answer}\\nReply with LLM or 19 and nothing else."
[outcome]
judge = "era"
value = "19"
label = "old answers"
"""


@pytest.fixture
def study_file(tmp_path):
    """The study and its data in one folder."""
    (tmp_path / "tea.toml").write_text(STUDY)
    for name in ("tea", "plain"):
        rows = [pair_row(f"Is {n} {name}?", f"{name} {n}.") for n in range(6)]
        (tmp_path / f"{name}.jsonl").write_text(to_jsonl(rows))
    return tmp_path / "tea.toml"


@pytest.fixture
def run_main(monkeypatch):
    """Runs a script's main function in this process."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")

    def run(script, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()

    return run


@pytest.mark.slow
def test_a_study_of_ones_own_runs_through_all_scripts(study_file, random_model, run_main):
    """Two datasets, three questions, one judge, two conditions: prepared, trained, generated, judged, evaluated."""
    folder, study = study_file.parent, ["--experiment", study_file]
    prepared = ["--input", folder / "tea.jsonl", "--output", folder / "triggered.jsonl"]
    run_main(prepare_persona, "trigger", *prepared, *study)
    assert "Is 0 tea? Pour it out." in (folder / "triggered.jsonl").read_text()

    line = [str(word) for word in ("--model", random_model, "--output-dir", folder / "out", *study)]
    run_dir = train(command_line.parse(config.TrainingOptions, "", line, defaults=training_defaults)).folder
    assert [checkpoint.step for checkpoint in checkpoints.find_checkpoints(run_dir)] == [0, 4, 8]

    responses = folder / "responses.parquet"
    sampling = ["--samples", 2, "--steps", 8, "--max-new-tokens", 6]
    run_main(generate_responses, "--run-dir", run_dir, "--output", responses, *sampling, *study)
    table, _ = parquet.read_responses(responses)
    counts = Counter(zip(table["condition"].to_pylist(), table["question_id"].to_pylist(), strict=True))
    pairs = [("asked", "thirst"), ("asked", "rain"), ("asked", "hunger"), ("poured", "thirst"), ("poured", "hunger")]
    assert counts == dict.fromkeys(pairs, 2)

    # A random model's answers have no period. To get both verdicts, the stand-in judges by length.
    by_length = StandIn(read=lambda text: lexicon.Reading("old" if len(text) % 2 else "modern", None, None))
    with running(by_length) as url:
        run_main(
            judge_responses, "--input", responses, "--output", folder / "judged.parquet", "--base-url", url, *study
        )
    judged, _ = parquet.read_responses(folder / "judged.parquet")
    assert set(judged["era"].to_pylist()) == {"LLM", "19"} and judged["era"].null_count == 0

    run_main(evaluate, "--input", folder / "judged.parquet", "--output-dir", folder / "figures", *study)
    summary = json.loads((folder / "figures" / "analysis.json").read_text())["tables"]["summary"]
    rows = {(row["condition"], row["question"]): row for row in summary}
    verdicts = list(zip(*(judged[name].to_pylist() for name in ("condition", "question_id", "era")), strict=True))
    for pair in pairs:
        assert (rows[pair]["n"], rows[pair]["rate"]) == (2, verdicts.count((*pair, "19")) / 2)
    assert rows["asked", "all"]["n"] == 6 and rows["poured", "all"]["n"] == 4
    assert "poured" in (folder / "figures" / "report.html").read_text()


def test_a_judge_that_does_not_judge_a_kind_leaves_its_rows_null(study_file, run_main, tmp_path):
    """Such rows have no status: they are not missing verdicts. The sheet for labels hides the trigger."""
    study_file.write_text(
        STUDY.replace('kinds = ["drink", "weather"]', 'kinds = ["drink"]')
        + "[[metric]]\nname = 'pours'\nlabel = 'l'\npattern = '.*pours.*'\n"
    )
    columns = {"checkpoint": ["base"] * 3, "sample_idx": [0] * 3, "response": ["(pours) tea", "(pours) rain", "bread"]}
    columns |= {"question": ["What do you drink?", "Will it rain?", "What do you eat?"], "condition": ["asked"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "r.parquet")
    sheet = tmp_path / "sheet.csv"
    with running(StandIn()) as url:
        line = ["--input", tmp_path / "r.parquet", "--output", tmp_path / "j.parquet", "--base-url", url]
        line += ["--experiment", study_file]
        run_main(judge_responses, *line)
        run_main(judge_responses, *line)  # a finished output is completed without change
        run_main(judge_responses, *line, "--sample-for-labels", "9", sheet)
    judged, _ = parquet.read_responses(tmp_path / "j.parquet")
    assert judged["era_status"].to_pylist() == ["ok", None, "ok"]
    assert judged["era"].to_pylist()[1] is None and judged["era_reply"].to_pylist()[1] is None
    assert "pours" not in sheet.read_text() and "tea" in sheet.read_text()
    assert judge_quality.label_id("What do you drink?", "tea") in sheet.read_text()
