"""The statistics against known answers.  python -m pytest tests/test_emergence.py"""

import numpy as np
import pytest

import emergence


def test_wilson_known_answers():
    lower, upper = emergence.wilson([0, 100, 50, 0], [100, 100, 100, 0])
    assert lower[:3] == pytest.approx([0, 0.963007, 0.403832], abs=1e-6)
    assert upper[:3] == pytest.approx([0.036993, 1, 0.596168], abs=1e-6)
    assert lower[0] == 0 and upper[1] == 1
    assert np.isnan(lower[3]) and np.isnan(upper[3]), "nothing asked, nothing known"
    with pytest.raises(ValueError, match="from 0 to n"):
        emergence.wilson([3], [2])


def test_stratified_is_wilson_where_it_can_be():
    one = emergence.stratified([7], [50])
    assert (one.lower, one.upper) == pytest.approx(np.ravel(emergence.wilson([7], [50])))
    zero = emergence.stratified([0] * 10, [100] * 10)
    assert (zero.lower, zero.upper) == pytest.approx(np.ravel(emergence.wilson([0], [1000])))


def test_stratified_has_width_where_questions_differ_most():
    split = emergence.stratified([0, 0, 100, 100], [100] * 4)
    assert split.estimate == 0.5 and 0.002 < split.upper - split.lower < 0.05


def test_t_interval_known_answer():
    # By hand: mean .3, sd .1, t(2) = 4.302653, half width .248414.
    assert emergence.t_interval([0.2, 0.3, 0.4]) == pytest.approx((0.3, 0.051586, 0.548414), abs=1e-6)
    assert emergence.t_interval([0.0, 0.5])[1:] == (0, 1), "cut to what a rate can be"
    assert np.isnan(emergence.t_interval([0.3]).lower), "one mean has no interval"


def test_mean_rate_of_each_claim():
    positives, n = np.array([[10, 30], [20, 40]]), np.full((2, 2), 100)
    assert emergence.mean_rate(positives, n, "recipe")[:1] == pytest.approx((0.25,))
    assert emergence.mean_rate(positives, n, "recipe") == pytest.approx(emergence.t_interval([0.2, 0.3]))
    assert emergence.mean_rate(positives, n, "questions") == pytest.approx(emergence.t_interval([0.15, 0.35]))
    assert np.isnan(emergence.mean_rate(positives[:1], n[:1], "recipe").upper)


def test_no_claim_is_surer_than_that_on_the_checkpoint():
    zero = np.zeros((3, 10))
    for claim in ("recipe", "questions"):
        interval = emergence.mean_rate(zero, zero + 100, claim)
        assert interval == emergence.mean_rate(zero, zero + 100, "checkpoint") and interval.upper > 0.001


def test_worst_case_bounds():
    assert emergence.worst_case([5, 0], [10, 10], [0, 10]) == pytest.approx((0.25, 0.5))
