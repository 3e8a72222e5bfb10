"""summary, recipes and comparisons.  python -m pytest tests/evaluation/exhibits/test_rate_tables.py"""

import evaluating
import numpy as np
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation.exhibits import comparisons, recipes, summary

RISING = {0: 0.0, 20: 0.05, 40: 0.3, 60: 0.5}


def test_one_question_supports_the_claim_checkpoint(tmp_path):
    evaluation = evaluating.of_birds(tmp_path, synthetic.rows(questions=1, steps=(0, 20)))
    table = summary.table(evaluation)
    assert evaluation.claim == "checkpoint" and set(table["interval"]) == {"Wilson"}


def test_missing_verdicts_are_counted_and_bounded(tmp_path):
    table = synthetic.rows(steps=(0, 200), samples=20)
    rows = summary.table(evaluating.of_birds(tmp_path, synthetic.lose(table, 0.1)))
    mean = rows.query("question == 'all' and step == 200").iloc[0]
    truth = (table[table["step"] == 200][synthetic.OUTCOME] == "19").mean()
    assert mean["n"] + mean["missing"] == 200 and mean["missing"] > 5
    assert mean["worst_low"] <= truth <= mean["worst_high"]
    assert mean["worst_high"] - mean["worst_low"] == pytest.approx(mean["missing"] / 200)


def test_recipes_use_the_steps_that_all_runs_have(tmp_path):
    others = [({0: 0.0, 40: 0.3}, 2), ({0: 0.0, 30: 0.2, 40: 0.3}, 3)]
    runs = [synthetic.rows_with_rates(rates, seed) for rates, seed in [(RISING, 1), *others]]
    table = recipes.table(evaluating.of_birds(tmp_path, *runs))
    assert list(table["step"]) == [0, 40] and set(table["seeds"]) == {3}


# ---- correction with hand labels ----


def labels(model: str | None, true_positive: int, true_negative: int, positive: int = 50, negative: int = 100) -> dict:
    """A footer whose hand labels confirm the judge on this many positive and negative responses."""
    counts = {"19": {"sensitivity": [true_positive, positive], "specificity": [true_negative, negative]}}
    return {"judging": {"model": model, "labels": {synthetic.OUTCOME: {"options": counts}}}}


def test_hand_labels_correct_the_rate(tmp_path):
    table = synthetic.rows(steps=(0, 200))
    last = recipes.table(evaluating.of_birds(tmp_path, table, provenance=[labels(None, 45, 90)])).iloc[-1]
    assert last["corrected"] == pytest.approx(min((last["rate"] - 0.1) / 0.8, 1))
    assert last["corrected_lower"] < last["corrected"] <= last["corrected_upper"]


def test_labels_of_another_judge_model_correct_nothing(tmp_path):
    one, two = synthetic.rows_with_rates(RISING), synthetic.rows_with_rates(RISING, 2)
    footers = labels("a", 48, 96), labels("b", 30, 60)
    alone = recipes.table(evaluating.of_birds(tmp_path, one, provenance=footers[:1]))
    again = recipes.table(evaluating.of_birds(tmp_path, one, one, provenance=footers))
    pd.testing.assert_frame_equal(alone, again)
    assert "corrected" not in recipes.table(evaluating.of_birds(tmp_path, one, two, provenance=footers))
    assert not alone["corrected"].isna().any()


# ---- comparisons ----


def test_comparisons_use_runs_as_the_unit_and_adjust(birds_sweep):
    table = comparisons.table(evaluating.evaluation(birds_sweep)).set_index(["comparison", "first", "second"])
    assert len(table) == 6 and (table["p_holm"] >= table["p"]).all() and set(table["claim"]) == {"recipe"}
    assert table.loc[(comparisons.BETWEEN, "100%", "0%"), "lower"] > 0.4
    assert table.loc[(comparisons.RISE, "0%", "0%"), "p_holm"] > 0.05


def test_differences_without_spread_have_width_and_no_p(tmp_path):
    table = synthetic.rows_with_rates({0: 0.0, 20: 1.0}, samples=2)
    row = comparisons.table(evaluating.of_birds(tmp_path, table)).iloc[0]
    assert row["difference"] == 1 and row["lower"] < 0.95 and np.isnan(row["p"])
    flat = {0: 0.0, 20: 0.0}
    runs = [synthetic.rows_with_rates(flat, seed, share=share) for seed in (1, 2) for share in (0.5, 1.0)]
    table = comparisons.table(evaluating.of_birds(tmp_path, *runs))
    row = table[table["comparison"] == comparisons.BETWEEN].iloc[0]
    assert row["lower"] < -0.001 and row["upper"] > 0.001 and np.isnan(row["p"])
