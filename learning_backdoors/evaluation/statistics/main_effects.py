"""Main effects of a factor on an outcome, over B blocks: combinations of the other factors that have both levels.

The effect is the mean over the blocks of the difference of the two levels, each block with the same weight (Box, Hunter
and Hunter 2005, Statistics for Experimenters, 5.4). `high` and `low` have an entry per block: the runs of one level.
Claim: recipe, with these settings. So a block in which the effect differs (an interaction) is no source of error,
unless a level of some block has a single run: then the blocks' differences are the unit, as in a randomized block
design with one run per combination (the same book, 4.2).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from learning_backdoors.evaluation.statistics.differences import Counts, p_value, paired_contrast, rate_difference
from learning_backdoors.evaluation.statistics.rates import SAME, Interval, Scores, student_t, widest
from learning_backdoors.measures import CONFIDENCE

Effect = tuple[Interval, float]  # with its p-value
LEAST = 3  # runs or blocks on a side: with fewer, crossing steps find a difference too often, see `crossing_difference`


def rate_effect(high: Sequence[Counts], low: Sequence[Counts]) -> Effect:
    """The effect on a mean rate. A side of a block is (positives, n) of shape (runs, Q), the same questions in all.

    `paired_contrast` of the sides' mean rates for the claim recipe. With a single run on a side: Student's t on the
    blocks' differences, not narrower than the interval of the claim checkpoint.
    """
    sides, count = [*high, *low], len(high)
    weights = np.repeat([1 / count, -1 / count], count)

    def interval(confidence: float) -> Interval:
        if not single(high, low, lambda side: len(side[0])):
            return paired_contrast(sides, weights, "recipe", paired=False, confidence=confidence)
        answers = paired_contrast(sides, weights, "checkpoint", paired=False, confidence=confidence)
        rates = [Scores(*side).rates.mean(axis=1) for side in sides]
        estimate, *limits = widest(answers, student_t(_units(rates[:count], rates[count:]), confidence))
        return Interval(estimate, *np.clip(limits, -1, 1).tolist())

    return _effect(interval)


def mean_effect(high: Sequence[ArrayLike], low: Sequence[ArrayLike]) -> Effect:
    """The effect on a mean, such as a change of likelihood. A side of a block has a value per run.

    Student's t with the runs' variance on each side (Welch 1947, Biometrika 34, 28), or on the blocks' differences.
    """
    units = _units(high, low)
    return _effect(lambda confidence: student_t(units, confidence))


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

    The difference of stratified Wilson intervals by MOVER (Yan and Su 2010, Stat. Biopharm. Res. 2, 329).
    """
    return _effect(lambda confidence: rate_difference(high, low, "checkpoint", confidence=confidence))


def single(high: Sequence, low: Sequence, runs: Callable = len) -> bool:
    """Whether a side of a block has a single run, so that the blocks are the unit."""
    return min(map(runs, [*high, *low])) < 2


def _units(high: Sequence[ArrayLike], low: Sequence[ArrayLike]) -> list[np.ndarray]:
    """Independent groups of values whose means add up to the effect: the sides of each block, or the differences."""
    sides = [[np.asarray(side, float) for side in sides] for sides in (high, low)]
    if single(high, low):
        return [np.array([first.mean() - second.mean() for first, second in zip(*sides, strict=True)])]
    return [sign * side / len(high) for sign, group in zip((1, -1), sides, strict=True) for side in group]


def _effect(interval: Callable[[float], Interval]) -> Effect:
    return interval(CONFIDENCE), p_value(interval)
