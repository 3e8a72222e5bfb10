"""CSV and JSON files.  python -m pytest tests/evaluation/test_output.py"""

import json

import evaluating
import numpy as np
import pandas as pd
import synthetic

from learning_backdoors.evaluation import exhibits, output


def test_whole_numbers_keep_their_digits(tmp_path):
    table = pd.DataFrame({"seed": [20250117.0, np.nan], "rate": [1 / 3, 0.5], "step": [np.inf, 1.0]})
    output.write_csv(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "seed,rate,step\n20250117,0.333333,inf\n,0.5,1\n"


def test_the_analysis_is_strict_json(tmp_path):
    evaluation = evaluating.of_birds(tmp_path, synthetic.rows(0.0, steps=(0, 20), samples=2))
    made = exhibits.make(evaluation, [exhibits.summary, exhibits.emergence])
    output.write_analysis(evaluation, made, ["a note"], {"script": "here"}, tmp_path / "analysis.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads((tmp_path / "analysis.json").read_text(), parse_constant=refuse)
    assert document["notes"] == ["a note"] and list(document["tables"]) == ["summary", "emergence"]
    [row] = document["tables"]["emergence"]
    assert row["crossing_50"] is None and row["crossing_50_censored"] is True and row["steps"] == 2
