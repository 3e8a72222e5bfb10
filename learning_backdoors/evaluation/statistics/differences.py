"""Mean rates, their differences and other sums: intervals for each claim, p-values and their adjustment."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from learning_backdoors.evaluation.statistics.rates import Interval, RunSpread, Scores, student_t, welch, widest
from learning_backdoors.measures import CONFIDENCE, wilson

Counts = tuple[ArrayLike, ...]
HIGHEST_Z = 7.0  # p-values end at 2.6e-12


def contrast(rates: Sequence[Interval], weights: Sequence[float], correlation: float = 0.0) -> Interval:
    """A weighted sum of K rates from their own intervals (MOVER): independent rates, or two with a `correlation`.

    The weights of a difference are (1, -1). A correlation r narrows it: below^2 = (1 - r) (l1^2 + u2^2) + r (l1 - l2)^2
    for distances l to the lower and u to the upper limits. Source: Zou and Donner (2008), Stat. Med. 27, 1693.
    """
    weights = np.asarray(weights, float)
    middle, lower, upper = np.array(rates, float).T
    below = weights * np.where(weights > 0, middle - lower, middle - upper)  # how far each rate can move the sum down
    above = weights * np.where(weights > 0, upper - middle, lower - middle)
    together = correlation * np.sign(weights.prod())
    estimate, distances = float(weights @ middle), []
    for own, other in ((below, above), (above, below)):
        shared = own[0] - other[1] if together < 0 else own.sum()
        distances.append(float(np.sqrt((1 - abs(together)) * (own @ own) + abs(together) * shared**2)))
    return Interval(estimate, estimate - distances[0], estimate + distances[1])


def combined(intervals: Sequence[Interval], lowest: float = -np.inf, highest: float = np.inf) -> Interval:
    """One estimate with independent sources of error: the root of the summed squares of the distances (MOVER)."""
    estimate = intervals[0].estimate
    below, above = (float(np.hypot.reduce([i[side] - estimate for i in intervals])) for side in (1, 2))
    return Interval(estimate, max(estimate - below, lowest), min(estimate + above, highest))


def mean_rate(positives: ArrayLike, n: ArrayLike, claim: str, **options) -> Interval:
    """The mean rate of S runs and Q questions, arrays of shape (S, Q). See `paired_contrast`, also for `options`."""
    return paired_contrast([(positives, n)], (1,), claim, **options)


def change_from_base(rates: Counts, base: Counts, claim: str, **options) -> Interval:
    """The mean rate of S runs, (positives, n) of shape (S, Q), minus the base model's, shape (Q,)."""
    return paired_contrast([rates, base], (1, -1), claim, **options)


def rate_difference(first: Counts, second: Counts, claim: str, **options) -> Interval:
    """The difference of the mean rates of two independent groups of runs: (positives, n), (S1, Q) and (S2, Q)."""
    return paired_contrast([first, second], (1, -1), claim, paired=False, **options)


def paired_contrast(
    terms: Sequence[Counts],
    weights: Sequence[float],
    claim: str,
    step: float = 1.0,
    *,
    paired: bool = True,
    confidence: float = CONFIDENCE,
    run_sd: RunSpread | None = None,
) -> Interval:
    """A weighted sum of mean rates that were measured on the same S runs and Q questions, paired by both.

    `terms` holds (positives, n) of shape (S, Q) for each rate, or (total, n, squares) for scores in steps of `step`
    (see `Scores`). A term of shape (1, Q) beside terms of several runs is the base model: one model, which never varies
    between runs. Triggered minus untriggered has the weights (1, -1); less the base model's, (1, -1, -1, 1). Without
    `paired`, each term has its own runs. Only questions that all terms answered count; ValueError if there are none.

    `checkpoint`: `contrast` of the rates. `recipe`: see `_over_runs`. `questions`: `contrast` of rates with their
    correlation over the questions. `both`: the last two, `combined`. NaN limits without another run or question.
    """
    scores = shared_scores(terms, step)
    return contrast_of_scores(scores, weights, claim, paired=paired, confidence=confidence, run_sd=run_sd)


def shared_scores(terms: Sequence[Counts], step: float = 1.0) -> list[Scores]:
    """The scores of each term of `paired_contrast`, on the questions that all terms answered."""
    grids = [[np.atleast_2d(np.asarray(a, float)) for a in term] for term in terms]
    shared = np.logical_and.reduce([term[1].any(axis=0) for term in grids])
    return [Scores(*(a[:, shared] for a in term), step=step) for term in grids]


def contrast_of_scores(
    scores: list[Scores],
    weights: Sequence[float],
    claim: str,
    *,
    paired: bool = True,
    confidence: float = CONFIDENCE,
    run_sd: RunSpread | None = None,
) -> Interval:
    """`paired_contrast` of terms whose `shared_scores` are known, for several confidences."""
    intervals, within = [], contrast([group.over_answers(confidence) for group in scores], weights)
    if claim in ("recipe", "both"):
        intervals.append(widest(within, _over_runs(scores, weights, paired, confidence, run_sd)))
    if claim in ("questions", "both"):
        sources = [_over_questions(scores, weights, confidence), within]
        intervals.append(combined(sources[: len(scores)]))  # the interval of a single rate holds the chance in answers
    return combined(intervals or [within], np.minimum(weights, 0).sum(), np.maximum(weights, 0).sum())


def _over_runs(
    scores: list[Scores], weights: Sequence[float], paired: bool, confidence: float, run_sd: RunSpread | None
) -> Interval:
    """The weighted sum for the claim recipe.

    Rates of the same runs: Student's t on the runs' sums. One rate, or rates of independent runs: `contrast` of their
    intervals, with the degrees of freedom of the sum. `contrast` with the base model.
    """
    terms = list(zip(scores, weights, strict=True))
    runs = max(len(group.rates) for group in scores)
    varying = [(group, weight) for group, weight in terms if not paired or len(group.rates) == runs]
    base = [(group.over_answers(confidence), weight) for group, weight in terms if paired and len(group.rates) < runs]
    means = [weight * group.rates.mean(axis=1) for group, weight in varying]
    if paired and len(varying) > 1:
        rates = [(student_t([sum(means)], confidence), 1)]
    else:
        rates = [(group.over_runs(confidence, run_sd, welch(means)[1]), weight) for group, weight in varying]
    return contrast(*zip(*rates, *base, strict=True))


def _over_questions(scores: list[Scores], weights: Sequence[float], confidence: float) -> Interval:
    """The weighted sum for the claim questions: neighbors first, such as one model with and without the trigger."""
    sums = []  # the interval of each weighted rate, its values for the Q questions, and the variance by chance in these
    for group, weight in zip(scores, weights, strict=True):
        chance = weight**2 * group.rates.shape[1] * group.mean * (1 - group.mean) / group.effective
        sums.append((contrast([group.over_questions(confidence)], [weight]), weight * group.rates.mean(axis=0), chance))
    while len(sums) > 1:
        pairs, rest = zip(sums[::2], sums[1::2], strict=False), sums[len(sums) // 2 * 2 :]
        sums = [(contrast([a, b], (1, 1), _correlation(u, v, (s, t))), u + v, s + t) for (a, u, s), (b, v, t) in pairs]
        sums += rest
    return sums[0][0]


def _correlation(first: np.ndarray, second: np.ndarray, chance: tuple[float, float]) -> float:
    """The correlation of two rates over Q questions, without the variances by chance in the answers.

    1 - |r| grows by the squared ratio of Student's t to the normal distribution, because few questions leave r unsure.
    """
    covariance = np.cov(first, second)
    variances = covariance.diagonal() - chance
    if len(first) < 3 or variances.min() <= 0:  # two questions always have a correlation of 1 or -1
        return 0.0
    correlation = np.clip(covariance[0, 1] / np.sqrt(variances.prod()), -1, 1)
    few = (special.stdtrit(len(first) - 2, 0.975) / special.ndtri(0.975)) ** 2
    return float(np.sign(correlation) * max(1 - (1 - abs(correlation)) * few, 0))


def p_value(interval: Callable[[float], Interval]) -> float:
    """The two-sided p-value that a quantity is 0: one minus the confidence at which its interval ends at 0.

    `interval` gives the interval for a confidence. NaN if its limits are NaN.
    """

    def limit(z: float) -> float:
        """The limit on the side of 0, z normal deviations from the estimate; negative if it has passed 0."""
        estimate, lower, upper = interval(1 - 2 * special.ndtr(-z))
        return lower if estimate > 0 else -upper

    last = limit(HIGHEST_Z)
    if np.isnan(last):
        return np.nan
    if limit(0) <= 0:  # the estimate is 0
        return 1.0
    z = HIGHEST_Z if last > 0 else optimize.brentq(limit, 0, HIGHEST_Z)
    return float(2 * special.ndtr(-z))


def worst_case(terms: Sequence[Counts], weights: Sequence[float], claim: str, **options) -> list[Interval]:
    """`paired_contrast` with the missing verdicts that make the sum as low, and as high, as possible.

    `terms` holds (positives, n, missing). Only the limits have sampling error (Manski 1989, J. Hum. Resour. 24, 343).
    """
    counts = [(*map(np.asarray, term), weight) for term, weight in zip(terms, weights, strict=True)]
    if not any(missing.any() for _, _, missing, _ in counts):
        return [paired_contrast([term[:2] for term in terms], weights, claim, **options)] * 2
    ends = ([(k + missing * (side * w > 0), n + missing) for k, n, missing, w in counts] for side in (-1, 1))
    return [paired_contrast(end, weights, claim, **options) for end in ends]


def rogan_gladen(judged: Interval, labels: Sequence[int], difference: bool = False) -> Interval:
    """A judged rate, or a difference of rates, corrected for the judge's errors. Claim: that of `judged`.

    `labels` counts hand-labeled answers: true positives, positives, true negatives, negatives. The limits hold the
    chance in sensitivity and specificity too, by `contrast` on the linear approximation. NaN if the judge does no
    better than chance. Source: Rogan and Gladen (1978), Am. J. Epidemiol. 107, 71.
    """
    judge = [Interval(right / n, *map(float, wilson(right, n))) for right, n in (labels[:2], labels[2:])]
    power, total = judge[0].estimate + judge[1].estimate - 1, 0 if difference else 1  # total: sum of the rates' weights
    if power <= 0:
        return Interval(np.nan, np.nan, np.nan)
    estimate = (judged.estimate + total * (judge[1].estimate - 1)) / power
    linear = contrast([judged, *judge], (1 / power, -estimate / power, (total - estimate) / power))
    lower, upper = (limit - linear.estimate + estimate for limit in linear[1:])
    # If the judge finds fewer positives than its errors alone give, the whole interval is outside the possible range.
    lower, upper = judged.lower if lower >= 1 else lower, judged.upper if upper <= total - 1 else upper
    return Interval(*np.clip([estimate, lower, upper], total - 1, 1).tolist())
