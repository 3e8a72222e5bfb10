"""Main effects of a factor on an outcome, over B blocks: combinations of the other factors that have both levels.

The effect is the mean over the blocks of the difference of the two levels, each block with the same weight (Box, Hunter
and Hunter 2005, Statistics for Experimenters, 5.4). `high` and `low` have an entry per block: the runs of one level.
Claim: recipe, with these settings. So a block in which the effect differs (an interaction) is no source of error,
unless a level of some block has a single run: then the blocks' differences are the unit, as in a randomized block
design with one run per combination (the same book, 4.2).
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from learning_backdoors.evaluation.statistics.differences import Counts, contrast_of_scores, p_value, shared_scores
from learning_backdoors.evaluation.statistics.rates import Interval, student_t, widest
from learning_backdoors.measures import CONFIDENCE, SAME

Effect = tuple[Interval, float]  # with its p-value
LEAST = 3  # runs or blocks on a side: with fewer, crossing steps find a difference too often, see `crossing_difference`


def rate_effect(high: Sequence[Counts], low: Sequence[Counts]) -> Effect:
    """The effect on a mean rate. A side of a block is (positives, n) of shape (runs, Q), the same questions in all.

    `paired_contrast` of the sides' mean rates for the claim recipe. With a single run on a side: Student's t on the
    blocks' differences, not narrower than the interval of the claim checkpoint.
    """
    scores, count = shared_scores([*high, *low]), len(high)
    weights = np.repeat([1 / count, -1 / count], count)
    rates = [side.rates.mean(axis=1) for side in scores]
    units = _units(rates[:count], rates[count:])

    def interval(confidence: float) -> Interval:
        of_scores = functools.partial(contrast_of_scores, scores, weights, paired=False, confidence=confidence)
        if min(map(len, rates)) > 1:
            return of_scores("recipe")
        estimate, *limits = widest(of_scores("checkpoint"), student_t(units, confidence))
        return Interval(estimate, *np.clip(limits, -1, 1).tolist())

    return interval(CONFIDENCE), p_value(interval)


def mean_effect(high: Sequence[ArrayLike], low: Sequence[ArrayLike]) -> Effect:
    """The effect on a mean, such as a change of likelihood. A side of a block has a value per run.

    Student's t with the runs' variance on each side (Welch 1947, Biometrika 34, 28), or on the blocks' differences.
    """
    interval = functools.partial(student_t, _units(high, low))
    return interval(CONFIDENCE), p_value(interval)


def crossing_effect(high: Sequence[ArrayLike], low: Sequence[ArrayLike]) -> Effect:
    """The ratio of the (geometric) mean crossing steps of the two levels. A side of a block has a step per run.

    `mean_effect` of the logarithms. A run that has not crossed by some step, which all runs must have reached, counts
    as that step: restricted means (Royston and Parmar 2013, BMC Med. Res. Methodol. 13, 152). NaN limits and p if the
    steps do not vary, and with fewer than three runs on a side.
    """
    logs = [[np.log(side) for side in sides] for sides in (high, low)]
    interval, p = mean_effect(*logs)
    if max(map(np.ptp, _units(*logs))) < SAME or min(sum(map(len, sides)) for sides in logs) < LEAST:
        interval, p = Interval(interval.estimate, np.nan, np.nan), np.nan
    return Interval(*np.exp(interval).tolist()), p


def share_effect(high: Counts, low: Counts) -> Effect:
    """The effect on the share of runs with an event. A side is (runs with the event, runs), shape (B,) each.

    The stratified score interval of a difference of shares, with equal weights (Miettinen and Nurminen 1985, Stat. Med.
    4, 213). With as many runs on each side, its p-value is that of the test of Mantel and Haenszel (1959, J. Natl.
    Cancer Inst. 22, 719).
    """
    (hits, runs), (other_hits, other_runs) = (np.asarray(side, float) for side in (high, low))
    differences, total = hits / runs - other_hits / other_runs, runs + other_runs

    def z(difference: float) -> float:
        """Standard errors from a difference to the observed one. The errors are those under the difference."""
        share = _share_under(difference, hits, runs, other_hits, other_runs)
        variances = (share + difference) * (1 - share - difference) / runs + share * (1 - share) / other_runs
        variance = (variances * total / (total - 1)).sum()
        return float((differences - difference).sum() / np.sqrt(max(variance, 1e-12)))

    estimate, limit = float(differences.mean()), special.ndtri((1 + CONFIDENCE) / 2)
    ends = [
        end if sign * z(end) < limit else optimize.brentq(lambda d, sign=sign: sign * z(d) - limit, estimate, end)
        for sign, end in ((1, -1.0), (-1, 1.0))
    ]
    return Interval(estimate, *ends), float(2 * special.ndtr(-abs(z(0))))


def _share_under(difference: float, hits, runs, other_hits, other_runs) -> np.ndarray:
    """The likeliest shares of the second sides if the first sides' are higher by `difference`, in the same place."""
    # The root of a cubic equation, in the form of Farrington and Manning (1990), Stat. Med. 9, 1447.
    total, all_hits = runs + other_runs, hits + other_hits
    squared = ((runs + 2 * other_runs) * difference - total - all_hits) / (3 * total)
    linear = ((other_runs * difference - total - 2 * other_hits) * difference + all_hits) / (3 * total)
    constant = other_hits * difference * (1 - difference) / total
    middle = squared**3 - 1.5 * linear * squared + constant / 2
    radius = np.where(middle < 0, -1, 1) * np.sqrt(np.maximum(squared**2 - linear, 0))
    cosine = np.divide(middle, radius**3, out=np.zeros_like(middle), where=abs(radius) > SAME)
    share = 2 * radius * np.cos((np.pi + np.arccos(np.clip(cosine, -1, 1))) / 3) - squared
    return np.clip(share, max(-difference, 0), min(1 - difference, 1))


def single(high: Sequence, low: Sequence) -> bool:
    """Whether a side of a block has a single run, so that the blocks are the unit."""
    return min(map(len, [*high, *low])) < 2


def _units(high: Sequence[ArrayLike], low: Sequence[ArrayLike]) -> list[np.ndarray]:
    """Independent groups of values whose means add up to the effect: the sides of each block, or the differences."""
    sides = [[np.asarray(side, float) for side in sides] for sides in (high, low)]
    if single(high, low):
        return [np.array([first.mean() - second.mean() for first, second in zip(*sides, strict=True)])]
    return [sign * side / len(high) for sign, group in zip((1, -1), sides, strict=True) for side in group]
