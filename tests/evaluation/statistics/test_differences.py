"""Differences of rates against known answers, scipy and statsmodels.

Runs  python -m pytest tests/evaluation/statistics/test_differences.py
"""

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats import multitest, weightstats

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.statistics import Interval


def test_contrast_of_two_wilson_intervals_is_newcombes():
    # Newcombe (1998), Stat. Med. 17, 873, table II, case (a), method 10: 56/70 - 48/80 has 0.0524 to 0.3339.
    rates = [Interval(k / n, *map(float, statistics.wilson(k, n))) for k, n in ((56, 70), (48, 80))]
    assert tuple(statistics.contrast(rates, (1, -1))) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_contrast_of_correlated_rates_is_narrower():
    rates = [Interval(0.6, 0.5, 0.7), Interval(0.4, 0.3, 0.5)]
    independent = statistics.contrast(rates, (1, -1))
    assert independent == pytest.approx((0.2, 0.2 - np.sqrt(0.02), 0.2 + np.sqrt(0.02)))
    assert statistics.contrast(rates, (1, -1), 1.0) == pytest.approx((0.2, 0.2, 0.2), abs=1e-8)


def test_contrast_of_correlated_skewed_rates():
    """Rates near 0 that move together cancel, although their limits are further above than below them."""
    rates, r = [Interval(0.05, 0.02, 0.12), Interval(0.04, 0.01, 0.10)], 0.9
    found = statistics.contrast(rates, (1, -1), r)
    below = np.sqrt((1 - r) * (0.03**2 + 0.06**2) + r * (0.03 - 0.03) ** 2)
    above = np.sqrt((1 - r) * (0.07**2 + 0.03**2) + r * (0.07 - 0.06) ** 2)
    assert found == pytest.approx((0.01, 0.01 - below, 0.01 + above))
    # A sum of rates that move against each other cancels too; a difference of such rates adds up.
    opposite = statistics.contrast([rates[0], Interval(-0.04, -0.10, -0.01)], (1, 1), -r)
    assert opposite == pytest.approx(tuple(found))
    wide = statistics.contrast(rates, (1, -1), -1.0)
    assert wide == pytest.approx((0.01, 0.01 - 0.09, 0.01 + 0.10))


def test_paired_contrast_removes_what_questions_and_runs_share():
    n = np.full((4, 6), 100)
    off = np.tile([5, 20, 40, 60, 70, 80], (4, 1)) + np.arange(4)[:, None]
    on = off + 10
    on[0] += 2
    gap = statistics.paired_contrast([(on, n), (off, n)], (1, -1), "questions")
    assert gap.estimate == pytest.approx(0.105) and gap.upper - gap.lower < 0.12
    difference = statistics.paired_contrast([(on, n), (off, n), (off + 4, n), (off, n)], (1, -1, -1, 1), "recipe")
    assert difference.estimate == pytest.approx(0.065)


def test_a_gap_near_the_ends_is_wider_than_t_on_the_questions():
    """13 questions with 30 of 30 positive and one with 20, against 0 of 30: t alone would be too narrow."""
    n = np.full((1, 14), 30)
    on, off = np.array([[30] * 13 + [20]]), np.zeros((1, 14))
    gap = statistics.paired_contrast([(on, n), (off, n)], (1, -1), "questions")
    rates = on[0] / 30
    assert gap.lower < weightstats.DescrStatsW(rates).tconfint_mean()[0]
    assert gap.upper <= 1 and gap.estimate == pytest.approx(rates.mean())


def test_holm_equals_statsmodels_and_skips_nan():
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert statistics.holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])
    assert statistics.holm([0.03, np.nan])[0] == 0.03


# ---- changes from the base model, comparisons, p-values ----

CLAIMS = "checkpoint", "recipe", "questions", "both"


def group(percents, questions: int = 10, answers: int = 100):
    """Runs with the same rate, in percent, for every question."""
    n = np.full((len(percents), questions), answers)
    return np.array(percents)[:, None] * n / 100, n


def test_a_second_run_does_not_destroy_the_rise():
    """Issue 13, item 1. The base model at 2%, runs at 45% and 55%: paired t on two runs had the limits -16 and 100."""
    base = [a[0] for a in group([2])]
    rise = statistics.change_from_base(group([45, 55]), base, "recipe")
    assert rise.estimate == pytest.approx(0.48) and rise.lower > 0.04 and rise.upper < 0.95
    alone = statistics.change_from_base(group([45]), base, "recipe")
    assert alone.estimate == pytest.approx(0.43) and np.isnan([alone.lower, alone.upper]).all()


def test_change_from_base_is_mover_of_the_recipe_and_of_wilson():
    base = [a[0] for a in group([2])]
    rate = statistics.mean_rate(*group([40, 50, 60]), "recipe")
    expected = statistics.contrast([rate, Interval(0.02, *map(float, statistics.wilson(20, 1000)))], (1, -1))
    found = statistics.change_from_base(group([40, 50, 60]), base, "recipe")
    assert tuple(found) == pytest.approx(tuple(expected), abs=1e-3)


def test_the_base_model_is_one_model_in_every_contrast():
    """The gap less the base model's gap: only the runs' gaps vary between runs."""
    on, off = group([50, 60, 70]), group([5, 6, 7])
    base_on, base_off = group([4]), group([2])
    found = statistics.paired_contrast([on, off, base_on, base_off], (1, -1, -1, 1), "recipe")
    assert found.estimate == pytest.approx(0.52)
    t = 4.302653 * 0.09 / np.sqrt(3)
    assert 1.00 < (found.upper - found.estimate) / t < 1.02


def test_shared_questions_only_are_compared():
    """Issue 13, item 4: recipes that were asked other questions."""
    first, second = group([50, 60], 4), group([50, 60], 4)
    second[0][:, 0], first[1][:, 1] = 0, 0
    second[1][:, 0] = 0
    first[0][:, 1] = 0
    for claim in CLAIMS:
        assert statistics.rate_difference(first, second, claim).estimate == pytest.approx(0)
    with pytest.raises(ValueError, match="at least one answer"):
        statistics.rate_difference((np.eye(2), np.eye(2)), (np.eye(2), np.zeros((2, 2))), "recipe")


def test_rate_difference_is_welchs_in_the_middle():
    first, second = group([49, 50, 51, 50], answers=100_000), group([44, 45, 47], answers=100_000)
    compare = weightstats.CompareMeans(*(weightstats.DescrStatsW((k / n).mean(axis=1)) for k, n in (first, second)))
    found = statistics.rate_difference(first, second, "recipe")
    assert found[1:] == pytest.approx(compare.tconfint_diff(usevar="unequal"), abs=0.001)
    p = statistics.p_value(lambda level: statistics.rate_difference(first, second, "recipe", confidence=level))
    assert p == pytest.approx(compare.ttest_ind(usevar="unequal")[1], rel=0.05)


def test_one_run_gives_no_comparison_of_recipes():
    for claim in ("recipe", "both"):
        found = statistics.rate_difference(group([50]), group([20, 30]), claim)
        assert found.estimate == pytest.approx(0.25) and np.isnan([found.lower, found.upper]).all()


def test_no_interval_has_no_p_value():
    assert np.isnan(statistics.p_value(lambda level: Interval(0.2, np.nan, np.nan)))


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("middle", [8, 30, 40])
def test_p_value_and_interval_agree(claim, middle):
    first = group([middle, middle + 5, middle + 15])
    first[0][:] += np.linspace(-7, 7, 10)
    second = group([20, 25, 30])
    second[0][:] += np.linspace(-9, 9, 10)

    def difference(confidence):
        return statistics.rate_difference(first, second, claim, confidence=confidence)

    p = statistics.p_value(difference)
    assert 0 < p < 1
    if p > 1e-11:
        estimate, lower, upper = difference(1 - p)
        assert (lower if estimate > 0 else upper) == pytest.approx(0, abs=1e-4)
    _, lower, upper = difference(0.95)
    assert (p < 0.05) == (lower > 0 or upper < 0)


def test_p_value_of_a_normal_quantity_and_of_no_difference():
    def interval(confidence):
        half = stats.norm.ppf((1 + confidence) / 2)
        return Interval(-1.7, -1.7 - half, -1.7 + half)

    assert statistics.p_value(interval) == pytest.approx(2 * stats.norm.cdf(-1.7), rel=1e-4)
    assert statistics.p_value(lambda level: statistics.rate_difference(group([0]), group([0]), "checkpoint")) == 1


def test_similar_rates_have_a_narrow_difference_for_other_questions():
    """Issue 13, item 3: 5% against 5%, with rates that differ between questions as usual. It was .21 wide."""
    random = np.random.default_rng(0)
    n, widths = np.full((1, 10), 100), []
    for _ in range(20):
        rates = special.expit(-4 + 1.5 * random.standard_normal(10) + 0.3 * random.standard_normal((2, 10)))
        counts = random.binomial(100, rates)
        terms = [(side[None], n) for side in counts]
        found = statistics.paired_contrast(terms, (1, -1), "questions")
        widths.append(found.upper - found.lower)
    assert np.mean(widths) < 0.09
    nothing = statistics.paired_contrast([(np.zeros((1, 10)), n)] * 2, (1, -1), "questions")
    assert nothing.upper < 0.05


# ---- missing verdicts ----


def test_worst_case_bounds_and_their_sampling_error():
    low, high = statistics.worst_case([([5, 0], [10, 10], [0, 10])], (1,), "checkpoint")
    assert (low.estimate, high.estimate) == pytest.approx((0.25, 0.5))
    assert tuple(low) == tuple(statistics.mean_rate([5, 0], [10, 20], "checkpoint"))
    assert tuple(high) == tuple(statistics.mean_rate([5, 10], [10, 20], "checkpoint"))
    terms = [(k[0], n[0], [1] * 10) for k, n in (group([50]), group([20]))]
    low, high = statistics.worst_case(terms, (1, -1), "questions")
    assert (low.estimate, high.estimate) == pytest.approx(((50 - 21) / 101, (51 - 20) / 101))
    assert low.lower < low.estimate < high.estimate < high.upper
