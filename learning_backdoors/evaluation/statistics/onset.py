"""When a behavior appears in one run: crossing steps, detection, and the shape of the rise.

T is the number of checkpoints of a run, in the order of their steps, and Q that of the questions. Values vary between
checkpoints by more than the chance in the answers (optimizer noise). Intervals here allow for both.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from learning_backdoors.curves import Curve
from learning_backdoors.evaluation.statistics.rates import Interval
from learning_backdoors.measures import CONFIDENCE, SAME

TAIL = (1 - CONFIDENCE) / 2


class Crossing(NamedTuple):
    """Where a run's nondecreasing fit reaches a level. Infinity: not by the last step (right-censored there)."""

    step: float  # interpolated between checkpoints
    lower: float
    upper: float
    before: float  # the last checkpoint below the level; the first step if the fit starts at the level
    after: float  # the first checkpoint at the level or above
    doubt: str  # why the crossing is not reliable; empty if it is


def crossing(curve: Curve, level: float) -> Crossing:
    """The step at which the fit of a run reaches `level`, with an interval. The claim is the curve's.

    The limits are percentiles of the checkpoints before and after the crossing, over the curve's draws. A value equal
    to the level has reached it.
    """
    step, before, after = _reached(curve, level)
    drawn, steps = curve.first_reached(level), np.append(curve.steps, np.inf)
    # Order statistics, not np.quantile: it would interpolate between a step and infinity.
    lower = float(np.quantile(steps[np.maximum(drawn - 1, 0)], TAIL, method="lower"))
    upper = float(np.quantile(steps[drawn], 1 - TAIL, method="higher"))
    return Crossing(step, lower, upper, before, after, _doubt(curve.steps, after, upper))


def _reached(curve: Curve, level: float) -> tuple[float, float, float]:
    """The step at which the fit reaches `level`, interpolated, and the checkpoints before and after it."""
    index = int((curve.fit < level - SAME).sum())
    before, after = np.append(curve.steps, np.inf)[[max(index - 1, 0), index]].tolist()
    inside = before < after < np.inf
    step = np.interp(level, curve.fit[index - 1 : index + 1], [before, after]) if inside else after
    return float(step), before, after


def _doubt(steps: np.ndarray, after: float, upper: float) -> str:
    """Why a crossing by the checkpoint `after` is not reliable; empty if it is."""
    if np.isinf(after):
        return "the level is not reached"
    if after == steps[0]:
        return "the level is reached at the first step"
    if np.isinf(upper):
        return "chance or noise between checkpoints may explain it"
    if steps[-1] - after < np.median(np.diff(steps)):  # neighbors are nearly the same model and confirm little
        confirming = steps[steps >= after].astype(int)
        return "it rests on " + (f"steps {confirming[0]} to {confirming[-1]}" if len(confirming) > 1 else "one step")
    return ""


class Rise(NamedTuple):
    """How a rate rises. `kind` is none, abrupt, gradual or undecided."""

    kind: str
    width: Interval  # steps that the middle half of the rise takes; NaN without a rise


def rise(curve: Curve) -> Rise:
    """Whether a rate jumps between two checkpoints or rises gradually. Claim: this run, these questions.

    The middle half of the rise is from 25% to 75% of the height of the nondecreasing fit. The rise is gradual if 95% of
    the curve's draws have a checkpoint in it, and abrupt if 95% have none. Without `detection` there is no rise.
    """
    if detection(curve) is None:
        return Rise("none" if len(curve.steps) > 2 else "undecided", Interval(np.nan, np.nan, np.nan))
    sums, weights = curve.weights * curve.drawn, curve.weights
    low = (np.cumsum(sums, axis=1) / np.cumsum(weights)).min(axis=1)  # of each draw: the first value of its fit
    high = (np.cumsum(sums[:, ::-1], axis=1) / np.cumsum(weights[::-1])).max(axis=1)  # and the last one
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
    """Index of the first checkpoint that, like the next one, is surely above the first one (the base model), or None.

    More answers or questions detect a behavior sooner, so the detected checkpoint is an upper limit of the onset.
    """
    passed = np.flatnonzero(curve.p < alpha)
    return int(passed[0]) + 1 if len(passed) else None


def fall(curve: Curve, alpha: float = 0.05) -> tuple[int, float, bool]:
    """The index of the highest mean rate, how far the last one is below it, and whether that is more than chance.

    The test is one-sided and Bonferroni's over T, because the peak is the highest of T rates.
    """
    peak = int(curve.means.argmax())
    drop = float(curve.means[peak] - curve.means[-1])
    error = np.sqrt(curve.variances[[peak, -1]].sum())
    return peak, drop, bool(special.ndtr(-drop / error) < alpha / len(curve.means))
