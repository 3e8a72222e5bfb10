"""When a behavior appears in one run: crossing steps, detection, and the shape of the rise.

T is the number of checkpoints of a run, in the order of their steps, and Q that of the questions.

A rate varies between checkpoints by more than the chance in their answers (optimizer noise). Intervals here allow for
both: `curve` estimates this noise from the run's own residuals.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from learning_backdoors.evaluation.statistics.differences import holm
from learning_backdoors.evaluation.statistics.rates import SAME, Interval
from learning_backdoors.measures import CONFIDENCE

TAIL = (1 - CONFIDENCE) / 2

# ---- the curve of one run ----


class Curve(NamedTuple):
    """The mean rates of one run over training, with bootstrap draws of them. Claim: this run, these questions."""

    steps: np.ndarray  # (T,)
    positives: np.ndarray  # (T, Q), as n
    n: np.ndarray
    means: np.ndarray  # (T,): mean rates over questions
    fit: np.ndarray  # (T,): the nondecreasing fit to the means, weighted by answers
    noise: float  # the standard deviation of a checkpoint's rate around a smooth curve, in logits
    drawn: np.ndarray  # (draws, T): bootstrap draws of the means

    def first_reached(self, level: ArrayLike) -> np.ndarray:
        """Of each draw: the index of the first checkpoint whose nondecreasing fit is at `level` or above; T if none.

        `level` is a number, or an array with a level per draw. This is the switch relation: the fit reaches the level
        where the cumulative sum of the distances to the level is least, so no draw needs a fit.
        Source: Groeneboom and Jongbloed (2014), Nonparametric Estimation under Shape Constraints, 3.2.
        """
        distance = self.n.sum(axis=1) * (self.drawn - np.asarray(level)[..., None] + SAME)
        return np.pad(np.cumsum(distance, axis=1), ((0, 0), (1, 0))).argmin(axis=1)


def curve(steps: ArrayLike, positives: ArrayLike, n: ArrayLike, draws: int = 400, seed: int = 0) -> Curve:
    """The `Curve` of one run. `positives` and `n` have shape (T, Q), n at least 1.

    A draw holds the chance in the answers of every cell and the noise between checkpoints. A question with one answer
    is drawn at the mean rate of the step, since one answer shows no variance.
    """
    steps, positives, n = (np.asarray(a, float) for a in (steps, positives, n))
    means, answers = (positives / n).mean(axis=1), n.sum(axis=1)
    smooth = (positives + 0.5) / (n + 1)
    chance = (smooth * (1 - smooth) / n).mean(axis=1) / n.shape[1]
    slope = (smooth * (1 - smooth)).mean(axis=1)
    noise = _noise(means, answers, chance, slope)
    random = np.random.default_rng(seed)
    rates = np.where(n > 1, positives / n, means[:, None])
    drawn = (random.binomial(n.astype(int), rates, size=(draws, *n.shape)) / n).mean(axis=2)
    drawn += noise * slope * random.standard_normal(drawn.shape)
    return Curve(steps, positives, n, means, _isotonic(means, answers), noise, drawn)


def _isotonic(means: np.ndarray, weights: np.ndarray, increasing: bool = True) -> np.ndarray:
    return optimize.isotonic_regression(means, weights=weights, increasing=increasing).x if len(means) else means


def _noise(means: np.ndarray, weights: np.ndarray, chance: np.ndarray, slope: np.ndarray) -> float:
    """The noise between checkpoints, in logits; all arrays have shape (T,).

    `chance` is the variance of each mean by its answers, `slope` the change of the mean per logit. The residuals are
    those around a curve that rises up to the highest mean and falls after it, so that a real fall is no noise. The
    noise is the size at which the squared residuals, each divided by its variance, add up to their degrees of freedom:
    T - 1.5 times the number of different rates in the fit, at least 1.
    Source: Paule and Mandel (1982), J. Res. Natl. Bur. Stand. 87, 377; degrees of freedom: Meyer and Woodroofe (2000),
    Ann. Stat. 28, 1083.
    """
    top = int(means.argmax()) + 1
    fit = np.append(_isotonic(means[:top], weights[:top]), _isotonic(means[top:], weights[top:], increasing=False))
    squares, freedom = (means - fit) ** 2, max(len(fit) - 1.5 * (1 + (abs(np.diff(fit)) > SAME).sum()), 1.0)
    if (squares / chance).sum() <= freedom:
        return 0.0
    largest = (squares / slope**2).sum() / freedom
    return optimize.brentq(lambda v: (squares / (chance + v * slope**2)).sum() - freedom, 0, largest) ** 0.5


class Crossing(NamedTuple):
    """Where a run's nondecreasing fit reaches a level. Infinity: not by the last step (right-censored there)."""

    step: float  # interpolated between checkpoints
    lower: float
    upper: float
    before: float  # the last checkpoint below the level; the first step if the fit starts at the level
    after: float  # the first checkpoint at the level or above
    doubt: str  # why the crossing is not reliable; empty if it is


def crossing(curve: Curve, level: float) -> Crossing:
    """The step at which the fit of a run reaches `level`, with an interval. Claim: this run, these questions.

    The limits are percentiles of the checkpoints before and after the crossing, over the curve's draws. They are no
    narrower than the distance of two checkpoints, because nothing was measured in between. A rate equal to the level
    has reached it. Coverage with and without noise between checkpoints: benchmarks/coverage_onset.py.
    """
    step, before, after = _reached(curve, level)
    drawn, steps = curve.first_reached(level), np.append(curve.steps, np.inf)
    # Order statistics, not np.quantile: it would interpolate between a step and infinity.
    lower = float(np.quantile(steps[np.maximum(drawn - 1, 0)], TAIL, method="lower"))
    upper = float(np.quantile(steps[drawn], 1 - TAIL, method="higher"))
    return Crossing(step, lower, upper, before, after, _doubt(curve.steps, after, upper))


def _reached(curve: Curve, level: float) -> tuple[float, float, float]:
    """The step at which the fit reaches `level`, interpolated, and the checkpoints before and after it."""
    steps, index = np.append(curve.steps, np.inf), int((curve.fit < level - SAME).sum())
    before, after = float(steps[max(index - 1, 0)]), float(steps[index])
    if before == after or np.isinf(after):
        return after, before, after
    low, high = curve.fit[index - 1 : index + 1]
    return float(before + (level - low) / (high - low) * (after - before)), before, after


def _doubt(steps: np.ndarray, after: float, upper: float) -> str:
    """Why a crossing by the checkpoint `after` is not reliable; empty if it is.

    Neighboring checkpoints are nearly the same model, so those that confirm a crossing must span the usual distance.
    """
    if np.isinf(after):
        return "the level is not reached"
    if after == steps[0]:
        return "the level is reached at the first step"
    if np.isinf(upper):
        return "chance or noise between checkpoints may explain it"
    if steps[-1] - after < np.median(np.diff(steps)):
        confirming = steps[steps >= after].astype(int)
        return "it rests on " + (f"steps {confirming[0]} to {confirming[-1]}" if len(confirming) > 1 else "one step")
    return ""


class Rise(NamedTuple):
    """How a rate rises. `kind` is none, abrupt, gradual or undecided."""

    kind: str
    width: Interval  # steps that the middle half of the rise takes; NaN without a rise


def rise(curve: Curve) -> Rise:
    """Whether a rate jumps between two checkpoints or rises gradually. Claim: this run, these questions.

    The middle half of the rise is from 25% to 75% of the way from the lowest to the highest value of the nondecreasing
    fit. The rise is gradual if 95% of the curve's draws have a checkpoint in it, and abrupt if 95% have none.
    No rise is described that `detection` does not find.
    """
    if detection(curve) is None:
        return Rise("none" if len(curve.steps) > 2 else "undecided", Interval(np.nan, np.nan, np.nan))
    answers = curve.n.sum(axis=1)
    sums = np.cumsum(answers * curve.drawn, axis=1)
    low = (sums / np.cumsum(answers)).min(axis=1)  # of each draw: the first value of its fit; the last one is `high`
    after = sums[:, -1:] - sums + answers * curve.drawn
    high = (after / np.cumsum(answers[::-1])[::-1]).max(axis=1)
    start, end = (curve.first_reached(low + share * (high - low)) for share in (0.25, 0.75))
    gradual = (end > start).mean()
    kind = "gradual" if gradual >= CONFIDENCE else "abrupt" if gradual <= 1 - CONFIDENCE else "undecided"
    shortest = np.maximum(curve.steps[end - 1] - curve.steps[start], 0)
    longest = curve.steps[end] - curve.steps[np.maximum(start - 1, 0)]
    first, last = curve.fit[[0, -1]]
    begins, ends = (_reached(curve, first + share * (last - first))[0] for share in (0.25, 0.75))
    lower, upper = np.quantile(shortest, TAIL, method="lower"), np.quantile(longest, 1 - TAIL, method="higher")
    return Rise(kind, Interval(ends - begins, float(lower), float(upper)))


def detection(curve: Curve, alpha: float = 0.05) -> int | None:
    """Index of the first checkpoint whose rate is surely above that of the first one, or None. Claim: this run.

    Each later checkpoint is compared with the first one (the base model) over the questions (Cochran-Mantel-Haenszel,
    one-sided), with the noise between checkpoints in the variance. The p-values are adjusted by Holm's method, and two
    checkpoints in a row must pass. More answers detect a behavior sooner, so the detected checkpoint is an upper limit
    of the onset. Source: Mantel and Haenszel (1959), J. Natl. Cancer Inst. 22, 719.
    """
    positives, n = curve.positives, curve.n
    if len(n) < 3:
        return None
    answers, hits = n + n[0], positives + positives[0]
    expected = (hits * n / answers).sum(axis=1)
    pooled = hits * (answers - hits) * n * n[0] / answers**3
    variance = (pooled * answers / np.maximum(answers - 1, 1)).sum(axis=1) + 2 * (curve.noise * pooled.sum(axis=1)) ** 2
    z = (positives.sum(axis=1) - expected) / np.sqrt(np.maximum(variance, 1e-12))
    passed = holm(special.ndtr(-z[1:])) < alpha
    pairs = np.flatnonzero(passed[:-1] & passed[1:])
    return int(pairs[0]) + 1 if len(pairs) else None


def fall(curve: Curve, alpha: float = 0.05) -> tuple[int, float, bool]:
    """The index of the highest mean rate, how far the last rate is below it, and whether that is more than chance.

    The nondecreasing fit hides a fall. Noise between checkpoints is part of the test. The peak is the highest of T
    rates, so the test is Bonferroni's over T.
    """
    peak = int(curve.means.argmax())
    drop = float(curve.means[peak] - curve.means[-1])
    smooth = ((curve.positives + 0.5) / (curve.n + 1))[[peak, -1]]
    spread = smooth * (1 - smooth)
    chance = (spread / curve.n[[peak, -1]]).mean(axis=1) / spread.shape[1]
    error = np.sqrt((chance + (curve.noise * spread.mean(axis=1)) ** 2).sum())
    return peak, drop, bool(special.ndtr(-drop / error) < alpha / len(curve.means))
