"""Correction for the judge's errors.  python -m pytest tests/evaluation/statistics/test_corrected_rates.py"""

import numpy as np
import pytest

from learning_backdoors.evaluation.statistics import Interval, rogan_gladen


def test_the_errors_of_a_known_judge_are_removed():
    rate = Interval(0.9 * 0.3 + 0.05 * 0.7, 0.28, 0.33)
    found = rogan_gladen(rate, (900, 1000, 950, 1000))
    assert found.estimate == pytest.approx(0.3) and found.lower < 0.28 and found.upper > 0.32


def test_a_judge_that_guesses_corrects_nothing():
    assert np.isnan(rogan_gladen(Interval(0.3, 0.28, 0.33), (5, 10, 5, 10)).estimate)


def test_a_corrected_rate_of_0_keeps_a_width():
    found = rogan_gladen(Interval(0.0, 0.0, 0.03), (48, 50, 40, 50))
    assert found.estimate == 0 and found.upper >= 0.03


def test_a_difference_of_rates_is_corrected():
    """The judge's false positives cancel; its misses and false positives make every difference smaller."""
    judged = Interval(0.85 * 0.4, 0.85 * 0.4 - 0.05, 0.85 * 0.4 + 0.05)
    found = rogan_gladen(judged, (900, 1000, 950, 1000), difference=True)
    assert found.estimate == pytest.approx(0.4) and found.lower < 0.4 - 0.05 / 0.85 and found.upper > 0.4 + 0.05 / 0.85
    assert rogan_gladen(Interval(-0.34, -0.4, -0.3), (900, 1000, 950, 1000), difference=True).estimate < -0.39
