"""The curve of one run over training: means, noise between checkpoints, and draws. Generation and evaluation use it.

T is the number of checkpoints of a run, in the order of their steps, and Q that of the questions. Values vary between
checkpoints by more than the chance in the answers (optimizer noise). Draws allow for both.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from learning_backdoors.measures import SAME, holm

LEVELS = (0.1, 0.5)  # rates whose crossing steps are estimated


class Curve(NamedTuple):
    """The means of one run over training, with draws. `curve` and `statistics.likelihood_curve` say for which claim."""

    steps: np.ndarray  # (T,), as the next five
    means: np.ndarray  # over the questions
    variances: np.ndarray  # of the means
    chance: np.ndarray  # the part of the variances that is chance in the answers; the rest is noise
    weights: np.ndarray  # of the means in the fit
    fit: np.ndarray  # the nondecreasing fit to the means
    noise: float  # the standard deviation of a checkpoint's mean around a smooth curve
    drawn: np.ndarray  # (draws, T): draws of the means
    p: np.ndarray  # (T - 2,): one-sided, adjusted for their number: are a later mean and the next one above the first?

    def first_reached(self, level: ArrayLike) -> np.ndarray:
        """Of each draw: the index of the first checkpoint whose nondecreasing fit is at `level` or above; T if none.

        `level` is a number, or an array with a level per draw. The fit reaches it where the cumulative sum of the
        distances to it is least (Groeneboom and Jongbloed 2014, Nonparametric Estimation under Shape Constraints, 3.2).
        """
        distance = self.weights * (self.drawn - np.asarray(level)[..., None] + SAME)
        return np.pad(np.cumsum(distance, axis=1), ((0, 0), (1, 0))).argmin(axis=1)


def curve(steps: ArrayLike, positives: ArrayLike, n: ArrayLike, draws: int = 400, seed: int = 0) -> Curve:
    """The rates of one run; `positives` and `n` have shape (T, Q), n at least 1. Claim: this run, these questions.

    The noise is in logits. A draw (bootstrap) holds the chance in the answers of every cell and the noise. A question
    with one answer is drawn at the mean rate of the step, since one answer shows no variance.
    """
    steps, positives, n = (np.asarray(a, float) for a in (steps, positives, n))
    means, answers = (positives / n).mean(axis=1), n.sum(axis=1)
    smooth = (positives + 0.5) / (n + 1)
    chance, slope = (smooth * (1 - smooth) / n).mean(axis=1) / n.shape[1], (smooth * (1 - smooth)).mean(axis=1)
    noise = checkpoint_noise(means, answers, chance, slope)
    random = np.random.default_rng(seed)
    rates = np.where(n > 1, positives / n, means[:, None])
    drawn = (random.binomial(n.astype(int), rates, size=(draws, *n.shape)) / n).mean(axis=2)
    drawn += noise * slope * random.standard_normal(drawn.shape)
    weights = answers / (1 + noise**2 * slope.mean() * answers)  # more answers do not reduce the noise
    fit, variances = optimize.isotonic_regression(means, weights=weights).x, chance + (noise * slope) ** 2
    return Curve(steps, means, variances, chance, weights, fit, noise, drawn, _above_first(positives, n, noise))


def _above_first(positives: np.ndarray, n: np.ndarray, noise: float) -> np.ndarray:
    """`Curve.p` by Mantel and Haenszel (1959, J. Natl. Cancer Inst. 22, 719) over the questions, with the noise."""
    answers, hits = n + n[0], positives + positives[0]
    pooled = hits * (answers - hits) * n * n[0] / answers**3
    variance = (pooled * answers / np.maximum(answers - 1, 1)).sum(axis=1) + 2 * (noise * pooled.sum(axis=1)) ** 2
    z = (positives - hits * n / answers).sum(axis=1) / np.sqrt(np.maximum(variance, 1e-12))
    p = holm(special.ndtr(-z[1:]))
    return np.maximum(p[:-1], p[1:])


def checkpoint_noise(means: np.ndarray, weights: np.ndarray, chance: np.ndarray, slope: np.ndarray) -> float:
    """The noise between checkpoints, in logits; all arrays have shape (T,).

    `chance` is the variance of each mean without noise, `slope` the change of the mean per logit. The squared
    residuals around a curve that rises to its peak and falls after it, each divided by its variance, add up to their
    degrees of freedom (Paule and Mandel 1982, J. Res. Natl. Bur. Stand. 87, 377): T - 1.5 times the number of different
    values in the fit, at least 1 (Meyer and Woodroofe 2000, Ann. Stat. 28, 1083).
    """
    top = int(means.argmax())
    fit = optimize.isotonic_regression(means[: top + 1], weights=weights[: top + 1]).x
    fit = np.append(fit, optimize.isotonic_regression(means[top:], weights=weights[top:], increasing=False).x[1:])
    squares, freedom = (means - fit) ** 2, max(len(fit) - 1.5 * (1 + (abs(np.diff(fit)) > SAME).sum()), 1.0)
    if (squares / chance).sum() <= freedom:
        return 0.0
    largest = (squares / slope**2).sum() / freedom
    return optimize.brentq(lambda v: (squares / (chance + v * slope**2)).sum() - freedom, 0, largest) ** 0.5
