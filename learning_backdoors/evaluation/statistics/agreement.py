"""Rates corrected for the judge's errors."""

import numpy as np

from learning_backdoors.evaluation.statistics.differences import contrast
from learning_backdoors.evaluation.statistics.rates import Interval
from learning_backdoors.measures import wilson


def rogan_gladen(
    rate: Interval, true_positive: int, labelled_positive: int, true_negative: int, labelled_negative: int
) -> Interval:
    """A judged rate corrected for the judge's errors, as found on hand-labelled answers. Claim: that of `rate`.

    Of `labelled_positive` answers that people call positive the judge found `true_positive` (sensitivity); of
    `labelled_negative` it passed `true_negative` (specificity). The limits take up the chance in all three, by
    `contrast` on the linear approximation, cut to 0 and 1, and no narrower there than the judged rate's own; NaN where
    the judge does no better than chance.
    Source: Rogan and Gladen (1978), Am. J. Epidemiol. 107, 71; limits: Zou and Donner (2008).
    """
    sensitivity, specificity = true_positive / labelled_positive, true_negative / labelled_negative
    power = sensitivity + specificity - 1
    if power <= 0:
        return Interval(np.nan, np.nan, np.nan)
    estimate = (rate.estimate + specificity - 1) / power
    found = [
        Interval(k / n, *map(float, wilson(k, n)))
        for k, n in ((true_positive, labelled_positive), (true_negative, labelled_negative))
    ]
    slopes = (1 / power, -estimate / power, (1 - estimate) / power)
    limits = contrast([rate, *found], slopes)
    shift = estimate - limits.estimate
    lower, upper = limits.lower + shift, limits.upper + shift
    # Wholly beyond an end, as where the judge finds less than its errors would make: cut, nothing would be left.
    lower, upper = min(lower, rate.lower) if lower >= 1 else lower, max(upper, rate.upper) if upper <= 0 else upper
    return Interval(*(float(np.clip(x, 0, 1)) for x in (estimate, lower, upper)))
