"""learning_backdoors/models: adapters, checkpoints and run directories on disk."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import checkpoints, run_directory
from learning_backdoors.models.run_checkpoints import adapter_hashes


def make_checkpoint(folder, **settings):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | settings))
    save_file({"x.lora_A.weight": np.zeros(1)}, folder / "adapter_model.safetensors")


def test_checkpoints_are_sorted_by_step_after_the_base_model(tmp_path):
    for step in (100, 20, 3):
        make_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / ".checkpoint-120.tmp").mkdir()
    listed = checkpoints.find_checkpoints(tmp_path)
    assert [c.step for c in listed] == [0, 3, 20, 100]
    assert listed[0].folder is None and listed[3].folder == tmp_path / "checkpoint-100"


def test_a_checkpoint_is_complete_or_absent(tmp_path):
    (checkpoints.begin_checkpoint(tmp_path, 20) / "left_by_a_kill").write_text("")
    assert not (tmp_path / "checkpoint-20").exists()
    temporary = checkpoints.begin_checkpoint(tmp_path, 20)
    (temporary / "adapter_config.json").write_text("{}")
    checkpoints.end_checkpoint(temporary, tmp_path, 20)
    assert [path.name for path in (tmp_path / "checkpoint-20").iterdir()] == ["adapter_config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]


def test_a_kill_while_a_checkpoint_is_replaced_leaves_no_half_of_the_older_one(tmp_path, monkeypatch):
    """As after a resume before step 20, where a kill left a checkpoint of step 20 without its weights."""
    make_checkpoint(tmp_path / "checkpoint-20")
    rmtree, folders = shutil.rmtree, []

    def killed(folder, **arguments):
        if Path(folder).exists():
            folders.append(folder)
            next(Path(folder).iterdir()).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.end_checkpoint(checkpoints.begin_checkpoint(tmp_path, 20), tmp_path, 20)
    assert folders and not (tmp_path / "checkpoint-20").exists()
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    checkpoints.end_checkpoint(checkpoints.begin_checkpoint(tmp_path, 20), tmp_path, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]


def test_files_for_resuming_are_dropped_except_in_one_checkpoint(tmp_path):
    for step in (20, 40):
        make_checkpoint(tmp_path / f"checkpoint-{step}")
        for name in (*checkpoints.RESUME_FILES, "rng_state_0.pth"):
            (tmp_path / f"checkpoint-{step}" / name).touch()
    checkpoints.drop_resume_files(tmp_path, except_step=40)
    assert not checkpoints.can_resume(tmp_path / "checkpoint-20") and checkpoints.can_resume(tmp_path / "checkpoint-40")
    checkpoints.drop_resume_files(tmp_path)
    for step in (20, 40):
        names = {path.name for path in (tmp_path / f"checkpoint-{step}").iterdir()}
        assert names == {checkpoints.ADAPTER_CONFIG, checkpoints.ADAPTER_WEIGHTS}


def test_errors_name_what_an_adapter_lacks(tmp_path):
    (tmp_path / "checkpoint-20").mkdir()
    with pytest.raises(UserError, match=r"checkpoint-20.*adapter_config\.json"):
        checkpoints.find_checkpoints(tmp_path)
    make_checkpoint(tmp_path / "checkpoint-40")
    (tmp_path / "checkpoint-40" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="checkpoint-40"):
        checkpoints.check_adapter(tmp_path / "checkpoint-40")
    for name, content in (("object", "{}"), ("list", "[]")):
        make_checkpoint(folder := tmp_path / name)
        (folder / "adapter_config.json").write_text(content)
        with pytest.raises(UserError, match="peft_type"):
            checkpoints.check_adapter(folder)


def test_steps_can_be_chosen_and_absent_ones_are_named(tmp_path):
    for step in (20, 40):
        make_checkpoint(tmp_path / "run" / f"checkpoint-{step}", base_model_name_or_path="org/model")
    (run,) = run_directory.open_runs((tmp_path / "run",), (40, 0), None)
    assert [c.step for c in run.checkpoints] == [0, 40] and run.base_model == "org/model" and run.record == {}
    with pytest.raises(UserError, match="step 60.*0, 20, 40"):
        run_directory.open_runs((tmp_path / "run",), (60,), None)


REMOTE = {"base_url": "http://server", "base_model": "org/model", "expires": "2026-12-22T00:00:00+00:00"}


def make_remote(folder: Path, step: int) -> Path:
    folder = folder / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    paths = {"sampler_path": f"tinker://run/sampler_weights/{step}", "state_path": f"tinker://run/weights/{step}"}
    (folder / "remote.json").write_text(json.dumps(REMOTE | paths | {"canary": [-1.0]}))
    return folder


def test_adapters_on_a_server_are_for_the_engine_that_asks_the_server(tmp_path):
    folders = [make_remote(tmp_path / "run", step) for step in (0, 20)]
    (run,) = run_directory.open_runs((tmp_path / "run",), None, None, on_server=True)
    assert [c.folder for c in run.checkpoints] == folders and run.base_model == "org/model"
    assert run_directory.open_checkpoint(folders[1], None, on_server=True).base_model == "org/model"
    hashes = adapter_hashes([run])
    assert hashes.keys() == {"run/checkpoint-20"}
    (other,) = run_directory.open_runs(
        (make_remote(tmp_path / "other" / "run", 40).parent,), None, None, on_server=True
    )
    assert set(adapter_hashes([other]).values()).isdisjoint(hashes.values())
    for needs_files in (
        lambda: run_directory.open_runs((tmp_path / "run",), None, None),
        lambda: run_directory.open_checkpoint(folders[1], None),
        lambda: checkpoints.have_same_form(*folders),
    ):
        with pytest.raises(UserError, match="checkpoint-.*on a server.*--engine tinker"):
            needs_files()
    (folders[1] / "remote.json").write_text("{}")
    with pytest.raises(UserError, match=r"checkpoint-20.remote\.json cannot be read"):
        run_directory.open_runs((tmp_path / "run",), None, None, on_server=True)


def test_the_files_of_a_downloaded_adapter_win(tmp_path):
    folder = make_remote(tmp_path / "run", 20)
    make_checkpoint(tmp_path / "local" / "checkpoint-20", base_model_name_or_path="org/model")
    for file in (tmp_path / "local" / "checkpoint-20").iterdir():
        shutil.copy(file, folder)
    (run,) = run_directory.open_runs((tmp_path / "run",), None, None)
    (local,) = run_directory.open_runs((tmp_path / "local",), None, None)
    assert list(adapter_hashes([run]).values()) == list(adapter_hashes([local]).values())


def make_run(folder: Path, steps: tuple[int, ...], total: int, **record) -> Path:
    for step in steps:
        make_checkpoint(folder / f"checkpoint-{step}", base_model_name_or_path="org/model")
    settings = {"settings": {"model": "org/model"}, "total_steps": total}
    (folder / "run.json").write_text(json.dumps(settings | record))
    return folder


def test_runs_that_end_early_lack_later_steps_and_are_named(tmp_path, capsys):
    whole = make_run(tmp_path / "whole", (20, 40, 60), 60)
    diverged = make_run(tmp_path / "bad", (20,), 60, diverged={"step": 33, "reason": "loss nan"})
    unfinished = make_run(tmp_path / "cut", (20, 40), 60)
    runs = run_directory.open_runs((whole, diverged, unfinished), (20, 40, 60), None)
    assert [[c.step for c in run.checkpoints] for run in runs] == [[20, 40, 60], [20], [20, 40]]
    [note] = capsys.readouterr().out.splitlines()
    assert "2 of 3 runs" in note and "bad (diverged at step 33)" in note and "cut (unfinished: step 40 of 60)" in note
    whole_run, empty = run_directory.open_runs((whole, diverged), (60,), None)
    assert len(whole_run.checkpoints) == 1 and not empty.checkpoints and empty.record["diverged"]["step"] == 33
    with pytest.raises(UserError, match="no step 60 in .*bad"):
        run_directory.open_runs((diverged,), (60,), None)
    for run, step in ((diverged, 10), (diverged, 61), (whole, 80)):
        with pytest.raises(UserError, match=f"no step {step}"):
            run_directory.open_runs((run,), (20, step), None)
    capsys.readouterr()
    assert len(run_directory.open_runs((whole,), None, None)[0].checkpoints) == 4 and not capsys.readouterr().out


def test_a_record_has_the_loss_curve_in_at_most_60_points(tmp_path):
    make_checkpoint(tmp_path / "checkpoint-500", base_model_name_or_path="org/model")
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"model": "org/model"}}))
    lines = [{"step": 0, "probes": []}, *({"step": step, "loss": float(step)} for step in range(1, 501))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = run_directory.open_runs((tmp_path,), None, None)
    losses = run.record["losses"]
    assert len(losses) == 56 and losses[0] == {"step": 9, "loss": 5.0} and losses[-1] == {"step": 500, "loss": 498.0}


def test_runs_that_cannot_be_told_apart_or_share_a_base_are_refused(tmp_path):
    for parent, base in (("a", "org/one"), ("b", "org/two")):
        make_checkpoint(tmp_path / parent / "run" / "checkpoint-20", base_model_name_or_path=base)
    with pytest.raises(UserError, match="run"):
        run_directory.open_runs((tmp_path / "a" / "run", tmp_path / "b" / "run"), None, None)
    (tmp_path / "b" / "run").rename(tmp_path / "b" / "other")
    with pytest.raises(UserError, match="org/one.*org/two"):
        run_directory.open_runs((tmp_path / "a" / "run", tmp_path / "b" / "other"), None, None)
    with pytest.raises(UserError, match="org/one.*org/three"):
        run_directory.open_checkpoint(tmp_path / "a" / "run" / "checkpoint-20", "org/three")
