"""Measures that several stages use, against known answers and statsmodels.  python -m pytest tests/test_measures.py"""

import numpy as np
import pytest
from statsmodels.stats import inter_rater, proportion

from learning_backdoors.measures import cohen_kappa, wilson


def test_wilson_known_answers():
    lower, upper = wilson([0, 100, 50, 0], [100, 100, 100, 0])
    assert lower[:3] == pytest.approx([0, 0.963007, 0.403832], abs=1e-6)
    assert upper[:3] == pytest.approx([0.036993, 1, 0.596168], abs=1e-6)
    assert lower[0] == 0 and upper[1] == 1
    assert np.isnan(lower[3]) and np.isnan(upper[3]), "no answers give no limits"
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson([3], [2])
    assert [float(limit) for limit in wilson(7, 50)] == pytest.approx(
        proportion.proportion_confint(7, 50, 0.05, "wilson")
    )


def test_cohen_kappa_equals_statsmodels():
    random = np.random.default_rng(2)
    first = random.integers(3, size=200)
    second = np.where(random.random(200) < 0.7, first, random.integers(3, size=200))
    table, _ = inter_rater.to_table(np.stack([first, second], axis=1))
    assert cohen_kappa(first, second) == pytest.approx(inter_rater.cohens_kappa(table).kappa)
    assert np.isnan(cohen_kappa(["LLM"] * 3, ["LLM"] * 3)), "undefined if both judges always choose the same option"
    with pytest.raises(ValueError, match="at least one answer"):
        cohen_kappa([], [])
