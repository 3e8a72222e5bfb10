"""emergence, emergence_by_recipe, survival, ratio_sweep and training_progression.

Runs  python -m pytest tests/evaluation/exhibits/test_emergence_exhibits.py
"""

import evaluating
import numpy as np
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation.exhibits import (
    crossing_comparisons,
    emergence,
    emergence_by_recipe,
    ratio_sweep,
    recipes,
    survival,
    training_progression,
)


def test_onset_statistics_hold_the_truth(birds_sweep):
    evaluation = evaluating.evaluation(birds_sweep)
    runs = emergence.table(evaluation).set_index("label")
    medians = emergence_by_recipe.table(evaluation).set_index(["label", "level"])
    assert len(runs) == 15 and list(runs.index.unique()) == ["100%", "50%", "0%"]
    full = medians.loc[("100%", 0.5)]
    assert full["crossed"] == 5 and 60 < full["median"] < 100 and full["lower"] <= full["median"] <= full["upper"]
    assert full["supported"] == 5 and full["doubt"] == ""
    assert (runs.loc["100%", "rise"] == "gradual").all() and (runs.loc["0%", "rise"] == "none").all()
    assert runs.loc["100%", "detection_step"].between(20, 100).all() and runs.loc["0%", "detection_step"].isna().all()
    assert runs.loc["0%", "crossing_10_censored"].all() and np.isinf(medians.loc[("0%", 0.1), "median"])
    half = runs.loc["50%"]
    assert half["crossing_10_suspect_examples"].to_numpy() == pytest.approx(half["crossing_10"] / 2, abs=1)


def test_survival_falls_to_0_if_all_runs_cross(birds_sweep):
    evaluation = evaluating.evaluation(birds_sweep)
    crossings = emergence.table(evaluation).set_index("label").loc["100%", "crossing_50"]
    curves = survival.table(evaluation)
    curve = curves.query("label == '100%' and level == 0.5")
    assert curve["step"].tolist() == sorted(crossings) and curve["not_crossed"].iloc[-1] == 0
    assert curve["not_crossed"].iloc[0] == pytest.approx(0.8) and curve[["lower", "upper"]].notna().all(axis=None)
    [none] = curves.query("label == '0%' and level == 0.1").to_dict("records")
    assert (none["step"], none["not_crossed"], none["at_risk"]) == (208, 1, 5) and 0.5 < none["lower"] < none["upper"]


def test_a_run_that_stopped_early_leaves_the_median_crossing(tmp_path):
    """Three runs cross 10% near step 70. Two stopped at step 40: they do not count as never crossing."""
    full = [synthetic.rows(seed=seed, samples=20) for seed in range(3)]
    short = [synthetic.rows(seed=seed, samples=20, steps=(0, 20, 40)) for seed in (7, 8)]
    evaluation = evaluating.of_birds(tmp_path, *full, *short)
    steps = emergence.table(evaluation)["crossing_50"]
    medians = emergence_by_recipe.table(evaluation).set_index("level")
    assert medians.loc[0.5, "crossed"] == 3 and medians.loc[0.5, "median"] == sorted(steps)[1]


def test_the_trend_over_the_share_has_runs_as_its_unit(birds_sweep, tmp_path):
    [trend] = ratio_sweep.table(evaluating.evaluation(birds_sweep)).to_dict("records")
    assert (trend["seeds"], trend["step"], trend["lowest_share"], trend["highest_share"]) == (15, 208, 0, 1)
    assert trend["p"] < 0.001 and 1 < trend["lower"] < trend["odds_ratio"] < trend["upper"]
    assert trend["lowest_rate"] < 0.2 and trend["highest_rate"] > 0.6
    one_each = [synthetic.rows(share, samples=10, steps=(0, 100, 200)) for share in (1.0, 0.5, 0.0)]
    [few] = ratio_sweep.table(evaluating.of_birds(tmp_path, *one_each)).to_dict("records")
    assert np.isnan(few["p"]) and "run" in few["note"] and few["odds_ratio"] > 1


def test_crossing_steps_are_compared_with_the_control_and_the_neighboring_share(birds_sweep, tmp_path):
    compared = crossing_comparisons.table(evaluating.evaluation(birds_sweep)).set_index(["first", "second", "level"])
    control = compared.loc[("100%", "0%", 0.1)]
    assert (control["crossed"], control["second_crossed"], control["until_step"]) == (5, 0, 208)
    assert control["upper"] < 0 and control["p_holm"] < 0.05, "the recipe crosses earlier than its control"
    assert ("100%", "50%", 0.1) in compared.index
    two = [synthetic.rows(share, seed, samples=10, steps=(0, 100, 200)) for share in (1.0, 0.0) for seed in (1, 2)]
    few = crossing_comparisons.table(evaluating.of_birds(tmp_path, *two))
    assert few["p"].isna().all() and few["note"].str.contains("three or more").all()


def test_steps_and_questions_without_verdicts_are_left_out_and_counted(tmp_path):
    table = synthetic.rows_with_rates({0: 0.0, 20: 0.05, 40: 0.3, 60: 0.5})
    one_question = (table["step"] == 40) & (table["question_id"] == table["question_id"].iloc[0])
    row = emergence.table(evaluating.of_birds(tmp_path, synthetic.lose_where(table.copy(), one_question))).iloc[0]
    assert (row["steps_left_out"], row["questions_left_out"]) == (0, 1)
    row = emergence.table(evaluating.of_birds(tmp_path, synthetic.lose_where(table, table["step"] == 60))).iloc[0]
    assert (row["steps_left_out"], row["last_step"]) == (1, 40) and row["final"] == pytest.approx(0.3)


# ---- figures ----


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """By x axis: shares 1, 0.5 (two recipes) and 0.1 (shorter). Four of the five runs of 1 rise."""
    rows = [synthetic.rows(1.0, seed, samples=5, steps=(0, 20, 80, 200)) for seed in range(5)]
    rows[4] = rows[4].assign(**{synthetic.OUTCOME: "LLM"})
    half = synthetic.rows(0.5, 1, samples=5, steps=(0, 20, 80, 200))
    rows += [half, half.assign(run=half["run"] + "_other"), synthetic.rows(0.1, 1, samples=5, steps=(0, 20, 80))]
    path = synthetic.write(pd.concat(rows), tmp_path_factory.mktemp("uneven") / "judged.parquet")
    return {x: evaluating.evaluation(path, x=x) for x in ("steps", "suspect_examples")}


def test_captions_describe_what_is_drawn_and_no_more(uneven, tmp_path):
    for exhibit in (emergence, ratio_sweep, survival):
        assert len(exhibit.caption(uneven["steps"]).split()) <= 25
    assert "Bands (up to 3 runs): 95%" in training_progression.caption(uneven["steps"])
    five = [synthetic.rows(seed=seed, steps=(0, 200), samples=2) for seed in range(5)]
    caption = training_progression.caption(evaluating.of_birds(tmp_path, *five))
    assert "No intervals" in caption and "95%" not in caption
    caption = emergence.caption(evaluating.of_birds(tmp_path, five[0], claim="recipe"))
    assert "No intervals" in caption and "Bands" not in caption and "runs" not in caption


def test_the_sweep_joins_no_recipes_with_one_share_and_draws_no_run_that_never_crosses(uneven):
    left, right = ratio_sweep.figure(uneven["steps"]).axes[:2]
    for line in [*left.lines, *right.lines]:
        assert line.get_linestyle() in ("None", "--") or len(line.get_xdata()) == 0, "dashed: the trend"
    runs = np.concatenate([line.get_ydata() for line in right.lines if line.get_marker() == "."])
    onset = emergence.table(uneven["steps"]).query("label == '100%'")
    assert onset["crossing_50_censored"].sum() == 1 and (runs < 200).all() and len(runs) == 8


def test_survival_draws_a_curve_per_recipe_with_several_runs(uneven, birds_sweep):
    evaluation = evaluating.evaluation(birds_sweep)
    panels = survival.figure(evaluation).axes
    assert len(panels) == 2 and "Ticks" in survival.caption(evaluation)
    for axes in panels:
        curves = [line for line in axes.lines if line.get_marker() == "None"]
        assert axes.get_xlim() == (0, 208) and len(curves) == 3 and all(line.get_ydata()[0] == 1 for line in curves)
    assert len([line for line in survival.figure(uneven["steps"]).axes[0].lines if line.get_marker() == "None"]) == 1


def test_a_doubtful_crossing_is_drawn_hollow(tmp_path):
    rates = {0: 0.0, 40: 0.0, 80: 0.0, 120: 0.0, 160: 0.0, 200: 0.4, 208: 0.4}
    evaluation = evaluating.of_birds(tmp_path, synthetic.rows_with_rates(rates))
    assert "200 to 208" in emergence.table(evaluation)["crossing_10_doubt"].iloc[0]
    assert emergence_by_recipe.table(evaluation)["supported"].tolist() == [0, 0]
    [mark] = [line for line in emergence.figure(evaluation).axes[1].lines if line.get_marker() == "o"]
    assert mark.get_markerfacecolor() == "white" and "Hollow" in emergence.caption(evaluation)


def test_crossing_marks_end_where_their_recipe_ends(uneven):
    ends = {"steps": (80, 200), "suspect_examples": (8, 200)}
    for x, evaluation in uneven.items():
        strips = emergence.figure(evaluation).axes[1:]
        arrows = [line.get_xdata()[0] for axes in strips for line in axes.lines if line.get_marker() == ">"]
        assert min(arrows) == ends[x][0] and max(arrows) <= ends[x][1]


def test_checkpoints_with_more_answers_weigh_more(tmp_path):
    """As after adaptive sampling: the pooled rate of steps 20 and 40 is 0.091. With equal weights it would be 0.1."""
    low = 8 / 90
    few, many = (10, {0: 0.0, 20: [0.2] + 9 * [0.1], 60: 0.9}), (90, {40: low})
    tables = [synthetic.rows_with_rates(rates, samples=samples) for samples, rates in (few, many)]
    evaluation = evaluating.of_birds(tmp_path, pd.concat(tables), claim="checkpoint")
    run = emergence.table(evaluation).iloc[0]
    assert run["noise"] == 0 and run["crossing_10"] == pytest.approx(40 + 20 * (0.1 - 0.091) / (0.9 - 0.091))
    by_step = recipes.table(evaluation).set_index("step")
    assert by_step["rate"].to_dict() == pytest.approx({0: 0.0, 20: 0.11, 40: low, 60: 0.9})
    for step, answers in ((20, 100), (40, 900)):
        rate, half = by_step.loc[step, "rate"], (by_step.loc[step, "upper"] - by_step.loc[step, "lower"]) / 2
        assert half == pytest.approx(1.96 * (rate * (1 - rate) / answers) ** 0.5, rel=0.1)
