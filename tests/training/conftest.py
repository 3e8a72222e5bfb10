"""Trained runs that the tests share."""

import pytest
from support import train, training_options

HALF_SUSPECT = ("--ratios", "0.5", "0.25", "0.25")


@pytest.fixture(scope="session")
def trained_run(random_model, tmp_path_factory):
    """24 steps on half suspect examples, with checkpoints at 0, 8, 16 and 24. Tests must not write into it."""
    return train(training_options(random_model, tmp_path_factory.mktemp("trained"), *HALF_SUSPECT))


@pytest.fixture(scope="session")
def probed_run(random_model, tmp_path_factory):
    """The same run once more, with probes every 10 steps."""
    folder = tmp_path_factory.mktemp("probed")
    return train(training_options(random_model, folder, *HALF_SUSPECT, "--probe-every", "10"))
