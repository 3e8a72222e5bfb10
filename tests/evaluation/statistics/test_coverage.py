"""How often the intervals hold the truth, by simulation. benchmarks/coverage.py prints the full tables.

Runs  python -m pytest tests/evaluation/statistics/test_coverage.py
"""

import numpy as np
import pytest
from scipy import special

from benchmarks import coverage, coverage_onset
from learning_backdoors.evaluation import statistics

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5])
def test_each_interval_covers_its_claim(rate):
    covered = coverage.rates_covered(rate, runs=5, questions=10, answers=100, studies=300)
    for claim in coverage.CLAIMS:
        assert 0.905 < covered[claim] < 0.99, f"{claim}: {covered[claim]} of nominal 0.95, standard error 0.013"


def test_runs_have_equal_weight_whatever_their_answers():
    """Ten questions, two runs with 100 and with 10 answers. Pooled counts cover 76%: they follow the first run."""
    random, inside = np.random.default_rng(2), 0
    shift = random.normal(0, 1.5, 100_000)
    truth = np.mean([special.expit(shift + center) for center in (-2, 2)])
    n = np.repeat([[100], [10]], 10, axis=1)
    for _ in range(100):
        rates = special.expit(random.normal(0, 1.5, 10) + [[-2], [2]])
        interval = statistics.mean_rate(random.binomial(n, rates), n, "questions")
        inside += interval.lower <= truth <= interval.upper
    assert inside >= 88


def test_detection_seldom_gives_a_false_alarm():
    assert coverage_onset.false_alarms(300) < 0.03
    assert coverage_onset.false_alarms(200, rate=0.3, noise=0.3) < 0.05, "the rate varies between checkpoints"


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_crossing_intervals_cover_with_censored_runs_and_noise_between_checkpoints(noise):
    """Before noise was part of the interval, a run was covered in 75 to 92%."""
    for level, width, ceiling in ((0.5, 60, 0.6), (0.1, 120, 0.15)):
        covered = coverage_onset.crossings_covered(40, level, width, ceiling, noise)
        assert covered["run"] > 0.93 and covered["recipe"] > 0.84 and covered["censored"] > 0.1


def test_survival_limits_exist_and_cover_with_few_runs():
    for runs, share in ((3, 0.3), (5, 0.5), (10, 0.95)):
        assert coverage_onset.survival_covered(300, runs, share, 0.3) > 0.9
