"""Statistics of K runs as the unit: survival, median and difference of crossing steps, trend over the suspect share."""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from learning_backdoors.evaluation.statistics.differences import p_value
from learning_backdoors.evaluation.statistics.rates import Interval, student_t
from learning_backdoors.measures import CONFIDENCE, SAME, wilson


def kaplan_meier(times: ArrayLike, crossed: ArrayLike) -> tuple[np.ndarray, ...]:
    """The share of K runs that have not crossed: (steps, share, lower, upper, at_risk). Claim: recipe.

    `times` (K,): the crossing step, or the last step of a run that did not cross; `crossed` (K,): whether it did. The
    result has each time once; `at_risk` counts the runs that had neither crossed nor ended before it. The limits are
    Wilson's (Rothman 1978, J. Chronic Dis. 31, 557) with the effective number of runs at_risk / share before the step
    (Peto et al. 1977, Br. J. Cancer 35, 1). Source: Kaplan and Meier (1958), J. Am. Stat. Assoc. 53, 457.
    """
    times, crossed = np.asarray(times, float), np.asarray(crossed, bool)
    steps = np.unique(times)
    at_risk = (times >= steps[:, None]).sum(axis=1)
    share = np.cumprod(1 - (crossed & (times == steps[:, None])).sum(axis=1) / at_risk)
    effective = at_risk / np.append(1, share[:-1])
    return steps, share, *wilson(share * effective, effective), at_risk


def median_crossing(times: ArrayLike, crossed: ArrayLike, before: ArrayLike, after: ArrayLike) -> Interval:
    """The median crossing step of K runs by `kaplan_meier`, with its interval. Claim: recipe.

    Arrays of shape (K,): `times` and `crossed` as there, and the checkpoints around each crossing. The median is
    infinite if not more than half of the runs are estimated to cross. The interval holds the steps at which the limits
    of the share include one half (Brookmeyer and Crowley 1982, Biometrics 38, 29). Fewer than five runs: NaN limits.
    """
    times, crossed, before, after = map(np.asarray, (times, crossed, before, after))
    steps, share, lower, upper, _ = kaplan_meier(times, crossed)
    low, high = (np.append(steps, np.inf)[(share >= 0.5 + sign * SAME).sum()] for sign in (1, -1))
    median = float(low if low == high else (low + high) / 2)
    if len(times) < 5:
        return Interval(median, np.nan, np.nan)
    first = steps[lower <= 0.5].min(initial=steps[-1])
    last = steps[upper < 0.5].min(initial=np.inf)
    of_last = crossed & (times == last)
    return Interval(median, float(before[times == first].min()), float(after[of_last].max(initial=last)))


def crossing_difference(first: ArrayLike, second: ArrayLike, until: float) -> tuple[Interval, float]:
    """By how many steps the first recipe's runs cross a level later than the second's, and the p-value. Claim: recipe.

    `first` and `second` hold a crossing step per run, infinity if the run does not cross. All runs must have reached
    step `until`. A run that has not crossed by then counts as `until`: the difference is that of the restricted mean
    (Royston and Parmar 2013, BMC Med. Res. Methodol. 13, 152), by Welch's t, two-sided. The limits and p are NaN if no
    side varies, and with fewer than three runs on a side, where up to 12% of equal recipes would be rejected at 5%.
    """
    first, second = (np.minimum(np.asarray(a, float), until) for a in (first, second))
    return _restricted([first, -second], until)


def lead(first: ArrayLike, second: ArrayLike, until: float) -> tuple[Interval, float]:
    """By how many steps the first event comes before the second in the same K runs, and the p-value. Claim: recipe.

    As `crossing_difference`, but paired: `first` and `second`, shape (K,), hold each run's steps of the two events.
    """
    first, second = (np.minimum(np.asarray(a, float), until) for a in (first, second))
    return _restricted([second - first], until)


def _restricted(groups: list[np.ndarray], until: float) -> tuple[Interval, float]:
    """The sum of the groups' means by Student's t, within `until`, and its p-value."""
    interval = functools.partial(student_t, groups)
    estimate, *limits = interval(CONFIDENCE)
    if min(map(len, groups)) < 3 or max(map(np.ptp, groups)) < SAME:
        return Interval(estimate, np.nan, np.nan), np.nan
    return Interval(estimate, *np.clip(limits, -until, until).tolist()), p_value(interval)


class Trend(NamedTuple):
    """The trend of a rate over the suspect share: a line on the logit scale, `intercept + slope * share`."""

    odds_ratio: Interval  # of the rate's odds at the highest share and at the lowest share
    p: float
    intercept: float
    slope: float


def trend(shares: ArrayLike, positives: ArrayLike, n: ArrayLike) -> Trend:
    """The trend of the mean rate of K runs over their suspect `shares`, shape (K,). Claim: recipe.

    `positives` and `n` have shape (K, Q), n at least 1, the same questions for all runs. Least squares on the logits of
    the mean rates (with 0.5: Cox and Snell 1989, Analysis of Binary Data, 2.1) and Student's t: the deviations from the
    line show how runs vary. The interval and p are NaN with fewer than five runs or three shares.
    """
    shares, positives, n = (np.asarray(a, float) for a in (shares, positives, n))
    if len(np.unique(shares)) < 2 or not n.size:
        return Trend(Interval(np.nan, np.nan, np.nan), np.nan, np.nan, np.nan)
    answers = n.sum(axis=1)
    logits = special.logit(((positives / n).mean(axis=1) * answers + 0.5) / (answers + 1))
    fit, freedom = stats.linregress(shares, logits), len(shares) - 2
    enough = len(shares) >= 5 and len(np.unique(shares)) >= 3
    half = special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * fit.stderr if enough else np.nan
    ratio = np.exp(np.ptp(shares) * (fit.slope + np.array([0, -half, half])))
    return Trend(Interval(*map(float, ratio)), float(fit.pvalue) if enough else np.nan, fit.intercept, fit.slope)
