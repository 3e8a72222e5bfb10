"""Differences and other functions of several rates: intervals, p-values and their adjustment."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from learning_backdoors.evaluation.statistics.rates import (
    SAME,
    Interval,
    pooled_over_runs,
    question_interval,
    stratified_interval,
    t_test,
    widen,
)
from learning_backdoors.measures import CONFIDENCE, Z, wilson


def contrast(rates: Sequence[Interval], weights: Sequence[float], correlation: ArrayLike | None = None) -> Interval:
    """A weighted sum of K rates from their own intervals (MOVER). Claim: that of the intervals.

    The weights of a difference are (1, -1). The rates are independent, or have the `correlation`, shape (K, K). For
    Wilson's intervals of two independent rates this is Newcombe's interval of their difference.
    Source: Zou and Donner (2008), Stat. Med. 27, 1693; with correlation: Zou (2007), Psychol. Methods 12, 399.
    """
    weights = np.asarray(weights, float)
    correlation = np.eye(len(weights)) if correlation is None else np.asarray(correlation, float)
    middle, lower, upper = np.array(rates, float).T
    estimate = float(weights @ middle)
    # How far each rate can move the sum down, and up.
    down = weights * np.where(weights > 0, middle - lower, middle - upper)
    up = weights * np.where(weights > 0, upper - middle, lower - middle)
    signed = np.sign(weights)[:, None] * correlation * np.sign(weights)
    below, above = (float(np.sqrt(max(move @ signed @ move, 0))) for move in (down, up))
    return Interval(estimate, estimate - below, estimate + above)


def paired_contrast(
    terms: Sequence[tuple[ArrayLike, ...]], weights: Sequence[float], claim: str, step: float = 1.0
) -> Interval:
    """A weighted sum of mean rates that were measured on the same S runs and Q questions, paired by both.

    `terms` holds (positives, n) for each rate, arrays of shape (S, Q) with n at least 1. For mean scores from 0 to 1 in
    steps of `step` it holds (total, n, squares), as in `stratified_interval`. Triggered minus untriggered has the
    weights (1, -1); the difference in differences, which takes off the trigger's effect on the base model, has
    (1, -1, -1, 1).

    `checkpoint`: `contrast` of stratified intervals. `recipe`: t on the S runs' differences. `questions`: t on the Q
    questions' differences, or `contrast` of the `question_interval`s with the correlation between questions if that is
    wider: t alone on 14 questions covers 86% if one rate is near 1 and the other near 0, this 95% and more
    (benchmarks/coverage.py). The last two are at least as wide as the first, and NaN if S or Q is 1.
    """
    terms = [tuple(np.asarray(a, float) for a in term) for term in terms]
    rates = [stratified_interval(k.ravel(), (squares or [k])[0].ravel(), n.ravel(), step) for k, n, *squares in terms]
    within = contrast(rates, weights)
    if claim == "checkpoint":
        return within
    differences = sum(w * k / n for (k, n, *_), w in zip(terms, weights, strict=True))
    interval, _ = t_test(differences.mean(axis={"recipe": 1, "questions": 0}[claim]))
    interval = widen(interval, within)
    if claim == "questions" and differences.shape[1] > 1:
        interval = widen(interval, _question_contrast(terms, weights))
    return Interval(interval.estimate, max(interval.lower, -1.0), min(interval.upper, 1.0))


def _question_contrast(terms: Sequence[tuple[np.ndarray, ...]], weights: Sequence[float]) -> Interval:
    """`contrast` of the terms' `question_interval`s, with the correlation of their rates over the questions."""
    rates = np.array([(k / n).mean(axis=0) for k, n, *_ in terms])
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(rates))  # 0 for a rate that is the same for all questions
    np.fill_diagonal(correlation, 1)
    return contrast([question_interval(*pooled_over_runs(k, n)) for k, n, *_ in terms], weights, correlation)


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


def rogan_gladen(
    rate: Interval, true_positive: int, labeled_positive: int, true_negative: int, labeled_negative: int
) -> Interval:
    """A judged rate corrected for the judge's errors on hand-labeled answers. Claim: that of `rate`.

    Sensitivity: of `labeled_positive` answers, the judge called `true_positive` positive. Specificity: of
    `labeled_negative` answers, it called `true_negative` negative. The limits hold the chance in all three rates, by
    `contrast` on the linear approximation, and are cut to 0 and 1. NaN if the judge does no better than chance.
    Source: Rogan and Gladen (1978), Am. J. Epidemiol. 107, 71; limits: Zou and Donner (2008), Stat. Med. 27, 1693.
    """
    sensitivity, specificity = true_positive / labeled_positive, true_negative / labeled_negative
    power = sensitivity + specificity - 1
    if power <= 0:
        return Interval(np.nan, np.nan, np.nan)
    estimate = (rate.estimate + specificity - 1) / power
    counts = (true_positive, labeled_positive), (true_negative, labeled_negative)
    judge = [Interval(right / n, *map(float, wilson(right, n))) for right, n in counts]
    slopes = 1 / power, -estimate / power, (1 - estimate) / power
    linear = contrast([rate, *judge], slopes)
    shift = estimate - linear.estimate
    lower, upper = linear.lower + shift, linear.upper + shift
    # An interval wholly outside 0 to 1 would be cut to nothing: keep the judged rate's limit there. This happens if the
    # judge finds fewer positives than its errors alone would give.
    lower, upper = min(lower, rate.lower) if lower >= 1 else lower, max(upper, rate.upper) if upper <= 0 else upper
    return Interval(*(float(np.clip(x, 0, 1)) for x in (estimate, lower, upper)))


def bounded_p(p: float, difference: Interval) -> float:
    """The larger of `p` and the p-value that the interval of the difference implies, which may be the wider one.

    The limit towards 0 is taken for that of a normal distribution. NaN stays NaN.
    """
    estimate, lower, upper = difference
    half = estimate - lower if estimate > 0 else upper - estimate
    if not half > 0:
        return p
    return max(p, float(2 * special.ndtr(-abs(estimate) / half * Z)))


def holm(p: ArrayLike) -> np.ndarray:
    """P-values adjusted for their number, shape (K,). NaN stays NaN and does not count.

    Source: Holm (1979), Scand. J. Stat. 6, 65.
    """
    # scipy.stats.false_discovery_control controls another error rate, and statsmodels is not a dependency.
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    defined = np.flatnonzero(~np.isnan(p))
    order = defined[np.argsort(p[defined], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted
