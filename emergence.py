"""The statistics: pure functions on arrays, without files, tables or figures.

Seeds (training runs) and questions are crossed, and a rate can be meant in three ways, each with its own interval:

- claim `checkpoint`: this checkpoint on these questions. Chance is in the answers alone.
- claim `recipe`: another training run by the same recipe on these questions. Chance is in the seed.
- claim `questions`: these checkpoints on other questions of this kind. Chance is in the questions.

Every function says which claim its result supports. Every question weighs the same, so that lost answers do not
reweight. Rates are shares from 0 to 1; intervals are 95% unless `confidence` says otherwise.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and its limits. The limits are NaN where the data cannot give an interval."""

    estimate: float
    lower: float
    upper: float


# ---- one cell, one checkpoint ----


def wilson(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval for `positives` of `n` independent answers. Claim: checkpoint, one question.

    Arrays of one shape; returns the lower and the upper limits in that shape. 0 of 100 is [0, 0.037]; 0 of 0 is NaN.
    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209.
    """
    return _wilson(np.asarray(positives, float), np.asarray(n, float), _normal_quantile(confidence))


def _wilson(positives: np.ndarray, n: np.ndarray, z: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    if np.any(positives < 0) or np.any(positives > n):
        raise ValueError("positives must be from 0 to n")
    n = np.where(n > 0, n, np.nan)
    rate = positives / n
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # Exactly 0 and 1 at the ends: rounding would leave 1e-18.
    lower = np.where(positives == 0, 0 * n, np.clip(middle - half, 0, 1))
    upper = np.where(positives == n, 1 + 0 * n, np.clip(middle + half, 0, 1))
    return lower, upper


def stratified(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean rate of Q questions of equal weight, from answers drawn within each. Claim: checkpoint.

    `positives` and `n` have shape (Q,), n at least 1. Each question gets a Wilson interval of a smaller quantile,
    chosen so that the mean of their limits has the confidence asked for. With one question it is Wilson's; with 0 of
    n everywhere it is Wilson's on the pooled answers, so it has width at 0 and 1.
    Source: Yan and Su (2010), Stat. Biopharm. Res. 2, 329, with equal weights; variances from rates smoothed by one
    answer of each kind, so that a question at 0 or 1 counts as uncertain too.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    if positives.ndim != 1 or len(positives) == 0 or np.any(n < 1):
        raise ValueError("stratified needs at least one question, and an answer to each")
    smooth = (positives + 1) / (n + 2)
    variance = smooth * (1 - smooth) / n
    z = _normal_quantile(confidence) * np.sqrt(variance.sum()) / np.sqrt(variance).sum()
    lower, upper = _wilson(positives, n, z)
    return Interval(float((positives / n).mean()), float(lower.mean()), float(upper.mean()))


# ---- beyond the checkpoint ----


def t_interval(means: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Student's t on K independent means, limits cut to 0 and 1. Shape (K,).

    Claim: recipe, when they are the means of K seeds (training runs) over the same questions; questions, when they are
    the means of K questions. With K = 1 there is no interval and the limits are NaN: more answers cannot stand in for
    another seed or question. Where all means are equal the width is 0, which is not to be believed: see `widen`.
    """
    means = np.asarray(means, float)
    if means.ndim != 1 or len(means) == 0 or np.isnan(means).any():
        raise ValueError("t_interval needs at least one mean, none of them NaN")
    estimate, k = float(means.mean()), len(means)
    if k == 1:
        return Interval(estimate, np.nan, np.nan)
    half = special.stdtrit(k - 1, (1 + confidence) / 2) * means.std(ddof=1) / np.sqrt(k)
    return Interval(estimate, float(max(estimate - half, 0)), float(min(estimate + half, 1)))


def widen(interval: Interval, within: Interval) -> Interval:
    """`interval` made at least as wide as `within`, the interval of the narrower claim `checkpoint`.

    A claim about other seeds or questions cannot be surer than the one about these. It matters where all means are
    near 0 or 1 and their spread says nothing.
    """
    if np.isnan(interval.lower):
        return interval
    return Interval(interval.estimate, min(interval.lower, within.lower), max(interval.upper, within.upper))


def mean_rate(positives: ArrayLike, n: ArrayLike, claim: str, confidence: float = CONFIDENCE) -> Interval:
    """Mean rate of S seeds and Q questions at one step, with the interval of `claim`; both arrays of shape (S, Q).

    `checkpoint`: stratified over all S x Q cells. `recipe`: t on the S seeds' means. `questions`: t on the Q questions'
    means over the seeds. The last two are never narrower than the first, and NaN where S or Q is 1. A cell without
    answers (n of 0) is left out of its means.
    """
    positives, n = np.atleast_2d(np.asarray(positives, float)), np.atleast_2d(np.asarray(n, float))
    asked = n > 0
    within = stratified(positives[asked], n[asked], confidence)
    if claim == "checkpoint":
        return within
    rates = np.divide(positives, n, out=np.full(n.shape, np.nan), where=asked)
    axis = {"recipe": 1, "questions": 0}[claim]
    means = np.nanmean(rates[asked.any(axis=1)][:, asked.any(axis=0)], axis=axis)
    return widen(t_interval(means, confidence), within)


def worst_case(positives: ArrayLike, n: ArrayLike, missing: ArrayLike) -> tuple[float, float]:
    """Bounds of the mean rate if every missing verdict had been negative, or positive. Shapes (Q,).

    `n` counts the verdicts at hand, `missing` those that could not be had. No chance is in these bounds.
    Source: Manski (1989), J. Hum. Resources 24, 343.
    """
    positives, n, missing = (np.asarray(a, float) for a in (positives, n, missing))
    total = n + missing
    if np.any(total < 1):
        raise ValueError("worst_case needs at least one answer to each question")
    return float((positives / total).mean()), float(((positives + missing) / total).mean())


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return float(special.ndtri((1 + confidence) / 2))
