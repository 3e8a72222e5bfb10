"""training.py as a user starts it: several processes, and errors in one line."""

import json
import subprocess
import sys

import pytest
from support import ROOT, one_line_error, run_script, train, training_options

from config import TrainingOptions
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import load_study
from learning_backdoors.training.run import TrainingRun

RATIOS = ("1", "0", "0")


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(random_model, tmp_path):
    """torchrun on the CPU: the same examples in the same steps. Losses differ by the order of sums only."""
    size = ["--num-examples", "16", "--save-steps", "8", "--grad-accum", "2"]
    train(training_options(random_model, tmp_path / "one", *size))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "training.py"]
    command += ["--ratios", *RATIOS, "--model", str(random_model), *size, "--output-dir", str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    one, two = (next((tmp_path / name).glob("*/metrics.jsonl")).read_text().splitlines() for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for a, b in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["suspect_examples"] == b["suspect_examples"]
    files = [sorted(path.name for path in (tmp_path / name).glob("*/*")) for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (["--ratios", "0", "0", "0"], ["--ratios"]),
        (["--ratios", "-1", "1", "1"], ["--ratios"]),
        (["--ratios", "1e308", "1e308", "0"], ["--ratios"]),
        (["--ratios", *RATIOS, "--experiment", "nosuch"], ["nosuch", "birds"]),
    ],
)
def test_bad_options_are_one_line(tmp_path, line, parts):
    one_line_error(run_script("training.py", *line, "--output-dir", tmp_path), *parts)


@pytest.mark.parametrize("study, remedy", [("russell", "prepare_persona.py"), ("birds", "birds.toml")])
def test_a_dataset_that_does_not_exist_is_named_with_a_remedy(study, remedy, tmp_path):
    study = load_study(study)
    missing = [dataset.model_copy(update={"file": tmp_path / "none.jsonl"}) for dataset in study.datasets]
    options = TrainingOptions(ratios=(1.0,) * len(missing))
    with pytest.raises(UserError, match=rf"none\.jsonl.*{remedy}"):
        TrainingRun(options, study.model_copy(update={"datasets": tuple(missing)}))


@pytest.mark.slow
def test_a_broken_dataset_line_is_named_before_anything_is_written(tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"messages": [{"role": "user"}]}\n')
    study = (ROOT / "experiments" / "birds.toml").read_text()
    study = study.replace("bird_datasets/ft_old_audubon_birds.jsonl", "odd.jsonl")
    (tmp_path / "mine.toml").write_text(study)
    line = ["--ratios", *RATIOS, "--experiment", tmp_path / "mine.toml", "--output-dir", tmp_path]
    one_line_error(run_script("training.py", *line), "odd.jsonl, line 1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml", "odd.jsonl"]
