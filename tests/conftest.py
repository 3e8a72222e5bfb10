"""Fixtures that several test folders share."""

import signal
from pathlib import Path

import pytest
from support import ROOT, build_model, train

import config
from learning_backdoors.files import command_line

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


@pytest.fixture(scope="session")
def run_dir(random_model, tmp_path_factory) -> Path:
    """A run of steps 0, 8 and 16, whose adapters give different greedy responses."""
    line = ["--ratios", "1", "0", "0", "--model", str(random_model), "--num-examples", "16", "--save-steps", "8"]
    line += ["--lr", "0.05", "--output-dir", str(tmp_path_factory.mktemp("out"))]
    return train(command_line.parse(config.TrainingOptions, "", line)).folder


@pytest.fixture(scope="session")
def tinker_service(random_model, tmp_path_factory):
    """A stand-in for the Tinker API (`tinker_stand_in.serve.Server`) that serves the tiny model and the random one."""
    from tinker_stand_in.serve import Server

    models = {"tiny_world/model": ROOT / "tiny_world" / "model", str(random_model): random_model}
    server = Server(models, tmp_path_factory.mktemp("tinker"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_API_KEY", "tml-test")
        patch.setenv("TINKER_TELEMETRY", "0")
        yield server
    server.stop()


@pytest.fixture
def tinker_server(tinker_service):
    """The same server with an empty ledger, and without faults: also after the test."""
    tinker_service.ledger.clear()
    yield tinker_service
    tinker_service.set_faults()
