"""Scores of several runs on several questions, and intervals of their mean. A rate is a mean of scores of 0 and 1."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, special

from learning_backdoors.measures import wilson


class Interval(NamedTuple):
    """An estimate and its limits. The limits are NaN if the data cannot give an interval."""

    estimate: float
    lower: float
    upper: float


def welch(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """The standard error and df of a sum of independent means (Welch 1947, Biometrika 34, 28). NaN for one value."""
    if min(map(len, groups)) < 2:
        return np.nan, np.nan
    variances, dfs = np.transpose([(values.var(ddof=1) / len(values), len(values) - 1) for values in groups])
    variance = variances.sum()
    return float(np.sqrt(variance)), float(variance**2 / (variances**2 / dfs).sum() if variance else dfs.min())


def student_t(groups: Sequence[np.ndarray], confidence: float) -> Interval:
    """The sum of the means of independent groups of values, shape (K,) each, with Student's limits by `welch`."""
    estimate, (error, df) = sum(float(values.mean()) for values in groups), welch(groups)
    half = float(special.stdtrit(df, (1 + confidence) / 2) * error)
    return Interval(estimate, estimate - half, estimate + half)


class RunSpread(NamedTuple):
    """How much runs of a recipe differ: the standard deviation of their mean rates in logits, with its df."""

    sd: float
    df: float


class Scores:
    """Scores from 0 to 1 of S runs on Q questions. Their mean gives equal weight to each run and to each question.

    `total`, `n` and `squares` have shape (S, Q): the sum of a cell's scores, their number, and the sum of their
    squares, which is `total` for rates. Scores lie `step` apart. Runs and questions without answers are left out.
    Raises ValueError if nothing remains. A cell without answers gets the sum of a run's and a question's effect, fitted
    to the other cells. `rates` (S, Q): mean scores of the cells. `effective`: the size of a single pool of answers
    whose mean would have the same variance (Franco and others 2019, J. Surv. Stat. Methodol. 7, 334).
    """

    def __init__(self, total: ArrayLike, n: ArrayLike, squares: ArrayLike | None = None, step: float = 1.0):
        arrays = [np.atleast_2d(np.asarray(a, float)) for a in (total, n, total if squares is None else squares)]
        judged = arrays[1] > 0
        if not judged.any():
            raise ValueError("a mean needs at least one answer")
        total, self.n, squares = (a[judged.any(axis=1)][:, judged.any(axis=0)] for a in arrays)
        self.rates = np.divide(total, self.n, out=np.zeros(self.n.shape), where=self.n > 0)
        weights, lost_variance = self._fill_lost_cells()
        self.mean = mean = float(self.rates.mean())
        n, rates, squares = (a[self.n > 0] for a in (self.n, self.rates, squares))
        self.effective = 1 / (weights**2 / n).sum()
        if 0 < mean < 1 and self.n.size > 1:
            divisor = np.maximum(n - 1, 1)  # gives an unbiased variance of a cell's mean
            # One answer shows no variance and gets that of a single pool, which is never too small. If all answers of
            # a cell are equal, assume the variance that one answer, a step away, would give.
            spread = np.where(n > 1, np.maximum(squares / n - rates**2, 0) / divisor, mean * (1 - mean))
            least = step**2 * (weights**2 * (1 - 1 / n) / (n * divisor)).max()
            self.effective = mean * (1 - mean) / (max((weights**2 * spread).sum(), least) + lost_variance)

    def _fill_lost_cells(self) -> tuple[np.ndarray, float]:
        """The weights of the other cells in the mean, and the variance that the prediction adds to it."""
        judged, (runs, questions) = (self.n > 0).ravel(), self.n.shape
        if judged.all():
            return np.full(judged.size, 1 / judged.size), 0.0
        effects = np.hstack([np.repeat(np.eye(runs), questions, axis=0), np.tile(np.eye(questions), (runs, 1))])
        known, lost, rates = effects[judged], effects[~judged], self.rates[self.n > 0]
        inverse = np.linalg.pinv(known)
        fit, added = inverse @ rates, (lost @ inverse).sum(axis=0)
        self.rates[self.n == 0] = np.clip(lost @ fit, 0, 1)
        residual = np.square(rates - known @ fit).sum() / max(len(known) - runs - questions + 1, 1)
        return (1 + added) / judged.size, residual * (len(lost) + added @ added) / judged.size**2

    def over_answers(self, confidence: float) -> Interval:
        """Claim checkpoint: Wilson's interval with the effective number of answers."""
        return Interval(self.mean, *map(float, wilson(self.mean * self.effective, self.effective, confidence)))

    def over_runs(self, confidence: float, run_sd: RunSpread | None, df: float) -> Interval:
        """Claim recipe: Student's t on the runs' means on the logit scale, not narrower than `over_answers`.

        One run has no limits, because more answers cannot replace another run. `run_sd` replaces the spread of these
        runs and `df` (see `run_spread`).
        """
        runs, error = len(self.rates), welch([self.rates.mean(axis=1)])[0]
        if run_sd is not None and runs > 1:
            variance = self.mean * (1 - self.mean)
            error, df = np.sqrt((variance * run_sd.sd) ** 2 / runs + variance / self.effective), run_sd.df
        return widest(self.over_answers(confidence), self._logit_t(error, df, confidence))

    def _logit_t(self, error: float, df: float, confidence: float) -> Interval:
        """Student's limits on the logit scale (delta method), so within 0 and 1. No width for a mean of 0 or 1."""
        if not 0 < self.mean < 1:
            return Interval(self.mean, *[self.mean + 0 * error] * 2)  # NaN stays NaN
        half = special.stdtrit(df, (1 + confidence) / 2) * error / (self.mean * (1 - self.mean))
        return Interval(self.mean, *special.expit(special.logit(self.mean) + [-half, half]).tolist())

    def over_questions(self, confidence: float) -> Interval:
        """Claim questions: limits that hold those of a beta-binomial model, Student's t and `over_answers`.

        In the model the questions' rates are draws from a beta distribution, and the answers binomial draws from these
        (Skellam 1948, J. R. Stat. Soc. B 10, 257); its limits are those of the posterior of the distribution's mean.
        Student's t is too narrow for few questions with rates near 0; the model, if the distribution is not beta.
        """
        judged, rates = self.n > 0, self.rates.mean(axis=0)
        # The number of answers with which one run's rate would vary as the mean of the runs does.
        n = judged.sum(axis=0) ** 2 / np.where(judged, 1 / np.where(judged, self.n, 1), 0).sum(axis=0)
        counts = Counter(zip((rates * n).tolist(), n.tolist(), strict=True))
        logits, below = _posterior(frozenset(counts.items()))
        limits = special.expit(np.interp([(1 - confidence) / 2, (1 + confidence) / 2], below, logits))
        t = self._logit_t(*welch([rates]), confidence)
        return widest(self.over_answers(confidence), t, Interval(self.mean, *limits.tolist()))


def widest(*intervals: Interval) -> Interval:
    """The first estimate with limits that hold all intervals, such as that of the claim checkpoint. NaN stays NaN."""
    _, lower, upper = np.transpose(intervals)
    return Interval(intervals[0].estimate, float(lower.min()), float(upper.max()))


def run_spread(groups: Sequence[tuple[ArrayLike, ArrayLike]]) -> RunSpread | None:
    """The spread of runs, pooled over recipes: one (positives, n) of shape (S, Q) for each.

    It assumes that runs of all recipes differ equally on the logit scale, apart from the chance in their answers, which
    is taken off. Recipes with one run, or with a rate of 0 or 1, do not count. None if none counts.
    """
    variance, df = 0.0, 0
    for scores in (Scores(*group) for group in groups):
        runs, slope = len(scores.rates), scores.mean * (1 - scores.mean)
        if runs > 1 and slope > 0:
            own = scores.rates.mean(axis=1).var(ddof=1) / slope**2 - runs / (slope * scores.effective)
            variance, df = variance + (runs - 1) * own, df + runs - 1
    return RunSpread(float(np.sqrt(max(variance / df, 0))), df) if df else None


@functools.lru_cache(maxsize=10_000)  # p-values, tables and figures ask for limits of the same counts; 2 kB each
def _posterior(counts: frozenset) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the mean of a beta-binomial model, and the posterior probability below each, on a grid.

    `counts` holds ((positives, n), number of questions). Priors: beta(0.1, 0.1) of the mean; uniform of the correlation
    within a question, 1 / (1 + sum of the two beta parameters). Of 30 pairs, these covered best in simulations.
    """
    pairs, times = zip(*counts, strict=True)
    positives, n = np.array(pairs).T[..., None, None]
    logits, precision = np.linspace(-14, 14, 96), np.linspace(-4, 8, 20)  # precision: its logarithm
    for last in (False, False, True):
        alpha, beta = (special.expit(side)[:, None] * np.exp(precision) for side in (logits, -logits))
        terms = special.gammaln(positives + alpha) + special.gammaln(n - positives + beta) - special.betaln(alpha, beta)
        density = np.tensordot(times, terms - special.gammaln(n + np.exp(precision)), 1)
        density += special.log_expit(precision) + special.log_expit(-precision)
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
