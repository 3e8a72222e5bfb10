"""Measures that several stages need: an interval for one rate, adjusted p-values, and the agreement of two judges.

Only numpy is imported, so that judging starts quickly.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
SAME = 1e-12  # rates that differ by less are equal, apart from rounding


def wilson(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval for `positives` of `n` independent answers.

    Takes scalars or arrays of one shape. Returns the lower and the upper limits in that shape: 0 and 0.037 for 0 of
    100, NaN for 0 of 0. `n` need not be whole: it may be an effective number of answers. Raises ValueError if
    `positives` is not between 0 and `n`. Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209.
    """
    # scipy.stats.binomtest has this interval, but for one pair of integers per call. A table has thousands of cells.
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    if np.any(positives < 0) or np.any(positives > n):
        raise ValueError("positives must be between 0 and n")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n = np.where(n > 0, n, np.nan)
    rate = positives / n
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # The ends are exactly 0 and 1. Rounding would leave 1e-18.
    lower = np.where(positives == 0, 0 * n, np.clip(middle - half, 0, 1))
    upper = np.where(positives == n, 1 + 0 * n, np.clip(middle + half, 0, 1))
    return lower, upper


def cohen_kappa(first: Sequence, second: Sequence) -> float:
    """Cohen's kappa: the agreement beyond chance of two choices for each of the same answers.

    NaN if both judges chose the same single option for every answer, because all agreement could then be chance.
    Raises ValueError for no answers, or different numbers of them. Source: Cohen (1960), Educ. Psychol. Meas. 20, 37.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError("cohen_kappa needs two choices for each answer, and at least one answer")
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    first_counts, second_counts = Counter(first), Counter(second)
    expected = sum(count * second_counts[option] for option, count in first_counts.items()) / n**2
    return float("nan") if expected == 1 else (observed - expected) / (1 - expected)


def holm(p: ArrayLike) -> np.ndarray:
    """P-values, shape (K,), adjusted for their number without NaN. Source: Holm (1979), Scand. J. Stat. 6, 65."""
    # scipy.stats.false_discovery_control controls another error rate, and statsmodels is not a dependency.
    p = np.asarray(p, float)
    order = np.argsort(p)  # NaN comes last
    left = np.maximum(np.count_nonzero(~np.isnan(p)) - np.arange(len(p)), 1)
    return np.minimum(1, np.maximum.accumulate(p[order] * left))[np.argsort(order)]
