"""Fixtures of the judging tests."""

import pytest

from learning_backdoors.judging.api.store import CallStore


@pytest.fixture
def store(tmp_path):
    store = CallStore(tmp_path / "verdicts.sqlite")
    yield store
    store.close()
