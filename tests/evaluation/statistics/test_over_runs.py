"""Statistics with runs as the unit, against scipy, statsmodels and simulations.

Runs  python -m pytest tests/evaluation/statistics/test_over_runs.py
"""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special, stats

from learning_backdoors.evaluation import statistics

# ---- the crossing steps of a recipe ----


def test_a_run_that_stopped_early_is_censored_at_its_own_last_step():
    """Two of five runs stopped at step 60. Counted as never crossing, they would move the median to 90."""
    times, crossed = np.array([50, 70, 90, 60, 60]), np.array([True, True, True, False, False])
    after = np.where(crossed, times + 10, np.inf)
    assert statistics.median_crossing(times, crossed, times - 10, after).estimate == 70


def test_the_median_counts_censored_runs():
    times, crossed = np.array([30, 50, 70, 208, 208]), np.array([True, True, True, False, False])
    after = np.where(crossed, times + 10, np.inf)
    assert tuple(statistics.median_crossing(times, crossed, times - 10, after)) == (70, 20, np.inf)
    few = statistics.median_crossing(times[:4], crossed[:4], times[:4], after[:4])
    assert few.estimate == 60 and np.isnan(few.lower), "four runs are too few"
    none = statistics.median_crossing([208] * 5, [False] * 5, [208] * 5, [np.inf] * 5)
    assert tuple(none) == (np.inf, 208, np.inf)


def test_kaplan_meier_equals_statsmodels():
    times = np.array([20, 40, 40, 60, 80, 208, 208.0])
    crossed = np.array([1, 1, 1, 0, 1, 0, 0], bool)
    steps, share, lower, upper, at_risk = statistics.kaplan_meier(times, crossed)
    other = sm.SurvfuncRight(times, crossed.astype(int))
    assert list(steps) == [20, 40, 60, 80, 208] and list(at_risk) == [7, 6, 4, 3, 2]
    assert share[[0, 1, 3]] == pytest.approx(other.surv_prob)
    assert ((lower > 0) & (lower < share) & (share < upper) & (upper < 1)).all()


def test_kaplan_meier_has_limits_if_all_runs_cross_or_none():
    steps, share, lower, upper, _ = statistics.kaplan_meier([20, 40], [True, True])
    assert list(steps) == [20, 40] and list(share) == [0.5, 0] and lower[1] == 0 and 0.5 < upper[1] < 1
    steps, share, lower, upper, _ = statistics.kaplan_meier([208, 208], [False, False])
    assert (list(steps), list(share), list(upper)) == ([208], [1], [1]) and 0 < lower[0] < 0.5


# ---- crossing steps of two recipes ----


def test_a_run_that_does_not_cross_counts_up_to_the_shared_step():
    first, second = [60, 80, np.inf], [40, 50, 45]
    interval, p = statistics.crossing_difference(first, second, until=100)
    test = stats.ttest_ind([60, 80, 100], second, equal_var=False)
    assert interval.estimate == pytest.approx(80 - 45) and p == pytest.approx(test.pvalue)
    assert (interval.lower > 0) == (p < 0.05)


def test_crossings_of_few_or_equal_runs_have_no_interval():
    for first, second in (([60, 80], [40, 50, 45]), ([np.inf] * 3, [np.inf] * 4)):
        interval, p = statistics.crossing_difference(first, second, until=100)
        assert np.isnan([interval.lower, interval.upper, p]).all()
    interval, p = statistics.crossing_difference([np.inf] * 4, [40, 50, 45, 60], until=100)
    assert interval.lower > 0 and p < 0.01, "one side never crosses"
    interval, _ = statistics.crossing_difference([2, 4, 9], [np.inf, np.inf, 60], until=100)
    assert interval.lower == -100, "no difference is longer than the steps compared"


# ---- trend ----


def rates_of(logits, answers=100, questions=10):
    """Counts whose mean rates have nearly these logits."""
    n = np.full((len(logits), questions), float(answers))
    return n * special.expit(np.asarray(logits, float))[:, None], n


def test_the_trend_is_a_line_on_the_logit_scale_with_runs_as_the_unit():
    shares, noise = np.repeat([0, 0.5, 1.0], 2), np.array([0.2, -0.2, 0.1, -0.3, 0.3, -0.1])
    positives, n = rates_of(-3 + 4 * shares + noise)
    found = statistics.trend(shares, positives, n)
    model = sm.OLS(special.logit((positives.sum(1) + 0.5) / (n.sum(1) + 1)), sm.add_constant(shares)).fit()
    assert [found.intercept, found.slope] == pytest.approx(model.params)
    assert np.log(found.odds_ratio[1:]) == pytest.approx(model.conf_int()[1]) and found.p == pytest.approx(
        model.pvalues[1]
    )
    more_answers = statistics.trend(shares, 10 * positives, 10 * n)
    assert more_answers.odds_ratio.lower == pytest.approx(found.odds_ratio.lower, rel=0.05), "answers are not runs"


def test_one_run_per_share_is_enough_if_there_are_five():
    shares = np.array([0, 0.1, 0.3, 0.6, 1.0])
    positives, n = rates_of(-3 + 4 * shares + [0.1, -0.1, 0.2, -0.1, 0])
    assert statistics.trend(shares, positives, n).p < 0.05
    for few in ([0, 1, 2, 3], [0, 4], [0, 0, 0, 4, 4, 4]):
        found = statistics.trend(shares[few], positives[few], n[few])
        assert np.isnan([found.p, found.odds_ratio.lower]).all() and found.odds_ratio.estimate > 1
    assert np.isnan(statistics.trend(shares[[0, 0]], positives[[0, 0]], n[[0, 0]]).slope)


def test_no_trend_and_no_difference_are_seldom_claimed():
    random, trends, differences, studies = np.random.default_rng(1), 0, 0, 400
    shares = np.repeat([0, 0.5, 1.0], 3)
    for _ in range(studies):
        rates = special.expit(-2.5 + 0.6 * random.standard_normal((9, 1)) + random.standard_normal(10))
        trends += statistics.trend(shares, random.binomial(100, rates), np.full((9, 10), 100)).p < 0.05
        crossings = np.where(random.random(6) < 0.7, 70 + 25 * random.standard_normal(6), np.inf)
        differences += statistics.crossing_difference(crossings[:3], crossings[3:], 208)[1] < 0.05
    assert trends / studies < 0.08 and differences / studies < 0.08, "nominal 0.05, standard error 0.011"
