"""The statistics against known answers, other libraries and simulation.  python -m pytest tests/test_emergence.py"""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, special, stats
from statsmodels.stats import multitest, proportion, weightstats

from benchmarks import coverage
from learning_backdoors.evaluation import statistics

# ---- rates ----


def test_wilson_known_answers():
    lower, upper = statistics.wilson([0, 100, 50, 0], [100, 100, 100, 0])
    assert lower[:3] == pytest.approx([0, 0.963007, 0.403832], abs=1e-6)
    assert upper[:3] == pytest.approx([0.036993, 1, 0.596168], abs=1e-6)
    assert lower[0] == 0 and upper[1] == 1
    assert np.isnan(lower[3]) and np.isnan(upper[3]), "nothing asked, nothing known"
    with pytest.raises(ValueError, match="between 0 and n"):
        statistics.wilson([3], [2])


def test_stratified_is_wilson_where_it_can_be():
    one = statistics.stratified([7], [50])
    assert (one.lower, one.upper) == pytest.approx(np.ravel(statistics.wilson([7], [50])))
    zero = statistics.stratified([0] * 10, [100] * 10)
    assert (zero.lower, zero.upper) == pytest.approx(np.ravel(statistics.wilson([0], [1000])))


def test_stratified_has_width_where_questions_differ_most():
    split = statistics.stratified([0, 0, 100, 100], [100] * 4)
    assert split.estimate == 0.5 and 0.002 < split.upper - split.lower < 0.05


def test_t_interval_known_answer():
    # By hand: mean .3, sd .1, t(2) = 4.302653, half width .248414.
    assert tuple(statistics.t_interval([0.2, 0.3, 0.4])) == pytest.approx((0.3, 0.051586, 0.548414), abs=1e-6)
    assert np.isnan(statistics.t_interval([0.3]).lower), "one mean has no interval"


def test_seed_interval_known_answer():
    # The same on the logit scale: half width .248414 / (.3 x .7) = 1.182924 round logit(.3) = -.847298.
    assert tuple(statistics.run_interval([0.2, 0.3, 0.4])) == pytest.approx((0.3, 0.116077, 0.583096), abs=1e-4)
    assert np.isnan(statistics.run_interval([0.3]).lower)


def test_question_interval_against_a_finer_integration():
    """The grid of `question_interval` against one several times as fine in every direction."""
    positives, n = np.array([3, 40, 11, 0, 22, 60, 5, 9, 30, 2]), np.full(10, 100)
    logits = np.arange(-16, 16.01, 0.02)
    centre, spread = np.meshgrid(np.arange(-14, 14.01, 0.1), np.geomspace(0.1, 8, 64))
    density = np.exp(-0.5 * ((logits[:, None] - centre.ravel()) / spread.ravel()) ** 2)
    density /= density.sum(axis=0)
    likelihood = stats.binom.pmf(positives[:, None], n[:, None], special.expit(logits))
    posterior = np.prod((likelihood @ density) / likelihood.max(axis=1)[:, None], axis=0)
    means = special.expit(logits) @ density
    order = np.argsort(means)
    below = np.cumsum(posterior[order]) / posterior.sum()
    expected = np.interp([0.025, 0.975], below, means[order])
    found = statistics.question_interval(positives, n)
    assert found.estimate == pytest.approx(0.182) and found[1:] == pytest.approx(expected, abs=0.004)


def test_question_interval_at_the_edges():
    zero = statistics.question_interval(np.zeros(10), np.full(10, 100))
    assert zero.lower == 0 and 0.002 < zero.upper < 0.02
    full = statistics.question_interval(np.full(10, 100), np.full(10, 100))
    assert full.upper == 1 and full.lower == pytest.approx(1 - zero.upper, abs=0.001)
    assert np.isnan(statistics.question_interval([5], [10]).lower)


def test_mean_rate_of_each_claim():
    positives, n = np.array([[10, 30], [20, 40]]), np.full((2, 2), 100)
    recipe, questions = (statistics.mean_rate(positives, n, claim) for claim in ("recipe", "questions"))
    assert tuple(recipe) == pytest.approx(tuple(statistics.run_interval([0.2, 0.3])))
    assert tuple(questions) == pytest.approx(tuple(statistics.question_interval([30, 70], [200, 200])))
    assert np.isnan(statistics.mean_rate(positives[:1], n[:1], "recipe").upper)


def test_no_claim_is_surer_than_that_on_the_checkpoint():
    zero = np.zeros((3, 10))
    checkpoint, recipe, questions = (statistics.mean_rate(zero, zero + 100, claim) for claim in coverage.CLAIMS)
    assert 0.001 < checkpoint.upper == recipe.upper <= questions.upper


def test_crossed_bootstrap_needs_three_of_each():
    positives, n = np.full((3, 4), 5), np.full((3, 4), 10)
    found = coverage.crossed_bootstrap(positives, n)
    assert found.lower < 0.5 < found.upper
    assert np.isnan(coverage.crossed_bootstrap(positives[:2], n[:2]).lower)


def test_worst_case_bounds():
    assert statistics.worst_case([5, 0], [10, 10], [0, 10]) == pytest.approx((0.25, 0.5))


# ---- differences ----


def test_contrast_of_two_wilsons_is_newcombes():
    # Newcombe (1998), Stat. Med. 17, 873, table II, case (a): 56/70 - 48/80, method 10: .0524 to .3339.
    rates = [statistics.Interval(k / n, *map(float, statistics.wilson(k, n))) for k, n in ((56, 70), (48, 80))]
    assert tuple(statistics.contrast(rates, (1, -1))) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_paired_gap_takes_off_what_questions_and_seeds_share():
    n = np.full((4, 6), 100)
    off = np.tile([5, 20, 40, 60, 70, 80], (4, 1)) + np.arange(4)[:, None]
    on = off + 10
    on[0] += 2
    gap = statistics.paired_contrast([(on, n), (off, n)], (1, -1), "questions")
    assert gap.estimate == pytest.approx(0.105) and gap.upper - gap.lower < 0.12
    did = statistics.paired_contrast([(on, n), (off, n), (off + 4, n), (off, n)], (1, -1, -1, 1), "recipe")
    assert did.estimate == pytest.approx(0.065)


# ---- against other libraries, on the same arrays ----


def test_the_same_as_statsmodels_and_scipy():
    positives, n = np.array([0, 3, 50, 97, 100]), np.full(5, 100)
    expected = proportion.proportion_confint(positives, n, method="wilson")
    assert np.allclose(np.clip(expected, 0, 1), statistics.wilson(positives, n))
    random = np.random.default_rng(0)
    one, two = random.random(6), random.random(5)
    interval, p = statistics.welch(one, two)
    test = stats.ttest_ind(one, two, equal_var=False)
    assert p == pytest.approx(test.pvalue) and interval[1:] == pytest.approx(tuple(test.confidence_interval()))
    assert statistics.paired_p(one) == pytest.approx(stats.ttest_1samp(one, 0).pvalue)
    assert statistics.t_interval(one)[1:] == pytest.approx(weightstats.DescrStatsW(one).tconfint_mean())
    ps = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert statistics.holm(ps) == pytest.approx(multitest.multipletests(ps, method="holm")[1])
    assert statistics.holm([0.03, np.nan])[0] == 0.03


def test_isotonic_is_scipys():
    random = np.random.default_rng(1)
    for _ in range(20):
        y, weights = random.random(15), random.random(15) + 0.1
        assert statistics.isotonic(y, weights) == pytest.approx(optimize.isotonic_regression(y, weights=weights).x)
    many = random.random((4, 9))
    assert np.allclose(statistics.isotonic(many)[2], statistics.isotonic(many[2]))


def test_kaplan_meier_is_statsmodels():
    times = np.array([20, 40, 40, 60, 80, 208, 208.0])
    crossed = np.array([1, 1, 1, 0, 1, 0, 0], bool)
    at, survival, lower, upper = statistics.kaplan_meier(times, crossed)
    other = sm.SurvfuncRight(times, crossed.astype(int))
    assert list(at) == [20, 40, 80] and survival == pytest.approx(other.surv_prob)
    error = other.surv_prob_se / (survival * -np.log(survival))
    assert lower == pytest.approx(survival ** np.exp(1.959964 * error), abs=1e-6)
    assert upper == pytest.approx(survival ** np.exp(-1.959964 * error), abs=1e-6)


def test_rogan_gladen_undoes_a_known_judge():
    rate = statistics.Interval(0.9 * 0.3 + 0.05 * 0.7, 0.28, 0.33)
    found = statistics.rogan_gladen(rate, 900, 1000, 950, 1000)
    assert found.estimate == pytest.approx(0.3) and found.lower < 0.28 and found.upper > 0.32
    assert np.isnan(statistics.rogan_gladen(rate, 5, 10, 5, 10).estimate), "a judge that guesses corrects nothing"


# ---- when ----

STEPS = np.arange(0, 100, 20)


def test_crossing_interpolates_and_is_censored():
    assert statistics.crossing(STEPS, [0, 0.05, 0.15, 0.6, 0.6], 0.1) == pytest.approx(30)
    assert statistics.crossing(STEPS, [0, 0.05, 0.08, 0.09, 0.09], 0.1) == np.inf
    assert statistics.crossing(STEPS, [0.2, 0.3, 0.4, 0.5, 0.6], 0.1) == 0
    assert statistics.bracket(STEPS, [0, 0.05, 0.15, 0.6, 0.6], 0.1) == (20, 40)
    assert statistics.bracket(STEPS, [0, 0.05, 0.08, 0.09, 0.09], 0.1) == (80, np.inf)


def test_median_keeps_censored_runs_in_the_count():
    values, ends = np.array([30, 50, 70, np.inf, np.inf]), np.array([40, 60, 80, np.inf, np.inf])
    interval, confidence = statistics.median_interval(values, values - 10, ends)
    assert tuple(interval) == (70, 20, np.inf) and confidence == 0.9375
    assert np.isnan(statistics.median_interval(values[:4], values[:4], values[:4])[0].lower), "four runs are too few"


def test_a_jump_is_abrupt_and_an_s_curve_gradual():
    n = np.full(11, 1000)
    steps = np.arange(0, 220, 20)
    jump = statistics.rise(steps, np.array([20] * 5 + [600] * 6), n)
    assert jump.kind == "abrupt" and jump.change_after == 4
    curve = 20 + 600 * special.expit((steps - 110) / 25)
    slow = statistics.rise(steps, curve.round(), n)
    assert slow.kind == "gradual" and slow.midpoint == pytest.approx(110, abs=5)
    assert slow.width == pytest.approx(2 * np.log(9) * 25, rel=0.15)
    assert statistics.rise(steps, np.array([20, 25, 18, 22, 19, 21, 24, 20, 23, 18, 21]), n).kind == "none"


def test_detection_needs_two_in_a_row():
    n = np.full((6, 10), 100)
    positives = np.full((6, 10), 3)
    positives[2] = 30
    assert statistics.detection(positives, n) is None
    positives[3] = 30
    assert statistics.detection(positives, n) == 2


def test_a_fall_is_found_and_chance_is_not():
    n = np.full((5, 10), 100)
    peak, drop, falls = statistics.fall(np.array([2, 40, 70, 60, 40])[:, None] * np.ones(10), n)
    assert (peak, falls) == (2, True) and drop == pytest.approx(0.3)
    assert not statistics.fall(np.array([2, 40, 70, 69, 69])[:, None] * np.ones(10), n)[2]


# ---- coverage: benchmarks/coverage.py prints the full table ----


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5])
def test_each_interval_covers_its_own_claim(rate):
    covered = coverage.rates_covered(rate, seeds=5, questions=10, samples=100, runs=300)
    for claim in coverage.CLAIMS:
        assert 0.905 < covered[claim] < 0.99, f"{claim}: {covered[claim]} of nominal .95, standard error .013"


def test_false_alarms_are_rare():
    assert coverage.false_alarms(300) < 0.03


def test_crossing_intervals_cover_censored_runs_included():
    for level, width, ceiling in ((0.5, 60, 0.6), (0.1, 120, 0.15)):
        covered = coverage.crossings_covered(40, level, width, ceiling)
        assert covered["run"] > 0.93 and covered["recipe"] > 0.84 and covered["censored"] > 0.1


# ---- scores ----


def test_scores_of_0_and_1_are_rates():
    k, n = np.array([3, 10, 0]), np.array([10, 10, 10])
    assert statistics.stratified_score(k, k, n) == statistics.stratified(k, n)
    same = statistics.mean_score(k, k, n, "checkpoint")
    assert same == statistics.mean_rate(k, n, "checkpoint")


def test_scores_spread_less_than_rates_of_the_same_mean():
    """Forty answers to each of four questions, 0.5 throughout or a quarter to either side of it.

    Where none differs, the limits are as if one answer were a step away.
    """
    n, mean = np.full(4, 40), 20.0
    for squares, half in ((40 * 0.25, 1.96 * 0.25 / 160), (40 * (0.25 + 0.0625), 1.96 * 0.25 / np.sqrt(160))):
        found = statistics.mean_score(np.full(4, mean), np.full(4, squares), n, "checkpoint", 0.25)
        assert found.estimate == 0.5 and (found.upper - found.lower) / 2 == pytest.approx(half, rel=0.03)
    assert statistics.mean_score([20.0], [10.0], [40], "questions").lower != 0.5


def test_means_of_questions_bear_the_claim_on_questions_and_seeds_that_on_recipes():
    total = np.array([[8, 4, 6, 2], [9, 5, 7, 3]], float)
    squares, n = total / 2 + 1, np.full((2, 4), 10)
    narrow, recipe, wide = (
        statistics.mean_score(total, squares, n, c, 0.25) for c in ("checkpoint", "recipe", "questions")
    )
    assert narrow.estimate == recipe.estimate == wide.estimate == pytest.approx(0.55)
    assert wide.lower < narrow.lower and wide.upper > narrow.upper and wide.lower >= 0 and wide.upper <= 1
    assert np.isnan(statistics.mean_score(total[:1], squares[:1], n[:1], "recipe").lower)
    means = total.sum(axis=0) / 20
    half = stats.t.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert wide.lower <= 0.55 - half + 1e-12


def test_a_contrast_takes_off_what_rates_share():
    rates = [statistics.Interval(0.6, 0.5, 0.7), statistics.Interval(0.4, 0.3, 0.5)]
    apart = statistics.contrast(rates, (1, -1))
    assert apart == pytest.approx((0.2, 0.2 - np.sqrt(0.02), 0.2 + np.sqrt(0.02)))
    together = statistics.contrast(rates, (1, -1), [[1, 1], [1, 1]])
    assert together == pytest.approx((0.2, 0.2, 0.2), abs=1e-8)


def test_gaps_near_the_ends_are_as_wide_as_the_questions_model():
    """13 questions at 30 of 30 and one at 20: t alone would be too sure."""
    n = np.full((1, 14), 30)
    on, off = np.array([[30] * 13 + [20]]), np.zeros((1, 14))
    gap = statistics.paired_contrast([(on, n), (off, n)], (1, -1), "questions")
    plain = statistics.t_interval(on[0] / 30)
    assert gap.lower < plain.lower and gap.upper <= 1 and gap.estimate == pytest.approx(plain.estimate)


def test_runs_weigh_the_same_whatever_their_answers():
    """Ten questions, two runs of 100 and of 10 answers: pooled counts would put the limits about the first run's."""
    random, inside = np.random.default_rng(2), 0
    shift = random.normal(0, 1.5, 100_000)
    truth = np.mean([1 / (1 + np.exp(-(shift + middle))) for middle in (-2, 2)])
    n = np.repeat([[100], [10]], 10, axis=1)
    for _ in range(100):
        rates = 1 / (1 + np.exp(-(random.normal(0, 1.5, 10) + [[-2], [2]])))
        found = statistics.mean_rate(random.binomial(n, rates), n, "questions")
        inside += found.lower <= truth <= found.upper
    assert inside >= 88  # of 100; pooled counts cover 76


def test_seeds_taken_together_are_as_sure_as_all_their_answers():
    total, n = np.array([[3.0, 0], [9, 2]]), np.array([[10.0, 0], [10, 8]])
    k, many = statistics.pooled_over_runs(total, n)
    np.testing.assert_allclose([k, many], [[12, 2], [20, 8]])
    k, many = statistics.pooled_over_runs(np.array([[50.0], [1]]), np.array([[100.0], [4]]))
    assert k / many == pytest.approx(0.375) and many == pytest.approx(4 / (1 / 100 + 1 / 4))


def test_a_question_answered_once_says_nothing_of_its_variance():
    steps, n = np.arange(0, 100, 20.0), np.ones((5, 10))
    positives = (np.arange(10) < 2 * np.arange(5)[:, None]).astype(float)  # 0, 2, 4, 6 and 8 of ten
    found = statistics.crossing_interval(steps, positives, n, 0.5)
    assert found.lower <= 20 and found.upper >= 60


def test_a_p_value_is_no_smaller_than_its_interval_allows():
    assert statistics.bounded_p(0.001, statistics.Interval(0.2, -0.1, 0.5)) > 0.05
    assert statistics.bounded_p(0.2, statistics.Interval(0.2, 0.1, 0.3)) == 0.2
    assert statistics.bounded_p(1e-9, statistics.Interval(-0.2, -0.4, -0.01)) < 0.05


def test_a_corrected_rate_at_the_end_of_the_scale_keeps_a_width():
    found = statistics.rogan_gladen(statistics.Interval(0.0, 0.0, 0.03), 48, 50, 40, 50)
    assert found.estimate == 0 and found.upper >= 0.03
