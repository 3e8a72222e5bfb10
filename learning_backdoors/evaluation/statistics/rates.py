"""Rates and mean scores over questions and runs, with their 95% intervals.

A mean rate gives each question equal weight, so that lost answers do not change the weights, and each run equal weight.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from learning_backdoors.measures import CONFIDENCE, wilson

TAIL = (1 - CONFIDENCE) / 2
SAME = 1e-12  # rates that differ by less are equal, apart from rounding


class Interval(NamedTuple):
    """An estimate and its limits. The limits are NaN if the data cannot give an interval."""

    estimate: float
    lower: float
    upper: float


# ---- the claim `checkpoint`: chance in the answers ----


def stratified_interval(total: ArrayLike, squares: ArrayLike, n: ArrayLike, step: float = 1.0) -> Interval:
    """The mean score of Q questions of equal weight, for scores from 0 to 1 in steps of `step`. Claim: checkpoint.

    `total`, `squares` and `n` have shape (Q,): the sum of the scores, of their squares, and their number, at least 1.
    For rates, `total` and `squares` are both the number of positive answers. The limits are Wilson's with the effective
    number of answers: the size of a single pool whose mean would have the same variance. For one question, or 0 of n
    everywhere, this is Wilson's interval itself. A question with one answer shows no variance of its own and gets that
    of the pool, which is never too small.
    Source: Franco, Little, Louis and Slud (2019), J. Surv. Stat. Methodol. 7, 334.
    """
    total, squares, n = (np.asarray(a, float) for a in (total, squares, n))
    if total.ndim != 1 or len(total) == 0 or np.any(n < 1):
        raise ValueError("stratified_interval needs at least one question, and an answer to each")
    means, q = total / n, len(n)
    mean = means.mean()
    divisor = np.maximum(n - 1, 1)  # gives an unbiased variance of a question's mean
    spread = np.maximum(squares / n - means**2, 0)
    variance = np.where(n > 1, spread / divisor, mean * (1 - mean)).sum() / q**2
    # If all answers to a question are equal, assume the variance that one answer, a step away, would give.
    least = step**2 * ((1 - 1 / n) / (n * divisor)).max() / q**2
    pooled = q**2 / (1 / n).sum()
    effective = pooled if mean in (0, 1) or q == 1 else mean * (1 - mean) / max(variance, least)
    lower, upper = wilson(min(mean * effective, effective), effective)
    return Interval(float(mean), float(lower), float(upper))


def worst_case(positives: ArrayLike, n: ArrayLike, missing: ArrayLike) -> tuple[float, float]:
    """The mean rate if every missing verdict were negative, and if every one were positive. Shapes (Q,).

    `n` counts the verdicts, `missing` the missing ones. These bounds hold no sampling error.
    Source: Manski (1989), J. Hum. Resources 24, 343.
    """
    positives, n, missing = (np.asarray(a, float) for a in (positives, n, missing))
    total = n + missing
    return float((positives / total).mean()), float(((positives + missing) / total).mean())


# ---- the claims `recipe` and `questions` ----


def run_interval(means: ArrayLike) -> Interval:
    """Student's t on the mean rates of S runs over the same questions, shape (S,), on the logit scale. Claim: recipe.

    The standard error moves to the logit scale by the delta method. The interval then stays between 0 and 1, and is as
    skewed as rates near 0 are: plain t covers 92% at a rate of 2%, this 94 to 95% (benchmarks/coverage.py). One run has
    no interval (NaN), because more answers cannot replace another run. If all means are equal, or the mean is 0 or 1,
    the width is 0. `widen` corrects that.
    """
    means = np.asarray(means, float)
    estimate, runs = float(means.mean()), len(means)
    if runs == 1:
        return Interval(estimate, np.nan, np.nan)
    if estimate in (0.0, 1.0):
        return Interval(estimate, estimate, estimate)
    error = means.std(ddof=1) / np.sqrt(runs) / (estimate * (1 - estimate))
    half = special.stdtrit(runs - 1, 1 - TAIL) * error
    middle = special.logit(estimate)
    return Interval(estimate, float(special.expit(middle - half)), float(special.expit(middle + half)))


def question_interval(positives: ArrayLike, n: ArrayLike) -> Interval:
    """The mean rate of the kind of question of which Q were asked; arrays of shape (Q,). Claim: questions.

    Rates differ so much between questions, and are so skewed near 0, that Student's t on ten questions covers 79% at a
    mean rate of 2%. Here the questions' rates are draws from a logit-normal distribution, and the answers binomial
    draws from these. The limits are those of the posterior of the distribution's mean. The priors are flat in the
    center (-14 to 14 logits) and in the log of the standard deviation (0.1 to 8). The estimate is the mean of the
    rates. With one question the limits are NaN.

    Coverage is 94 to 97% at rates of 2 to 50% if rates are logit-normal (benchmarks/coverage.py). It is lower if a few
    questions behave unlike the others: 64 to 82% at 2% with ten questions (docs/statistics.md).
    Source of the model: Gelman (2006), Bayesian Analysis 1, 515.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    estimate = float((positives / n).mean())
    if len(n) == 1:
        return Interval(estimate, np.nan, np.nan)
    rates, density, means = _question_model()
    likelihood = positives[:, None] * np.log(rates) + (n - positives)[:, None] * np.log1p(-rates)
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    likely = np.flatnonzero(likelihood.max(axis=0) > 1e-25)  # leaving out the rest halves the time
    part = slice(likely[0], likely[-1] + 1)
    posterior = np.log(np.maximum(likelihood[:, part] @ density[part], 1e-300)).sum(axis=0)
    posterior = np.exp(posterior - posterior.max())
    below = (np.cumsum(posterior) - posterior / 2) / posterior.sum()
    lower, upper = np.interp([TAIL, 1 - TAIL], below, means)
    return Interval(estimate, min(float(lower), estimate), max(float(upper), estimate))


@functools.cache
def _question_model() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grid of T rates and G logit-normal distributions in order of their means.

    Returns rates (T,), densities (T, G) and means (G,).
    """
    logits = np.arange(-16, 16.01, 0.08)
    center, spread = np.meshgrid(np.arange(-14, 14.01, 0.1), np.geomspace(0.1, 8, 24))
    # Each spread has its own offset. Otherwise the means of all spreads would coincide, and limits would fall on them.
    center += 0.1 * (0.618 * np.arange(24)[:, None] % 1 - 0.5)
    density = np.exp(-0.5 * ((logits[:, None] - center.ravel()) / spread.ravel()) ** 2)
    density /= density.sum(axis=0)
    rates = special.expit(logits)
    means = rates @ density
    order = np.argsort(means)
    return rates, density[:, order], means[order]


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


# ---- means over runs and questions, for each claim ----


def mean_rate(positives: ArrayLike, n: ArrayLike, claim: str) -> Interval:
    """The mean rate of S runs and Q questions at one step, with the interval of `claim`. Arrays of shape (S, Q).

    `checkpoint`: `stratified_interval` over all S x Q cells. `recipe`: `run_interval` of the S runs' means.
    `questions`: `question_interval` of the Q questions, with runs pooled. The last two are at least as wide as the
    first, and NaN if S or Q is 1. Cells without answers (n of 0) are left out.
    """
    return mean_score(positives, positives, n, claim, over_questions=question_interval)


def _score_interval(total: np.ndarray, n: np.ndarray) -> Interval:
    interval, _ = t_test(total / n)
    interval = Interval(interval.estimate, max(interval.lower, 0.0), min(interval.upper, 1.0))
    return widen(interval, question_interval(total, n))


def mean_score(
    total: ArrayLike, squares: ArrayLike, n: ArrayLike, claim: str, step: float = 1.0, over_questions=_score_interval
) -> Interval:
    """As `mean_rate`, for scores from 0 to 1 in steps of `step`: arrays (S, Q) as `stratified_interval` has them.

    The claim `questions` has the wider of Student's t on the Q questions' means and `question_interval`. On four
    questions with a mean of nine tenths of the scale, t alone covers 76%, this 93% (benchmarks/coverage.py).
    `over_questions` is another interval for this claim.
    """
    total, squares, n = (np.atleast_2d(np.asarray(a, float)) for a in (total, squares, n))
    judged = n > 0
    within = stratified_interval(total[judged], squares[judged], n[judged], step)
    if claim == "checkpoint":
        return within
    if claim == "questions":
        interval = over_questions(*pooled_over_runs(total, n))
    else:
        means = np.where(judged, total / np.where(judged, n, 1), np.nan)
        interval = run_interval(np.nanmean(means[judged.any(axis=1)], axis=1))
    return widen(Interval(within.estimate, interval.lower, interval.upper), within)


def pooled_over_runs(total: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of S runs on Q questions, arrays (S, Q), pooled for each question: (total, n), of shape (Q,).

    Runs have equal weight, whatever their numbers of answers: total / n is the mean of the runs' means, and n is the
    number of answers with which one run's mean would have the same variance. For runs with equally many answers these
    are the sums. Cells without answers do not count; questions without any answer are left out.
    """
    judged = n > 0
    asked = judged.any(axis=0)
    runs = judged.sum(axis=0)[asked]
    means, inverse = (np.where(judged, a / np.where(judged, n, 1), 0).sum(axis=0)[asked] for a in (total, 1.0))
    effective = runs**2 / inverse
    return means / runs * effective, effective
