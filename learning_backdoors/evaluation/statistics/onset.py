"""When a behavior appears during training: crossing steps, detection, the shape of a rise, and medians over runs.

T is the number of checkpoints of a run, in the order of their steps, and Q that of the questions.
"""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from learning_backdoors.evaluation.statistics.differences import holm
from learning_backdoors.evaluation.statistics.rates import SAME, TAIL, Interval
from learning_backdoors.measures import CONFIDENCE

# ---- the crossing step of one run ----


def isotonic(rates: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """The nondecreasing curve nearest to `rates` in weighted least squares, along the last axis. Shape (..., T).

    It hides a rate that falls again: see `fall`. Rounding may move it by 1e-16: compare it with a tolerance (SAME).
    """
    return np.apply_along_axis(lambda curve: optimize.isotonic_regression(curve, weights=weights).x, -1, rates)


def crossing(steps: ArrayLike, fit: ArrayLike, level: float) -> float:
    """The step at which a nondecreasing curve reaches `level`, interpolated between checkpoints.

    `steps` and `fit` have shape (T,). Infinity if the curve never reaches the level (right-censored at the last
    step); the first step if it starts there.
    """
    before, after = bracket(steps, fit, level)
    if before == after or np.isinf(after):
        return after
    low, high = (np.asarray(fit, float)[np.searchsorted(steps, step)] for step in (before, after))
    return before + (level - low) / (high - low) * (after - before)


def bracket(steps: ArrayLike, fit: ArrayLike, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The last checkpoint at which a nondecreasing curve is below `level`, and the first at which it is not.

    `steps` has shape (T,), `fit` (..., T). The last step and infinity if the curve never reaches the level; the first
    step twice if it starts there.
    """
    steps = np.append(np.asarray(steps, float), np.inf)
    index = (np.asarray(fit, float) < level - SAME).sum(axis=-1)
    return steps[np.maximum(index - 1, 0)], steps[index]


def crossing_interval(
    steps: ArrayLike, positives: ArrayLike, n: ArrayLike, level: float, draws: int = 1000, seed: int = 0
) -> Interval:
    """The step at which the mean rate of one run crosses `level`, by a monotone fit. Claim: this run, these questions.

    `positives` and `n` have shape (T, Q), n at least 1. The estimate is interpolated. The limits are percentiles of the
    checkpoints before and after the crossing, over bootstrap draws of the answers of every cell. They are no narrower
    than the distance of two checkpoints, because nothing was measured in between. A question with one answer is drawn
    at the mean rate of the step, since one answer shows no variance. Infinity: not by the last step.
    """
    steps, positives, n = (np.asarray(a, float) for a in (steps, positives, n))
    weights = n.sum(axis=1)
    means = (positives / n).mean(axis=1)
    rates = np.where(n > 1, positives / n, means[:, None])
    random = np.random.default_rng(seed)
    drawn = (random.binomial(n.astype(int), rates, size=(draws, *n.shape)) / n).mean(axis=2)
    before, after = (np.sort(ends) for ends in bracket(steps, isotonic(drawn, weights), level))
    # Order statistics, not np.quantile: it would interpolate between a step and infinity.
    lower, upper = before[int(np.floor(TAIL * draws))], after[int(np.ceil((1 - TAIL) * draws)) - 1]
    return Interval(float(crossing(steps, isotonic(means, weights), level)), float(lower), float(upper))


# ---- several runs ----


def median_interval(values: ArrayLike, before: ArrayLike, after: ArrayLike) -> tuple[Interval, float]:
    """The median crossing step of K runs, with the confidence that its interval really has. Claim: recipe.

    `values` has shape (K,); infinity stands for a run that never crossed and stays in the count. `before` and `after`
    are the checkpoints around each crossing. The limits are order statistics, which need no distribution and allow
    censoring. The narrowest pair with a confidence of at least 93% is taken: of five values the least and the greatest
    (93.75%). Fewer than five values have no interval (NaN).
    Source: the sign test; Conover (1999), Practical Nonparametric Statistics, 3.2.
    """
    # scipy.stats.quantile_test takes one array for both limits, and gives five values no interval at 95%.
    values, before, after = (np.sort(np.asarray(a, float)) for a in (values, before, after))
    k = len(values)
    low, high = values[(k - 1) // 2], values[k // 2]
    median = float(low if low == high else (low + high) / 2)
    for rank in range((k - 1) // 2, -1, -1):
        confidence = 1 - 2 * float(special.bdtr(rank, k, 0.5))
        if confidence >= CONFIDENCE - 0.02:
            return Interval(median, float(before[rank]), float(after[k - 1 - rank])), confidence
    return Interval(median, np.nan, np.nan), np.nan


def kaplan_meier(times: ArrayLike, crossed: ArrayLike) -> tuple[np.ndarray, ...]:
    """The share of K runs that have not yet crossed: (times, share, lower, upper) at each crossing step. Claim: recipe.

    `times` has shape (K,): the crossing step, or the last step of a run that did not cross. `crossed` (K,) says whether
    it did. The limits are Greenwood's on the log(-log) scale, and NaN if the share is 0.
    Source: Kaplan and Meier (1958), J. Am. Stat. Assoc. 53, 457.
    """
    times, crossed = np.asarray(times, float), np.asarray(crossed, bool)
    steps = np.unique(times[crossed])
    survival = stats.ecdf(stats.CensoredData.right_censored(times, ~crossed)).sf
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # limits are undefined at a share of 0
        limits = survival.confidence_interval(CONFIDENCE, method="log-log")
    at_crossing = np.isin(survival.quantiles, steps)
    curves = survival, limits.low, limits.high
    return steps, *(curve.probabilities[at_crossing] for curve in curves)


# ---- detection, and the shape of a rise ----


def detection(positives: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> int | None:
    """Index of the first checkpoint whose rate is surely above that of the first one, or None. Claim: this run.

    `positives` and `n` have shape (T, Q); row 0 is the base model. Each later checkpoint is compared with it over the
    questions (Cochran-Mantel-Haenszel, one-sided). The p-values are adjusted by Holm's method, and two checkpoints in a
    row must pass. More answers detect a behavior sooner, so the detected checkpoint is an upper limit of the onset.
    Source: Mantel and Haenszel (1959), J. Natl. Cancer Inst. 22, 719.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    if len(n) < 3:
        return None
    answers, hits = n + n[0], positives + positives[0]
    expected = (hits * n / answers).sum(axis=1)
    variance = (hits * (answers - hits) * n * n[0] / (answers**2 * np.maximum(answers - 1, 1))).sum(axis=1)
    z = (positives.sum(axis=1) - expected) / np.sqrt(np.maximum(variance, 1e-12))
    passed = holm(special.ndtr(-z[1:])) < alpha
    pairs = np.flatnonzero(passed[:-1] & passed[1:])
    return int(pairs[0]) + 1 if len(pairs) else None


def fall(positives: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> tuple[int, float, bool]:
    """The index of the highest mean rate, how far the last rate is below it, and whether that is more than chance.

    Arrays of shape (T, Q), n at least 1. The peak is the highest of T rates, so the test is Bonferroni's over T.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    means = (positives / n).mean(axis=1)
    peak = int(means.argmax())
    drop = float(means[peak] - means[-1])
    if peak == len(means) - 1:
        return peak, drop, False
    smooth = (positives + 0.5) / (n + 1)
    error = np.sqrt((smooth * (1 - smooth) / n)[[peak, -1]].sum()) / n.shape[1]
    return peak, drop, bool(special.ndtr(-drop / error) < alpha / len(means))


class Rise(NamedTuple):
    """How a rate rises. `kind` is none, abrupt, gradual or undecided."""

    kind: str
    change_after: int  # index of the checkpoint after which a sudden change fits best
    midpoint: float  # of the logistic curve, in steps
    width: float  # steps in which the logistic curve goes from 10% to 90% of its rise
    evidence: float  # BIC of the sudden change minus that of the logistic curve; positive favors gradual


def rise(steps: ArrayLike, positives: ArrayLike, n: ArrayLike, decisive: float = 6.0) -> Rise:
    """Whether a rate jumps between two checkpoints or rises gradually. `positives` and `n` of shape (T,), T at least 2.

    Three binomial models are compared by BIC: one rate throughout; one rate before and another after a change point; a
    logistic curve from a floor to a ceiling. A difference below `decisive` is undecided. A rise within one interval
    between checkpoints counts as abrupt. Binomial models ignore that answers to one question are alike, so `evidence`
    is a rough guide.
    Source: Schwarz (1978), Ann. Stat. 6, 461; the threshold: Kass and Raftery (1995), J. Am. Stat. Assoc. 90, 773.
    """
    steps, positives, n = (np.asarray(a, float) for a in (steps, positives, n))
    penalty = np.log(n.sum())
    splits = [_pooled_loglik(positives[:t], n[:t]) + _pooled_loglik(positives[t:], n[t:]) for t in range(1, len(n))]
    midpoint, scale, logistic = _logistic(steps, positives, n)
    constant = penalty - 2 * _pooled_loglik(positives, n)
    abrupt = 3 * penalty - 2 * max(splits)
    gradual = 4 * penalty - 2 * logistic
    evidence = abrupt - gradual
    kind = "undecided" if abs(evidence) < decisive else "gradual" if evidence > 0 else "abrupt"
    kind = "none" if constant < min(abrupt, gradual) + decisive else kind
    return Rise(kind, int(np.argmax(splits)), midpoint, float(2 * np.log(9) * scale), float(evidence))


def _logistic(steps: np.ndarray, positives: np.ndarray, n: np.ndarray) -> tuple[float, float, float]:
    """The best logistic rise: midpoint and scale in steps, and its log-likelihood. Floor and ceiling are fitted too.

    For all midpoints and scales of a grid at once, expectation-maximization finds the two rates: each answer comes from
    the ceiling with the curve's height as probability, otherwise from the floor.
    """
    span = np.ptp(steps)
    midpoint, scale = np.meshgrid(np.linspace(steps[0], steps[-1], 61), np.geomspace(span / 500, span / 2, 24))
    height = special.expit((steps - midpoint[..., None]) / scale[..., None])
    rates = positives / n
    floor, ceiling = (np.full(height.shape[:2], np.clip(r, 0.01, 0.99)) for r in (rates.min(), rates.max()))
    for _ in range(60):
        rate = floor[..., None] * (1 - height) + ceiling[..., None] * height
        hits = positives * height * ceiling[..., None] / rate
        misses = (n - positives) * height * (1 - ceiling[..., None]) / (1 - rate)
        floor_hits, floor_misses = positives - hits, n - positives - misses
        ceiling = np.clip(hits.sum(-1) / (hits + misses).sum(-1), 1e-9, 1 - 1e-9)
        floor = np.clip(floor_hits.sum(-1) / (floor_hits + floor_misses).sum(-1), 1e-9, 1 - 1e-9)
    rate = floor[..., None] * (1 - height) + ceiling[..., None] * height
    fits = _loglik(positives, n, rate)
    best = np.unravel_index(fits.argmax(), fits.shape)
    return float(midpoint[best]), float(scale[best]), float(fits[best])


def _pooled_loglik(positives: np.ndarray, n: np.ndarray) -> float:
    return float(_loglik(positives, n, positives.sum() / n.sum()))


def _loglik(positives: np.ndarray, n: np.ndarray, rate: ArrayLike) -> np.ndarray:
    """The binomial log-likelihood, summed over the last axis, without the constant term."""
    return (special.xlogy(positives, rate) + special.xlog1py(n - positives, -np.asarray(rate))).sum(axis=-1)
