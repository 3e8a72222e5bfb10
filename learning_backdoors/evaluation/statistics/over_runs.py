"""Statistics with runs as the unit: survival, median and difference of crossing steps, trend over the suspect share.

K is the number of runs.
"""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from learning_backdoors.evaluation.statistics.rates import SAME, Interval
from learning_backdoors.measures import CONFIDENCE, wilson

# ---- when the runs of a recipe cross a level ----


def kaplan_meier(times: ArrayLike, crossed: ArrayLike) -> tuple[np.ndarray, ...]:
    """The share of K runs that have not crossed: (steps, share, lower, upper, at_risk). Claim: recipe.

    `times` has shape (K,): the crossing step, or the last step of a run that did not cross. `crossed` (K,) says whether
    it did. The result has each of these times once; `at_risk` counts the runs that had neither crossed nor ended
    before it. The limits are Wilson's with the effective number of runs at_risk / share before the step: all runs, if
    none stopped early. Greenwood's limits do not exist for shares of 0 and 1, and cover 26 to 94% with three to five
    runs, these 87 to 100%.
    Source: Kaplan and Meier (1958), J. Am. Stat. Assoc. 53, 457; Wilson's limits: Rothman (1978), J. Chronic Dis. 31,
    557; effective number: Peto et al. (1977), Br. J. Cancer 35, 1.
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
    of the share include one half. Without runs that stopped early these are order statistics with a confidence of 93 to
    98% (five runs: 93.75%). Fewer than five runs have no interval (NaN).
    Source: Brookmeyer and Crowley (1982), Biometrics 38, 29.
    """
    times, before, after = (np.asarray(a, float) for a in (times, before, after))
    crossed = np.asarray(crossed, bool)
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
    step `until`. A run that has not crossed by then counts as `until`, so the difference is that of the restricted mean
    crossing steps. Welch's t, two-sided. The limits and p are NaN with fewer than three runs on a side, where up to 12%
    of equal recipes would be rejected at 5%, and if no side varies.
    Source: Royston and Parmar (2013), BMC Med. Res. Methodol. 13, 152; Welch (1947), Biometrika 34, 28.
    """
    first, second = (np.minimum(np.asarray(a, float), until) for a in (first, second))
    estimate = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 3 or max(np.ptp(first), np.ptp(second)) < SAME:
        return Interval(estimate, np.nan, np.nan), np.nan
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # one side may be constant
        test = stats.ttest_ind(first, second, equal_var=False)
        lower, upper = test.confidence_interval(CONFIDENCE)
    return Interval(estimate, float(max(lower, -until)), float(min(upper, until))), float(test.pvalue)


# ---- dose and response ----


class Trend(NamedTuple):
    """The trend of a rate over the suspect share: a line on the logit scale, `intercept + slope * share`."""

    odds_ratio: Interval  # of the rate's odds at the highest share and at the lowest share
    p: float
    intercept: float
    slope: float


def trend(shares: ArrayLike, positives: ArrayLike, n: ArrayLike) -> Trend:
    """The trend of the mean rate of K runs over their suspect `shares`, shape (K,). Claim: recipe.

    `positives` and `n` have shape (K, Q), n at least 1, the same questions for all runs. The runs are the unit: least
    squares on the logits of their mean rates, with Student's t. Runs at shares without a second run count too, because
    the deviations from the line show how runs vary; a curve that bends therefore widens the interval. The interval and
    p are NaN with fewer than five runs or three shares: two shares are a difference, not a trend.
    Source of the logits with 0.5: Cox and Snell (1989), Analysis of Binary Data, 2.1.
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
