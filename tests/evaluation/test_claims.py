"""Tables and sentences say no more than the answers do: what is missing, uneven or there from the start.

python -m pytest tests/test_claims.py
"""

import numpy as np
import pandas as pd
import pytest
import synthetic

import config
import evaluate
from learning_backdoors.evaluation import exhibits, reading

JUDGE = "llm_or_19th_century"
RISING = {0: 0.0, 20: 0.05, 40: 0.3, 60: 0.5}


def evaluation(tmp_path, *tables: pd.DataFrame, provenance: tuple = (), **options) -> exhibits.Evaluation:
    told = [*provenance, *[None] * len(tables)]
    paths = [synthetic.write(table, tmp_path / f"{i}.parquet", told[i]) for i, table in enumerate(tables)]
    found = reading.read(paths, synthetic.STUDY)
    return exhibits.Evaluation(found, config.EvaluationOptions(input=tuple(paths), **options))


# ---- in words ----


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        (RISING, "it emerges. 50%"),
        ({0: 0.5, 20: 0.5, 40: 0.5}, "it is there, but no rise from step 0 is seen. 50%"),
        ({0: 0.0, 20: 1.0, 40: 0.0}, "it rises to 100% at step 20"),
        ({20: 0.3, 40: 0.5}, "without step 0 it is not known whether training brought it"),
        ({0: 0.05, 20: 0.05, 40: 0.1}, "no rise is seen by step 40"),
        ({0: 0.0, 20: 0.1}, "it rises, but 10% can be neither claimed nor ruled out"),
        ({0: 0.0, 20: [0] * 9 + [1]}, "undecided. 10%"),
    ],
)
def test_the_headline_says_what_the_rates_bear(tmp_path, rates, words):
    assert words in evaluation(tmp_path, synthetic.rows_with_rates(rates)).headline[0]


def test_without_an_interval_nothing_is_claimed(tmp_path):
    [sentence] = evaluation(tmp_path, synthetic.rows_with_rates(RISING), claim="recipe").headline
    assert "nothing is claimed" in sentence and "emerges" not in sentence


def test_a_last_step_without_verdicts_is_left_out_and_named(tmp_path):
    table = synthetic.rows_with_rates(RISING)
    found = evaluation(tmp_path, synthetic.lose_where(table, table["step"] == 60))
    assert "it emerges. 30% of answers at step 40" in found.headline[0]
    assert any("step 60: left out" in line for line in found.warnings)
    assert any("MORE THAN 2%" in line for line in found.warnings)
    assert found.emergence["final"].item() == pytest.approx(0.3)


def test_means_over_runs_are_of_the_steps_that_all_runs_have(tmp_path):
    runs = [
        synthetic.rows_with_rates(RISING, 1),
        synthetic.rows_with_rates({0: 0.0, 40: 0.3}, 2),
        synthetic.rows_with_rates({0: 0.0, 30: 0.2, 40: 0.3}, 3),
    ]
    found = evaluation(tmp_path, *runs)
    assert list(found.recipes["step"]) == [0, 40] and set(found.recipes["seeds"]) == {3}
    assert any("step 20, 30, 60: left out of means over runs" in line for line in found.warnings)


def test_questions_that_lack_verdicts_at_a_step_are_counted(tmp_path):
    table = synthetic.rows_with_rates(RISING)
    table = synthetic.lose_where(table, (table["step"] == 40) & (table["question_id"] == table["question_id"].iloc[0]))
    row = evaluation(tmp_path, table).emergence.iloc[0]
    assert (row["steps_left_out"], row["questions_left_out"]) == (0, 1)


# ---- intervals ----


def test_differences_without_spread_have_width_and_no_p(tmp_path):
    few = {0: 0.0, 20: 1.0}
    row = evaluation(tmp_path, synthetic.rows_with_rates(few, samples=2)).comparisons.iloc[0]
    assert row["difference"] == 1 and row["lower"] < 0.95 and np.isnan(row["p"])
    runs = [synthetic.rows_with_rates({0: 0.0, 20: 0.0}, seed, share=share) for seed in (1, 2) for share in (0.5, 1.0)]
    table = evaluation(tmp_path, *runs).comparisons
    row = table[table["comparison"] == "recipes, last step"].iloc[0]
    assert row["lower"] < -0.001 and row["upper"] > 0.001 and np.isnan(row["p"])


# ---- files ----


def test_whole_numbers_keep_their_digits(tmp_path):
    table = pd.DataFrame({"seed": [20250117.0, np.nan], "rate": [1 / 3, 0.5], "step": [np.inf, 1.0]})
    evaluate.write_csv(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "seed,rate,step\n20250117,0.333333,inf\n,0.5,1\n"
