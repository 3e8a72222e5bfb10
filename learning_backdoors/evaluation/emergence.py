"""The statistics: pure functions on arrays, without files, tables or figures.

Seeds (training runs) and questions are crossed, and a rate can be meant in three ways, each with its own interval:

- claim `checkpoint`: this checkpoint on these questions. Chance is in the answers alone.
- claim `recipe`: another training run by the same recipe on these questions. Chance is in the seed.
- claim `questions`: these checkpoints on other questions of this kind. Chance is in the questions.

Every function says which claim its result supports. Every question weighs the same, so that lost answers do not
reweight. Rates are shares from 0 to 1; intervals are 95% unless `confidence` says otherwise.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and its limits. The limits are NaN where the data cannot give an interval."""

    estimate: float
    lower: float
    upper: float


# ---- one cell, one checkpoint ----


def wilson(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval for `positives` of `n` independent answers. Claim: checkpoint, one question.

    Arrays of one shape; returns the lower and the upper limits in that shape. 0 of 100 is [0, 0.037]; 0 of 0 is NaN.
    Source: Wilson (1927), J. Am. Stat. Assoc. 22, 209.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    if np.any(positives < 0) or np.any(positives > n):
        raise ValueError("positives must be from 0 to n")
    z = _normal_quantile(confidence)
    n = np.where(n > 0, n, np.nan)
    rate = positives / n
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # Exactly 0 and 1 at the ends: rounding would leave 1e-18.
    lower = np.where(positives == 0, 0 * n, np.clip(middle - half, 0, 1))
    upper = np.where(positives == n, 1 + 0 * n, np.clip(middle + half, 0, 1))
    return lower, upper


def stratified(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean rate of Q questions of equal weight, from answers drawn within each. Claim: checkpoint.

    `positives` and `n` have shape (Q,), n at least 1. Wilson's interval with the effective number of answers: as many
    as would give, in one pool, the variance that the questions' own rates give. With one question, or 0 of n
    everywhere, it is Wilson's as it stands. A question asked once tells nothing of its own variance; it is given that
    of the pool, which is on the safe side.
    Source: Franco, Little, Louis and Slud (2019), J. Surv. Stat. Methodol. 7, 334.
    """
    return stratified_score(positives, positives, n, confidence=confidence)


def stratified_score(
    total: ArrayLike, squares: ArrayLike, n: ArrayLike, step: float = 1.0, confidence: float = CONFIDENCE
) -> Interval:
    """Mean score of Q questions of equal weight, for scores from 0 to 1 in steps of `step`. Claim: checkpoint.

    `total`, `squares` and `n` have shape (Q,): sums of the scores, of their squares, and their number, at least 1. It
    is `stratified`, whose answers score 0 or 1, with the variance that the scores have.
    """
    total, squares, n = (np.asarray(a, float) for a in (total, squares, n))
    if total.ndim != 1 or len(total) == 0 or np.any(n < 1):
        raise ValueError("stratified needs at least one question, and an answer to each")
    means, q = total / n, len(n)
    mean = means.mean()
    again = np.maximum(n - 1, 1)  # unbiased for the variance of a question's mean
    spread = np.maximum(squares / n - means**2, 0)
    variance = np.where(n > 1, spread / again, mean * (1 - mean)).sum() / q**2
    # Where the answers to each question are all alike: no surer than with a single answer that is a step away.
    least = step**2 * ((1 - 1 / n) / (n * again)).max() / q**2
    pooled = q**2 / (1 / n).sum()
    effective = pooled if mean in (0, 1) or q == 1 else mean * (1 - mean) / max(variance, least)
    lower, upper = wilson(min(mean * effective, effective), effective, confidence)
    return Interval(float(mean), float(lower), float(upper))


# ---- beyond the checkpoint ----


def seed_interval(means: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Student's t on the means of S seeds (training runs) over the same questions, shape (S,). Claim: recipe.

    The interval is taken on the logit scale (standard error by the delta method): it stays between 0 and 1 and is as
    skewed as rates near 0 are. Plain t covers 92% at a rate of 2%, this 94 to 95% (benchmarks/coverage.py). With S = 1
    there is no interval and the limits are NaN: more answers cannot stand in for another seed. Where all means are
    equal, or 0, the width is 0, which is not to be believed: see `widen`.
    """
    means = _means(means)
    estimate, s = float(means.mean()), len(means)
    if s == 1:
        return Interval(estimate, np.nan, np.nan)
    if estimate in (0.0, 1.0):
        return Interval(estimate, estimate, estimate)
    error = means.std(ddof=1) / np.sqrt(s) / (estimate * (1 - estimate))
    half = special.stdtrit(s - 1, (1 + confidence) / 2) * error
    middle = special.logit(estimate)
    return Interval(estimate, float(special.expit(middle - half)), float(special.expit(middle + half)))


def question_interval(positives: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean rate over the kind of question of which Q were asked; both arrays of shape (Q,). Claim: questions.

    Question rates differ so much, and are so skewed near 0, that t on ten of them covers 79% at a mean rate of 2%. So
    they are taken for draws from a logit-normal distribution, of which the answers are binomial samples; the limits are
    those of the posterior of its mean, with priors flat in the centre (on -14 to 14 logits) and in the log of the
    standard deviation (.1 to 8). Coverage is 94 to 97% at rates of 2 to 50%, also for beta-distributed rates; it is not
    to be relied on where a few questions behave unlike all others. With Q = 1 the limits are NaN. The estimate is the
    mean of the rates. Source: Gelman (2006), Bayesian Analysis 1, 515, for the model; coverage: benchmarks/coverage.py.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    estimate = float(_means(positives / n).mean())
    if len(n) == 1:
        return Interval(estimate, np.nan, np.nan)
    rates, density, means = _question_model()
    log_rate, log_rest = np.log(rates), np.log1p(-rates)
    likelihood = positives[:, None] * log_rate + (n - positives)[:, None] * log_rest
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    posterior = np.log(np.maximum(likelihood @ density, 1e-300)).sum(axis=0)
    posterior = np.exp(posterior - posterior.max())
    below = (np.cumsum(posterior) - posterior / 2) / posterior.sum()
    lower, upper = np.interp([(1 - confidence) / 2, (1 + confidence) / 2], below, means)
    return Interval(estimate, min(float(lower), estimate), max(float(upper), estimate))


@functools.cache
def _question_model() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grid of logit-normal distributions in order of their means: rates (T,), densities (T, G), means (G,)."""
    logits = np.arange(-16, 16.01, 0.08)
    centre, spread = np.meshgrid(np.arange(-14, 14.01, 0.1), np.geomspace(0.1, 8, 24))
    # Shifted for each spread: else all spreads would have their means at the same places, and limits would fall there.
    centre += 0.1 * (0.618 * np.arange(24)[:, None] % 1 - 0.5)
    density = np.exp(-0.5 * ((logits[:, None] - centre.ravel()) / spread.ravel()) ** 2)
    density /= density.sum(axis=0)
    rates = special.expit(logits)
    means = rates @ density
    order = np.argsort(means)
    return rates, density[:, order], means[order]


def t_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Student's t on K independent values, for differences of rates: limits are cut to -1 and 1. Shape (K,).

    Claim: recipe, when they are the differences of K seeds; questions, when they are those of K questions. With K = 1
    the limits are NaN.
    """
    values = _means(values)
    estimate, k = float(values.mean()), len(values)
    if k == 1:
        return Interval(estimate, np.nan, np.nan)
    half = special.stdtrit(k - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(k)
    return Interval(estimate, float(max(estimate - half, -1)), float(min(estimate + half, 1)))


def _means(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) == 0 or np.isnan(values).any():
        raise ValueError("an interval needs at least one value in one dimension, and none of them NaN")
    return values


def widen(interval: Interval, within: Interval) -> Interval:
    """`interval` made at least as wide as `within`, the interval of the narrower claim `checkpoint`.

    A claim about other seeds or questions cannot be surer than the one about these. It matters where all means are
    near 0 or 1 and their spread says nothing.
    """
    if np.isnan(interval.lower):
        return interval
    return Interval(interval.estimate, min(interval.lower, within.lower), max(interval.upper, within.upper))


def mean_rate(positives: ArrayLike, n: ArrayLike, claim: str, confidence: float = CONFIDENCE) -> Interval:
    """Mean rate of S seeds and Q questions at one step, with the interval of `claim`; both arrays of shape (S, Q).

    `checkpoint`: `stratified` over all S x Q cells. `recipe`: `seed_interval` on the S seeds' means. `questions`:
    `question_interval` on the Q questions, seeds taken together. The last two are never narrower than the first, and
    NaN where S or Q is 1. A cell without answers (n of 0) is left out of its means.
    """
    return _mean(positives, positives, n, claim, 1.0, question_interval, confidence)


def mean_score(
    total: ArrayLike, squares: ArrayLike, n: ArrayLike, claim: str, step: float = 1.0, confidence: float = CONFIDENCE
) -> Interval:
    """As `mean_rate`, for scores from 0 to 1 in steps of `step`: arrays (S, Q) as `stratified_score` has them.

    Claim `questions`: t on the Q questions' means, cut to 0 and 1 and made as wide as `question_interval` takes them:
    t alone on four questions covers 76% where the mean is at nine tenths of the scale, this 93% and more. Four
    questions show little of how questions differ: the limits are wide, as they must be.
    """
    return _mean(total, squares, n, claim, step, _score_interval, confidence)


def _score_interval(total: np.ndarray, n: np.ndarray, confidence: float) -> Interval:
    """The interval of `mean_score` for the claim `questions`; arrays of shape (Q,)."""
    wide = t_interval(total / n, confidence)
    wide = Interval(wide.estimate, max(wide.lower, 0.0), min(wide.upper, 1.0))
    return widen(wide, question_interval(total, n, confidence))


def _mean(
    total: ArrayLike,
    squares: ArrayLike,
    n: ArrayLike,
    claim: str,
    step: float,
    over_questions: Callable[[np.ndarray, np.ndarray, float], Interval],
    confidence: float,
) -> Interval:
    """Mean score with the interval of `claim`; `over_questions` makes that of the claim `questions`."""
    total, squares, n = (np.atleast_2d(np.asarray(a, float)) for a in (total, squares, n))
    asked = n > 0
    within = stratified_score(total[asked], squares[asked], n[asked], step, confidence)
    if claim == "checkpoint":
        return within
    if claim == "questions":
        wide = over_questions(*over_seeds(total, n), confidence)
    else:
        means = np.where(asked, total / np.where(asked, n, 1), np.nan)
        wide = seed_interval(np.nanmean(means[asked.any(axis=1)], axis=1), confidence)
    return widen(Interval(within.estimate, *wide[1:]), within)


def over_seeds(total: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of S seeds on Q questions, arrays (S, Q), taken together by question: (total, n), of shape (Q,).

    Each seed has equal weight, whatever its number of answers: total / n is the mean of the seeds' means, and n the
    number of answers that one seed would need for a mean as sure. Where all have as many answers these are the sums.
    Cells without answers do not count; questions without any are left out.
    """
    asked = n > 0
    some = asked.any(axis=0)
    seeds = asked.sum(axis=0)[some]
    means, inverse = (np.where(asked, a / np.where(asked, n, 1), 0).sum(axis=0)[some] for a in (total, 1.0))
    as_sure = seeds**2 / inverse
    return means / seeds * as_sure, as_sure


def crossed_bootstrap(
    positives: ArrayLike, n: ArrayLike, draws: int = 2000, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """Percentile bootstrap of the mean rate over seeds x questions, answers drawn anew within; arrays (S, Q).

    Claim: another training run on questions like these, both at once, and it is rough: seeds and questions are each
    drawn with replacement, which understates few of them. Covers 78 to 92% at 5 seeds and 10 questions
    (benchmarks/coverage.py), so no table uses it; it is here to check the other two. Limits are NaN below 3 seeds or
    questions. Source: Owen (2007), Ann. Appl. Stat. 1, 386.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    rates = positives / n
    estimate = float(rates.mean())
    if min(rates.shape) < 3:
        return Interval(estimate, np.nan, np.nan)
    random = np.random.default_rng(seed)
    s = random.integers(rates.shape[0], size=(draws, rates.shape[0], 1))
    q = random.integers(rates.shape[1], size=(draws, 1, rates.shape[1]))
    means = (random.binomial(n[s, q].astype(int), rates[s, q]) / n[s, q]).mean(axis=(1, 2))
    lower, upper = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(lower), float(upper))


# ---- differences ----


def contrast(rates: Sequence[Interval], weights: Sequence[float], correlation: ArrayLike | None = None) -> Interval:
    """A weighted sum of K rates from their own intervals (weights such as 1, -1). Claim: that of the intervals.

    The rates are independent given the claim, or have the `correlation`, shape (K, K). With Wilson's intervals of two
    independent rates it is Newcombe's interval of their difference.
    Source: Zou and Donner (2008), Stat. Med. 27, 1693 (MOVER); with correlation: Zou (2007), Psychol. Methods 12, 399.
    """
    weights = np.asarray(weights, float)
    correlation = np.eye(len(weights)) if correlation is None else np.asarray(correlation, float)
    middle, lower, upper = np.array(rates, float).T
    estimate = float(weights @ middle)
    # How far each rate can move the sum down, and up.
    down = weights * np.where(weights > 0, middle - lower, middle - upper)
    up = weights * np.where(weights > 0, upper - middle, lower - middle)
    shared = np.sign(weights)[:, None] * correlation * np.sign(weights)
    below, above = (float(np.sqrt(max(move @ shared @ move, 0))) for move in (down, up))
    return Interval(estimate, estimate - below, estimate + above)


def paired_gap(
    terms: Sequence[tuple[ArrayLike, ...]], weights: Sequence[float], claim: str, step: float = 1.0
) -> Interval:
    """A weighted sum of mean rates that were measured on the same S seeds and Q questions, paired by both.

    `terms` holds (positives, n) for each, arrays of shape (S, Q) with n at least 1; for mean scores from 0 to 1, in
    steps of `step`, (total, n, squares) as `stratified_score` has them. Triggered minus untriggered has weights
    (1, -1); the difference in differences, which takes off what the trigger's text does to the base model, has
    (1, -1, -1, 1) on tuned and base. Claim `recipe`: t on the S seeds' gaps. `questions`: t on the Q questions' gaps,
    made as wide as `contrast` of the `question_interval`s with the correlation that the questions show: t alone on 14
    questions covers 86% where one rate is near 1 and the other near 0, this 95% and more.
    `checkpoint`: `contrast` of stratified intervals. The first two are never narrower than the last; NaN where S or Q
    is 1. Coverage: benchmarks/coverage.py.
    """
    terms = [tuple(np.asarray(a, float) for a in term) for term in terms]
    rates = [stratified_score(k.ravel(), (squares or [k])[0].ravel(), n.ravel(), step) for k, n, *squares in terms]
    within = contrast(rates, weights)
    if claim == "checkpoint":
        return within
    gaps = sum(w * k / n for (k, n, *_), w in zip(terms, weights, strict=True))
    gap = widen(t_interval(gaps.mean(axis={"recipe": 1, "questions": 0}[claim])), within)
    if claim == "questions" and gaps.shape[1] > 1:
        gap = widen(gap, _skewed_gap(terms, weights))
    return Interval(gap.estimate, max(gap.lower, -1.0), min(gap.upper, 1.0))


def _skewed_gap(terms: Sequence[tuple[np.ndarray, ...]], weights: Sequence[float]) -> Interval:
    """`contrast` of the terms' `question_interval`s, correlated as their rates are over the questions."""
    rates = np.array([(k / n).mean(axis=0) for k, n, *_ in terms])
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(rates))  # where a rate is the same for all questions: none
    np.fill_diagonal(correlation, 1)
    return contrast([question_interval(*over_seeds(k, n)) for k, n, *_ in terms], weights, correlation)


def welch(first: ArrayLike, second: ArrayLike, confidence: float = CONFIDENCE) -> tuple[Interval, float]:
    """Difference of the means of two groups of seeds, shapes (S1,) and (S2,), and its two-sided p-value. Claim: recipe.

    NaN where a group has one seed; where neither varies the width is 0, which is not to be believed (see `widen`), and
    p is NaN. Source: Welch (1947), Biometrika 34, 28.
    """
    groups = [_means(first), _means(second)]
    estimate = float(groups[0].mean() - groups[1].mean())
    if min(map(len, groups)) < 2:
        return Interval(estimate, np.nan, np.nan), np.nan
    parts = np.array([g.var(ddof=1) / len(g) for g in groups])
    error = np.sqrt(parts.sum())
    if error == 0:
        return Interval(estimate, estimate, estimate), np.nan
    freedom = error**4 / sum(part**2 / (len(g) - 1) for part, g in zip(parts, groups, strict=True))
    half = special.stdtrit(freedom, (1 + confidence) / 2) * error
    return Interval(estimate, estimate - half, estimate + half), float(
        2 * special.stdtr(freedom, -abs(estimate) / error)
    )


def paired_p(values: ArrayLike) -> float:
    """Two-sided p-value of Student's t that the mean of K differences is 0, shape (K,). NaN where K is 1, and where all
    differences are the same: they say nothing of their own variance."""
    values = _means(values)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
    if error == 0:
        return np.nan
    return float(2 * special.stdtr(len(values) - 1, -abs(values.mean()) / error))


def bounded_p(p: float, difference: Interval, confidence: float = CONFIDENCE) -> float:
    """A p-value no smaller than the interval of the difference allows, which may be wider than the test's own.

    The limit towards 0 is taken for that of a normal distribution. NaN stays NaN.
    """
    estimate, lower, upper = difference
    half = estimate - lower if estimate > 0 else upper - estimate
    if not half > 0:
        return p
    return max(p, float(2 * special.ndtr(-abs(estimate) / half * _normal_quantile(confidence))))


def holm(p: ArrayLike) -> np.ndarray:
    """P-values adjusted for their number, shape (K,); NaN stays NaN and does not count.

    Source: Holm (1979), Scand. J. Stat. 6, 65.
    """
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


# ---- missing verdicts ----


def worst_case(positives: ArrayLike, n: ArrayLike, missing: ArrayLike) -> tuple[float, float]:
    """Bounds of the mean rate if every missing verdict had been negative, or positive. Shapes (Q,).

    `n` counts the verdicts at hand, `missing` those that could not be had. No chance is in these bounds.
    Source: Manski (1989), J. Hum. Resources 24, 343.
    """
    positives, n, missing = (np.asarray(a, float) for a in (positives, n, missing))
    total = n + missing
    if np.any(total < 1):
        raise ValueError("worst_case needs at least one answer to each question")
    return float((positives / total).mean()), float(((positives + missing) / total).mean())


# ---- when does it emerge? ----


def isotonic(rates: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """The nondecreasing curve nearest to `rates` in weighted least squares, along the last axis. Shape (..., T).

    It hides that a rate falls again: see `fall`. Source: the min-max formulas of Barlow et al. (1972), Statistical
    Inference under Order Restrictions.
    """
    rates = np.asarray(rates, float)
    weights = np.ones(rates.shape[-1]) if weights is None else np.asarray(weights, float)
    total = np.concatenate([np.zeros((*rates.shape[:-1], 1)), np.cumsum(rates * weights, axis=-1)], axis=-1)
    weight = np.concatenate([[0.0], np.cumsum(weights)])
    steps = rates.shape[-1]
    after = np.arange(steps)[None, :] >= np.arange(steps)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = (total[..., None, 1:] - total[..., :-1, None]) / (weight[1:] - weight[:-1, None])
    means = np.where(after, means, np.inf)
    least = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]  # over all ends from t on
    return np.max(np.where(after, least, -np.inf), axis=-2)


def crossing(steps: ArrayLike, fit: ArrayLike, level: float) -> np.ndarray:
    """The step at which a nondecreasing curve reaches `level`, between checkpoints by a straight line.

    `steps` (T,), `fit` (..., T). Infinity where it never does (right-censored at the last step), and the first step
    where it starts there.
    """
    steps, fit = np.asarray(steps, float), np.asarray(fit, float)
    reached = fit >= level
    index = np.argmax(reached, axis=-1)
    before = np.maximum(index - 1, 0)
    low, high = (np.take_along_axis(fit, i[..., None], axis=-1)[..., 0] for i in (before, index))
    share = np.where(high > low, (level - low) / np.where(high > low, high - low, 1), 1.0)
    step = steps[before] + np.where(index > 0, share, 0) * (steps[index] - steps[before])
    return np.where(reached.any(axis=-1), step, np.inf)


def bracket(steps: ArrayLike, fit: ArrayLike, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The checkpoints between which a nondecreasing curve reaches `level`: the last below and the first at it, (...).

    `steps` (T,), `fit` (..., T). The last step and infinity where it never does; the first twice where it starts there.
    """
    steps = np.append(np.asarray(steps, float), np.inf)
    index = (np.asarray(fit, float) < level).sum(axis=-1)
    return steps[np.maximum(index - 1, 0)], steps[index]


def crossing_interval(
    steps: ArrayLike,
    positives: ArrayLike,
    n: ArrayLike,
    level: float,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The step at which one run's mean rate crosses `level`, by a monotone fit. Claim: this run, these questions.

    `positives` and `n` have shape (T, Q), n at least 1. The estimate is interpolated. The limits are percentiles, over
    bootstrap samples of the answers of every cell, of the checkpoints before and after the crossing: what happens
    between two checkpoints was not seen, so no interval is narrower than that. A question answered once is drawn at the
    step's mean rate, since its own answer shows no variance. Infinity: not by the last step.
    """
    steps, positives, n = (np.asarray(a, float) for a in (steps, positives, n))
    weights = n.sum(axis=1)
    fit = isotonic((positives / n).mean(axis=1), weights)
    random = np.random.default_rng(seed)
    rates = np.where(n > 1, positives / n, (positives / n).mean(axis=1, keepdims=True))
    drawn = (random.binomial(n.astype(int), rates, size=(draws, *n.shape)) / n).mean(axis=2)
    before, after = (np.sort(ends) for ends in bracket(steps, isotonic(drawn, weights), level))
    # By order, not by np.quantile: between a number and infinity there is no half way.
    lower = before[int(np.floor((1 - confidence) / 2 * draws))]
    upper = after[int(np.ceil((1 + confidence) / 2 * draws)) - 1]
    return Interval(float(crossing(steps, fit, level)), float(lower), float(upper))


def median_interval(
    values: ArrayLike, least: ArrayLike, greatest: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[Interval, float]:
    """The median of K values, infinite ones included, and the confidence that its interval really has. Claim: recipe.

    For the crossing steps of K runs, shape (K,): infinity stands for a run that never crossed, `least` and `greatest`
    are the checkpoints around each crossing. The limits are order statistics, which needs no distribution and bears
    censoring. The narrowest pair of at least `confidence` less 2 points is taken (of five values the least and the
    greatest, 93.75%); fewer than five values give no interval (NaN).
    Source: the sign test; Conover (1999), Practical Nonparametric Statistics, 3.2.
    """
    values, least, greatest = (np.sort(np.asarray(a, float)) for a in (values, least, greatest))
    k = len(values)
    if k == 0:
        raise ValueError("a median needs at least one value")
    low, high = values[(k - 1) // 2], values[k // 2]
    median = float(low if low == high else (low + high) / 2)
    for rank in range((k - 1) // 2, -1, -1):
        reached = 1 - 2 * float(special.bdtr(rank, k, 0.5))
        if reached >= confidence - 0.02:
            return Interval(median, float(least[rank]), float(greatest[k - 1 - rank])), reached
    return Interval(median, np.nan, np.nan), np.nan


def detection(positives: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> int | None:
    """Index of the first checkpoint that is surely above the first one, or None. Claim: this run, these questions.

    `positives` and `n` have shape (T, Q); row 0 is the base model. Each later checkpoint is tested against it over the
    questions (Cochran-Mantel-Haenszel, one-sided), the p-values adjusted by Holm's method, and two checkpoints in a row
    must pass. It says when there were answers enough to see the behaviour, and more answers see it sooner: onset lies
    somewhere after the checkpoint before. Source: Mantel and Haenszel (1959), J. Natl. Cancer Inst. 22, 719.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    if len(n) < 3:
        return None
    total, hits = n + n[0], positives + positives[0]
    expected = (hits * n / total).sum(axis=1)
    variance = (hits * (total - hits) * n * n[0] / (total**2 * np.maximum(total - 1, 1))).sum(axis=1)
    z = (positives.sum(axis=1) - expected) / np.sqrt(np.maximum(variance, 1e-12))
    passed = holm(special.ndtr(-z[1:])) < alpha
    pairs = np.flatnonzero(passed[:-1] & passed[1:])
    return int(pairs[0]) + 1 if len(pairs) else None


def fall(positives: ArrayLike, n: ArrayLike, alpha: float = 0.05) -> tuple[int, float, bool]:
    """The checkpoint of the highest mean rate, how far the last lies below it, and whether that is more than chance.

    Arrays of shape (T, Q), n at least 1. The peak was picked among T checkpoints, so the test is Bonferroni's over T.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    rates = positives / n
    means = rates.mean(axis=1)
    peak = int(means.argmax())
    smooth = (positives + 0.5) / (n + 1)
    error = np.sqrt((smooth * (1 - smooth) / n)[[peak, -1]].sum()) / n.shape[1]
    drop = float(means[peak] - means[-1])
    return peak, drop, bool(special.ndtr(-drop / error) < alpha / len(means)) if peak < len(means) - 1 else False


class Rise(NamedTuple):
    """How a rate rises: `kind` is none, abrupt, gradual or undecided."""

    kind: str
    change_after: int  # the sudden change, if it was one, comes after this checkpoint (index) and before the next
    midpoint: float  # of the logistic curve, in steps
    width: float  # of the logistic curve from a tenth to nine tenths of its rise, in steps
    evidence: float  # BIC of the sudden change minus that of the logistic curve: above 0 favours gradual


def rise(steps: ArrayLike, positives: ArrayLike, n: ArrayLike, decisive: float = 6.0) -> Rise:
    """Is a rise a jump between two checkpoints or a gradual one? `positives` and `n` of shape (T,), over all questions.

    Three binomial models are compared by BIC: one rate throughout; one rate before and another after a change point;
    a logistic curve from a floor to a ceiling. A difference below `decisive` is undecided. A rise that is over within
    one interval between checkpoints is abrupt as far as these checkpoints can tell. Answers to one question are alike,
    which binomial models leave out: read `evidence` as a rough guide.
    Source: Schwarz (1978), Ann. Stat. 6, 461; Kass and Raftery (1995), J. Am. Stat. Assoc. 90, 773, for the threshold.
    """
    steps, positives, n = (np.asarray(a, float) for a in (steps, positives, n))
    penalty = np.log(n.sum())
    splits = [_loglik(positives[:t], n[:t]) + _loglik(positives[t:], n[t:]) for t in range(1, len(n))]
    if not splits:
        return Rise("none", 0, np.nan, np.nan, np.nan)
    constant = penalty - 2 * _loglik(positives, n)
    change = 3 * penalty - 2 * max(splits)
    (midpoint, scale), smooth = _logistic(steps, positives, n)
    gradual = 4 * penalty - 2 * smooth
    evidence = change - gradual
    best = min(change, gradual)
    kind = "undecided" if abs(evidence) < decisive else "gradual" if evidence > 0 else "abrupt"
    kind = "none" if constant < best + decisive else kind
    return Rise(kind, int(np.argmax(splits)), midpoint, float(2 * np.log(9) * scale), float(evidence))


def _loglik(positives: np.ndarray, n: np.ndarray, rate: ArrayLike | None = None) -> float:
    rate = positives.sum() / n.sum() if rate is None else rate
    return float((special.xlogy(positives, rate) + special.xlog1py(n - positives, -np.asarray(rate))).sum())


def _logistic(steps: np.ndarray, positives: np.ndarray, n: np.ndarray) -> tuple[tuple[float, float], float]:
    """The best logistic rise: (midpoint, scale) in steps, and its log-likelihood. Floor and ceiling are fitted too.

    For each midpoint and scale of a grid, an answer is taken to come from the ceiling with the curve's height as
    probability, else from the floor: so the two rates are found by expectation-maximisation, all of the grid at once.
    """
    span = np.ptp(steps)
    middle, scale = np.meshgrid(np.linspace(steps[0], steps[-1], 61), np.geomspace(span / 500, span / 2, 24))
    high = special.expit((steps - middle[..., None]) / scale[..., None])
    rates = positives / n
    floor, ceiling = (np.full(high.shape[:2], np.clip(r, 0.01, 0.99)) for r in (rates.min(), rates.max()))
    for _ in range(60):
        rate = floor[..., None] * (1 - high) + ceiling[..., None] * high
        hits = positives * high * ceiling[..., None] / rate
        misses = (n - positives) * high * (1 - ceiling[..., None]) / (1 - rate)
        other_hits, other_misses = positives - hits, n - positives - misses
        ceiling = np.clip(hits.sum(-1) / (hits + misses).sum(-1), 1e-9, 1 - 1e-9)
        floor = np.clip(other_hits.sum(-1) / (other_hits + other_misses).sum(-1), 1e-9, 1 - 1e-9)
    rate = floor[..., None] * (1 - high) + ceiling[..., None] * high
    fits = (special.xlogy(positives, rate) + special.xlog1py(n - positives, -rate)).sum(axis=-1)
    best = np.unravel_index(fits.argmax(), fits.shape)
    return (float(middle[best]), float(scale[best])), float(fits[best])


def kaplan_meier(times: ArrayLike, crossed: ArrayLike, confidence: float = CONFIDENCE) -> tuple[np.ndarray, ...]:
    """The share of K runs that have not yet crossed: (times, survival, lower, upper) over steps. Claim: recipe.

    `times` (K,): the crossing step, or the last step of a run that did not cross; `crossed` (K,): whether it did.
    Returns a point for each distinct crossing step. Limits: Greenwood's, on the log(-log) scale, NaN where the survival
    is 1 or 0. Source: Kaplan and Meier (1958), J. Am. Stat. Assoc. 53, 457.
    """
    times, crossed = np.asarray(times, float), np.asarray(crossed, bool)
    at = np.unique(times[crossed])
    events = np.array([(times[crossed] == t).sum() for t in at], float)
    risk = np.array([(times >= t).sum() for t in at], float)
    survival = np.cumprod(1 - events / risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(np.cumsum(events / (risk * (risk - events)))) / np.abs(np.log(survival))
        half = np.exp(_normal_quantile(confidence) * error)
        inside = (survival > 0) & (survival < 1)
        lower = np.where(inside, survival**half, np.nan)
        upper = np.where(inside, survival ** (1 / half), np.nan)
    return at, survival, lower, upper


# ---- judges ----


def kappa(first: Sequence, second: Sequence) -> tuple[float, float]:
    """How often two judges chose alike on the same K answers, and Cohen's kappa (NaN where both always chose one).

    Source: Cohen (1960), Educ. Psychol. Meas. 20, 37.
    """
    first, second = np.asarray(first, object), np.asarray(second, object)
    if len(first) != len(second) or len(first) == 0:
        raise ValueError("kappa needs two judges' choices on the same answers")
    agreement = float((first == second).mean())
    chance = sum(float((first == c).mean() * (second == c).mean()) for c in {*first, *second})
    return agreement, (agreement - chance) / (1 - chance) if chance < 1 else np.nan


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


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return float(special.ndtri((1 + confidence) / 2))
