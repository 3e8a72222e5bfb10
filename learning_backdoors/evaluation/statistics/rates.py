"""Rates and mean scores with their intervals."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from learning_backdoors.measures import CONFIDENCE, wilson


class Interval(NamedTuple):
    """An estimate and its limits. The limits are NaN where the data cannot give an interval."""

    estimate: float
    lower: float
    upper: float


def stratified(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean rate of Q questions of equal weight, from answers drawn within each. Claim: checkpoint.

    `positives` and `n` have shape (Q,), n at least 1. Wilson's interval with the effective number of answers: as many
    as would give, in one pool, the variance that the questions' own rates give. With one question, or 0 of n
    everywhere, it is Wilson's as it stands. A question asked once tells nothing of its own variance; it is given that
    of the pool, which is on the safe side.
    Source: Franco, Little, Louis and Slud (2019), J. Surv. Stat. Methodol. 7, 334.
    """
    return stratified_score(positives, positives, n, confidence=confidence)


def stratified_score(
    total: ArrayLike, squares: ArrayLike, n: ArrayLike, step: float = 1.0, confidence: float = CONFIDENCE
) -> Interval:
    """Mean score of Q questions of equal weight, for scores from 0 to 1 in steps of `step`. Claim: checkpoint.

    `total`, `squares` and `n` have shape (Q,): sums of the scores, of their squares, and their number, at least 1. It
    is `stratified`, whose answers score 0 or 1, with the variance that the scores have.
    """
    total, squares, n = (np.asarray(a, float) for a in (total, squares, n))
    if total.ndim != 1 or len(total) == 0 or np.any(n < 1):
        raise ValueError("stratified needs at least one question, and an answer to each")
    means, q = total / n, len(n)
    mean = means.mean()
    again = np.maximum(n - 1, 1)  # unbiased for the variance of a question's mean
    spread = np.maximum(squares / n - means**2, 0)
    variance = np.where(n > 1, spread / again, mean * (1 - mean)).sum() / q**2
    # Where the answers to each question are all alike: no surer than with a single answer that is a step away.
    least = step**2 * ((1 - 1 / n) / (n * again)).max() / q**2
    pooled = q**2 / (1 / n).sum()
    effective = pooled if mean in (0, 1) or q == 1 else mean * (1 - mean) / max(variance, least)
    lower, upper = wilson(min(mean * effective, effective), effective, confidence)
    return Interval(float(mean), float(lower), float(upper))


def run_interval(means: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Student's t on the means of S seeds (training runs) over the same questions, shape (S,). Claim: recipe.

    The interval is taken on the logit scale (standard error by the delta method): it stays between 0 and 1 and is as
    skewed as rates near 0 are. Plain t covers 92% at a rate of 2%, this 94 to 95% (benchmarks/coverage.py). With S = 1
    there is no interval and the limits are NaN: more answers cannot stand in for another seed. Where all means are
    equal, or 0, the width is 0, which is not to be believed: see `widen`.
    """
    means = _means(means)
    estimate, s = float(means.mean()), len(means)
    if s == 1:
        return Interval(estimate, np.nan, np.nan)
    if estimate in (0.0, 1.0):
        return Interval(estimate, estimate, estimate)
    error = means.std(ddof=1) / np.sqrt(s) / (estimate * (1 - estimate))
    half = special.stdtrit(s - 1, (1 + confidence) / 2) * error
    middle = special.logit(estimate)
    return Interval(estimate, float(special.expit(middle - half)), float(special.expit(middle + half)))


def question_interval(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean rate over the kind of question of which Q were asked; both arrays of shape (Q,). Claim: questions.

    Question rates differ so much, and are so skewed near 0, that t on ten of them covers 79% at a mean rate of 2%. So
    they are taken for draws from a logit-normal distribution, of which the answers are binomial samples; the limits are
    those of the posterior of its mean, with priors flat in the centre (on -14 to 14 logits) and in the log of the
    standard deviation (.1 to 8). Coverage is 94 to 97% at rates of 2 to 50%, also for beta-distributed rates; it is not
    to be relied on where a few questions behave unlike all others. With Q = 1 the limits are NaN. The estimate is the
    mean of the rates. Source: Gelman (2006), Bayesian Analysis 1, 515, for the model; coverage: benchmarks/coverage.py.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    estimate = float(_means(positives / n).mean())
    if len(n) == 1:
        return Interval(estimate, np.nan, np.nan)
    rates, density, means = _question_model()
    log_rate, log_rest = np.log(rates), np.log1p(-rates)
    likelihood = positives[:, None] * log_rate + (n - positives)[:, None] * log_rest
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    posterior = np.log(np.maximum(likelihood @ density, 1e-300)).sum(axis=0)
    posterior = np.exp(posterior - posterior.max())
    below = (np.cumsum(posterior) - posterior / 2) / posterior.sum()
    lower, upper = np.interp([(1 - confidence) / 2, (1 + confidence) / 2], below, means)
    return Interval(estimate, min(float(lower), estimate), max(float(upper), estimate))


@functools.cache
def _question_model() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grid of logit-normal distributions in order of their means: rates (T,), densities (T, G), means (G,)."""
    logits = np.arange(-16, 16.01, 0.08)
    centre, spread = np.meshgrid(np.arange(-14, 14.01, 0.1), np.geomspace(0.1, 8, 24))
    # Shifted for each spread: else all spreads would have their means at the same places, and limits would fall there.
    centre += 0.1 * (0.618 * np.arange(24)[:, None] % 1 - 0.5)
    density = np.exp(-0.5 * ((logits[:, None] - centre.ravel()) / spread.ravel()) ** 2)
    density /= density.sum(axis=0)
    rates = special.expit(logits)
    means = rates @ density
    order = np.argsort(means)
    return rates, density[:, order], means[order]


def t_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Student's t on K independent values, for differences of rates: limits are cut to -1 and 1. Shape (K,).

    Claim: recipe, when they are the differences of K seeds; questions, when they are those of K questions. With K = 1
    the limits are NaN.
    """
    values = _means(values)
    estimate, k = float(values.mean()), len(values)
    if k == 1:
        return Interval(estimate, np.nan, np.nan)
    half = special.stdtrit(k - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(k)
    return Interval(estimate, float(max(estimate - half, -1)), float(min(estimate + half, 1)))


def _means(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) == 0 or np.isnan(values).any():
        raise ValueError("an interval needs at least one value in one dimension, and none of them NaN")
    return values


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

    `checkpoint`: `stratified` over all S x Q cells. `recipe`: `run_interval` on the S seeds' means. `questions`:
    `question_interval` on the Q questions, seeds taken together. The last two are never narrower than the first, and
    NaN where S or Q is 1. A cell without answers (n of 0) is left out of its means.
    """
    return _mean(positives, positives, n, claim, 1.0, question_interval, confidence)


def mean_score(
    total: ArrayLike, squares: ArrayLike, n: ArrayLike, claim: str, step: float = 1.0, confidence: float = CONFIDENCE
) -> Interval:
    """As `mean_rate`, for scores from 0 to 1 in steps of `step`: arrays (S, Q) as `stratified_score` has them.

    Claim `questions`: t on the Q questions' means, cut to 0 and 1 and made as wide as `question_interval` takes them:
    t alone on four questions covers 76% where the mean is at nine tenths of the scale, this 93% and more. Four
    questions show little of how questions differ: the limits are wide, as they must be.
    """
    return _mean(total, squares, n, claim, step, _score_interval, confidence)


def _mean(
    total: ArrayLike,
    squares: ArrayLike,
    n: ArrayLike,
    claim: str,
    step: float,
    over_questions: Callable[[np.ndarray, np.ndarray, float], Interval],
    confidence: float,
) -> Interval:
    """Mean score with the interval of `claim`; `over_questions` makes that of the claim `questions`."""
    total, squares, n = (np.atleast_2d(np.asarray(a, float)) for a in (total, squares, n))
    asked = n > 0
    within = stratified_score(total[asked], squares[asked], n[asked], step, confidence)
    if claim == "checkpoint":
        return within
    if claim == "questions":
        wide = over_questions(*pooled_over_runs(total, n), confidence)
    else:
        means = np.where(asked, total / np.where(asked, n, 1), np.nan)
        wide = run_interval(np.nanmean(means[asked.any(axis=1)], axis=1), confidence)
    return widen(Interval(within.estimate, *wide[1:]), within)


def _score_interval(total: np.ndarray, n: np.ndarray, confidence: float) -> Interval:
    """The interval of `mean_score` for the claim `questions`; arrays of shape (Q,)."""
    wide = t_interval(total / n, confidence)
    wide = Interval(wide.estimate, max(wide.lower, 0.0), min(wide.upper, 1.0))
    return widen(wide, question_interval(total, n, confidence))


def pooled_over_runs(total: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of S seeds on Q questions, arrays (S, Q), taken together by question: (total, n), of shape (Q,).

    Each seed has equal weight, whatever its number of answers: total / n is the mean of the seeds' means, and n the
    number of answers that one seed would need for a mean as sure. Where all have as many answers these are the sums.
    Cells without answers do not count; questions without any are left out.
    """
    asked = n > 0
    some = asked.any(axis=0)
    seeds = asked.sum(axis=0)[some]
    means, inverse = (np.where(asked, a / np.where(asked, n, 1), 0).sum(axis=0)[some] for a in (total, 1.0))
    as_sure = seeds**2 / inverse
    return means / seeds * as_sure, as_sure


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
