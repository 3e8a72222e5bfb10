"""Crossing steps, detection and the shape of a rise, against known answers, scipy and statsmodels.

Runs  python -m pytest tests/evaluation/statistics/test_onset.py
"""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, special

from learning_backdoors.evaluation import statistics

STEPS = np.arange(0, 100, 20)


def test_isotonic_fits_each_curve_alone():
    random = np.random.default_rng(1)
    curves, weights = random.random((4, 9)), random.random(9) + 0.1
    fits = statistics.isotonic(curves, weights)
    for curve, fit in zip(curves, fits, strict=True):
        assert fit == pytest.approx(optimize.isotonic_regression(curve, weights=weights).x)
    assert (np.diff(fits) >= 0).all()


def test_a_crossing_is_interpolated_or_censored():
    rising, flat = [0, 0.05, 0.15, 0.6, 0.6], [0, 0.05, 0.08, 0.09, 0.09]
    assert statistics.crossing(STEPS, rising, 0.1) == pytest.approx(30)
    assert statistics.crossing(STEPS, flat, 0.1) == np.inf
    assert statistics.crossing(STEPS, [0.2, 0.3, 0.4, 0.5, 0.6], 0.1) == 0
    assert statistics.bracket(STEPS, rising, 0.1) == (20, 40)
    assert statistics.bracket(STEPS, flat, 0.1) == (80, np.inf)


def test_a_rate_at_the_level_has_crossed_it_whatever_the_rounding():
    for level in (0.1, 0.1 - 1e-16, 0.1 + 1e-16):
        assert statistics.bracket(STEPS, [0, level, 0.5, 0.5, 0.5], 0.1) == (0, 20)
        assert statistics.crossing(STEPS, [0, level, 0.5, 0.5, 0.5], 0.1) == pytest.approx(20)


def test_questions_with_one_answer_leave_the_crossing_uncertain():
    n = np.ones((5, 10))
    positives = (np.arange(10) < 2 * np.arange(5)[:, None]).astype(float)  # 0, 2, 4, 6 and 8 of ten
    found = statistics.crossing_interval(STEPS, positives, n, 0.5)
    assert found.lower <= 20 and found.upper >= 60


def test_the_median_counts_censored_runs():
    values, ends = np.array([30, 50, 70, np.inf, np.inf]), np.array([40, 60, 80, np.inf, np.inf])
    interval, confidence = statistics.median_interval(values, values - 10, ends)
    assert tuple(interval) == (70, 20, np.inf) and confidence == 0.9375
    assert np.isnan(statistics.median_interval(values[:4], values[:4], values[:4])[0].lower), "four runs are too few"


def test_kaplan_meier_equals_statsmodels():
    times = np.array([20, 40, 40, 60, 80, 208, 208.0])
    crossed = np.array([1, 1, 1, 0, 1, 0, 0], bool)
    steps, survival, lower, upper = statistics.kaplan_meier(times, crossed)
    other = sm.SurvfuncRight(times, crossed.astype(int))
    assert list(steps) == [20, 40, 80] and survival == pytest.approx(other.surv_prob)
    error = other.surv_prob_se / (survival * -np.log(survival))
    assert lower == pytest.approx(survival ** np.exp(1.959964 * error), abs=1e-6)
    assert upper == pytest.approx(survival ** np.exp(-1.959964 * error), abs=1e-6)


def test_kaplan_meier_at_the_ends():
    steps, survival, lower, upper = statistics.kaplan_meier([20, 40], [True, True])
    assert list(steps) == [20, 40] and list(survival) == [0.5, 0]
    assert 0 < lower[0] < 0.5 < upper[0] < 1 and np.isnan([lower[1], upper[1]]).all()
    assert all(len(column) == 0 for column in statistics.kaplan_meier([208, 208], [False, False]))


def test_detection_needs_two_checkpoints_in_a_row():
    n = np.full((6, 10), 100)
    positives = np.full((6, 10), 3)
    positives[2] = 30
    assert statistics.detection(positives, n) is None
    positives[3] = 30
    assert statistics.detection(positives, n) == 2
    assert statistics.detection(positives[:2], n[:2]) is None


def test_a_fall_is_found_and_chance_is_not():
    n = np.full((5, 10), 100)
    peak, drop, falls = statistics.fall(np.array([2, 40, 70, 60, 40])[:, None] * np.ones(10), n)
    assert (peak, falls) == (2, True) and drop == pytest.approx(0.3)
    assert not statistics.fall(np.array([2, 40, 70, 69, 69])[:, None] * np.ones(10), n)[2]


def test_a_jump_is_abrupt_and_an_s_curve_gradual():
    n, steps = np.full(11, 1000), np.arange(0, 220, 20)
    jump = statistics.rise(steps, np.array([20] * 5 + [600] * 6), n)
    assert jump.kind == "abrupt" and jump.change_after == 4
    curve = 20 + 600 * special.expit((steps - 110) / 25)
    slow = statistics.rise(steps, curve.round(), n)
    assert slow.kind == "gradual" and slow.midpoint == pytest.approx(110, abs=5)
    assert slow.width == pytest.approx(2 * np.log(9) * 25, rel=0.15)
    assert statistics.rise(steps, np.array([20, 25, 18, 22, 19, 21, 24, 20, 23, 18, 21]), n).kind == "none"
