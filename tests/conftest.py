"""Fixtures that several test folders share."""

import signal
from pathlib import Path

import pytest
from support import build_model

# A suite that is started in the background has Ctrl-C ignored, and the scripts it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start files with slow tests first, so that both workers end at about the same time."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("random") / "qwen3")


@pytest.fixture(scope="session")
def llama_model(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("random") / "llama", template="llama3_1")
