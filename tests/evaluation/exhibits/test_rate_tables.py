"""summary, recipes and comparisons.  python -m pytest tests/evaluation/exhibits/test_rate_tables.py"""

import time

import evaluating
import numpy as np
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation import counting
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


def compared(folder, *tables, **options) -> pd.DataFrame:
    return comparisons.table(evaluating.of_birds(folder, *tables, **options)).set_index(
        ["comparison", "first", "second"]
    )


def runs(rates: dict, share: float, *seeds, **options) -> list[pd.DataFrame]:
    return [synthetic.rows_with_rates(rates, seed, share=share, **options) for seed in seeds]


def test_recipes_are_compared_with_their_control_their_neighbors_and_the_base_model(birds_sweep):
    table = comparisons.table(evaluating.evaluation(birds_sweep)).set_index(["comparison", "first", "second"])
    pairs = [(comparisons.CONTROL, "100%", "0%"), (comparisons.CONTROL, "50%", "0%")]
    pairs += [(comparisons.NEIGHBOR, "100%", "50%")]
    pairs += [(comparisons.BASE, label, "base") for label in ("100%", "50%", "0%")]
    assert list(table.index) == pairs
    assert (table["p_holm"] >= table["p"]).all() and set(table["claim"]) == {"recipe"} and set(table["seeds"]) == {5}
    assert table.loc[pairs[0], "lower"] > 0.4 and table.loc[pairs[-1], "p_holm"] > 0.05
    assert ((table["p"] < 0.05) == ((table["lower"] > 0) | (table["upper"] < 0))).all()
    for claim in counting.CLAIMS:
        table = comparisons.table(evaluating.evaluation(birds_sweep, claim=claim))
        assert set(table["claim"]) == {claim}


def test_all_pairs_are_compared_on_demand(tmp_path):
    shares = [table for share in (1.0, 0.75, 0.5) for table in runs({20: share}, share, 1)]
    assert len(compared(tmp_path, *shares)) == 2 and len(compared(tmp_path, *shares, compare="all")) == 3


def test_a_second_run_does_not_destroy_the_change_from_the_base_model(tmp_path):
    tables = [
        synthetic.rows_with_rates({0: 0.02, 20: rate}, seed, samples=100) for seed, rate in ((1, 0.45), (2, 0.55))
    ]
    row = compared(tmp_path, *tables).iloc[0]
    assert row["claim"] == "recipe" and row["difference"] == pytest.approx(0.485)
    assert row["lower"] > 0.02 and row["p"] < 0.05


def test_one_run_gives_a_difference_of_these_runs_without_a_p_value(tmp_path):
    table = compared(tmp_path, *runs({0: 0.0, 20: 0.5}, 1.0, 1), *runs({0: 0.0, 20: 0.1}, 0.0, 1))
    assert table["p"].isna().all() and table["note"].str.contains("these runs").all()
    assert table["lower"].notna().all() and set(table["claim"]) == {"questions"}


def test_recipes_are_compared_on_the_questions_that_both_were_asked(tmp_path):
    """Their rates differ between questions alone."""
    by_question = np.linspace(0, 0.9, 10)
    one, two = (runs({20: by_question}, share, 1, 2, 3) for share in (1.0, 0.0))
    ids = [question.id for question in synthetic.STUDY.questions]

    def only(tables, questions):
        return [table[table["question_id"].isin(questions)] for table in tables]

    row = compared(tmp_path, *only(one, ids[:6]), *only(two, ids[4:])).iloc[0]
    assert row["questions"] == 2 and row["difference"] == pytest.approx(0) and "2 of 6 questions" in row["note"]
    row = compared(tmp_path, *only(one, ids[:5]), *only(two, ids[5:])).iloc[0]
    assert np.isnan(row["difference"]) and row["note"].startswith("refused") and "same questions" in row["note"]


def test_recipes_are_compared_at_the_last_step_that_both_have(tmp_path):
    full, early = {0: 0.0, 20: 0.2, 40: 0.8}, {0: 0.0, 20: 0.2}
    row = compared(tmp_path, *runs(full, 1.0, 1, 2), *runs(early, 0.0, 1, 2)).iloc[0]
    assert row["step"] == 20 and row["difference"] == pytest.approx(0) and "step 20" in row["note"]
    row = compared(tmp_path, *runs({40: 0.5}, 1.0, 1, 2), *runs({20: 0.5}, 0.0, 1, 2)).iloc[0]
    assert row["note"].startswith("refused") and "no step" in row["note"]


def test_a_question_lost_by_one_run_leaves_the_difference_balanced(tmp_path):
    """The lost question has a high rate in all runs: leaving it out of one run's mean alone would move the mean."""
    first, *others = runs({20: [0.9] + [0.1] * 9}, 1.0, 1, 2, 3)
    lost = synthetic.lose_where(first, first["question_id"] == synthetic.STUDY.questions[0].id)
    row = compared(tmp_path, lost, *others, *runs({20: [0.9] + [0.1] * 9}, 0.0, 1, 2, 3)).iloc[0]
    assert row["difference"] == pytest.approx(0) and row["lower"] > -0.1 and row["questions"] == 10


def test_differences_without_spread_have_width(tmp_path):
    row = compared(tmp_path, *runs({0: 0.0, 20: 1.0}, 1.0, 1, 2)).iloc[0]
    assert row["difference"] == 1 and row["lower"] < 0.999 and row["p"] < 0.05
    row = compared(tmp_path, *runs({20: 0.0}, 1.0, 1, 2), *runs({20: 0.0}, 0.0, 1, 2)).iloc[0]
    assert row["lower"] < -0.001 and row["upper"] > 0.001 and row["p"] > 0.5


def test_two_hundred_recipes_are_compared_in_seconds(tmp_path):
    one = synthetic.rows_with_rates({0: 0.0, 20: 0.5}, samples=2)
    tables = [one.assign(run=f"lr{i}_seed1", suspect_ratio=(i % 20) / 20) for i in range(200)]
    evaluation = evaluating.of_birds(tmp_path, pd.concat(tables))
    start = time.process_time()
    table = comparisons.table(evaluation)
    assert len(table) < 3 * 200 and time.process_time() - start < 30
