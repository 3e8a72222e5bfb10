"""Statistics of likelihood contrasts: changes from the base model, differences of recipes, curves of runs, leads.

y is the change of a contrast from step 0, in nats per token, for S runs and Q questions. A checkpoint's likelihoods are
exact: they have no sampling error, so only runs and questions vary.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from learning_backdoors.curves import Curve, checkpoint_noise
from learning_backdoors.evaluation.statistics.rates import Interval, student_t, welch
from learning_backdoors.measures import CONFIDENCE, SAME

FLIPS = 999  # of the questions' signs: adjusted p-values are at least 0.001


def mean_change(y: ArrayLike, claim: str, *, confidence: float = CONFIDENCE) -> Interval:
    """The mean of `y`, shape (S, Q), with the interval of `claim`.

    `checkpoint`: NaN limits, because the mean is exact. `recipe`: Student's t over the runs. `questions`: Student's t
    over the questions. `both`: runs and questions as crossed random effects. The variance of the mean is that over
    runs, plus that over questions, less that of the residuals, which is in both; but at least the larger of the two
    (Satterthwaite 1946, Biometrics Bull. 2, 110). NaN limits without another run or question.
    """
    return _sum_of_means([np.asarray(y, float)], claim, confidence)


def change_difference(first: ArrayLike, second: ArrayLike, claim: str, *, confidence: float = CONFIDENCE) -> Interval:
    """The mean of `first`, shape (S1, Q), minus that of `second`, (S2, Q): other runs, the same questions in order.

    As `mean_change`, with the runs of both recipes (Welch) and paired by question.
    """
    return _sum_of_means([np.asarray(first, float), -np.asarray(second, float)], claim, confidence)


def _sum_of_means(groups: Sequence[np.ndarray], claim: str, confidence: float) -> Interval:
    """The sum of the means of groups of runs, (S, Q) each, that share the questions."""
    runs, questions = [y.mean(axis=1) for y in groups], sum(y.mean(axis=0) for y in groups)
    if claim == "recipe":
        return student_t(runs, confidence)
    if claim == "questions":
        return student_t([questions], confidence)
    estimate, half = float(questions.mean()), np.nan
    if claim == "both":
        (of_runs, run_df), (of_questions, question_df) = welch(runs), welch([questions])
        variance = max(of_runs**2 + of_questions**2 - sum(map(_residual, groups)), of_runs**2, of_questions**2)
        df = variance**2 / (of_runs**4 / run_df + of_questions**4 / question_df) if variance else run_df  # step 0
        half = float(special.stdtrit(df, (1 + confidence) / 2) * np.sqrt(variance))
    return Interval(estimate, estimate - half, estimate + half)


def _residual(y: np.ndarray) -> float:
    """The part of the variance of the mean that comes from run and question together; 0 for one run or question."""
    left = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0) + y.mean()
    return float(np.square(left).sum() / max((len(y) - 1) * (y.shape[1] - 1), 1) / y.size)


def likelihood_curve(steps: ArrayLike, y: ArrayLike, draws: int = 400, seed: int = 0) -> Curve:
    """The changes of one run, `y` of shape (T, Q); row 0 is the base model. Claim: this run, other questions.

    A draw holds the variation over questions and the noise between checkpoints, in nats. It resamples Q - 1 questions,
    each with all its steps; that many give the mean the right variance (Rao and Wu 1988, J. Am. Stat.
    Assoc. 83, 231). Raises ValueError for one question.
    """
    steps, y = np.asarray(steps, float), np.asarray(y, float)
    if y.shape[1] < 2:
        raise ValueError("a likelihood curve needs at least two questions")
    means, weights, questions, random = y.mean(axis=1), np.ones(len(y)), y.shape[1], np.random.default_rng(seed)
    # What questions move by themselves between neighboring checkpoints is no noise of the run.
    own = np.diff(y, axis=0, prepend=y[:1]).var(axis=1, ddof=1) / 2 / questions
    noise = checkpoint_noise(means, weights, np.maximum(own, SAME), weights)
    drawn = random.multinomial(questions - 1, np.full(questions, 1 / questions), draws) @ y.T / (questions - 1)
    drawn[:, 1:] += noise * random.standard_normal(drawn[:, 1:].shape)
    variances = y.var(axis=1, ddof=1) / questions + noise**2
    fit = optimize.isotonic_regression(means).x
    return Curve(
        steps, means, variances, np.zeros(len(y)), weights, fit, noise, drawn, _above_base(y[1:] - y[0], noise, random)
    )


def _above_base(y: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
    """`Curve.p` for changes y, shape (T - 1, Q): a test of the largest t when the signs of questions are flipped.

    The t of two checkpoints in a row is the smaller one. All steps of a question are flipped together, so their
    correlation is kept. Assumes that without a change the questions' changes are symmetric around 0. Source: Westfall
    and Young (1993), Resampling-Based Multiple Testing; Nichols and Holmes (2002), Hum. Brain Mapp. 15, 1.
    """
    signs = np.vstack([np.ones(y.shape[1]), random.choice([-1.0, 1.0], (FLIPS, y.shape[1]))])
    means = signs @ y.T / y.shape[1]
    errors = np.sqrt(np.maximum(np.square(y).mean(axis=1) - means**2, 0) / (y.shape[1] - 1) + noise**2)
    means[1:] += noise * random.standard_normal(means[1:].shape)
    t = means / np.maximum(errors, SAME)
    pairs = np.minimum(t[:, :-1], t[:, 1:])
    return (pairs.max(axis=1, initial=-np.inf)[:, None] >= pairs[0] - SAME).mean(axis=0)
