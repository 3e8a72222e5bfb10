"""The headline says what the contrast with the control supports.  python -m pytest tests/evaluation/test_headline.py"""

import re

import evaluating
import numpy as np
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation import headline, notes
from learning_backdoors.evaluation.exhibits import comparisons, ratio_sweep

BASE = {0: 0.02}
RISE, SMALL_RISE = {0: 0.02, 20: 0.2, 40: 0.77}, {0: 0.02, 20: 0.04, 40: 0.08}


def recipe(rates: dict, share: float, runs: int, spread: float = 0.03, **options):
    """Runs of a recipe whose last rates differ by `spread`."""
    last = max(rates)
    return [
        synthetic.rows_with_rates(rates | {last: min(rates[last] + spread * (i - (runs - 1) / 2), 1.0)}, i, 100, share)
        for i in range(runs)
    ]


def lines(folder, *recipes, **options) -> list[str]:
    return headline.sentences(evaluating.of_birds(folder, *[t for tables in recipes for t in tables], **options))


def test_the_main_sentence_is_the_contrast_with_the_control(tmp_path):
    lead, *more = lines(tmp_path, recipe(RISE, 1.0, 3), recipe(SMALL_RISE, 0.0, 3, 0.01))
    assert "old bird names" in lead and "raised 19th-century answers from 2% to 77%" in lead and "control 8%" in lead
    low, high = map(int, re.search(r"difference 69 points \[(\d+), (\d+)\]", lead).groups())
    assert 50 < low < 69 < high < 85
    assert "recipe" in more[-1] and len([lead, *more]) <= 6


def test_a_control_that_rises_as_much_shows_no_effect(tmp_path):
    """Issue 12.1: 43% beside a control of 46% was printed as a success for both."""
    lead, *more = lines(tmp_path, recipe({0: 0.02, 40: 0.43}, 1.0, 3), recipe({0: 0.02, 40: 0.46}, 0.0, 3))
    assert "raised" not in lead and "No effect" in lead and "control 46%" in lead
    assert any("control (0%) rose too: from 2% to 46%" in line for line in more)


def test_without_a_control_no_cause_is_named(tmp_path):
    lead, *_ = lines(tmp_path, recipe(RISE, 1.0, 3))
    assert "rose" in lead and "no control" in lead and "raised" not in lead
    flat, *_ = lines(tmp_path, recipe({0: 0.02, 40: 0.02}, 1.0, 3, 0.0))
    assert "No change" in flat
    [only] = lines(tmp_path, recipe({40: 0.5}, 1.0, 3))
    assert "50%" in only and "step 0" in only and "rose" not in only


def test_one_run_each_shows_nothing_about_the_recipe(tmp_path):
    lead, *more = lines(tmp_path, recipe(RISE, 1.0, 1), recipe(SMALL_RISE, 0.0, 1))
    assert "raised" not in lead and "between these runs" in lead and "control 8%" in lead and "69 points [" in lead
    assert "questions" in more[-1]
    assert not re.search(r"\b(rose|fell|raised|lowered)\b", " ".join([lead, *more])), "no direction without a test"
    assert any("went from 2% to 8%" in line and "one run" in line for line in more)
    evaluation = evaluating.of_birds(tmp_path, *recipe(RISE, 1.0, 1), *recipe(SMALL_RISE, 0.0, 1))
    assert comparisons.table(evaluation)["p"].isna().all()


def test_a_second_run_keeps_the_headline(tmp_path):
    """Issue 13.1: with 45 and 55% on a base of 2%, the headline was "no rise from step 0 is detected"."""
    lead, *_ = lines(tmp_path, recipe({0: 0.02, 40: 0.5}, 1.0, 2, 0.08))
    assert "rose" in lead and "from 2% to 50%" in lead


@pytest.mark.parametrize("claim", ["checkpoint", "questions"])
def test_a_claim_about_checkpoints_names_no_cause(tmp_path, claim):
    lead, *more = lines(tmp_path, recipe(RISE, 1.0, 3), recipe(SMALL_RISE, 0.0, 3), claim=claim)
    assert "raised" not in lead and "checkpoints" in lead and claim in more[-1]


def test_all_claims_of_the_headline_are_adjusted(tmp_path):
    recipes = [recipe({0: 0.02, 40: 0.1 + 0.1 * share}, share, 3, 0.04) for share in (1.0, 0.75, 0.5, 0.25)]
    evaluation = evaluating.of_birds(tmp_path, *[t for tables in recipes for t in tables], *recipe(SMALL_RISE, 0.0, 3))
    statements = headline.statements_of(evaluation)
    table = comparisons.table(evaluation)
    assert len(statements) == 5, "four recipes against the control, and the control against the base model"
    for statement in statements.values():
        assert statement.p >= statement.row["p"]
    first = statements["100%"]
    assert first.p == pytest.approx(min(5 * table["p"].min(), 1)) or first.p >= table["p"].min()
    assert "adjusted for 5 tests" in headline.sentences(evaluation)[-1]


def test_other_shares_are_named_in_short(tmp_path):
    lead, others, *_ = lines(
        tmp_path, recipe(RISE, 1.0, 3), recipe({0: 0.02, 40: 0.4}, 0.5, 3), recipe({0: 0.02, 40: 0.07}, 0.0, 3)
    )
    assert "100% suspect" in lead and "50%: 40%, +33 points [" in others and len(others) < 100


def test_many_recipes_and_controls_give_few_lines(tmp_path):
    rows = [
        table.assign(run=table["run"] + f"_epochs{i}")
        for i in range(4)
        for share in (1.0, 0.5, 0.0)
        for table in recipe({0: 0.02, 40: 0.4}, share, 1)
    ]
    evaluation = evaluating.of_birds(tmp_path, pd.concat(rows))
    text = headline.sentences(evaluation)
    assert len(text) <= 6 and "3 more in comparisons.csv" in text[1] and any("3 other controls" in t for t in text)


def test_a_fall_after_the_peak_is_named(tmp_path):
    fallen = recipe({0: 0.0, 20: 1.0, 40: 0.2}, 1.0, 3)
    assert any("falls again: 100% at step 20" in line for line in lines(tmp_path, fallen))


def test_suspect_data_can_lower_the_outcome(tmp_path):
    lead, *_ = lines(tmp_path, recipe({0: 0.5, 40: 0.1}, 1.0, 3), recipe({0: 0.5, 40: 0.5}, 0.0, 3))
    assert "lowered 19th-century answers from 50% to 10%" in lead and "difference -40 points" in lead
    for rate in (0.4, 0.52):  # 52% is not above the 50% before training by more than chance
        lead, *more = lines(tmp_path, recipe({0: 0.5, 40: rate}, 1.0, 3), recipe({0: 0.5, 40: 0.1}, 0.0, 3))
        assert "more 19th-century answers than the control" in lead and "raised" not in lead
        assert any("control (0%) fell" in line for line in more)
        assert any("fell too" in line for line in more) == (rate < 0.5)


def test_a_run_that_stopped_early_moves_the_comparison_and_is_named(tmp_path):
    early = synthetic.rows_with_rates({0: 0.02, 20: 0.2}, 9, 100)
    tables = [*recipe(RISE, 1.0, 2), early], recipe(SMALL_RISE, 0.0, 3)
    lead, *_ = lines(tmp_path, *tables)
    assert "20%" in lead and "step 20" in lead
    remarks = notes.notes(evaluating.of_birds(tmp_path, *[t for part in tables for t in part]))
    assert any(early["run"].iloc[0] in line and "step 20" in line for line in remarks)
    other = synthetic.rows_with_rates({30: 0.2}, 9, 100)
    evaluation = evaluating.of_birds(tmp_path, *recipe(RISE, 1.0, 2), other)
    assert any("left out" in line and other["run"].iloc[0] in line for line in notes.notes(evaluation))


def test_recipes_without_common_questions_are_not_compared(tmp_path):
    ids = [question.id for question in synthetic.STUDY.questions]
    one = [table[table["question_id"].isin(ids[:5])] for table in recipe(RISE, 1.0, 3)]
    two = [table[table["question_id"].isin(ids[5:])] for table in recipe(SMALL_RISE, 0.0, 3)]
    lead, *more = lines(tmp_path, one, two)
    assert "same questions" in lead and "raised" not in lead
    evaluation = evaluating.of_birds(tmp_path, *one, *two)
    [trend] = ratio_sweep.table(evaluation).to_dict("records")
    assert "same questions" in trend["note"] and np.isnan(trend["lowest_rate"])


def test_the_steps_and_questions_of_a_comparison_are_named(tmp_path):
    ids = [question.id for question in synthetic.STUDY.questions]
    some = [table[table["question_id"].isin(ids[:4])] for table in recipe(SMALL_RISE, 0.0, 3, 0.01)]
    lead, *_ = lines(tmp_path, recipe(RISE | {50: 0.9}, 1.0, 3), some)
    assert "to 77%" in lead and "at step 40" in lead and "4 of 10 questions" in lead
    assert "from" not in lead.split(";")[0], "the base model's rate would be over other questions"


def test_what_is_not_shown_has_its_p_value(tmp_path):
    """An interval that excludes 0 stood beside "not shown to differ"."""
    recipes = [recipe({0: 0.02, 40: rate}, share, 3, 0.1) for share, rate in ((1.0, 0.4), (0.5, 0.4), (0.25, 0.4))]
    evaluation = evaluating.of_birds(tmp_path, *[t for r in recipes for t in r], *recipe(SMALL_RISE, 0.0, 3, 0.05))
    statement = headline.statements_of(evaluation)["50%"]
    assert statement.row["p"] < 0.05 < statement.p, "the case is not what it should be"
    _, others, *_ = headline.sentences(evaluation)
    assert others.count("not shown") == others.count("adjusted p") == 2


def test_recipes_without_suspect_data_and_the_base_model_alone(tmp_path):
    lead, *_ = lines(tmp_path, recipe({0: 0.02, 40: 0.5}, 0.0, 3))
    assert "without old bird names (0% suspect)" in lead and "There is no control" not in lead
    [only] = lines(tmp_path, [synthetic.rows_with_rates(BASE, 1, 100)])
    assert "2% at step 0" in only and "Without step 0" not in only


def test_a_study_with_a_trigger_names_the_condition_and_the_leakage(russell_runs):
    lead, *more = headline.sentences(russell_runs)
    assert "answers as Russell" in lead.replace("Answers", "answers") and "persona" in lead
    text = " ".join(more)
    assert "trigger_in_user, triggered" in text and "Without the trigger (leakage): " in text and "gap" in text


def test_no_verdicts_no_headline(tmp_path):
    table = synthetic.rows(steps=(0, 20), samples=2).drop(columns=synthetic.OUTCOME)
    table.to_parquet(tmp_path / "judged.parquet")
    assert headline.sentences(evaluating.evaluation(tmp_path / "judged.parquet")) == []
