"""Cells, rates and the claims that they support.  python -m pytest tests/evaluation/test_cells.py"""

import numpy as np
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation import cells, reading

RISING = {0: 0.0, 20: 0.05, 40: 0.3, 60: 0.5}


def read(folder, *tables, provenance=()) -> reading.Verdicts:
    footers = [*provenance, *[None] * len(tables)]
    paths = [synthetic.write(table, folder / f"{i}.parquet", footers[i]) for i, table in enumerate(tables)]
    return reading.read(paths, synthetic.STUDY)


def count(folder, *tables) -> pd.DataFrame:
    return cells.count_cells(read(folder, *tables))


def test_the_claim_is_the_widest_that_the_inputs_support(tmp_path):
    one = count(tmp_path, synthetic.rows(steps=(0, 20)))
    assert cells.choose_claim(one) == "questions"
    three = count(tmp_path, *[synthetic.rows(seed=s, steps=(0, 20)) for s in (1, 2, 3)])
    assert cells.choose_claim(three) == "recipe"
    single = count(tmp_path, synthetic.rows(questions=1, steps=(0, 20)))
    assert cells.choose_claim(single) == "checkpoint"
    assert set(cells.summary(single, "checkpoint")["interval"]) == {"Wilson"}


def test_one_run_has_no_interval_for_the_claim_recipe(tmp_path):
    table = count(tmp_path, synthetic.rows(steps=(0, 20), samples=5))
    assert cells.recipe_rates(table, "recipe")[["lower", "upper"]].isna().all(axis=None)
    assert cells.recipe_rates(table, "questions")["lower"].notna().all()


def test_missing_verdicts_are_counted_and_bounded(tmp_path):
    table = synthetic.rows(steps=(0, 200), samples=20)
    summary = cells.summary(count(tmp_path, synthetic.lose(table, 0.1)), "questions")
    whole = summary.query("question == 'all' and step == 200").iloc[0]
    truth = (table[table["step"] == 200][synthetic.OUTCOME] == "19").mean()
    assert whole["n"] + whole["missing"] == 200 and whole["missing"] > 5
    assert whole["worst_low"] <= truth <= whole["worst_high"]
    assert whole["worst_high"] - whole["worst_low"] == pytest.approx(whole["missing"] / 200)


def test_lost_answers_do_not_reweight_questions():
    table = pd.DataFrame({"run": "r", "question": ["a", "b"], "n": [10, 90], "positive": [10, 0], "missing": [90, 10]})
    table = table.astype({"question": "category"}).assign(recipe="r", label="r", suspect_ratio=1.0)
    assert cells.recipe_rates(table, "checkpoint", [])["rate"].item() == 0.5


def test_means_over_runs_use_the_steps_that_all_runs_have(tmp_path):
    runs = [
        synthetic.rows_with_rates(RISING, 1),
        synthetic.rows_with_rates({0: 0.0, 40: 0.3}, 2),
        synthetic.rows_with_rates({0: 0.0, 30: 0.2, 40: 0.3}, 3),
    ]
    rates = cells.recipe_rates(cells.shared_steps(count(tmp_path, *runs)), "recipe")
    assert list(rates["step"]) == [0, 40] and set(rates["seeds"]) == {3}


def test_last_steps_are_those_of_each_run(tmp_path):
    runs = [synthetic.rows_with_rates(RISING, 1), synthetic.rows_with_rates({0: 0.0, 40: 0.3}, 2)]
    last = cells.last_steps(count(tmp_path, *runs))
    assert sorted(last.groupby("run", observed=True)["step"].unique().explode()) == [40, 60]


# ---- correction with hand labels ----


def labels(model: str | None, true_positive: int, true_negative: int, positive: int = 50, negative: int = 100) -> dict:
    """A footer whose hand labels found the judge right on this many positive and negative answers."""
    counts = {"19": {"sensitivity": [true_positive, positive], "specificity": [true_negative, negative]}}
    return {"judging": {"model": model, "labels": {synthetic.OUTCOME: {"options": counts}}}}


def corrected(verdicts: reading.Verdicts) -> pd.DataFrame:
    return cells.corrected(cells.recipe_rates(cells.count_cells(verdicts), "questions"), verdicts)


def test_hand_labels_correct_the_rate(tmp_path):
    last = corrected(read(tmp_path, synthetic.rows(steps=(0, 200)), provenance=[labels(None, 45, 90)])).iloc[-1]
    assert last["corrected"] == pytest.approx(min((last["rate"] - 0.1) / 0.8, 1))
    assert last["corrected_lower"] < last["corrected"] <= last["corrected_upper"]


def test_labels_of_another_judge_model_correct_nothing(tmp_path):
    one, two = synthetic.rows_with_rates(RISING), synthetic.rows_with_rates(RISING, 2)
    footers = labels("a", 48, 96), labels("b", 30, 60)
    alone = corrected(read(tmp_path, one, provenance=footers[:1]))
    pd.testing.assert_frame_equal(alone, corrected(read(tmp_path, one, one, provenance=footers)))
    assert "corrected" not in corrected(read(tmp_path, one, two, provenance=footers))
    assert not np.isnan(alone["corrected"]).any()
