"""Main effects over blocks: against scipy and statsmodels, and at the edges."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import StratifiedTable

from learning_backdoors.evaluation import statistics


def test_means_with_several_runs_are_welch_tests_summed_over_blocks():
    high, low = [[1.0, 2.0, 4.0]], [[0.0, 1.0, 1.5]]
    interval, p = statistics.mean_effect(high, low)
    test = stats.ttest_ind(high[0], low[0], equal_var=False)
    assert np.isclose(p, test.pvalue, rtol=1e-4)
    assert np.allclose(interval[1:], test.confidence_interval())
    shifted, same_p = statistics.mean_effect([*high, np.add(high[0], 5)], [*low, np.add(low[0], 5)])
    assert np.isclose(shifted.estimate, interval.estimate)  # blocks differ, the effect does not
    assert same_p < p


def test_one_run_per_combination_is_a_paired_test_over_blocks():
    high, low = [[3.0], [5.0], [9.0]], [[1.0], [4.5], [6.0, 7.0]]
    interval, p = statistics.mean_effect(high, low)
    differences = [2.0, 0.5, 2.5]
    assert np.isclose(p, stats.ttest_1samp(differences, 0).pvalue, rtol=1e-4)
    assert np.isclose(interval.estimate, np.mean(differences))
    assert np.isnan(statistics.mean_effect([[1.0]], [[2.0]])[0].lower)


def test_shares_are_tested_as_by_mantel_and_haenszel():
    high, low = ([3, 7, 8], [8, 8, 8]), ([1, 2, 6], [8, 8, 8])
    interval, p = statistics.share_effect(high, low)
    tables = [[[a, n - a], [b, m - b]] for a, n, b, m in zip(*high, *low, strict=True)]
    assert np.isclose(p, StratifiedTable(np.transpose(tables, (1, 2, 0))).test_null_odds().pvalue)
    assert np.isclose(interval.estimate, 9 / 24) and interval.lower > 0 and p < 0.05
    swapped, same_p = statistics.share_effect(low, high)
    assert np.allclose(swapped, [-interval.estimate, -interval.upper, -interval.lower]) and np.isclose(same_p, p)


@pytest.mark.parametrize("hits", [0, 4])
def test_shares_that_are_all_equal_keep_a_wide_interval(hits):
    interval, p = statistics.share_effect(([hits, hits], [4, 4]), ([hits, hits], [4, 4]))
    assert interval.estimate == 0 and interval.lower < -0.1 and interval.upper > 0.1 and p == 1


def test_the_interval_of_a_share_excludes_0_exactly_if_p_is_below_5_percent():
    random = np.random.default_rng(0)
    for _ in range(20):
        runs = random.integers(1, 6, (2, 4))
        high, low = (random.binomial(n, share) for n, share in zip(runs, (0.7, 0.3), strict=True))
        interval, p = statistics.share_effect((high, runs[0]), (low, runs[1]))
        assert (interval.lower > 0 or interval.upper < 0) == (p < 0.05)
        assert -1 <= interval.lower <= interval.estimate <= interval.upper <= 1


def test_crossing_steps_are_compared_by_their_ratio():
    interval, p = statistics.crossing_effect([[20.0, 25.0, 30.0], [50.0, 40.0]], [[40.0, 50.0, 60.0], [100.0, 80.0]])
    assert np.isclose(interval.estimate, 0.5) and interval.lower < 0.5 < interval.upper < 1 and p < 0.05
    none = statistics.crossing_effect([[200.0] * 3], [[200.0] * 3])  # no run crosses
    assert none[0].estimate == 1 and np.isnan(none[1]) and np.isnan(none[0].lower)
    assert np.isnan(statistics.crossing_effect([[20.0, 25.0]], [[40.0, 50.0]])[1])  # two runs on a side


def test_the_effect_on_a_rate_of_one_block_is_the_difference_of_two_recipes():
    random = np.random.default_rng(1)
    n = np.full((3, 5), 20)
    sides = [(random.binomial(n, rate), n) for rate in (0.5, 0.2)]
    interval, p = statistics.rate_effect(sides[:1], sides[1:])
    assert np.allclose(interval, statistics.rate_difference(*sides, "recipe")) and p < 0.05
    none = (np.zeros((1, 5)), np.full((1, 5), 20))  # single runs that never show the behavior
    interval, p = statistics.rate_effect([none, none], [none, none])
    assert interval.estimate == 0 and interval.lower < -0.01 and p == 1
