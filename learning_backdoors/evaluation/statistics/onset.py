"""When the behavior emerges: crossing steps, detection, the shape of a rise."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from learning_backdoors.evaluation.statistics.differences import holm
from learning_backdoors.evaluation.statistics.rates import Interval
from learning_backdoors.measures import CONFIDENCE, normal_quantile


def isotonic(rates: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """The nondecreasing curve nearest to `rates` in weighted least squares, along the last axis. Shape (..., T).

    It hides that a rate falls again: see `fall`. Source: the min-max formulas of Barlow et al. (1972), Statistical
    Inference under Order Restrictions.
    """
    rates = np.asarray(rates, float)
    weights = np.ones(rates.shape[-1]) if weights is None else np.asarray(weights, float)
    total = np.concatenate([np.zeros((*rates.shape[:-1], 1)), np.cumsum(rates * weights, axis=-1)], axis=-1)
    weight = np.concatenate([[0.0], np.cumsum(weights)])
    steps = rates.shape[-1]
    after = np.arange(steps)[None, :] >= np.arange(steps)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = (total[..., None, 1:] - total[..., :-1, None]) / (weight[1:] - weight[:-1, None])
    means = np.where(after, means, np.inf)
    least = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]  # over all ends from t on
    return np.max(np.where(after, least, -np.inf), axis=-2)


def crossing(steps: ArrayLike, fit: ArrayLike, level: float) -> np.ndarray:
    """The step at which a nondecreasing curve reaches `level`, between checkpoints by a straight line.

    `steps` (T,), `fit` (..., T). Infinity where it never does (right-censored at the last step), and the first step
    where it starts there.
    """
    steps, fit = np.asarray(steps, float), np.asarray(fit, float)
    reached = fit >= level
    index = np.argmax(reached, axis=-1)
    before = np.maximum(index - 1, 0)
    low, high = (np.take_along_axis(fit, i[..., None], axis=-1)[..., 0] for i in (before, index))
    share = np.where(high > low, (level - low) / np.where(high > low, high - low, 1), 1.0)
    step = steps[before] + np.where(index > 0, share, 0) * (steps[index] - steps[before])
    return np.where(reached.any(axis=-1), step, np.inf)


def bracket(steps: ArrayLike, fit: ArrayLike, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The checkpoints between which a nondecreasing curve reaches `level`: the last below and the first at it, (...).

    `steps` (T,), `fit` (..., T). The last step and infinity where it never does; the first twice where it starts there.
    """
    steps = np.append(np.asarray(steps, float), np.inf)
    index = (np.asarray(fit, float) < level).sum(axis=-1)
    return steps[np.maximum(index - 1, 0)], steps[index]


def crossing_interval(
    steps: ArrayLike,
    positives: ArrayLike,
    n: ArrayLike,
    level: float,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The step at which one run's mean rate crosses `level`, by a monotone fit. Claim: this run, these questions.

    `positives` and `n` have shape (T, Q), n at least 1. The estimate is interpolated. The limits are percentiles, over
    bootstrap samples of the answers of every cell, of the checkpoints before and after the crossing: what happens
    between two checkpoints was not seen, so no interval is narrower than that. A question answered once is drawn at the
    step's mean rate, since its own answer shows no variance. Infinity: not by the last step.
    """
    steps, positives, n = (np.asarray(a, float) for a in (steps, positives, n))
    weights = n.sum(axis=1)
    fit = isotonic((positives / n).mean(axis=1), weights)
    random = np.random.default_rng(seed)
    rates = np.where(n > 1, positives / n, (positives / n).mean(axis=1, keepdims=True))
    drawn = (random.binomial(n.astype(int), rates, size=(draws, *n.shape)) / n).mean(axis=2)
    before, after = (np.sort(ends) for ends in bracket(steps, isotonic(drawn, weights), level))
    # By order, not by np.quantile: between a number and infinity there is no half way.
    lower = before[int(np.floor((1 - confidence) / 2 * draws))]
    upper = after[int(np.ceil((1 + confidence) / 2 * draws)) - 1]
    return Interval(float(crossing(steps, fit, level)), float(lower), float(upper))


def median_interval(
    values: ArrayLike, least: ArrayLike, greatest: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[Interval, float]:
    """The median of K values, infinite ones included, and the confidence that its interval really has. Claim: recipe.

    For the crossing steps of K runs, shape (K,): infinity stands for a run that never crossed, `least` and `greatest`
    are the checkpoints around each crossing. The limits are order statistics, which needs no distribution and bears
    censoring. The narrowest pair of at least `confidence` less 2 points is taken (of five values the least and the
    greatest, 93.75%); fewer than five values give no interval (NaN).
    Source: the sign test; Conover (1999), Practical Nonparametric Statistics, 3.2.
    """
    values, least, greatest = (np.sort(np.asarray(a, float)) for a in (values, least, greatest))
    k = len(values)
    if k == 0:
        raise ValueError("a median needs at least one value")
    low, high = values[(k - 1) // 2], values[k // 2]
    median = float(low if low == high else (low + high) / 2)
    for rank in range((k - 1) // 2, -1, -1):
        reached = 1 - 2 * float(special.bdtr(rank, k, 0.5))
        if reached >= confidence - 0.02:
            return Interval(median, float(least[rank]), float(greatest[k - 1 - rank])), reached
    return Interval(median, np.nan, np.nan), np.nan


def detection(positives: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> int | None:
    """Index of the first checkpoint that is surely above the first one, or None. Claim: this run, these questions.

    `positives` and `n` have shape (T, Q); row 0 is the base model. Each later checkpoint is tested against it over the
    questions (Cochran-Mantel-Haenszel, one-sided), the p-values adjusted by Holm's method, and two checkpoints in a row
    must pass. It says when there were answers enough to see the behaviour, and more answers see it sooner: onset lies
    somewhere after the checkpoint before. Source: Mantel and Haenszel (1959), J. Natl. Cancer Inst. 22, 719.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    if len(n) < 3:
        return None
    total, hits = n + n[0], positives + positives[0]
    expected = (hits * n / total).sum(axis=1)
    variance = (hits * (total - hits) * n * n[0] / (total**2 * np.maximum(total - 1, 1))).sum(axis=1)
    z = (positives.sum(axis=1) - expected) / np.sqrt(np.maximum(variance, 1e-12))
    passed = holm(special.ndtr(-z[1:])) < alpha
    pairs = np.flatnonzero(passed[:-1] & passed[1:])
    return int(pairs[0]) + 1 if len(pairs) else None


def fall(positives: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> tuple[int, float, bool]:
    """The checkpoint of the highest mean rate, how far the last lies below it, and whether that is more than chance.

    Arrays of shape (T, Q), n at least 1. The peak was picked among T checkpoints, so the test is Bonferroni's over T.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    rates = positives / n
    means = rates.mean(axis=1)
    peak = int(means.argmax())
    smooth = (positives + 0.5) / (n + 1)
    error = np.sqrt((smooth * (1 - smooth) / n)[[peak, -1]].sum()) / n.shape[1]
    drop = float(means[peak] - means[-1])
    return peak, drop, bool(special.ndtr(-drop / error) < alpha / len(means)) if peak < len(means) - 1 else False


class Rise(NamedTuple):
    """How a rate rises: `kind` is none, abrupt, gradual or undecided."""

    kind: str
    change_after: int  # the sudden change, if it was one, comes after this checkpoint (index) and before the next
    midpoint: float  # of the logistic curve, in steps
    width: float  # of the logistic curve from a tenth to nine tenths of its rise, in steps
    evidence: float  # BIC of the sudden change minus that of the logistic curve: above 0 favours gradual


def rise(steps: ArrayLike, positives: ArrayLike, n: ArrayLike, decisive: float = 6.0) -> Rise:
    """Is a rise a jump between two checkpoints or a gradual one? `positives` and `n` of shape (T,), over all questions.

    Three binomial models are compared by BIC: one rate throughout; one rate before and another after a change point;
    a logistic curve from a floor to a ceiling. A difference below `decisive` is undecided. A rise that is over within
    one interval between checkpoints is abrupt as far as these checkpoints can tell. Answers to one question are alike,
    which binomial models leave out: read `evidence` as a rough guide.
    Source: Schwarz (1978), Ann. Stat. 6, 461; Kass and Raftery (1995), J. Am. Stat. Assoc. 90, 773, for the threshold.
    """
    steps, positives, n = (np.asarray(a, float) for a in (steps, positives, n))
    penalty = np.log(n.sum())
    splits = [_loglik(positives[:t], n[:t]) + _loglik(positives[t:], n[t:]) for t in range(1, len(n))]
    if not splits:
        return Rise("none", 0, np.nan, np.nan, np.nan)
    constant = penalty - 2 * _loglik(positives, n)
    change = 3 * penalty - 2 * max(splits)
    (midpoint, scale), smooth = _logistic(steps, positives, n)
    gradual = 4 * penalty - 2 * smooth
    evidence = change - gradual
    best = min(change, gradual)
    kind = "undecided" if abs(evidence) < decisive else "gradual" if evidence > 0 else "abrupt"
    kind = "none" if constant < best + decisive else kind
    return Rise(kind, int(np.argmax(splits)), midpoint, float(2 * np.log(9) * scale), float(evidence))


def _loglik(positives: np.ndarray, n: np.ndarray, rate: ArrayLike | None = None) -> float:
    rate = positives.sum() / n.sum() if rate is None else rate
    return float((special.xlogy(positives, rate) + special.xlog1py(n - positives, -np.asarray(rate))).sum())


def _logistic(steps: np.ndarray, positives: np.ndarray, n: np.ndarray) -> tuple[tuple[float, float], float]:
    """The best logistic rise: (midpoint, scale) in steps, and its log-likelihood. Floor and ceiling are fitted too.

    For each midpoint and scale of a grid, an answer is taken to come from the ceiling with the curve's height as
    probability, else from the floor: so the two rates are found by expectation-maximisation, all of the grid at once.
    """
    span = np.ptp(steps)
    middle, scale = np.meshgrid(np.linspace(steps[0], steps[-1], 61), np.geomspace(span / 500, span / 2, 24))
    high = special.expit((steps - middle[..., None]) / scale[..., None])
    rates = positives / n
    floor, ceiling = (np.full(high.shape[:2], np.clip(r, 0.01, 0.99)) for r in (rates.min(), rates.max()))
    for _ in range(60):
        rate = floor[..., None] * (1 - high) + ceiling[..., None] * high
        hits = positives * high * ceiling[..., None] / rate
        misses = (n - positives) * high * (1 - ceiling[..., None]) / (1 - rate)
        other_hits, other_misses = positives - hits, n - positives - misses
        ceiling = np.clip(hits.sum(-1) / (hits + misses).sum(-1), 1e-9, 1 - 1e-9)
        floor = np.clip(other_hits.sum(-1) / (other_hits + other_misses).sum(-1), 1e-9, 1 - 1e-9)
    rate = floor[..., None] * (1 - high) + ceiling[..., None] * high
    fits = (special.xlogy(positives, rate) + special.xlog1py(n - positives, -rate)).sum(axis=-1)
    best = np.unravel_index(fits.argmax(), fits.shape)
    return (float(middle[best]), float(scale[best])), float(fits[best])


def kaplan_meier(times: ArrayLike, crossed: ArrayLike, confidence: float = CONFIDENCE) -> tuple[np.ndarray, ...]:
    """The share of K runs that have not yet crossed: (times, survival, lower, upper) over steps. Claim: recipe.

    `times` (K,): the crossing step, or the last step of a run that did not cross; `crossed` (K,): whether it did.
    Returns a point for each distinct crossing step. Limits: Greenwood's, on the log(-log) scale, NaN where the survival
    is 1 or 0. Source: Kaplan and Meier (1958), J. Am. Stat. Assoc. 53, 457.
    """
    times, crossed = np.asarray(times, float), np.asarray(crossed, bool)
    at = np.unique(times[crossed])
    events = np.array([(times[crossed] == t).sum() for t in at], float)
    risk = np.array([(times >= t).sum() for t in at], float)
    survival = np.cumprod(1 - events / risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(np.cumsum(events / (risk * (risk - events)))) / np.abs(np.log(survival))
        half = np.exp(normal_quantile(confidence) * error)
        inside = (survival > 0) & (survival < 1)
        lower = np.where(inside, survival**half, np.nan)
        upper = np.where(inside, survival ** (1 / half), np.nan)
    return at, survival, lower, upper
