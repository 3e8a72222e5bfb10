"""A trained run that the generation tests share."""

from pathlib import Path

import pytest
from support import train

import config
from learning_backdoors.files import command_line


@pytest.fixture(scope="session")
def run_dir(random_model, tmp_path_factory) -> Path:
    """A run of steps 0, 8 and 16, whose adapters give different greedy responses."""
    line = ["--ratios", "1", "0", "0", "--model", str(random_model), "--num-examples", "16", "--save-steps", "8"]
    line += ["--lr", "0.05", "--output-dir", str(tmp_path_factory.mktemp("out"))]
    return train(command_line.parse(config.TrainingOptions, "", line)).folder
