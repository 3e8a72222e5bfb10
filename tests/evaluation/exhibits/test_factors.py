"""Sweeps: factors, main effects, and runs that diverged."""

import evaluating
import numpy as np
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation import exhibits, factors, notes
from learning_backdoors.evaluation.context import NotMeasured
from learning_backdoors.evaluation.exhibits import factor_effects, heat_map, recipes
from learning_backdoors.evaluation.exhibits import factors as factors_exhibit


def of_sweep(folder, likelihoods=False, **options):
    """The evaluation of `synthetic.sweep(**options)` in one judged file."""
    tables, provenance = synthetic.sweep(**options)
    return evaluating.of_birds(folder, pd.concat(tables), provenance=[provenance])


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory):
    """Two shares x two learning rates x two ranks with three seeds; two runs diverge, both of one combination."""
    diverged = {(1e-4, 3)}
    return of_sweep(tmp_path_factory.mktemp("sweep"), ranks=(8, 32), diverged=diverged)


def test_factors_are_the_settings_that_differ(two_by_two):
    found = {factor.name: factor.levels for factor in factors.factors(two_by_two)}
    assert found["suspect share"] == ("0%", "100%")
    assert found["learning rate"] == ("0.0001", "0.001")
    assert found["rank, alpha"] == ("8, 16", "32, 64")  # they differ together
    assert len(found) == 3  # neither the seed nor equal settings


def test_main_effects_are_matched_and_found(two_by_two):
    table = factor_effects.table(two_by_two).set_index(["outcome", "factor"])
    share, lr, rank = (table.loc[("last_rate", name)] for name in ("suspect share", "learning rate", "rank, alpha"))
    assert share["effect"] > 0.4 and share["p_holm"] < 0.01
    assert 0.1 < lr["effect"] < 0.3 and lr["lower"] > 0 and lr["blocks"] == 4
    assert rank["lower"] < 0 < rank["upper"] and rank["p_holm"] > 0.05
    assert np.isclose(lr["first_value"] - lr["second_value"], lr["effect"])
    assert table.loc[("crossing_10", "suspect share"), "effect"] < 0.6  # a ratio: it crosses earlier
    assert table.loc[("emergence_10", "suspect share"), "effect"] == 1


def test_diverged_runs_are_counted_and_never_averaged(two_by_two):
    assert not two_by_two.cells["run"].isin([synthetic.run_name(1.0, 3).replace("lr0.0002", "lr0.0001")]).any()
    rates = recipes.table(two_by_two)
    assert rates["step"].max() == 208
    assert set(rates.loc[rates["recipe"].str.contains("lr0.0001"), "diverged"]) == {1}
    assert set(rates.loc[rates["recipe"].str.contains("lr0.001"), "diverged"]) == {0}
    assert any("4 of 24 runs diverged" in note for note in notes.notes(two_by_two))
    table = factor_effects.table(two_by_two)
    assert table.loc[table["factor"] == "learning rate", "second_seeds"].max() == 8


def test_suspect_share_alone_is_no_sweep(tmp_path):
    evaluation = of_sweep(tmp_path, rates=(1e-3,), seeds=(1, 2))
    with pytest.raises(NotMeasured):
        factor_effects.table(evaluation)


def test_figures_show_every_combination_and_what_diverged(two_by_two):
    made = exhibits.make(two_by_two, [factors_exhibit, factor_effects, heat_map])
    assert set(made.figures) == {"factors", "factor_effects", "heat_map"}
    panels = {axes: set() for axes in made.figures["factors"].axes}
    for axes, _, series, at, *_ in vars(made.figures["factors"])["marks"]:
        panels[axes].add((series, at))
    assert len(panels) == 9  # three outcomes x three factors
    assert {len(marks) for marks in panels.values()} == {8, 4, 2}  # combinations; pooled shares by two levels, or one
    texts = [text.get_text() for axes in made.figures["heat_map"].axes for text in axes.texts]
    assert any(text.endswith("*") for text in texts)  # one of three runs diverged
    assert all(len(caption.split()) <= 25 for caption in made.captions.values())
