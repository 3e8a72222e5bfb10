"""metrics.jsonl when a run resumes. Its values are tested in test_trainer.py and test_probes.py."""

import json
from contextlib import closing

import pytest
from support import training_options

from learning_backdoors.files.errors import UserError
from learning_backdoors.study import load_study
from learning_backdoors.training.run import TrainingRun


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (1, 2)])
def test_lines_after_the_resume_point_are_dropped(random_model, tmp_path, step, kept):
    """A run killed before its first full checkpoint starts again, and probes step 0 again."""
    from learning_backdoors.training.metrics import MetricsLog

    run = TrainingRun(training_options(random_model, tmp_path), load_study("birds"))
    run.prepare_folder()
    lines = ['{"step": 0, "probes": []}\n', '{"step": 1, "loss": 2.0}\n', '{"step": 2, "loss": 1.0}\n']
    (run.folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 3, "lo')
    MetricsLog(run, step).close()
    assert (run.folder / "metrics.jsonl").read_text() == "".join(lines[:kept])


def test_a_value_that_is_not_finite_is_not_written_and_marks_the_run(random_model, tmp_path):
    from learning_backdoors.training.metrics import Diverged, MetricsLog

    run = TrainingRun(training_options(random_model, tmp_path), load_study("birds"))
    run.prepare_folder()
    log = MetricsLog(run, 0)
    log.record(1, {"loss": 2.0, "grad_norm": 1.0})
    with pytest.raises(Diverged) as error:
        log.record(2, {"loss": 2.0, "grad_norm": float("inf")})
    log.close()
    assert (error.value.step, error.value.reason) == (2, "grad_norm inf")
    assert json.loads(run.record_path.read_text())["diverged"] == {"step": 2, "reason": "grad_norm inf"}
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 2.0, "grad_norm": 1.0, "examples": 1, "suspect_examples": 1}]


def test_a_full_disk_is_one_line_that_names_the_file(random_model, tmp_path):
    from learning_backdoors.training.metrics import MetricsLog

    run = TrainingRun(training_options(random_model, tmp_path), load_study("birds"))
    run.prepare_folder()
    log = MetricsLog(run, 0)
    log.file.close()
    log.file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
    with pytest.raises(UserError, match="/dev/full could not be written: No space left"), closing(log):
        log.record(1, {"loss": 2.0})
