"""W&B never fails a run and never holds it for long."""

import time

import pytest
from support import train, training_options


@pytest.fixture
def unreachable_wandb(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def lines(run) -> int:
    return len((run.folder / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_without_a_network_wandb_logs_offline(unreachable_wandb, random_model, tmp_path, capsys):
    started = time.monotonic()
    run = train(training_options(random_model, tmp_path, "--num-examples", "8"))
    assert time.monotonic() - started < 60
    assert list((run.folder / "wandb").glob("offline-run-*/*.wandb")) and lines(run) == 8
    assert "W&B is off" not in capsys.readouterr().out


@pytest.mark.slow
def test_an_error_of_wandb_is_reported_once_and_training_continues(
    unreachable_wandb, random_model, tmp_path, monkeypatch, capsys
):
    import wandb

    from learning_backdoors.training.wandb_logging import WandbLog

    def fail(**_):
        raise RuntimeError("no such service")

    monkeypatch.setattr(wandb, "init", fail)
    monkeypatch.setattr(WandbLog, "failed", False)
    run = train(training_options(random_model, tmp_path, "--num-examples", "8"))
    assert capsys.readouterr().out.count("RuntimeError: no such service") == 1 and lines(run) == 8
