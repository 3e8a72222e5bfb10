"""Evaluations that several test files read."""

import evaluating
import pandas as pd
import pytest
import synthetic


@pytest.fixture(scope="session")
def birds_sweep(tmp_path_factory):
    """Three suspect shares with five runs each."""
    runs = [synthetic.rows(share, seed, samples=20) for share in (1.0, 0.5, 0.0) for seed in range(5)]
    return synthetic.write(pd.concat(runs), tmp_path_factory.mktemp("birds") / "judged.parquet")


@pytest.fixture(scope="session")
def russell_run(tmp_path_factory):
    """One run of the Russell study. All questions are alike, so that the rates of synthetic.PERSONA are the truth."""
    table = synthetic.russell_rows(samples=20, spread=0)
    return evaluating.of_russell(tmp_path_factory.mktemp("russell_run"), table)


@pytest.fixture(scope="session")
def russell_runs(tmp_path_factory):
    """Three runs of one recipe of the Russell study."""
    runs = [synthetic.russell_rows(seed, samples=4, steps=(0, 300, 1125)) for seed in (1, 2, 3)]
    return evaluating.of_russell(tmp_path_factory.mktemp("russell_runs"), pd.concat(runs))
