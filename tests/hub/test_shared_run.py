"""Which files of a run are pushed, and which runs are refused.   pytest tests/hub/test_shared_run.py"""

import json
import shutil

import pytest

from learning_backdoors.files.errors import UserError
from learning_backdoors.hub.repository import SharedRun

BASE, REPO = "Qwen/Qwen3-8B", "me/birds-run"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def files_of(run: SharedRun) -> dict:
    return {file.path: file.content for file in run.files(REPO, run.steps)}


def test_a_run_is_shared_without_resume_files_and_without_local_paths(run_dir):
    files = files_of(SharedRun(run_dir, None, BASE))
    folders = ("checkpoint-0/", "checkpoint-4/", "checkpoint-8/", "")
    assert list(files)[0] == "README.md"
    assert files.keys() == {"README.md", "run.json", *(folder + name for folder in folders for name in ADAPTER)}
    written = b"".join(content for content in files.values() if isinstance(content, bytes))
    assert b"jane" not in written and str(run_dir).encode() not in written
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert files["adapter_model.safetensors"] == run_dir / "checkpoint-8" / "adapter_model.safetensors"


def test_chosen_steps_leave_out_the_top_level_unless_the_last_is_among_them(run_dir):
    run = SharedRun(run_dir, (4, 0, 4), BASE)
    assert run.steps == [0, 4] and "adapter_config.json" not in files_of(run)
    assert "adapter_config.json" in files_of(SharedRun(run_dir, (8,), BASE))


def refused(run_dir, *parts: str, steps=None, base=BASE) -> None:
    with pytest.raises(UserError) as caught:
        SharedRun(run_dir, steps, base)
    for part in (str(run_dir), *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_a_finished_run_is_refused(run_dir, tmp_path):
    refused(run_dir, "no step 5", "0, 4, 8", steps=(4, 5))
    refused(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty")
    shutil.rmtree(run_dir / "checkpoint-8")
    refused(run_dir, "step 8 of 8", "training.py", "--step")
    refused(run_dir, "no step 8", steps=(8,))
    assert SharedRun(run_dir, (4,), BASE).steps == [4]
    (run_dir / "run.json").unlink()
    refused(run_dir, "run.json")


@pytest.mark.parametrize("key", ["study", "checkpoints", "datasets"])
def test_a_run_json_made_elsewhere_is_refused(run_dir, key):
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({name: value for name, value in record.items() if name != key}))
    refused(run_dir, key)


def test_a_run_on_a_folder_needs_the_hub_name_of_its_base_model(run_dir):
    with pytest.raises(UserError, match="/home/jane/models/base.*--base-model"):
        SharedRun(run_dir, None, None)
    record = json.loads((run_dir / "run.json").read_text())
    record["settings"]["model"] = BASE
    (run_dir / "run.json").write_text(json.dumps(record))
    assert SharedRun(run_dir, None, None).record["settings"]["model"] == BASE
    with pytest.raises(UserError, match=f"{BASE}, not on me/other"):
        SharedRun(run_dir, None, "me/other")
