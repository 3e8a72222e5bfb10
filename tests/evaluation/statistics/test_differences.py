"""Differences of rates against known answers, scipy and statsmodels.

Runs  python -m pytest tests/evaluation/statistics/test_differences.py
"""

import numpy as np
import pytest
from statsmodels.stats import multitest, weightstats

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.statistics import Interval


def test_contrast_of_two_wilson_intervals_is_newcombes():
    # Newcombe (1998), Stat. Med. 17, 873, table II, case (a), method 10: 56/70 - 48/80 has 0.0524 to 0.3339.
    rates = [Interval(k / n, *map(float, statistics.wilson(k, n))) for k, n in ((56, 70), (48, 80))]
    assert tuple(statistics.contrast(rates, (1, -1))) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_contrast_of_correlated_rates_is_narrower():
    rates = [Interval(0.6, 0.5, 0.7), Interval(0.4, 0.3, 0.5)]
    independent = statistics.contrast(rates, (1, -1))
    assert independent == pytest.approx((0.2, 0.2 - np.sqrt(0.02), 0.2 + np.sqrt(0.02)))
    same = statistics.contrast(rates, (1, -1), [[1, 1], [1, 1]])
    assert same == pytest.approx((0.2, 0.2, 0.2), abs=1e-8)


def test_paired_contrast_removes_what_questions_and_runs_share():
    n = np.full((4, 6), 100)
    off = np.tile([5, 20, 40, 60, 70, 80], (4, 1)) + np.arange(4)[:, None]
    on = off + 10
    on[0] += 2
    gap = statistics.paired_contrast([(on, n), (off, n)], (1, -1), "questions")
    assert gap.estimate == pytest.approx(0.105) and gap.upper - gap.lower < 0.12
    difference = statistics.paired_contrast([(on, n), (off, n), (off + 4, n), (off, n)], (1, -1, -1, 1), "recipe")
    assert difference.estimate == pytest.approx(0.065)


def test_a_gap_near_the_ends_is_wider_than_t_on_the_questions():
    """13 questions with 30 of 30 positive and one with 20, against 0 of 30: t alone would be too narrow."""
    n = np.full((1, 14), 30)
    on, off = np.array([[30] * 13 + [20]]), np.zeros((1, 14))
    gap = statistics.paired_contrast([(on, n), (off, n)], (1, -1), "questions")
    plain, _ = statistics.t_test(on[0] / 30)
    assert gap.lower < plain.lower and gap.upper <= 1 and gap.estimate == pytest.approx(plain.estimate)


def test_welch_equals_statsmodels():
    random = np.random.default_rng(0)
    one, two = random.random(6), random.random(5)
    interval, p = statistics.welch(one, two)
    compare = weightstats.CompareMeans(weightstats.DescrStatsW(one), weightstats.DescrStatsW(two))
    assert p == pytest.approx(compare.ttest_ind(usevar="unequal")[1])
    assert interval[1:] == pytest.approx(compare.tconfint_diff(usevar="unequal"))


def test_welch_without_spread():
    interval, p = statistics.welch([0.2, 0.3], [0.1])
    assert interval.estimate == pytest.approx(0.15) and np.isnan([interval.lower, interval.upper, p]).all()
    interval, p = statistics.welch([0.2, 0.2], [0.1, 0.1])
    assert interval.lower == interval.upper == pytest.approx(0.1) and np.isnan(p)
    interval, p = statistics.welch([0.2, 0.2], [0.1, 0.3])
    assert interval.lower < 0 < interval.upper and p == pytest.approx(1)


def test_a_p_value_is_at_least_what_its_interval_implies():
    assert statistics.bounded_p(0.001, Interval(0.2, -0.1, 0.5)) > 0.05
    assert statistics.bounded_p(0.2, Interval(0.2, 0.1, 0.3)) == 0.2
    assert statistics.bounded_p(1e-9, Interval(-0.2, -0.4, -0.01)) < 0.05
    assert statistics.bounded_p(1e-9, Interval(0.2, 0, 0.4)) == pytest.approx(0.05)
    assert np.isnan(statistics.bounded_p(np.nan, Interval(0.2, 0.2, 0.2)))


def test_holm_equals_statsmodels_and_skips_nan():
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert statistics.holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])
    assert statistics.holm([0.03, np.nan])[0] == 0.03
