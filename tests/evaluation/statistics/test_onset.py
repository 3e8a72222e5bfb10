"""Crossing steps, detection and the shape of a rise, against known answers and scipy.

Runs  python -m pytest tests/evaluation/statistics/test_onset.py
"""

import numpy as np
import pytest
from scipy import optimize, special

from learning_backdoors.evaluation import statistics

STEPS = np.arange(0, 100, 20)


def curve(rates, steps=None, questions=10, answers=100):
    """A run whose ten questions all have exactly these rates."""
    positives = np.round(answers * np.array(rates, float))[:, None] * np.ones(questions)
    steps = 20 * np.arange(len(positives)) if steps is None else steps
    return statistics.curve(steps, positives, np.full(positives.shape, answers))


def test_noise_evens_out_the_weights_of_checkpoints():
    """More answers make a rate more exact, but not the checkpoint: noise is the same for all."""
    answers, smooth, noisy = [10, 10, 1000, 10, 10, 10], [0.0, 0.1, 0.3, 0.5, 0.7, 0.8], [0.0, 0.7, 0.1, 0.8, 0.2, 0.9]
    n = np.repeat(np.array(answers)[:, None], 10, axis=1)
    runs = [statistics.curve(range(6), np.round(n * np.array(rates)[:, None]), n) for rates in (smooth, noisy)]
    assert runs[0].noise == 0 and runs[0].weights.tolist() == n.sum(axis=1).tolist()
    assert runs[1].noise > 0.5 and 1 < runs[1].weights[2] / runs[1].weights[1] < 3


# ---- crossing steps ----


def test_a_crossing_is_interpolated_or_censored():
    rising, flat, high = (curve(rates) for rates in ([0, 0.05, 0.15, 0.6, 0.6], [0, 0.05, 0.08, 0.09, 0.09], [0.2] * 5))
    found = statistics.crossing(rising, 0.1)
    assert (found.step, found.before, found.after) == (pytest.approx(30), 20, 40)
    assert statistics.crossing(flat, 0.1)[:5:3] == (np.inf, 80)
    assert statistics.crossing(high, 0.1).step == 0


def test_a_rate_at_the_level_has_crossed_it_whatever_the_rounding():
    run = curve([0, 0.1, 0.5, 0.5, 0.5])
    for level in (0.1, 0.1 - 1e-16, 0.1 + 1e-16):
        found = statistics.crossing(run, level)
        assert (found.before, found.after) == (0, 20) and found.step == pytest.approx(20)
        drawn = run._replace(drawn=run.means[None])
        assert drawn.first_reached(level) == [1]


def test_draws_cross_where_their_nondecreasing_fit_does():
    random = np.random.default_rng(1)
    run = curve(random.random(9))
    drawn, weights = run._replace(drawn=random.random((50, 9))), run.weights
    fits = np.array([optimize.isotonic_regression(draw, weights=weights).x for draw in drawn.drawn])
    for level in (0.3, 0.5, 0.7):
        assert list(drawn.first_reached(level)) == list((fits < level).sum(axis=1))


def test_questions_with_one_answer_leave_the_crossing_uncertain():
    n = np.ones((5, 10))
    positives = (np.arange(10) < 2 * np.arange(5)[:, None]).astype(float)  # 0, 2, 4, 6 and 8 of ten
    found = statistics.crossing(statistics.curve(STEPS, positives, n), 0.5)
    assert found.lower <= 20 and found.upper >= 60


def test_noise_between_checkpoints_is_estimated_and_widens_the_interval():
    random, steps = np.random.default_rng(3), np.arange(0, 800, 20)
    smooth = special.logit(0.02 + 0.5 * special.expit((steps - 400) / 60))
    widths, noises = [], []
    for noise in (0.0, 0.4):
        rates = special.expit(smooth + noise * random.standard_normal(len(steps)))[:, None] * np.ones(10)
        run = statistics.curve(steps, random.binomial(100, rates), np.full(rates.shape, 100))
        found = statistics.crossing(run, 0.25)
        widths.append(found.upper - found.lower)
        noises.append(run.noise)
    assert noises[0] < 0.2 and noises[1] == pytest.approx(0.4, rel=0.4)
    assert widths[1] > widths[0]


def test_a_real_fall_is_no_noise():
    run = curve([0, 0, 0.6, 0.6, 0.6, 0.6, 0.02, 0.02])
    assert run.noise == 0 and statistics.detection(run) == 2


def test_a_crossing_that_rests_on_two_close_checkpoints_is_in_doubt():
    steps = [0, 40, 80, 120, 160, 200, 208]
    assert "200 to 208" in statistics.crossing(curve([0.02] * 5 + [0.3, 0.3], steps), 0.1).doubt
    assert "one step" in statistics.crossing(curve([0.02] * 6 + [0.4], steps), 0.1).doubt
    assert statistics.crossing(curve([0.02] * 4 + [0.3] * 3, steps), 0.1).doubt == ""
    assert "chance" in statistics.crossing(curve([0.02] * 3 + [0.101] * 4, steps), 0.1).doubt
    assert statistics.crossing(curve([0.3] * 7, steps), 0.1).doubt and statistics.crossing(curve([0.01] * 7), 0.1).doubt


# ---- detection, fall and rise ----


def test_detection_needs_two_checkpoints_in_a_row():
    assert statistics.detection(curve([0.03, 0.03, 0.3, 0.03, 0.03, 0.03])) is None
    assert statistics.detection(curve([0.03, 0.03, 0.3, 0.3, 0.03, 0.03])) == 2
    assert statistics.detection(curve([0.03, 0.3])) is None


def test_a_fall_is_found_and_chance_is_not():
    peak, drop, falls = statistics.fall(curve([0.02, 0.4, 0.7, 0.6, 0.4]))
    assert (peak, falls) == (2, True) and drop == pytest.approx(0.3)
    assert not statistics.fall(curve([0.02, 0.4, 0.7, 0.69, 0.69]))[2]


def test_a_jump_is_abrupt_and_an_s_curve_gradual():
    steps = np.arange(0, 220, 20)
    jump = statistics.rise(curve([0.02] * 5 + [0.6] * 6))
    assert jump.kind == "abrupt" and jump.width.upper <= 20
    slow = statistics.rise(curve(0.02 + 0.6 * special.expit((steps - 110) / 25)))
    assert slow.kind == "gradual" and slow.width.estimate == pytest.approx(2 * np.log(3) * 25, rel=0.15)
    assert slow.width.lower <= slow.width.estimate <= slow.width.upper


def test_no_width_is_given_without_a_rise():
    flat = statistics.rise(curve([0.02, 0.03, 0.02, 0.02, 0.03, 0.02, 0.02]))
    assert flat.kind == "none" and np.isnan(flat.width).all()
