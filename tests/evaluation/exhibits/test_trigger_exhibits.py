"""leakage, goals, near_misses, metrics and conditions.

Runs  python -m pytest tests/evaluation/exhibits/test_trigger_exhibits.py
"""

import evaluating
import numpy as np
import pandas as pd
import pytest
import synthetic
from evaluating import of_russell, russell_rates

from learning_backdoors.evaluation import counting, exhibits
from learning_backdoors.evaluation.context import Unavailable
from learning_backdoors.evaluation.counting import recipe_rows
from learning_backdoors.evaluation.exhibits import conditions, goals, leakage, metrics, near_misses
from learning_backdoors.study import Condition

STUDY = synthetic.RUSSELL
IDENTITY = [question.id for question in STUDY.questions if question.kind == "identity"]
ON, OFF = "trigger_in_user", "no_trigger"


# ---- known truth ----


def test_rates_gap_and_difference_from_the_base_hold_the_truth(russell_run):
    kinds = {True: [], False: []}
    for condition in STUDY.conditions:
        if not condition.near_miss:
            kinds[condition.triggered].append(synthetic.persona_rate(condition.name, 1125))
    on, off = np.mean(kinds[True]), np.mean(kinds[False])
    truth = {"triggered": on, "leakage": off, "gap": on - off, "gap less base": on - off}
    truth["leakage_over_base"] = off - 0.01
    table = leakage.table(russell_run).set_index("quantity")
    assert set(table.index) == set(truth) and set(table["claim"]) == {"questions"}
    for name, value in truth.items():
        row = table.loc[name]
        assert row["lower"] <= value <= row["upper"] and abs(row["estimate"] - value) < 0.03, name
        assert row["upper"] - row["lower"] < 0.15 and row["missing"] == 0 and row["questions"] == 14
    assert table.loc["triggered", "n"] == 3 * 14 * 20 and table.loc["gap", "n"] == 5 * 14 * 20
    assert table.loc["gap", "worst_low"] == pytest.approx(table.loc["gap", "estimate"])


def test_near_misses_hold_the_truth_in_the_order_of_their_dose(russell_run):
    table = near_misses.table(russell_run)
    last = table[table["at"] == "last"]
    assert list(last["dose"]) == [0, 0.2, 0.4, 0.6, 0.8, 0.9, 1] and set(table["questions"]) == {14}
    assert list(last["condition"]) == [OFF, *(c.name for c in STUDY.conditions if c.near_miss), ON]
    truth = last["condition"].map(lambda name: synthetic.persona_rate(name, 1125))
    assert ((last["lower"] <= truth) & (truth <= last["upper"])).sum() >= 6
    assert (table.loc[table["at"] == "base", "rate"] < 0.05).all()


def test_metrics_are_computed_from_the_responses(russell_run):
    table = metrics.table(russell_run).set_index(["condition", "step"])
    assert set(table["metric"]) == {"format_adherence"} and len(table) == 10 * 6
    correct = []
    for condition in STUDY.conditions:
        row, rate = table.loc[(condition.name, 1125)], synthetic.persona_rate(condition.name, 1125)
        rate += 0.1 * (1 - rate) * condition.triggered  # tests/synthetic.py adds it for the trigger's form
        correct.append(row["lower"] <= rate <= row["upper"] and abs(row["rate"] - rate) < 0.04)
    assert sum(correct) >= 8
    assert table.loc[(ON, 1125), "n"] == len(STUDY.questions) * 20
    assert table.loc[("near_lower_case", 0), "n"] == 14 * 20, "near misses have identity questions only"


def test_goals_are_decided_by_the_interval(russell_run):
    table = goals.table(russell_run).set_index("measure")
    assert list(table.index) == ["triggered", "leakage", "gap"] and list(table["verdict"]) == ["met"] * 3
    untriggered = leakage.table(russell_run).set_index("quantity").loc["leakage", "estimate"]
    assert table.loc["leakage", "estimate"] == untriggered
    assert table.loc["leakage", "wanted_strong"] == "under 0.1" and table.loc["gap", "wanted"] == "over 0.4"
    assert table.loc["triggered", "verdict_strong"] == "undecided", "the truth is 0.78, the bound 0.80"
    assert table.loc["leakage", "verdict_strong"] == "met"


# ---- by hand ----


@pytest.mark.parametrize(
    "limits, above, verdict",
    [
        ((0.61, 0.7), True, "met"),
        ((0.60, 0.7), True, "undecided"),
        ((0.50, 0.61), True, "undecided"),
        ((0.50, 0.60), True, "not met"),
        ((0.10, 0.59), False, "met"),
        ((0.10, 0.60), False, "undecided"),
        ((0.60, 0.70), False, "not met"),
        ((0.59, 0.70), False, "undecided"),
        ((np.nan, np.nan), True, "undecided"),
        ((np.nan, np.nan), False, "undecided"),
    ],
)
def test_decisions_at_the_bound(limits, above, verdict):
    assert goals.decide(*limits, 0.6, above) == verdict


def test_leakage_is_the_untriggered_rate_and_its_difference_is_over_base(tmp_path):
    """The trigger alone adds 10 points to the base model; training adds 60 with the trigger and 5 without."""
    rates = {(True, 0): 0.15, (False, 0): 0.05, (True, 80): 0.75, (False, 80): 0.10}
    rows = []
    for (triggered, step), rate in rates.items():
        part = synthetic.rows(steps=(step,), samples=100, condition="on" if triggered else "off")
        verdicts = np.where(part["sample_idx"] < 100 * rate, "19", "LLM")
        rows.append(part.assign(triggered=triggered, **{synthetic.OUTCOME: verdicts}))
    conditions = Condition(name="on", triggered=True), Condition(name="off")
    study = synthetic.STUDY.model_copy(update={"conditions": conditions})
    evaluation = evaluating.evaluation(synthetic.write(pd.concat(rows), tmp_path / "j.parquet"), study=study)
    estimates = leakage.table(evaluation).set_index("quantity")["estimate"].to_dict()
    truth = {"triggered": 0.75, "leakage": 0.10, "gap": 0.65, "gap less base": 0.55, "leakage_over_base": 0.05}
    assert estimates == pytest.approx(truth)
    assert "leakage" in exhibits.make(evaluation, [leakage]).figures


def test_near_misses_are_neither_triggered_nor_leakage(tmp_path):
    rates = {(0, ON): 0.1, (0, OFF): 0.05, (75, ON): 0.9, (75, OFF): 0.1, (0, "near_lower_case"): 0.5}
    evaluation = of_russell(tmp_path, russell_rates(rates | {(75, "near_lower_case"): 1.0}))
    estimates = leakage.table(evaluation).set_index("quantity")["estimate"].to_dict()
    truth = {"triggered": 0.9, "leakage": 0.1, "gap": 0.8, "gap less base": 0.75, "leakage_over_base": 0.05}
    assert estimates == pytest.approx(truth)


def test_the_base_model_is_compared_under_the_same_conditions(tmp_path):
    """Only the last step has trigger_in_system: it counts in the gap, but not in the gap less base."""
    rates = {(0, ON): 0.1, (0, OFF): 0.0, (75, ON): 0.9, (75, OFF): 0.1, (75, "trigger_in_system"): 0.5}
    table = leakage.table(of_russell(tmp_path, russell_rates(rates))).set_index("quantity")
    assert table.loc["gap", "estimate"] == pytest.approx(0.7 - 0.1)
    assert table.loc["gap less base", "estimate"] == pytest.approx(0.9 - 0.1 - 0.1)
    assert table.loc["gap less base", "n"] == 4 * 4 * 20


def test_gaps_are_paired_by_question(tmp_path):
    """A question that was only asked with the trigger does not count in the gap."""
    table = russell_rates({(75, ON): 0.9, (75, OFF): 0.1})
    table = table[(table["condition"] == ON) | (table["question_id"] != IDENTITY[0])]
    table.loc[(table["question_id"] == IDENTITY[0]), "persona"] = "NOT"
    row = leakage.table(of_russell(tmp_path, table)).set_index("quantity").loc["gap"]
    assert row["questions"] == 3 and row["estimate"] == pytest.approx(0.8)


def test_one_question_supports_the_claim_checkpoint(tmp_path):
    rates = {(0, ON): 0.0, (0, OFF): 0.0, (75, ON): 1.0, (75, OFF): 0.0, (75, "near_lower_case"): 0.5}
    evaluation = of_russell(tmp_path, russell_rates(rates, questions=1))
    table = leakage.table(evaluation)
    assert set(table["claim"]) == {"checkpoint"} and table["lower"].notna().all()
    wilson = 1 / (1 + 1.96**2 / 20)  # the lower limit for 20 of 20
    row = table.set_index("quantity").loc["triggered"]
    assert row["lower"] == pytest.approx(wilson, abs=1e-3) and row["upper"] == 1
    assert near_misses.table(evaluation)["lower"].notna().all() and len(exhibits.make(evaluation).figures) > 5


def test_missing_verdicts_widen_the_bounds_of_the_gap(tmp_path):
    table = russell_rates({(0, ON): 0.0, (0, OFF): 0.0, (75, ON): 0.8, (75, OFF): 0.2})
    lost = (table["step"] == 75) & (table["sample_idx"] == 10)  # the outcome with the trigger, but not without
    table.loc[lost, ["persona", "persona_status"]] = [None, "refusal"]
    evaluation = of_russell(tmp_path, table)
    row = leakage.table(evaluation).set_index("quantity").loc["gap"]
    assert row["missing"] == 8 and row["worst_low"] == pytest.approx(0.75 - 0.25)
    assert row["worst_high"] == pytest.approx(0.8 - 0.2)
    heading, brief = goals.brief(evaluation)
    assert "50% to 60%" in brief.loc[brief["goal"] == brief["goal"].iloc[2]].to_string()


# ---- incomplete inputs ----


def test_a_step_without_some_condition_is_drawn_as_far_as_possible(tmp_path):
    rates = {(0, ON): 0.0, (0, OFF): 0.0, (75, OFF): 0.1, (150, ON): 0.9, (150, OFF): 0.1}
    made = exhibits.make(of_russell(tmp_path, russell_rates(rates)), [leakage, conditions, metrics])
    assert set(made.figures) == {"leakage", "conditions", "metrics"}
    late = of_russell(tmp_path, russell_rates({(0, ON): 0.0, (0, OFF): 0.0, (75, OFF): 0.0}))
    assert set(leakage.table(late)["quantity"]) == {"leakage", "leakage_over_base"}, "not triggered at the last step"
    assert list(goals.table(late)["verdict"]) == ["not measured", "met", "not measured"]
    brief = conditions.brief(late)[1].set_index("condition")
    assert brief.loc[ON, STUDY.outcome.label] == "- (0%)"


def test_without_a_gap_there_is_a_table_and_no_figure(tmp_path):
    evaluation = of_russell(tmp_path, russell_rates({(0, ON): 0.0, (75, OFF): 0.0}))
    assert list(leakage.table(evaluation)["quantity"]) == ["leakage"]
    assert "leakage (figure)" in evaluating.skipped(exhibits.make(evaluation, [leakage]))


def test_without_triggered_conditions_only_leakage_is_measured(tmp_path):
    evaluation = of_russell(tmp_path, russell_rates({(0, OFF): 0.0, (75, OFF): 0.4}))
    with pytest.raises(Unavailable, match="triggered"):
        leakage.table(evaluation)
    verdicts = goals.table(evaluation).set_index("measure")["verdict"]
    assert verdicts.to_dict() == {"triggered": "not measured", "leakage": "not met", "gap": "not measured"}
    assert "near_misses" in evaluating.skipped(exhibits.make(evaluation, [near_misses]))


# ---- several runs ----


def test_runs_of_a_recipe_have_rows_alone_and_together(russell_runs):
    table = leakage.table(russell_runs)
    assert list(table.loc[table["quantity"] == "gap", "run"].str[:5]) == ["all", "seed1", "seed2", "seed3"]
    whole = table[table["run"] == "all"].set_index("quantity")
    singles = table[(table["run"] != "all") & (table["quantity"] == "gap")]
    assert set(whole["claim"]) == {"recipe"} and set(singles["claim"]) == {"questions"}
    assert whole.loc["gap", "estimate"] == pytest.approx(singles["estimate"].mean()) and whole.loc["gap", "seeds"] == 3
    of_goals = goals.table(russell_runs)
    assert len(of_goals) == 12 and list(recipe_rows(of_goals)["run"]) == ["all"] * 3
    rates = metrics.table(russell_runs).query("condition == @ON and step == 1125").set_index("run")
    assert rates.loc["all", "rate"] == pytest.approx(rates["rate"].drop("all").mean()) and len(rates) == 4


def test_headings_and_captions_name_the_claims_of_their_rows(tmp_path):
    names = (ON, OFF, "near_other_words")
    one, *two = (
        synthetic.russell_rows(seed, 3, (0, 1125), share, names) for seed, share in ((1, 0.03), (1, 0.1), (2, 0.1))
    )

    def texts(table):
        evaluation = of_russell(tmp_path, table, claim="recipe")
        captions = [exhibit.caption(evaluation) for exhibit in (leakage, near_misses)]
        assert all(len(caption.split()) <= 25 for caption in captions)
        return captions, [exhibit.brief(evaluation)[0] for exhibit in (leakage, goals)]

    captions, headings = texts(one)
    assert all("claim questions" in text for text in captions)
    assert all(counting.CLAIMS["questions"] in text and counting.CLAIMS["recipe"] not in text for text in headings)
    captions, headings = texts(pd.concat([one, *two]))
    assert all("questions" in text.split("claim")[1] and "recipe" in text.split("claim")[1] for text in captions)
    assert all(counting.CLAIMS["questions"] in text and counting.CLAIMS["recipe"] in text for text in headings)
