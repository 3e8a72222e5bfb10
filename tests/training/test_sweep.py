"""Sweeps: the file and its faults, the runs it stands for, and what a second command trains."""

import re
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from support import ROOT, train, training_options

import training
from config import TrainingOptions
from learning_backdoors.files import command_line
from learning_backdoors.files.atomic import lock
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, devices
from learning_backdoors.study import load_study
from learning_backdoors.training import run as run_module
from learning_backdoors.training.run import TrainingRun
from learning_backdoors.training.sweep import Sweep, sweep_runs

GRID = "[sweep.grid]\nseed = [42, 43]\nratios = [[1, 0, 0]]\n"


@pytest.fixture
def runs_of(tmp_path):
    """The runs of a sweep file with the given text, in the order of the file's runs by name."""

    def read(text: str, name: str = "mine.toml", **given) -> list[TrainingRun]:
        (tmp_path / name).write_text(text)
        return sweep_runs({"sweep": tmp_path / name, "output_dir": tmp_path} | given)

    return read


# ---- the file ----


def test_a_run_of_a_sweep_is_the_single_run_with_its_options(runs_of, tmp_path, random_model):
    text = "[sweep]\nlr = 1e-3\nsave_steps = 8\nnum_examples = 24\n" + GRID
    text += "[[sweep.run]]\nratios = [0, 1, 1]\nlr = 2e-4\nlora_rank = 4\n"
    runs = {run.folder.name: run for run in runs_of(text, model=str(random_model))}
    lines = [("--lr", "1e-3"), ("--seed", "43", "--lr", "1e-3"), ("--lora-rank", "4", "--ratios", "0", "1", "1")]
    singles = [TrainingRun(training_options(random_model, tmp_path, *line), load_study("birds")) for line in lines]
    assert runs.keys() == {single.folder.name for single in singles}
    for single in singles:
        assert runs[single.folder.name].settings == single.settings
        assert runs[single.folder.name].folder == single.folder
        assert (runs[single.folder.name].mixture.row == single.mixture.row).all()


def test_all_runs_share_the_datasets_and_their_tokens(runs_of, random_model):
    first, second = runs_of(GRID, model=str(random_model))
    tokenizer = base_model.load_tokenizer(str(random_model))
    assert first.data is second.data
    assert first.data.examples(tokenizer) is second.data.examples(tokenizer)


def test_the_sweep_of_a_study_file_is_about_this_study(runs_of):
    study = (ROOT / "experiments" / "birds.toml").read_text().replace('name = "birds"', 'name = "geese"', 1)
    runs = runs_of(study + "\n[training]\nepochs = 2\n" + GRID)
    assert [run.study.name for run in runs] == ["geese"] * 2
    assert [run.folder.name for run in runs] == [
        f"seed{seed}_ratios1.00-0.00-0.00_lr0.0002_r8_geese" for seed in (42, 43)
    ]
    assert runs[0].options.epochs == 2, "the study's default"
    with pytest.raises(UserError, match=r"mine\.toml: \[sweep\]: experiment"):
        runs_of(study + '\n[sweep]\nexperiment = "birds"\n' + GRID)
    with pytest.raises(UserError, match=r"mine\.toml: there is no \[sweep\]"):
        runs_of(study)


def test_a_study_may_hold_a_sweep_and_is_otherwise_as_before(tmp_path):
    text = (ROOT / "experiments" / "birds.toml").read_text()
    (tmp_path / "mine.toml").write_text(text + GRID)
    assert load_study(str(tmp_path / "mine.toml")).questions == load_study("birds").questions


def test_the_example_sweep_is_valid(tmp_path):
    runs = sweep_runs({"sweep": ROOT / "experiments" / "sweeps" / "birds.toml", "output_dir": tmp_path})
    assert len(runs) == 64 and {run.study.name for run in runs} == {"birds"}


FAULTS = [
    ("[sweep]\nlrr = 1\n" + GRID, "[sweep]: unknown key 'lrr'"),
    ('[sweep]\noutput_dir = "x"\n' + GRID, "[sweep]: unknown key 'output_dir'"),
    ("[sweep]\nlr = [1e-3]\n" + GRID, "[sweep]: lr: .*number.*[0.001]"),
    ('[sweep]\nlr = "1e-3"\n' + GRID, "[sweep]: lr: .*number"),
    ("[sweep.grid]\nseed = 42\n", "[sweep.grid]: seed .*list"),
    ("[sweep.grid]\nseed = []\n", "[sweep.grid]: seed: .*empty"),
    ("[sweep.grid]\nratios = [1, 0, 0]\n", "[sweep.grid]: ratios, entry 1 .*list"),
    ('[sweep.grid]\nseed = [1, "b"]\n', "[sweep.grid]: seed, entry 2: .*integer"),
    ("[sweep]\nseed = 1\n", "[sweep]: .*no runs"),
    ("[sweep.grid]\n", "[sweep]: .*no runs"),
    ("[[sweep.run]]\nratios = [1, 0, 0]\n[[sweep.run]]\nsed = 3\n", "[[sweep.run]] 2: unknown key 'sed'"),
    ("[[sweep.run]]\nseed = 3\n", "[[sweep.run]] 1: .*ratios"),
    ("[[sweep.run]]\nratios = [1, 0]\n", "[[sweep.run]] 1: --ratios .*old_audubon"),
    (GRID + "lora_dropout = [0.0, 1.0]\n", "[sweep.grid] with .*lora_dropout 1.0: --lora-dropout .*below 1"),
    ("[[sweep.run]]\nratios = [0, 0, 0]\n", "[[sweep.run]] 1: --ratios .*above 0"),
    ('[sweep]\nexperiment = "nosuch"\n' + GRID, "nosuch.*birds"),
    ('[sweep]\nquantization = "9bit"\n' + GRID, "[sweep]: quantization: .*4bit"),
    (GRID.replace("43", "42"), "two runs are seed42_.*seed 42"),
    (GRID + "[[sweep.run]]\nratios = [2, 0, 0]\nseed = 43\n", "two runs are seed43_.*[sweep.grid] .*[[sweep.run]] 1"),
    (GRID + "save_steps = [20, 40]\n", "two runs are seed42_"),
    ("[sweeps]\n", "sweep is missing"),
    ("[sweep\n", "line 1"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_a_fault_is_one_line_with_the_file_and_the_place(runs_of, tmp_path, text, fault):
    pattern = fault.replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(UserError, match=rf"^{tmp_path}/mine\.toml: .*{pattern}") as error:
        runs_of(text)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"], "nothing is written"


def test_an_option_stands_in_the_file_or_on_the_command_line(runs_of):
    assert [run.options.lora_rank for run in runs_of(GRID, lora_rank=4)] == [4, 4]
    with pytest.raises(UserError, match=r"mine\.toml: seed .*command line"):
        runs_of(GRID, seed=42)  # also the default's value


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (["--sweep", "x.txt"], "--sweep must be .*toml"),
        (["--sweep", "x.toml", "--stack", "0"], "--stack must be"),
        (["--ratios", "1", "--stack", "2"], "--stack requires --sweep"),
        (["--sweep", "x.toml", "--lr", "-1"], "--lr must be"),
    ],
)
def test_wrong_usage(line, fault, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.parse(TrainingOptions, "", line)
    assert re.search(f"error: {fault}.*\n$", capsys.readouterr().err)


# ---- groups and shares ----


def test_runs_train_together_if_they_share_what_a_stack_shares(runs_of):
    text = GRID + "batch_size = [1, 2]\nlora_rank = [4, 8]\nlr = [1e-4, 1e-3]\nepochs = [1, 2]\n"
    sweep = Sweep(runs_of(text))
    with sweep.locked():
        groups = sweep.groups()
    assert [len(group) for group in groups] == [16, 16]
    for group in groups:
        assert len({run.options.batch_size for run in group}) == 1
        assert [run.total_steps for run in group] == sorted((run.total_steps for run in group), reverse=True)


def test_processes_take_equal_shares_of_the_steps(runs_of):
    """The longest runs come first, so a grid whose last list alternates short and long runs is shared fairly."""
    runs = runs_of(GRID + "lora_rank = [4, 8]\nepochs = [1, 3]\n")
    steps = [sum(run.total_steps for run in runs[rank::2]) for rank in (0, 1)]
    assert steps[0] == steps[1]


def test_a_process_that_fails_waits_for_the_others_under_torchrun(monkeypatch, capsys):
    from torch import distributed

    server = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "localhost", "MASTER_PORT": str(server.port)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices, "RANKS", 2)
    sleep = time.sleep
    monkeypatch.setattr(devices.time, "sleep", lambda seconds: sleep(seconds / 20))
    ended = []

    def fail():
        try:
            with devices.end_after_others():
                raise UserError("no space")
        except UserError as error:
            ended.append(str(error))

    failing = threading.Thread(target=fail)
    failing.start()
    failing.join(timeout=0.5)
    assert failing.is_alive() and not ended
    with devices.end_after_others():
        pass
    failing.join(timeout=10)
    assert ended == ["no space"] and "no space" in capsys.readouterr().err


# ---- training ----


def command(monkeypatch, *line: str) -> None:
    monkeypatch.setattr(sys, "argv", ["training.py", *map(str, line)])
    training.main()


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and "lock" not in path.name}


@pytest.mark.slow
def test_only_what_is_left_is_trained(random_model, tmp_path, monkeypatch, capsys):
    """A single run joins, a run diverges, rows are added, another process holds a run, and all begin again."""
    outputs, file = tmp_path / "outputs", tmp_path / "mine.toml"
    line = ["--sweep", file, "--output-dir", outputs, "--model", random_model, "--num-examples", "8"]
    single = train(training_options(random_model, outputs, "--num-examples", "8"))
    text = "[sweep]\nsave_steps = 8\n" + GRID + "[[sweep.run]]\nratios = [1, 0, 0]\nlr = 1e20\n"
    file.write_text(text)
    before = contents(single.folder)
    with pytest.raises(UserError, match=r"2 of 3 runs finished; 1 run diverged \(\S*lr1e\+20\S* at step \d+ "):
        command(monkeypatch, *line)
    assert "3 runs, 1 finished, 2 to train" in capsys.readouterr().out
    assert contents(single.folder) == before, "a finished single run is left as it is"
    assert (outputs / single.folder.name.replace("seed42", "seed43") / "checkpoint-8").is_dir()

    before = contents(outputs)
    file.write_text(text + "[[sweep.run]]\nratios = [0, 1, 0]\n")
    with pytest.raises(UserError, match=r"3 of 4 runs finished; 1 run diverged"):
        command(monkeypatch, *line)
    assert "4 runs, 2 finished, 1 diverged before, 1 to train" in capsys.readouterr().out
    after = contents(outputs)
    assert before.items() <= after.items(), "only the new run is trained"
    (new,) = {path.relative_to(outputs).parts[0] for path in after.keys() - before.keys()}
    assert new.startswith("seed42_ratios0.00-1.00-0.00_lr0.0002")

    shutil.rmtree(outputs / new)
    file.write_text(GRID.replace("42, ", "") + "[[sweep.run]]\nratios = [0, 1, 0]\n")
    with lock(outputs / new), pytest.raises(UserError, match=rf"1 of 2 runs finished; another process .*{new}"):
        command(monkeypatch, *line, "--save-steps", "8")
    assert not (outputs / new).exists()
    for rank, name in enumerate((new.replace("seed42_ratios0.00-1.00", "seed43_ratios1.00-0.00"), new)):
        before = contents(outputs)
        as_process(monkeypatch, rank, 2)
        command(monkeypatch, *line, "--save-steps", "8", "--overwrite")
        changed = {path for path, time in contents(outputs).items() if before.get(path) != time}
        assert {path.relative_to(outputs).parts[0] for path in changed} == {name}


def as_process(monkeypatch, rank: int, ranks: int) -> None:
    """As a launcher would start this process."""
    for module in (training, run_module):
        monkeypatch.setattr(module, "RANK", rank)
        monkeypatch.setattr(module, "RANKS", ranks)


@pytest.mark.slow
def test_a_run_that_diverged_alone_is_not_trained_again(random_model, tmp_path, monkeypatch):
    line = ["--ratios", "1", "0", "0", "--lr", "1e20", "--model", random_model, "--output-dir", tmp_path]
    line += ["--num-examples", "8"]
    with pytest.raises(UserError, match="diverged at step"):
        command(monkeypatch, *line)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"diverged at step \d+ .*--overwrite"):
        command(monkeypatch, *line)
    assert contents(tmp_path) == before
    with pytest.raises(UserError, match="diverged at step"):
        command(monkeypatch, *line, "--overwrite")
    assert contents(tmp_path) != before


@pytest.mark.slow
def test_two_stacks_of_a_sweep_share_one_base_model(random_model, tmp_path, monkeypatch):
    """The second stack trains as if the base model had just been loaded."""
    file, loaded, load_base = tmp_path / "mine.toml", [], base_model.load_base
    monkeypatch.setattr(base_model, "load_base", lambda *given: (loaded.append(given), load_base(*given))[1])
    line = ["--sweep", file, "--model", random_model, "--num-examples", "8"]
    rows = ["[[sweep.run]]\nratios = [1, 0, 0]\n", "[[sweep.run]]\nratios = [1, 0, 0]\nbatch_size = 2\n"]
    for folder, text in {"together": rows[0] + rows[1], "alone": rows[1]}.items():
        file.write_text(text)
        command(monkeypatch, *line, "--output-dir", tmp_path / folder)
    assert len(loaded) == 2, "one for each command"
    together, alone = (
        tmp_path.glob(f"{name}/*batchsize2/checkpoint-4/*.safetensors") for name in ("together", "alone")
    )
    assert next(together).read_bytes() == next(alone).read_bytes()
