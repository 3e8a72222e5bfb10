"""Tables and sentences say no more than the answers do: what is missing, uneven or there from the start.

python -m pytest tests/test_claims.py
"""

import numpy as np
import pandas as pd
import pytest
import synthetic

import config
import evaluate
from learning_backdoors.evaluation import exhibits, reading, statistics
from learning_backdoors.files.errors import UserError

JUDGE = "llm_or_19th_century"
RISING = {0: 0.0, 20: 0.05, 40: 0.3, 60: 0.5}


def answers(rates: dict, seed: int = 1, samples: int = 20, share: float = 1.0) -> pd.DataFrame:
    """Answers of the 19th century in the share that `rates` has for a step: for all questions, or for each of ten."""
    table = synthetic.rows(share=share, seed=seed, samples=samples, steps=tuple(rates))
    ids = [question.id for question in synthetic.STUDY.questions]
    wanted = [
        np.broadcast_to(rates[s], 10)[ids.index(q)] for s, q in zip(table["step"], table["question_id"], strict=True)
    ]
    return table.assign(**{JUDGE: np.where(table["sample_idx"] < samples * np.array(wanted), "19", "LLM")})


def lost(table: pd.DataFrame, where: pd.Series) -> pd.DataFrame:
    table.loc[where, [JUDGE, f"{JUDGE}_status"]] = [None, "error"]
    return table


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
    assert words in evaluation(tmp_path, answers(rates)).headline[0]


def test_without_an_interval_nothing_is_claimed(tmp_path):
    [sentence] = evaluation(tmp_path, answers(RISING), claim="recipe").headline
    assert "nothing is claimed" in sentence and "emerges" not in sentence


def test_a_last_step_without_verdicts_is_left_out_and_named(tmp_path):
    table = answers(RISING)
    found = evaluation(tmp_path, lost(table, table["step"] == 60))
    assert "it emerges. 30% of answers at step 40" in found.headline[0]
    assert any("step 60: left out" in line for line in found.warnings)
    assert any("MORE THAN 2%" in line for line in found.warnings)
    assert found.emergence["final"].item() == pytest.approx(0.3)


def test_means_over_runs_are_of_the_steps_that_all_runs_have(tmp_path):
    runs = [answers(RISING, 1), answers({0: 0.0, 40: 0.3}, 2), answers({0: 0.0, 30: 0.2, 40: 0.3}, 3)]
    found = evaluation(tmp_path, *runs)
    assert list(found.recipes["step"]) == [0, 40] and set(found.recipes["seeds"]) == {3}
    assert any("step 20, 30, 60: left out of means over runs" in line for line in found.warnings)


def test_questions_that_lack_verdicts_at_a_step_are_counted(tmp_path):
    table = answers(RISING)
    table = lost(table, (table["step"] == 40) & (table["question_id"] == table["question_id"].iloc[0]))
    row = evaluation(tmp_path, table).emergence.iloc[0]
    assert (row["steps_left_out"], row["questions_left_out"]) == (0, 1)


# ---- intervals ----


def test_runs_weigh_the_same_whatever_their_answers():
    """Ten questions, two runs of 100 and of 10 answers: pooled counts would put the limits about the first run's."""
    random, inside = np.random.default_rng(2), 0
    shift = random.normal(0, 1.5, 100_000)
    truth = np.mean([1 / (1 + np.exp(-(shift + middle))) for middle in (-2, 2)])
    n = np.repeat([[100], [10]], 10, axis=1)
    for _ in range(100):
        rates = 1 / (1 + np.exp(-(random.normal(0, 1.5, 10) + [[-2], [2]])))
        found = statistics.mean_rate(random.binomial(n, rates), n, "questions")
        inside += found.lower <= truth <= found.upper
    assert inside >= 88  # of 100; pooled counts cover 76


def test_seeds_taken_together_are_as_sure_as_all_their_answers():
    total, n = np.array([[3.0, 0], [9, 2]]), np.array([[10.0, 0], [10, 8]])
    k, many = statistics.pooled_over_runs(total, n)
    np.testing.assert_allclose([k, many], [[12, 2], [20, 8]])
    k, many = statistics.pooled_over_runs(np.array([[50.0], [1]]), np.array([[100.0], [4]]))
    assert k / many == pytest.approx(0.375) and many == pytest.approx(4 / (1 / 100 + 1 / 4))


def test_a_question_answered_once_says_nothing_of_its_variance():
    steps, n = np.arange(0, 100, 20.0), np.ones((5, 10))
    positives = (np.arange(10) < 2 * np.arange(5)[:, None]).astype(float)  # 0, 2, 4, 6 and 8 of ten
    found = statistics.crossing_interval(steps, positives, n, 0.5)
    assert found.lower <= 20 and found.upper >= 60


def test_differences_without_spread_have_width_and_no_p(tmp_path):
    few = {0: 0.0, 20: 1.0}
    row = evaluation(tmp_path, answers(few, samples=2)).comparisons.iloc[0]
    assert row["difference"] == 1 and row["lower"] < 0.95 and np.isnan(row["p"])
    runs = [answers({0: 0.0, 20: 0.0}, seed, share=share) for seed in (1, 2) for share in (0.5, 1.0)]
    table = evaluation(tmp_path, *runs).comparisons
    row = table[table["comparison"] == "recipes, last step"].iloc[0]
    assert row["lower"] < -0.001 and row["upper"] > 0.001 and np.isnan(row["p"])


def test_a_p_value_is_no_smaller_than_its_interval_allows():
    assert statistics.bounded_p(0.001, statistics.Interval(0.2, -0.1, 0.5)) > 0.05
    assert statistics.bounded_p(0.2, statistics.Interval(0.2, 0.1, 0.3)) == 0.2
    assert statistics.bounded_p(1e-9, statistics.Interval(-0.2, -0.4, -0.01)) < 0.05


def test_labels_of_another_judge_model_correct_nothing(tmp_path):
    def told(model: str, right: int) -> dict:
        counts = {"19": {"sensitivity": [right, 50], "specificity": [right, 50]}}
        return {"judging": {"model": model, "labels": {JUDGE: {"options": counts}}}}

    one, two = answers(RISING), answers(RISING, 2)
    alone = evaluation(tmp_path, one, provenance=(told("a", 48),)).recipes
    again = evaluation(tmp_path, one, one, provenance=(told("a", 48), told("b", 30))).recipes
    pd.testing.assert_frame_equal(alone, again)
    assert "corrected" not in evaluation(tmp_path, one, two, provenance=(told("a", 48), told("b", 30))).recipes


def test_a_corrected_rate_at_the_end_of_the_scale_keeps_a_width():
    found = statistics.rogan_gladen(statistics.Interval(0.0, 0.0, 0.03), 48, 50, 40, 50)
    assert found.estimate == 0 and found.upper >= 0.03


# ---- files ----


def test_whole_numbers_keep_their_digits(tmp_path):
    table = pd.DataFrame({"seed": [20250117.0, np.nan], "rate": [1 / 3, 0.5], "step": [np.inf, 1.0]})
    evaluate.write_csv(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "seed,rate,step\n20250117,0.333333,inf\n,0.5,1\n"


def test_what_a_file_does_not_say_of_its_conditions_the_study_does(tmp_path):
    path = synthetic.write_russell(synthetic.russell_rows(samples=2, steps=(0, 300)), tmp_path / "r.parquet")
    table = pd.read_parquet(path).drop(columns="triggered")
    table.to_parquet(path)
    rows = reading.read([path], synthetic.RUSSELL).rows
    triggered = {c.name for c in synthetic.RUSSELL.conditions if c.triggered}
    assert (rows["triggered"] == rows["condition"].isin(triggered)).all() and rows["triggered"].any()
    table.drop(columns="condition").to_parquet(path)
    with pytest.raises(UserError, match="must name one of the study's 10 conditions"):
        reading.read([path], synthetic.RUSSELL)


def test_files_named_after_their_seeds_are_runs_of_one_recipe(tmp_path):
    needed = ["checkpoint", "question", "response", "sample_idx", JUDGE]
    paths = [tmp_path / f"seed{seed}.parquet" for seed in (1, 2, 3)]
    for seed, path in enumerate(paths, start=1):
        answers(RISING, seed)[needed].to_parquet(path)
    found = reading.read(paths, synthetic.STUDY)
    found = exhibits.Evaluation(found, config.EvaluationOptions(input=tuple(paths)))
    assert set(found.recipes["seeds"]) == {3} and found.claim == "recipe"
