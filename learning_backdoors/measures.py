"""Measures that more than one stage needs: an interval for a share, and the agreement of two judges."""

from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


def wilson(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval for `positives` of `n` independent answers.

    Scalars, or arrays of one shape. Returns the lower and the upper limits in that shape: [0, 0.037] for 0 of 100, NaN
    for 0 of 0. Raises ValueError if `positives` is not between 0 and `n`. Counts may be fractions (an effective number
    of answers). Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209.
    """
    # Not scipy.stats.binomtest: it takes one pair of whole numbers per call, and a table has thousands of cells.
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    if np.any(positives < 0) or np.any(positives > n):
        raise ValueError("positives must be between 0 and n")
    z = normal_quantile(confidence)
    n = np.where(n > 0, n, np.nan)
    rate = positives / n
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # Set the ends to exactly 0 and 1: rounding would leave 1e-18.
    lower = np.where(positives == 0, 0 * n, np.clip(middle - half, 0, 1))
    upper = np.where(positives == n, 1 + 0 * n, np.clip(middle + half, 0, 1))
    return lower, upper


def cohen_kappa(first: Sequence, second: Sequence) -> float:
    """Cohen's kappa: how far two judges agree on the same answers beyond chance.

    `first` and `second` hold one choice per answer. NaN if both judges chose the same single option throughout: chance
    agreement is then complete. Raises ValueError for empty sequences or different lengths.
    Source: Cohen (1960), Educ. Psychol. Meas. 20, 37.
    """
    first, second = list(first), list(second)
    n = len(first)
    if n == 0 or n != len(second):
        raise ValueError("cohen_kappa needs two choices for each answer, and at least one answer")
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    counts, other = Counter(first), Counter(second)
    expected = sum(counts[choice] * other[choice] for choice in counts) / n**2
    return float("nan") if expected == 1 else (observed - expected) / (1 - expected)


def normal_quantile(confidence: float) -> float:
    """How many standard deviations on each side of the mean hold the share `confidence` of a normal distribution."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
