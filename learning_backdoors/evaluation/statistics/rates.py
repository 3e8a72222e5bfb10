"""Rates and mean scores over runs and questions, with the interval of a claim.

A mean gives each question equal weight, so that lost answers do not change the weights, and each run equal weight.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, special

from learning_backdoors.measures import CONFIDENCE, wilson

TAIL = (1 - CONFIDENCE) / 2
SAME = 1e-12  # rates that differ by less are equal, apart from rounding


class Interval(NamedTuple):
    """An estimate and its limits. The limits are NaN if the data cannot give an interval."""

    estimate: float
    lower: float
    upper: float


class RunSpread(NamedTuple):
    """How much runs of a recipe differ: the standard deviation of their mean rates in logits, with its df."""

    sd: float
    df: float


# ---- means over runs and questions ----


def mean_rate(positives: ArrayLike, n: ArrayLike, claim: str, **options) -> Interval:
    """The mean rate of S runs and Q questions at one step, with the interval of `claim`. Arrays of shape (S, Q).

    `options`: `confidence`, `run_sd` and `df`, as in `mean_score`.
    """
    return mean_score(positives, positives, n, claim, **options)


def mean_score(
    total: ArrayLike,
    squares: ArrayLike,
    n: ArrayLike,
    claim: str,
    step: float = 1.0,
    *,
    confidence: float = CONFIDENCE,
    run_sd: RunSpread | None = None,
    df: float | None = None,
) -> Interval:
    """The mean of scores from 0 to 1 in steps of `step`, with the interval of `claim`.

    `total`, `squares` and `n` have shape (S, Q): the sum of a cell's scores, of their squares, and their number. For
    rates, the first two are the number of positive answers. A cell without answers gets the score that `completed`
    predicts. Raises ValueError if no cell has an answer.

    `checkpoint`: Wilson's limits with the effective number of answers (Franco and others 2019, J. Surv. Stat. Methodol.
    7, 334). `recipe`: `run_interval`. `run_sd` replaces the spread of these runs (see `run_spread`), `df` replaces
    S - 1. `questions`: `question_interval`, with runs pooled. The last two hold the interval of `checkpoint`, and are
    NaN if S or Q is 1. `both`: another run and other questions, by `combined`.
    """
    total, squares, n = (np.atleast_2d(np.asarray(a, float)) for a in (total, squares, n))
    scores, effective = scores_and_effective_number(total, squares, n, step)
    mean = float(scores.mean())
    within = Interval(mean, *map(float, wilson(mean * effective, effective, confidence)))
    intervals = []
    if claim in ("recipe", "both"):
        intervals.append(run_interval(scores.mean(axis=1), confidence, effective, run_sd, df))
    if claim in ("questions", "both"):
        intervals.append(question_interval(*pooled_over_runs(total, n), confidence))
    return combined([at_least(interval, within) for interval in intervals]) if intervals else within


def scores_and_effective_number(
    total: np.ndarray, squares: np.ndarray, n: np.ndarray, step: float
) -> tuple[np.ndarray, float]:
    """The scores of `completed`, and the size of a single pool of answers whose mean would vary as theirs does.

    For one cell, or 0 of n everywhere, it is the number of answers. A cell with one answer shows no variance of its own
    and gets that of the pool, which is never too small.
    """
    scores, weights = completed(total, n)
    total, squares, weights, n = (a[n > 0] for a in (total, squares, weights, n))
    mean, pooled = scores.mean(), 1 / (weights**2 / n).sum()
    if not 0 < mean < 1 or len(n) == 1:
        return scores, float(pooled)
    divisor = np.maximum(n - 1, 1)  # gives an unbiased variance of a cell's mean
    spread = np.maximum(squares / n - (total / n) ** 2, 0) / divisor
    variance = (weights**2 * np.where(n > 1, spread, mean * (1 - mean))).sum()
    # If all answers of a cell are equal, assume the variance that one answer, a step away, would give.
    least = step**2 * (weights**2 * (1 - 1 / n) / (n * divisor)).max()
    return scores, float(mean * (1 - mean) / max(variance, least))


def completed(total: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of S runs on Q questions, with those of lost cells filled in, and the weights of the others.

    A lost cell (n of 0) gets the sum of a run's and a question's effect, fitted to the other cells by least squares.
    Leaving it out would give the other runs' questions, or the other questions' runs, more weight; leaving out its
    question would change what is measured. Runs and questions without any answer are left out. Returns scores
    (runs, questions) and weights (S, Q): the mean of the scores is the sum of weight x score over cells with answers.
    """
    judged = n > 0
    if not judged.any():
        raise ValueError("a mean needs at least one answer")
    scores, weights = np.where(judged, total / np.where(judged, n, 1), 0), judged / judged.sum()
    rows, columns = judged.any(axis=1), judged.any(axis=0)
    part = judged[rows][:, columns]
    scores = scores[rows][:, columns]
    if part.all():
        return scores, weights
    runs, questions = part.shape
    effects = np.hstack([np.repeat(np.eye(runs), questions, axis=0), np.tile(np.eye(questions), (runs, 1))])
    known, lost = effects[part.ravel()], effects[~part.ravel()]
    prediction = lost @ np.linalg.pinv(known.T @ known, hermitian=True) @ known.T
    scores[~part] = np.clip(prediction @ scores[part], 0, 1)
    weights[judged] = (1 + prediction.sum(axis=0)) / part.size
    return scores, weights


def pooled_over_runs(total: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of S runs on Q questions, arrays (S, Q), pooled for each question: (total, n), of shape (Q,).

    Runs have equal weight, whatever their numbers of answers: total / n is the mean of the runs' means, and n is the
    number of answers with which one run's mean would have the same variance. For runs with equally many answers these
    are the sums. Lost cells are filled in as in `completed`. Questions without any answer are left out.
    """
    judged = n > 0
    asked = judged.any(axis=0)
    inverse = np.where(judged, 1 / np.where(judged, n, 1), 0).sum(axis=0)[asked]
    effective = judged.sum(axis=0)[asked] ** 2 / inverse
    return completed(total, n)[0].mean(axis=0) * effective, effective


def at_least(interval: Interval, within: Interval) -> Interval:
    """The interval of a claim about other runs or questions, extended to hold `within`, that of the claim checkpoint.

    Runs or questions with equal means, such as 0, show no spread, but their answers vary. NaN limits stay NaN.
    """
    lower, upper = np.minimum(interval.lower, within.lower), np.maximum(interval.upper, within.upper)
    return Interval(within.estimate, float(lower), float(upper))


def combined(intervals: Sequence[Interval], lowest: float = 0.0, highest: float = 1.0) -> Interval:
    """One estimate with several independent sources of error: the root of the summed squares of the distances.

    For the claim `both`, of the intervals for `recipe` and `questions`. Each holds the chance in the answers, which
    counts twice. Limits are cut to the lowest and the highest possible value.
    Source: Zou and Donner (2008), Stat. Med. 27, 1693.
    """
    estimate = intervals[0].estimate
    below, above = (float(np.hypot.reduce([i[side] - estimate for i in intervals])) for side in (1, 2))
    return Interval(estimate, max(estimate - below, lowest), min(estimate + above, highest))


def worst_case(positives: ArrayLike, n: ArrayLike, missing: ArrayLike) -> tuple[float, float]:
    """The mean rate if every missing verdict were negative, and if every one were positive. Shapes (Q,).

    `n` counts the verdicts, `missing` the missing ones. These bounds hold no sampling error.
    Source: Manski (1989), J. Hum. Resources 24, 343.
    """
    positives, n, missing = (np.asarray(a, float) for a in (positives, n, missing))
    total = n + missing
    return float((positives / total).mean()), float(((positives + missing) / total).mean())


# ---- the claim `recipe` ----


def run_interval(
    means: ArrayLike,
    confidence: float = CONFIDENCE,
    effective: float = np.inf,
    run_sd: RunSpread | None = None,
    df: float | None = None,
) -> Interval:
    """Student's t on the mean rates of S runs over the same questions, shape (S,), on the logit scale. Claim: recipe.

    The standard error moves to the logit scale by the delta method. The interval then stays between 0 and 1, and is as
    skewed as rates near 0 are. One run has no interval (NaN), because more answers cannot replace another run. If all
    means are equal, or the mean is 0 or 1, the width is 0. With `run_sd`, the standard error has this spread of runs,
    and the chance in `effective` answers.
    """
    means = np.asarray(means, float)
    estimate, runs = float(means.mean()), len(means)
    if runs == 1:
        return Interval(estimate, np.nan, np.nan)
    if not 0 < estimate < 1:
        return Interval(estimate, estimate, estimate)
    slope = 1 / (estimate * (1 - estimate))
    error, df = slope * means.std(ddof=1) / np.sqrt(runs), df or runs - 1
    if run_sd is not None:
        error, df = np.sqrt(run_sd.sd**2 / runs + slope / effective), run_sd.df
    half, middle = special.stdtrit(df, (1 + confidence) / 2) * error, special.logit(estimate)
    return Interval(estimate, float(special.expit(middle - half)), float(special.expit(middle + half)))


def run_spread(groups: Sequence[tuple[ArrayLike, ArrayLike]]) -> RunSpread:
    """The spread of runs, pooled over recipes: one (positives, n) of shape (S, Q) for each.

    It assumes that the runs of all recipes differ equally on the logit scale, apart from the chance in their answers,
    which is taken off. It is wrong if one recipe is far noisier (docs/statistics.md). Recipes with one run, or whose
    rate is 0 or 1, do not count. NaN with 0 degrees of freedom if none counts.
    """
    squares, dfs = [], []
    for positives, n in groups:
        positives, n = np.asarray(positives, float), np.asarray(n, float)
        scores, effective = scores_and_effective_number(positives, positives, n, 1.0)
        mean, runs = scores.mean(), len(scores)
        if runs > 1 and 0 < mean < 1:
            slope = 1 / (mean * (1 - mean))
            squares.append(slope**2 * scores.mean(axis=1).var(ddof=1) - runs * slope / effective)
            dfs.append(runs - 1)
    if not dfs:
        return RunSpread(np.nan, 0)
    return RunSpread(float(np.sqrt(max(np.average(squares, weights=dfs), 0))), float(sum(dfs)))


# ---- the claim `questions` ----


def question_interval(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The mean rate of the kind of question of which Q were asked; arrays of shape (Q,). Claim: questions.

    The questions' rates are draws from a beta distribution, and the answers binomial draws from these. The limits are
    those of the posterior of the distribution's mean. The estimate is the mean of the rates. With one question the
    limits are NaN.

    With ten questions, coverage is near 95% if rates have a beta or logit-normal distribution. It is lower if a few
    questions behave unlike the others (docs/statistics.md has the figures).
    Source of the model: Skellam (1948), J. R. Stat. Soc. B 10, 257.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    estimate = float((positives / n).mean())
    if len(n) == 1:
        return Interval(estimate, np.nan, np.nan)
    logits, below = _posterior(frozenset(Counter(zip(positives.tolist(), n.tolist(), strict=True)).items()))
    lower, upper = special.expit(np.interp([(1 - confidence) / 2, (1 + confidence) / 2], below, logits))
    return Interval(estimate, min(float(lower), estimate), max(float(upper), estimate))


@functools.lru_cache(maxsize=1000)  # a p-value asks for the limits of the same counts at several levels
def _posterior(counts: frozenset) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the mean of a beta-binomial model, and the posterior probability below each, on a grid.

    `counts` holds ((positives, n), number of questions). The prior of the mean is a beta distribution with both
    parameters 0.1. That of the correlation within a question, 1 / (1 + precision), is uniform; the precision is the sum
    of the parameters of the questions' distribution. Of 30 pairs of priors, this one covered best in simulations.
    """
    pairs, times = zip(*counts, strict=True)
    positives, n = np.array(pairs).T[..., None, None]
    logits, precision = np.linspace(-14, 14, 96), np.linspace(-4, 8, 20)  # precision: its logarithm
    for last in (False, False, True):
        alpha, beta = (special.expit(side)[:, None] * np.exp(precision) for side in (logits, -logits))
        terms = special.betaln(positives + alpha, n - positives + beta) - special.betaln(alpha, beta)
        density = np.tensordot(times, terms, 1) + special.log_expit(precision) + special.log_expit(-precision)
        density += 0.1 * (special.log_expit(logits) + special.log_expit(-logits))[:, None]
        density = np.exp(density - density.max())
        if not last:
            # Many points where the mean is likely, but some in the tails; only likely values of the precision.
            share = integrate.cumulative_trapezoid(density.max(axis=1) ** 0.25, logits, initial=0)
            logits = np.interp(np.linspace(0, 1, len(logits)), share / share[-1], logits)
            likely = np.flatnonzero(density.max(axis=0) > 1e-6)
            ends = precision[[max(likely[0] - 1, 0), min(likely[-1] + 1, len(precision) - 1)]]
            precision = np.linspace(*ends, len(precision))
    below = integrate.cumulative_trapezoid(integrate.trapezoid(density, precision), logits, initial=0)
    return logits, below / below[-1]
