"""Sweeps: factors, main effects, and runs that diverged."""

import evaluating
import numpy as np
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation import exhibits, factors, headline, notes
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


def test_the_headline_names_the_effects_that_are_shown(two_by_two):
    sentence = factor_effects.sentence(two_by_two)
    shown, _, none = sentence.partition("No main effect of")
    assert "suspect share 100% against 0%" in shown and "learning rate 0.001 against 0.0001" in shown
    assert "rank" not in shown and "rank, alpha" in none
    assert sentence in headline.sentences(two_by_two)


def test_likelihoods_alone(tmp_path):
    tables, runs = [], {}
    for lr, rise in ((1e-4, 0.1), (1e-3, 0.4)):
        for seed in (1, 2, 3):
            table = synthetic.likelihood_rows(seed=seed, rise=rise, steps=(0, 40, 80, 208), questions=4)
            name = f"seed{seed}_lr{lr:g}"
            tables.append(table.assign(run=table["run"].where(table["step"] == 0, name)))
            runs[name] = {"settings": {"model": "m", "seed": seed, "lr": lr}}
    provenance = {"settings": {"experiment": "birds"}, "runs": runs}
    path = synthetic.write_likelihood(tmp_path / "likelihood.parquet", *tables, provenance=provenance)
    evaluation = evaluating.evaluation(path)
    table = factor_effects.table(evaluation).set_index("outcome")
    assert set(table.index) == {"likelihood_change", "crossing_likelihood", "emergence_likelihood"}
    change = table.loc["likelihood_change"]
    assert 0.2 < change["effect"] < 0.4 and change["lower"] > 0 and change["unit"] == "nats per token"
    assert "learning rate 0.001 against 0.0001 +0." in factor_effects.sentence(evaluation)


def test_levels_without_a_common_combination_are_refused(tmp_path):
    """Learning rate and rank differ, but never one alone."""
    tables, provenance = synthetic.sweep(shares=(1.0,), ranks=(8, 32), seeds=(1, 2), samples=2, questions=2)
    confounded = {"lr0.0001_r8", "lr0.001_r32"}
    tables = [table for table in tables if table["run"].iloc[0].partition("0.00_")[2] in confounded]
    kept = {table["run"].iloc[0] for table in tables}
    provenance = {"runs": {run: record for run, record in provenance["runs"].items() if run in kept}}
    evaluation = evaluating.of_birds(tmp_path, pd.concat(tables), provenance=[provenance])
    [factor] = factors.factors(evaluation)
    assert factor.name == "learning rate, rank, alpha"  # one factor: their effects cannot be told apart
    assert len(factor_effects.table(evaluation)) > 0
    with pytest.raises(NotMeasured):
        heat_map.figure(evaluation)


def test_runs_without_settings_are_left_out_and_named(tmp_path):
    tables, provenance = synthetic.sweep(shares=(1.0,), seeds=(1, 2), samples=2, questions=2)
    other = synthetic.rows(share=1.0, seed=9, samples=2, questions=2)
    evaluation = evaluating.of_birds(tmp_path, pd.concat([*tables, other]), provenance=[provenance])
    assert factors.left_out(evaluation) == [synthetic.run_name(1.0, 9)]
    assert any(synthetic.run_name(1.0, 9) in note and "settings" in note for note in notes.notes(evaluation))
