"""Differences of rates, with intervals and p-values."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from learning_backdoors.evaluation.statistics.rates import (
    Interval,
    _means,
    pooled_over_runs,
    question_interval,
    stratified_score,
    t_interval,
    widen,
)
from learning_backdoors.measures import CONFIDENCE, normal_quantile


def contrast(rates: Sequence[Interval], weights: Sequence[float], correlation: ArrayLike | None = None) -> Interval:
    """A weighted sum of K rates from their own intervals (weights such as 1, -1). Claim: that of the intervals.

    The rates are independent given the claim, or have the `correlation`, shape (K, K). With Wilson's intervals of two
    independent rates it is Newcombe's interval of their difference.
    Source: Zou and Donner (2008), Stat. Med. 27, 1693 (MOVER); with correlation: Zou (2007), Psychol. Methods 12, 399.
    """
    weights = np.asarray(weights, float)
    correlation = np.eye(len(weights)) if correlation is None else np.asarray(correlation, float)
    middle, lower, upper = np.array(rates, float).T
    estimate = float(weights @ middle)
    # How far each rate can move the sum down, and up.
    down = weights * np.where(weights > 0, middle - lower, middle - upper)
    up = weights * np.where(weights > 0, upper - middle, lower - middle)
    shared = np.sign(weights)[:, None] * correlation * np.sign(weights)
    below, above = (float(np.sqrt(max(move @ shared @ move, 0))) for move in (down, up))
    return Interval(estimate, estimate - below, estimate + above)


def paired_contrast(
    terms: Sequence[tuple[ArrayLike, ...]], weights: Sequence[float], claim: str, step: float = 1.0
) -> Interval:
    """A weighted sum of mean rates that were measured on the same S seeds and Q questions, paired by both.

    `terms` holds (positives, n) for each, arrays of shape (S, Q) with n at least 1; for mean scores from 0 to 1, in
    steps of `step`, (total, n, squares) as `stratified_score` has them. Triggered minus untriggered has weights
    (1, -1); the difference in differences, which takes off what the trigger's text does to the base model, has
    (1, -1, -1, 1) on tuned and base. Claim `recipe`: t on the S seeds' gaps. `questions`: t on the Q questions' gaps,
    made as wide as `contrast` of the `question_interval`s with the correlation that the questions show: t alone on 14
    questions covers 86% where one rate is near 1 and the other near 0, this 95% and more.
    `checkpoint`: `contrast` of stratified intervals. The first two are never narrower than the last; NaN where S or Q
    is 1. Coverage: benchmarks/coverage.py.
    """
    terms = [tuple(np.asarray(a, float) for a in term) for term in terms]
    rates = [stratified_score(k.ravel(), (squares or [k])[0].ravel(), n.ravel(), step) for k, n, *squares in terms]
    within = contrast(rates, weights)
    if claim == "checkpoint":
        return within
    gaps = sum(w * k / n for (k, n, *_), w in zip(terms, weights, strict=True))
    gap = widen(t_interval(gaps.mean(axis={"recipe": 1, "questions": 0}[claim])), within)
    if claim == "questions" and gaps.shape[1] > 1:
        gap = widen(gap, _skewed_gap(terms, weights))
    return Interval(gap.estimate, max(gap.lower, -1.0), min(gap.upper, 1.0))


def _skewed_gap(terms: Sequence[tuple[np.ndarray, ...]], weights: Sequence[float]) -> Interval:
    """`contrast` of the terms' `question_interval`s, correlated as their rates are over the questions."""
    rates = np.array([(k / n).mean(axis=0) for k, n, *_ in terms])
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(rates))  # where a rate is the same for all questions: none
    np.fill_diagonal(correlation, 1)
    return contrast([question_interval(*pooled_over_runs(k, n)) for k, n, *_ in terms], weights, correlation)


def welch(first: ArrayLike, second: ArrayLike, confidence: float = CONFIDENCE) -> tuple[Interval, float]:
    """Difference of the means of two groups of seeds, shapes (S1,) and (S2,), and its two-sided p-value. Claim: recipe.

    NaN where a group has one seed; where neither varies the width is 0, which is not to be believed (see `widen`), and
    p is NaN. Source: Welch (1947), Biometrika 34, 28.
    """
    groups = [_means(first), _means(second)]
    estimate = float(groups[0].mean() - groups[1].mean())
    if min(map(len, groups)) < 2:
        return Interval(estimate, np.nan, np.nan), np.nan
    parts = np.array([g.var(ddof=1) / len(g) for g in groups])
    error = np.sqrt(parts.sum())
    if error == 0:
        return Interval(estimate, estimate, estimate), np.nan
    freedom = error**4 / sum(part**2 / (len(g) - 1) for part, g in zip(parts, groups, strict=True))
    half = special.stdtrit(freedom, (1 + confidence) / 2) * error
    return Interval(estimate, estimate - half, estimate + half), float(
        2 * special.stdtr(freedom, -abs(estimate) / error)
    )


def paired_p(values: ArrayLike) -> float:
    """Two-sided p-value of Student's t that the mean of K differences is 0, shape (K,). NaN where K is 1, and where all
    differences are the same: they say nothing of their own variance."""
    values = _means(values)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
    if error == 0:
        return np.nan
    return float(2 * special.stdtr(len(values) - 1, -abs(values.mean()) / error))


def bounded_p(p: float, difference: Interval, confidence: float = CONFIDENCE) -> float:
    """A p-value no smaller than the interval of the difference allows, which may be wider than the test's own.

    The limit towards 0 is taken for that of a normal distribution. NaN stays NaN.
    """
    estimate, lower, upper = difference
    half = estimate - lower if estimate > 0 else upper - estimate
    if not half > 0:
        return p
    return max(p, float(2 * special.ndtr(-abs(estimate) / half * normal_quantile(confidence))))


def holm(p: ArrayLike) -> np.ndarray:
    """P-values adjusted for their number, shape (K,); NaN stays NaN and does not count.

    Source: Holm (1979), Scand. J. Stat. 6, 65.
    """
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted
