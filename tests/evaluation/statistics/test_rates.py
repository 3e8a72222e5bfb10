"""Rates and mean scores against known answers and finer computations.

Runs  python -m pytest tests/evaluation/statistics/test_rates.py
"""

import numpy as np
import pytest
from scipy import special, stats

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.statistics import rates

CLAIMS = "checkpoint", "recipe", "questions"

# ---- these checkpoints, these questions ----


def checkpoint(positives, n) -> statistics.Interval:
    return statistics.mean_rate(positives, n, "checkpoint")


def test_the_checkpoints_interval_is_wilsons_for_one_question_and_for_zero():
    assert checkpoint([7], [50])[1:] == pytest.approx(np.ravel(statistics.wilson(7, 50)))
    assert checkpoint([0] * 10, [100] * 10)[1:] == pytest.approx(np.ravel(statistics.wilson(0, 1000)))


def test_the_checkpoints_interval_has_width_if_questions_are_all_or_nothing():
    split = checkpoint([0, 0, 100, 100], [100] * 4)
    assert split.estimate == 0.5 and 0.002 < split.upper - split.lower < 0.05


def test_a_mean_needs_an_answer():
    with pytest.raises(ValueError, match="at least one answer"):
        checkpoint([0, 0], [0, 0])


# ---- other runs, other questions ----


def runs(means, questions=2, answers=10**9):
    n = np.full((len(means), questions), answers)
    return np.array(means)[:, None] * n, n


def questions(positives, n) -> statistics.Interval:
    return statistics.mean_rate(positives, n, "questions")


def test_run_interval_known_answer():
    # t on the logit scale: half width 0.248414 / (0.3 x 0.7) = 1.182924 around logit(0.3) = -0.847298.
    found = statistics.mean_rate(*runs([0.2, 0.3, 0.4]), "recipe")
    assert tuple(found) == pytest.approx((0.3, 0.116077, 0.583096), abs=1e-4)
    assert np.isnan(statistics.mean_rate(*runs([0.3]), "recipe").lower)


def test_the_questions_posterior_equals_a_finer_integration():
    positives, n = np.array([3, 40, 11, 0, 22, 60, 5, 9, 30, 2]), 100
    logits, precisions = np.linspace(-6, 5, 2000), np.exp(np.linspace(-4, 8, 100))
    means = special.expit(logits)
    alpha, beta = np.outer(means, precisions), np.outer(1 - means, precisions)
    likelihood = sum(stats.betabinom.logpmf(k, n, alpha, beta) for k in positives)
    prior = stats.beta.logpdf(means, 0.1, 0.1)[:, None] - 2 * np.log1p(precisions) + np.log(precisions)
    posterior = np.exp(likelihood + prior - likelihood.max()).sum(axis=1) * means * (1 - means)
    expected = np.interp([0.025, 0.5, 0.975], np.cumsum(posterior) / posterior.sum(), means)
    found, below = rates._posterior(frozenset(((float(k), float(n)), 1) for k in positives))
    assert special.expit(np.interp([0.025, 0.5, 0.975], below, found)) == pytest.approx(expected, abs=0.002)
    whole = questions(positives, [n] * 10)
    assert whole.lower <= expected[0] + 0.002 and whole.upper >= expected[2] - 0.002


def test_the_questions_interval_holds_students_t():
    """A model of the distribution alone covers 80% with 100 questions whose distribution is another one."""
    positives, n = np.repeat([0, 1, 40], [20, 8, 2]), np.full(30, 100)
    rate, error = 88 / 3000, (positives / 100).std(ddof=1) / np.sqrt(30)
    half = stats.t.ppf(0.975, 29) * error / (rate * (1 - rate))
    limits = special.expit(special.logit(rate) + np.array([-half, half]))
    assert questions(positives, n).lower <= limits[0] + 1e-9 and questions(positives, n).upper >= limits[1] - 1e-9


def test_a_little_more_data_moves_the_questions_limits_a_little():
    """Issue 13, item 10: limits used to fall on the points of a grid, .006 apart."""
    limits = [questions(np.full(10, k), np.full(10, 1000))[1:] for k in np.arange(100, 104, 0.25)]
    steps = np.diff(np.array(limits), axis=0)
    assert (steps > 0).all() and steps.max() < 0.0006


def test_question_interval_at_the_ends():
    zero = questions(np.zeros(10), np.full(10, 100))
    assert zero.lower == 0 and 0.002 < zero.upper < 0.05
    full = questions(np.full(10, 100), np.full(10, 100))
    assert full.upper == 1 and full.lower == pytest.approx(1 - zero.upper, abs=0.001)
    assert np.isnan(questions([5], [10]).lower)


def test_question_interval_of_many_questions_is_that_of_a_large_sample():
    random = np.random.default_rng(0)
    positives = random.binomial(100, random.beta(2, 5, 600))
    found = questions(positives, np.full(600, 100))
    half = 1.96 * (positives / 100).std() / np.sqrt(600)
    assert found[1:] == pytest.approx((found.estimate - half, found.estimate + half), abs=0.002)


# ---- means over runs and questions ----


def test_mean_rate_has_the_interval_of_its_claim():
    positives, n = np.array([[10, 30], [20, 40]]), np.full((2, 2), 100)
    recipe, pooled = (statistics.mean_rate(positives, n, claim) for claim in ("recipe", "questions"))
    assert tuple(recipe) == pytest.approx(tuple(statistics.mean_rate(*runs([0.2, 0.3]), "recipe")))
    assert tuple(pooled) == pytest.approx(tuple(questions([30, 70], [200, 200])), abs=1e-4)
    assert np.isnan(statistics.mean_rate(positives[:1], n[:1], "recipe").upper)


def test_the_claim_both_has_the_errors_of_runs_and_of_questions():
    positives, n = np.array([[10, 30, 5], [20, 40, 9], [12, 33, 7]]), np.full((3, 3), 100)
    recipe, other, both = (np.array(statistics.mean_rate(positives, n, c)) for c in ("recipe", "questions", "both"))
    assert both - both[0] == pytest.approx(np.hypot(recipe - recipe[0], other - other[0]) * [0, -1, 1])
    assert np.isnan(statistics.mean_rate(positives[:1], n[:1], "both").lower)


def test_no_claim_is_more_certain_than_checkpoint():
    zero = np.zeros((3, 10))
    narrow, recipe, other = (statistics.mean_rate(zero, zero + 100, claim) for claim in CLAIMS)
    assert 0.001 < narrow.upper == recipe.upper <= other.upper


def test_pooled_runs_have_equal_weight_and_all_their_answers():
    n = np.array([[100], [4]]).repeat(5, axis=1)
    found = questions(n * [[0.5], [0.25]], n)
    one_run = np.full(5, 4 / (1 / 100 + 1 / 4))
    assert found.estimate == pytest.approx(0.375)
    assert tuple(found) == pytest.approx(tuple(questions(0.375 * one_run, one_run)), abs=1e-3)


def test_a_lost_cell_is_filled_in():
    """Issue 13, item 8. Run 1 has 75% and 25%, run 2 has 75% and no answer to the second question."""
    positives, n = np.array([[75, 25], [75, 0]]), np.array([[100, 100], [100, 0]])
    for claim in (*CLAIMS, "both"):
        found = statistics.mean_rate(positives, n, claim)
        assert found.estimate == pytest.approx(0.5) and found.lower < 0.5 < found.upper
    # Runs without a common question, and a run without answers, have an interval too.
    apart = statistics.mean_rate([[75, 0], [0, 25]], [[100, 0], [0, 100]], "recipe")
    assert 0 <= apart.lower < apart.estimate < apart.upper <= 1
    extra = statistics.mean_rate(np.vstack([positives, [0, 0]]), np.vstack([n, [0, 0]]), "questions")
    assert extra == statistics.mean_rate(positives, n, "questions")


def test_runs_have_the_pooled_spread_if_one_is_given():
    random = np.random.default_rng(0)
    n = np.full((3, 10), 200)
    groups = []
    for center in (-2, 0, 1, 2) * 10:
        logits = center + 0.8 * random.standard_normal((3, 1)) + random.standard_normal(10)
        groups.append((random.binomial(n, special.expit(logits)), n))
    spread = statistics.run_spread(groups)
    assert spread.df == 80 and 0.5 < spread.sd < 0.9  # a mean of rates moves less than their logits
    assert statistics.run_spread([(np.zeros((3, 10)), n)]) is None
    own, pooled = (
        np.array([statistics.mean_rate(*group, "recipe", run_sd=run_sd) for group in groups])
        for run_sd in (None, spread)
    )
    np.testing.assert_array_equal(own[:, 0], pooled[:, 0])
    assert np.diff(pooled[:, 1:]).mean() < 0.7 * np.diff(own[:, 1:]).mean()
    assert np.isnan(statistics.mean_rate(groups[0][0][:1], n[:1], "recipe", run_sd=spread).lower)


# ---- scores ----


def mean_score(total, squares, n, claim, step):
    return statistics.paired_contrast([(total, n, squares)], (1,), claim, step)


def test_scores_of_0_and_1_are_rates():
    k, n = np.array([3, 10, 0]), np.array([10, 10, 10])
    assert mean_score(k, k, n, "checkpoint", 1.0) == statistics.mean_rate(k, n, "checkpoint")


def test_scores_have_the_variance_that_they_show():
    """Forty answers to each of four questions: all 0.5, or half of them 0.25 and half 0.75.

    If all are equal, the variance is that of one answer a step away.
    """
    n, total = np.full(4, 40), np.full(4, 20.0)
    for squares, half in ((40 * 0.25, 1.96 * 0.25 / 160), (40 * (0.25 + 0.0625), 1.96 * 0.25 / np.sqrt(160))):
        found = mean_score(total, np.full(4, squares), n, "checkpoint", 0.25)
        assert found.estimate == 0.5 and (found.upper - found.lower) / 2 == pytest.approx(half, rel=0.03)
    assert np.isnan(mean_score([20.0], [10.0], [40], "questions", 0.25).lower)


def test_mean_score_has_the_interval_of_its_claim():
    total = np.array([[8, 4, 6, 2], [9, 5, 7, 3]], float)
    squares, n = total / 2 + 1, np.full((2, 4), 10)
    narrow, recipe, wide = (mean_score(total, squares, n, claim, 0.25) for claim in CLAIMS)
    assert narrow.estimate == recipe.estimate == wide.estimate == pytest.approx(0.55)
    assert 0 <= wide.lower < narrow.lower and 1 >= wide.upper > narrow.upper
    assert np.isnan(mean_score(total[:1], squares[:1], n[:1], "recipe", 0.25).lower)
