"""W&B never fails a run and never holds it for long."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import train, training_options

from learning_backdoors.study import load_study
from learning_backdoors.training.run import TrainingRun


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


def test_a_start_that_fails_is_tried_once_for_all_runs_of_a_sweep(
    unreachable_wandb, random_model, tmp_path, monkeypatch
):
    """A server that does not answer takes 20 seconds each time."""
    import wandb

    from learning_backdoors.training.wandb_logging import WandbLog

    starts, run = [], TrainingRun(training_options(random_model, tmp_path), load_study("birds"))
    run.prepare_folder()
    monkeypatch.setattr(wandb, "init", lambda **settings: starts.append(settings["reinit"]) or 1 / 0)
    monkeypatch.setattr(WandbLog, "failed", False)
    assert [WandbLog(run).run for _ in range(3)] == [None] * 3 and starts == ["create_new"]


def test_runs_that_start_in_threads_all_log(unreachable_wandb, random_model, tmp_path, monkeypatch):
    """As those of a sweep on a server. One that is still starting must not look like one that failed."""
    import wandb

    from learning_backdoors.training.wandb_logging import WandbLog

    run = TrainingRun(training_options(random_model, tmp_path), load_study("birds"))
    run.prepare_folder()
    monkeypatch.setattr(wandb, "init", lambda **_: time.sleep(0.1) or object())
    monkeypatch.setattr(WandbLog, "failed", False)
    with ThreadPoolExecutor(3) as threads:
        logs = list(threads.map(WandbLog, [run] * 3))
    assert all(log.run for log in logs)


def test_several_runs_log_at_the_same_time(unreachable_wandb, random_model, tmp_path):
    from learning_backdoors.training.metrics import MetricsLog

    options = [training_options(random_model, tmp_path, "--seed", seed) for seed in "12"]
    logs = []
    for run in (TrainingRun(each, load_study("birds")) for each in options):
        run.prepare_folder()
        logs.append(MetricsLog(run, 0))
    for step in (1, 2):
        for log in logs:
            log.record(step, {"loss": 1.0})
    for log in logs:
        assert log.wandb.run is not None
        log.close()
        assert list((log.run.folder / "wandb").glob("offline-run-*/*.wandb")) and lines(log.run) == 2
