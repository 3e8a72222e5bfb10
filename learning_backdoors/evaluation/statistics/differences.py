"""Differences and other sums of several rates: intervals, p-values and their adjustment."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from learning_backdoors.evaluation.statistics.rates import (
    Interval,
    RunSpread,
    at_least,
    combined,
    completed,
    mean_rate,
    mean_score,
    pooled_over_runs,
    scores_and_effective_number,
)
from learning_backdoors.measures import CONFIDENCE, wilson

Term = tuple[ArrayLike, ...]
HIGHEST_Z = 7.0


def contrast(rates: Sequence[Interval], weights: Sequence[float], correlation: float = 0.0) -> Interval:
    """A weighted sum of K rates from their own intervals (MOVER). Claim: that of the intervals.

    The weights of a difference are (1, -1). The rates are independent; two rates may have a `correlation`. For Wilson's
    intervals of two independent rates this is Newcombe's interval of their difference.

    The difference of correlated rates is smallest if their own parts move apart, or if their common part moves both to
    the same side: below^2 = (1 - r) (l1^2 + u2^2) + r (l1 - l2)^2, with the distances l to the lower and u to the upper
    limits. The published formula with correlation, l1^2 + u2^2 - 2 r l1 u2, is too wide if rates are near 0 or 1,
    because it lets limits of opposite sides cancel, which differ there.
    Source: Zou and Donner (2008), Stat. Med. 27, 1693; Zou (2007), Psychol. Methods 12, 399.
    """
    weights = np.asarray(weights, float)
    middle, lower, upper = np.array(rates, float).T
    # How far each rate can move the sum down, and up.
    below = weights * np.where(weights > 0, middle - lower, middle - upper)
    above = weights * np.where(weights > 0, upper - middle, lower - middle)
    together = correlation * np.prod(np.sign(weights))
    estimate, limits = float(weights @ middle), []
    for own, other in ((below, above), (above, below)):
        shared = own[0] - other[1] if together < 0 else own.sum()
        limits.append(float(np.sqrt((1 - abs(together)) * (own @ own) + abs(together) * shared**2)))
    return Interval(estimate, estimate - limits[0], estimate + limits[1])


def paired_contrast(
    terms: Sequence[Term],
    weights: Sequence[float],
    claim: str,
    step: float = 1.0,
    *,
    confidence: float = CONFIDENCE,
    run_sd: RunSpread | None = None,
) -> Interval:
    """A weighted sum of mean rates that were measured on the same S runs and Q questions, paired by both.

    `terms` holds (positives, n) for each rate, arrays of shape (S, Q); every run and question has answers in each. For
    mean scores from 0 to 1 in steps of `step` it holds (total, n, squares), as in `mean_score`. A term of shape (1, Q)
    beside terms of several runs is the base model: it is one model, and never varies between runs. Triggered minus
    untriggered has the weights (1, -1); the difference in differences, which takes off the trigger's effect on the base
    model, has (1, -1, -1, 1).

    `checkpoint`: `contrast` of the rates. `recipe`: Student's t on the S runs' sums, or `run_interval` for a single
    rate of the runs, and MOVER with the base model's rates. `questions`: `contrast` of the rates two by two, with their
    correlation over the questions. The last two hold the interval of `checkpoint`, and are NaN if S or Q is 1. `both`:
    `combined` of the last two.
    """
    if claim == "both":
        options = {"step": step, "confidence": confidence, "run_sd": run_sd}
        parts = [paired_contrast(terms, weights, part, **options) for part in ("recipe", "questions")]
        return combined(parts, *_range(weights))
    terms = [tuple(np.atleast_2d(np.asarray(a, float)) for a in term) for term in terms]

    def rate(term: Term, claim: str) -> Interval:
        total, n, squares = (*term, term[0])[:3]
        return mean_score(total, squares, n, claim, step, confidence=confidence, run_sd=run_sd)

    within = contrast([rate(term, "checkpoint") for term in terms], weights)
    if claim == "checkpoint":
        return within
    if claim == "recipe":
        return combined([at_least(_over_runs(terms, weights, rate, confidence), within)], *_range(weights))
    return combined([_over_questions(terms, weights, rate, step), within], *_range(weights))


def _range(weights: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest possible weighted sum of rates."""
    return float(np.minimum(weights, 0).sum()), float(np.maximum(weights, 0).sum())


def _over_runs(terms: Sequence[Term], weights: Sequence[float], rate: Callable, confidence: float) -> Interval:
    """`paired_contrast` for the claim recipe: the terms of the runs, and those of the base model."""
    runs = max(len(n) for _, n, *_ in terms)
    varying, fixed = ([i for i, term in enumerate(terms) if (len(term[1]) == runs) == own] for own in (True, False))
    if len(varying) == 1:
        part = contrast([rate(terms[varying[0]], "recipe")], [weights[varying[0]]])
    else:
        part = _t_interval(sum(weights[i] * completed(*terms[i][:2])[0].mean(axis=1) for i in varying), confidence)
    base = [rate(terms[i], "checkpoint") for i in fixed]
    return contrast([part, *base], [1, *(weights[i] for i in fixed)])


def _t_interval(values: np.ndarray, confidence: float) -> Interval:
    """Student's t on S independent values. NaN limits for one value; the width is 0 if all are equal."""
    estimate, count = float(values.mean()), len(values)
    if count == 1:
        return Interval(estimate, np.nan, np.nan)
    half = float(special.stdtrit(count - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(count))
    return Interval(estimate, estimate - half, estimate + half)


def _over_questions(terms: Sequence[Term], weights: Sequence[float], rate: Callable, step: float) -> Interval:
    """`paired_contrast` for the claim questions, without the chance in the answers.

    Terms are added two by two, so that neighbors cancel first: with the trigger and without.
    """
    sums = []  # the interval of each weighted rate, its values for the Q questions, and the chance in these values
    for term, weight in zip(terms, weights, strict=True):
        total, n, squares = (*term, term[0])[:3]
        pooled, pooled_n = pooled_over_runs(total, n)
        scores, effective = scores_and_effective_number(total, squares, n, step)
        chance = len(pooled) * scores.mean() * (1 - scores.mean()) / effective
        sums.append((contrast([rate(term, "questions")], [weight]), weight * pooled / pooled_n, weight**2 * chance))
    while len(sums) > 1:
        added = []
        for (one, u, chance), (two, v, other) in zip(sums[::2], sums[1::2], strict=False):
            added.append((contrast([one, two], (1, 1), _correlation(u, v, (chance, other))), u + v, chance + other))
        sums = added + sums[2 * len(added) :]
    return sums[0][0]


def _correlation(first: np.ndarray, second: np.ndarray, chance: tuple[float, float]) -> float:
    """The correlation of two rates over Q questions, without the chance in the answers: variances to take off.

    It is moved towards 0, because few questions leave it uncertain: 1 - |r|, which does not cancel, grows by the
    squared ratio of Student's t to the normal distribution. Two questions always have a correlation of 1 or -1.
    """
    covariance = np.cov(first, second)
    variances = covariance.diagonal() - chance
    if len(first) < 3 or variances.min() <= 0:
        return 0.0
    correlation = np.clip(covariance[0, 1] / np.sqrt(variances.prod()), -1, 1)
    few = (special.stdtrit(len(first) - 2, 0.975) / special.ndtri(0.975)) ** 2
    return float(np.sign(correlation) * max(1 - (1 - abs(correlation)) * few, 0))


def change_from_base(rates: Term, base: Term, claim: str, **options) -> Interval:
    """The mean rate of S runs minus that of the base model, over the questions that both answered.

    `rates` is (positives, n) of shape (S, Q). `base` is (positives, n) of shape (Q,): the base model is one model.
    `options`: `confidence` and `run_sd`. See `paired_contrast`: for the claim recipe the interval is MOVER of
    `run_interval` and the base model's Wilson interval. Raises ValueError if no question has answers in both.
    """
    return paired_contrast(_shared(rates, base), (1, -1), claim, **options)


def rate_difference(
    first: Term, second: Term, claim: str, *, confidence: float = CONFIDENCE, run_sd: RunSpread | None = None
) -> Interval:
    """The difference of the mean rates of two independent groups of runs, over the questions that both answered.

    `first` and `second` are (positives, n) of shapes (S1, Q) and (S2, Q). `checkpoint`: `contrast` of the groups'
    rates. `recipe`: the same with `run_interval`, whose degrees of freedom are those of the difference (Welch 1947,
    Biometrika 34, 28); NaN limits if a group has one run. `questions`: paired by question, with each group's runs
    pooled. `both`: `combined` of the last two. Raises ValueError if no question has answers in both groups.
    """
    if claim == "both":
        options = {"confidence": confidence, "run_sd": run_sd}
        return combined([rate_difference(first, second, part, **options) for part in ("recipe", "questions")], -1, 1)
    groups = _shared(first, second)
    if claim == "questions":
        return paired_contrast([pooled_over_runs(*group) for group in groups], (1, -1), claim, confidence=confidence)
    df = _welch_df([completed(*group)[0].mean(axis=1) for group in groups])
    rates = [mean_rate(*group, claim, confidence=confidence, run_sd=run_sd, df=df) for group in groups]
    return contrast(rates, (1, -1))


def _welch_df(groups: Sequence[np.ndarray]) -> float | None:
    """The degrees of freedom of the difference of two means. None if a group has one value or neither group varies."""
    if min(map(len, groups)) < 2:
        return None
    dfs = np.array([len(group) - 1 for group in groups])
    errors = np.array([group.var(ddof=1) / len(group) for group in groups])
    return float(errors.sum() ** 2 / (errors**2 / dfs).sum()) if errors.any() else None


def _shared(*groups: Term) -> list[Term]:
    """Groups of runs, each (positives, n), with the questions for which all of them have answers."""
    groups = [tuple(np.atleast_2d(np.asarray(a, float)) for a in group) for group in groups]
    shared = np.logical_and.reduce([n.any(axis=0) for _, n in groups])
    return [(positives[:, shared], n[:, shared]) for positives, n in groups]


def p_value(interval: Callable[[float], Interval]) -> float:
    """The two-sided p-value that a quantity is 0: one minus the confidence at which its interval ends at 0.

    `interval` gives the interval for a confidence. So an interval of 95% excludes 0 exactly if p is below 0.05. NaN if
    its limits are NaN. The least value is 2.6e-12.
    """

    def limit(z: float) -> float:
        """The limit nearer to 0, z normal deviations from the estimate: positive if it has not passed 0."""
        estimate, lower, upper = interval(1 - 2 * special.ndtr(-z))
        return lower if estimate > 0 else -upper

    last = limit(HIGHEST_Z)
    if np.isnan(last):
        return np.nan
    if limit(0) <= 0:  # the estimate is 0
        return 1.0
    z = HIGHEST_Z if last > 0 else optimize.brentq(limit, 0, HIGHEST_Z, xtol=1e-6)
    return float(2 * special.ndtr(-z))


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


def holm(p: ArrayLike) -> np.ndarray:
    """P-values adjusted for their number, shape (K,). NaN stays NaN and does not count.

    Source: Holm (1979), Scand. J. Stat. 6, 65.
    """
    # scipy.stats.false_discovery_control controls another error rate, and statsmodels is not a dependency.
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    defined = np.flatnonzero(~np.isnan(p))
    order = defined[np.argsort(p[defined], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted
