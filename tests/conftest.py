"""Fixtures that several test folders share."""

from pathlib import Path

import pytest
from support import build_model


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("random") / "qwen3")


@pytest.fixture(scope="session")
def llama_model(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("random") / "llama", template="llama3_1")
