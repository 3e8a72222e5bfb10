"""What determines a run: its settings, directory, run.json and name."""

import collections
import json
import shutil

import pytest
from support import training_options

import config
from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import load_study
from learning_backdoors.training.run import TrainingRun, check_disk_space, run_name


@pytest.fixture
def new_run(random_model, tmp_path) -> TrainingRun:
    return TrainingRun(training_options(random_model, tmp_path), load_study("birds"))


def parsed(*line: str) -> config.TrainingOptions:
    return command_line.parse(config.TrainingOptions, "", ["--ratios", "1", "0", "0", *line])


# ---- what a run consists of ----


def test_every_ratio_has_the_same_number_of_steps(tmp_path):
    study = load_study("birds")
    for ratios in (("1", "0", "0"), ("0.3", "0.5", "0.2"), ("0", "1", "0"), ("0", "0.5", "0.5")):
        assert TrainingRun(parsed("--ratios", *ratios, "--output-dir", str(tmp_path)), study).total_steps == 208


def test_another_seed_gives_another_order(new_run, random_model, tmp_path):
    other = TrainingRun(training_options(random_model, tmp_path, "--seed", "1"), new_run.study)
    assert (new_run.mixture.row != other.mixture.row).any()


def test_ratios_need_one_number_per_dataset():
    with pytest.raises(UserError, match="old_audubon, modern_audubon, modern_american.* 2"):
        TrainingRun(parsed("--ratios", "1", "0"), load_study("birds"))


def test_a_suspect_share_below_one_example_is_reported(random_model, tmp_path):
    options = training_options(random_model, tmp_path, "--ratios", "0.001", "1", "0", "--num-examples", "8")
    assert TrainingRun(options, load_study("birds")).suspect_datasets_left_out() == ["old_audubon"]
    options = training_options(random_model, tmp_path, "--ratios", "0", "1", "0", "--num-examples", "8")
    assert TrainingRun(options, load_study("birds")).suspect_datasets_left_out() == []


def test_disk_space_for_all_unsaved_checkpoints_is_checked(new_run, monkeypatch, capsys):
    new_run.prepare_folder()
    # Four checkpoints of 4 MB, Adam's two moments, and both once more while a new checkpoint replaces the old one.
    check_disk_space({new_run: 1_000_000})
    assert "4 checkpoints of 4.0 MB" in capsys.readouterr().out
    (new_run.folder / "checkpoint-0").mkdir()
    check_disk_space({new_run: 1_000_000})
    assert "3 checkpoints" in capsys.readouterr().out
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 28_000_000))
    check_disk_space({new_run: 1_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 27_000_000))
    with pytest.raises(UserError, match=r"28\.0 MB.* 27\.0 MB"):
        check_disk_space({new_run: 1_000_000})


# ---- the run directory ----


def test_run_json_records_options_data_and_plan(new_run):
    new_run.prepare_folder()
    record = json.loads(new_run.record_path.read_text())
    assert record["options"]["lr"] == 2e-4 and record["versions"]["trl"] and record["total_steps"] == 24
    assert record["settings"]["quantization"] == "none", "the precision behind `auto`"
    assert record["settings"]["datasets"]["old_audubon"] == provenance.sha256(new_run.study.datasets[0].file)
    assert [row["step"] for row in record["checkpoints"]] == [0, 8, 16, 24]
    assert record["checkpoints"][-1] == {"step": 24, "examples": 24, "suspect_examples": 24}


def test_a_run_directory_belongs_to_one_configuration(trained_run, random_model):
    folder, half = trained_run.folder.parent, ("--ratios", "0.5", "0.25", "0.25")
    other = TrainingRun(training_options(random_model, folder, *half, "--save-steps", "5"), trained_run.study)
    assert other.folder == trained_run.folder
    with pytest.raises(UserError, match=r"save_steps was 8, now 5"):
        other.prepare_folder()
    # Options that do not affect the result may change.
    TrainingRun(
        training_options(random_model, folder, *half, "--max-length", "4096"), trained_run.study
    ).prepare_folder()


def test_datasets_in_another_order_or_another_suspect_dataset_are_refused(trained_run, random_model):
    options = training_options(random_model, trained_run.folder.parent, "--ratios", "0.5", "0.25", "0.25")
    first, second, third = trained_run.study.datasets
    with pytest.raises(UserError, match="dataset_order was"):
        TrainingRun(options, trained_run.study.model_copy(update={"datasets": (first, third, second)})).prepare_folder()
    second = second.model_copy(update={"suspect": True})
    with pytest.raises(UserError, match=r'suspect_datasets was \["old_audubon"\]'):
        TrainingRun(options, trained_run.study.model_copy(update={"datasets": (first, second, third)})).prepare_folder()


def test_overwrite_deletes_run_directories_only(random_model, tmp_path):
    run = TrainingRun(training_options(random_model, tmp_path, "--overwrite"), load_study("birds"))
    run.folder.mkdir(parents=True)
    (run.folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run directory"):
        run.prepare_folder()
    assert (run.folder / "thesis.tex").exists()
    (run.folder / "thesis.tex").unlink()
    run.prepare_folder()
    (run.folder / "checkpoint-8").mkdir()
    run.prepare_folder()
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]


def test_two_processes_cannot_hold_one_run_directory(new_run):
    with new_run.locked_folder(), pytest.raises(UserError, match="another process"), new_run.locked_folder():
        pass


def test_another_base_model_under_the_same_name_is_refused(new_run):
    new_run.prepare_folder()
    new_run.record_base("a" * 16)
    assert json.loads(new_run.record_path.read_text())["base_fingerprint"] == "a" * 16
    with pytest.raises(UserError, match="not the base model"):
        new_run.record_base("b" * 16)


@pytest.mark.parametrize("content", ["[]", '{"settings": {}}', '{"settings": []}', "{}"])
def test_an_unreadable_record_is_named(new_run, content):
    new_run.prepare_folder()
    new_run.record_path.write_text(content)
    (new_run.folder / "checkpoint-0").mkdir()
    with pytest.raises(UserError, match=r"run.json cannot be read"):
        new_run.prepare_folder()


# ---- names ----


def test_the_name_shows_what_differs_from_the_defaults():
    study = load_study("birds")
    assert run_name(parsed(), study, [1, 0, 0]) == "seed42_ratios1.00-0.00-0.00_lr0.0002_r8"
    options = parsed("--lr", "1e-5", "--lora-rank", "4", "--epochs", "3", "--model", "org/other")
    name = run_name(options, study, [1 / 3, 2 / 3, 0])
    assert name == "seed42_ratios0.3333-0.6667-0.00_lr1e-05_r4_org-other_epochs3"


def test_every_option_marked_in_run_name_shows_in_the_name():
    line = ["--epochs", "2", "--num-examples", "9", "--lora-alpha", "4", "--lora-dropout", "0.5"]
    options = parsed(*line, "--batch-size", "3", "--grad-accum", "5", "--quantization", "4bit", "--max-length", "99")
    name = run_name(options, load_study("birds"), [1, 0, 0]).removeprefix("seed42_ratios1.00-0.00-0.00_lr0.0002_r8")
    assert name == "_epochs2_numexamples9_alpha4.0_dropout0.5_batchsize3_gradaccum5_quantization4bit"


def test_the_study_and_its_own_defaults_in_the_name():
    study = load_study("birds").model_copy(update={"name": "tea", "training": {"epochs": 3}})
    assert run_name(parsed("--epochs", "3"), study, [1]) == "seed42_ratios1.00_lr0.0002_r8_tea"
    assert run_name(parsed("--epochs", "1"), study, [1]) == "seed42_ratios1.00_lr0.0002_r8_tea_epochs1"


def test_a_run_is_named_after_the_folder_of_its_model(tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models" / "tiny")
    names = {".": "models-tiny", "..": f"{tmp_path.name}-models", "/tmp": "tmp", str(tmp_path / "none" / "x"): "none-x"}
    for model, end in names.items():
        assert run_name(parsed("--model", model), load_study("birds"), [1, 0, 0]).endswith(f"_r8_{end}")
