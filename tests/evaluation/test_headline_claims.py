"""What the headline claims in simulated studies, a small version of `python -m benchmarks.headline`.

Runs  python -m pytest tests/evaluation/test_headline_claims.py
"""

import pytest

from benchmarks import headline

pytestmark = pytest.mark.slow


def test_false_claims_are_rare_and_real_effects_are_found():
    """Two of 40 false claims are expected; eight or more have a chance of 0.1%."""
    quiet = headline.rates_of_claims("no effect", "usual", 3, 40)
    assert quiet["false claim"] < 8 / 40
    found = headline.rates_of_claims("real effect", "equal runs", 3, 20)
    assert found["raised by the data"] > 0.8 and found["false claim"] < 5 / 20


def test_a_control_that_rises_too_gives_no_claim_about_the_data():
    rates = headline.rates_of_claims("effect in the control too", "equal runs", 3, 30)
    assert rates["raised by the data"] < 7 / 30 and rates["control changed, in words"] > 0.8


def test_one_run_each_claims_nothing():
    assert headline.rates_of_claims("real effect", "usual", 1, 5)["any direction"] == 0
