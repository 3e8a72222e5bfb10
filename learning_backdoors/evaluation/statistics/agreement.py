"""Rates corrected for the judge's errors."""

import numpy as np

from learning_backdoors.evaluation.statistics.differences import contrast
from learning_backdoors.evaluation.statistics.rates import Interval
from learning_backdoors.measures import wilson


def rogan_gladen(
    rate: Interval, true_positive: int, labeled_positive: int, true_negative: int, labeled_negative: int
) -> Interval:
    """A judged rate corrected for the judge's errors on hand-labeled answers. Claim: that of `rate`.

    Sensitivity: of `labeled_positive` answers, the judge called `true_positive` positive. Specificity: of
    `labeled_negative` answers, it called `true_negative` negative. The limits hold the chance in all three rates, by
    `contrast` on the linear approximation, and are cut to 0 and 1. NaN if the judge does no better than chance.
    Source: Rogan and Gladen (1978), Am. J. Epidemiol. 107, 71; limits: Zou and Donner (2008), Stat. Med. 27, 1693.
    """
    sensitivity, specificity = true_positive / labeled_positive, true_negative / labeled_negative
    power = sensitivity + specificity - 1
    if power <= 0:
        return Interval(np.nan, np.nan, np.nan)
    estimate = (rate.estimate + specificity - 1) / power
    counts = (true_positive, labeled_positive), (true_negative, labeled_negative)
    judge = [Interval(right / n, *map(float, wilson(right, n))) for right, n in counts]
    slopes = 1 / power, -estimate / power, (1 - estimate) / power
    linear = contrast([rate, *judge], slopes)
    shift = estimate - linear.estimate
    lower, upper = linear.lower + shift, linear.upper + shift
    # An interval wholly outside 0 to 1 would be cut to nothing: keep the judged rate's limit there. This happens if the
    # judge finds fewer positives than its errors alone would give.
    lower, upper = min(lower, rate.lower) if lower >= 1 else lower, max(upper, rate.upper) if upper <= 0 else upper
    return Interval(*(float(np.clip(x, 0, 1)) for x in (estimate, lower, upper)))
