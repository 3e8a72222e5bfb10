"""Former tests of comparisons.csv. Deleted as soon as comparisons use `rate_difference` and `p_value`."""

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from learning_backdoors.evaluation.statistics.rates import SAME, Interval, Scores
from learning_backdoors.measures import CONFIDENCE

Z = 1.959963984540054


def t_test(values: ArrayLike) -> tuple[Interval, float]:
    """Student's t on K independent values, shape (K,): the interval of their mean, and the p-value that it is 0.

    For differences of rates, so the limits are cut to -1 and 1. Claim: recipe if the values belong to K runs, questions
    if they belong to K questions. With one value the limits and p are NaN. If all values are equal, the width is 0
    (`widen` corrects that) and p is NaN: they do not show their variance.
    """
    values = np.asarray(values, float)
    estimate = float(values.mean())
    if len(values) == 1:
        return Interval(estimate, np.nan, np.nan), np.nan
    if np.ptp(values) < SAME:
        return Interval(estimate, estimate, estimate), np.nan
    test = stats.ttest_1samp(values, 0)
    lower, upper = test.confidence_interval(CONFIDENCE)
    return Interval(estimate, max(float(lower), -1.0), min(float(upper), 1.0)), float(test.pvalue)


def widen(interval: Interval, minimum: Interval) -> Interval:
    """`interval`, extended where needed to hold the limits of `minimum`, an interval for the claim checkpoint.

    A claim about other runs or questions cannot be more certain than the claim about these. This matters if all means
    are equal or near 0 or 1, so that their spread shows nothing. NaN limits stay NaN.
    """
    if np.isnan(interval.lower):
        return interval
    return Interval(interval.estimate, min(interval.lower, minimum.lower), max(interval.upper, minimum.upper))


def welch(first: ArrayLike, second: ArrayLike) -> tuple[Interval, float]:
    """The difference of the mean rates of two groups of runs, shapes (S1,) and (S2,), and its p-value. Claim: recipe.

    The test is two-sided. The limits and p are NaN if a group has one run. If neither group varies, the width is 0
    (`widen` corrects that) and p is NaN. Source: Welch (1947), Biometrika 34, 28.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    estimate = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return Interval(estimate, np.nan, np.nan), np.nan
    if max(np.ptp(first), np.ptp(second)) < SAME:
        return Interval(estimate, estimate, estimate), np.nan
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # one group may be constant
        test = stats.ttest_ind(first, second, equal_var=False)
        lower, upper = test.confidence_interval(CONFIDENCE)
    return Interval(estimate, float(lower), float(upper)), float(test.pvalue)


def bounded_p(p: float, difference: Interval) -> float:
    """The larger of `p` and the p-value that the interval of the difference implies, which may be the wider one.

    The limit towards 0 is taken for that of a normal distribution. NaN stays NaN.
    """
    estimate, lower, upper = difference
    half = estimate - lower if estimate > 0 else upper - estimate
    if not half > 0:
        return p
    return max(p, float(2 * special.ndtr(-abs(estimate) / half * Z)))


def pooled_over_runs(total: ArrayLike, n: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """One run that stands for several, shape (Q,)."""
    scores = Scores(total, n)
    pooled = 1 / np.where(scores.n > 0, 1 / np.where(scores.n > 0, scores.n, 1), 0).sum(axis=0)
    pooled = pooled * (scores.n > 0).sum(axis=0) ** 2
    return scores.rates.mean(axis=0) * pooled, pooled
