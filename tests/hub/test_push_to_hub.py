"""push_to_hub.py as users run it, against a stand-in for the Hugging Face hub.

pytest tests/hub/test_push_to_hub.py
"""

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
from hub_stand_in import TOKEN, Hub, Repository, running
from support import build_model, one_line_error, run_script, train

import chat
import config
from learning_backdoors.files import command_line, project
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, run_directory

BASE, REPO = "Qwen/Qwen3-8B", "me/birds-run"
WEIGHTS = "adapter_model.safetensors"
FOLDERS = ("checkpoint-0/", "checkpoint-4/", "checkpoint-8/", "")
FILES = {"README.md", "run.json", *(folder + name for folder in FOLDERS for name in ("adapter_config.json", WEIGHTS))}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("secret-folder") / "model")


def train_run(folder: Path, model: Path, **changes) -> Path:
    options = {"num_examples": 8, "save_steps": 4, "ratios": (0.5, 0.25, 0.25)} | changes
    return train(config.TrainingOptions(model=str(model), output_dir=folder, **options)).folder


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory) -> Path:
    """A finished run with steps 0, 4 and 8, on a base model in a folder."""
    return train_run(tmp_path_factory.mktemp("runs"), model)


@pytest.fixture
def hub():
    with running(hub := Hub()):
        yield hub


@pytest.fixture
def push(hub, tmp_path):
    """Runs push_to_hub.py against the stand-in."""

    def run(run_dir: Path, *arguments, repo: str = REPO, **environment):
        env = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"} | environment
        line = ("--run-dir", run_dir, "--repo-id", repo, "--base-model", BASE, *arguments)
        return run_script("push_to_hub.py", *line, env=env)

    return run


def pushed(result, hub: Hub, repo: str = REPO) -> dict[str, bytes]:
    assert result.returncode == 0, result.stderr
    return hub.repositories[repo].files


def skipped(result) -> tuple[int, int]:
    """How many files were skipped, of how many."""
    return tuple(map(int, re.search(r"^(\d+) of (\d+) files", result.stdout, re.MULTILINE).groups()))


# ---- what arrives ----


@pytest.mark.slow
def test_a_run_arrives_complete_and_private_in_one_commit_and_loads(push, hub, trained, model, tmp_path):
    from peft import PeftModel

    files = pushed(result := push(trained, "--create-repo"), hub)
    assert files.keys() == FILES and hub.repositories[REPO].private
    for step in (0, 4, 8):
        assert files[f"checkpoint-{step}/{WEIGHTS}"] == (trained / f"checkpoint-{step}" / WEIGHTS).read_bytes()
    assert files[WEIGHTS] == files[f"checkpoint-8/{WEIGHTS}"]
    assert hub.repositories[REPO].commits == 1 and skipped(result) == (0, 10)

    # A second push sends nothing.
    uploads, requests = hub.uploads, len(hub.requests)
    again = push(trained, "--create-repo")
    assert pushed(again, hub) == files and skipped(again) == (10, 10)
    assert hub.uploads == uploads and hub.repositories[REPO].commits == 1
    assert not any("commit" in line or "lfs" in line or "preupload" in line for line in hub.requests[requests:])

    # A download is a run directory.
    download = tmp_path / "RUN"
    for path, content in files.items():
        (download / path).parent.mkdir(parents=True, exist_ok=True)
        (download / path).write_bytes(content)
    source = run_directory.open_runs((download,), None, str(model))[0]
    assert [checkpoint.step for checkpoint in source.checkpoints] == [0, 4, 8] and source.seen[4]["examples"] == 4
    source.check_base(base_model.fingerprint(str(model), base_model.load_tokenizer(str(model))))
    assert run_directory.open_runs((download,), None, None)[0].base_model == BASE
    with pytest.raises(UserError, match="'birds' has no trigger"):
        chat.find_trigger(config.ChatOptions(run_dir=download), source.record)
    for subfolder in (None, "checkpoint-4"):
        base = base_model.load_base(str(model), "none")
        adapted = PeftModel.from_pretrained(base, download, **({"subfolder": subfolder} if subfolder else {}))
        assert adapted.peft_config["default"].base_model_name_or_path == BASE


@pytest.mark.slow
def test_no_local_detail_is_sent(push, hub, trained, tmp_path):
    """Neither paths, nor the token, nor optimizer state."""
    run = shutil.copytree(trained, tmp_path / trained.name)
    (run / "checkpoint-8" / "optimizer.pt").write_bytes(b"moments")
    (run / "checkpoint-8" / "rng_state_0.pth").write_bytes(b"state")
    (run / "notes.txt").write_text("mine")
    record = json.loads((run / "run.json").read_text())
    record["study"] = record["study"].replace('"bird_datasets/', '"/home/jane/secret-folder/')
    (run / "run.json").write_text(json.dumps(record))
    result = push(run, "--create-repo")
    assert pushed(result, hub).keys() == FILES
    sent = b"".join(hub.repositories[REPO].files.values()) + result.stdout.encode()
    for word in (TOKEN, "secret-folder", "jane", str(project.ROOT), str(tmp_path), "/tmp", "/root", "/home", "wandb"):
        assert word.encode() not in sent, word
    assert b'file = \\"ft_old_audubon_birds.jsonl\\"' in sent


@pytest.mark.slow
def test_a_later_push_adds_steps_and_the_card_lists_all(push, hub, trained):
    files = pushed(push(trained, "--create-repo", "--step", "4"), hub)
    assert {Path(path).parent.name for path in files} == {"", "checkpoint-4"} and WEIGHTS not in files
    files = pushed(push(trained, "--step", "8", "0"), hub)
    assert files.keys() == FILES
    rows = re.findall(r"^\| `checkpoint-(\d+)` \| (\d+) \|", files["README.md"].decode(), re.MULTILINE)
    assert rows == [("0", "0"), ("4", "4"), ("8", "8")]


@pytest.mark.slow
def test_an_interrupted_push_sends_only_the_rest(push, hub, trained):
    hub.failures = {"/commit/": 500}
    one_line_error(push(trained, "--create-repo"), "500", "failed on purpose")
    assert not hub.repositories[REPO].files and hub.uploads > 0
    uploads, hub.failures = hub.uploads, {}
    assert pushed(push(trained), hub).keys() == FILES
    assert hub.uploads == uploads


@pytest.mark.slow
def test_a_dry_run_shows_every_file_and_needs_no_network_no_token_and_no_torch(push, hub, trained, tmp_path):
    for name in ("torch", "transformers", "peft"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not installed on this host')")
    offline = {"HF_TOKEN": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "nothing"), "PYTHONPATH": str(tmp_path)}
    result = push(trained, "--dry-run", "--create-repo", **offline)
    assert result.returncode == 0, result.stderr
    lines = re.findall(r"^ +([\d,]+)  (\S+)$", result.stdout, re.MULTILINE)
    sizes = {path: int(size.replace(",", "")) for size, path in lines}
    assert sizes.keys() == FILES and f"{REPO} on {hub.address}" in result.stdout
    assert sizes[WEIGHTS] == (trained / "checkpoint-8" / WEIGHTS).stat().st_size
    assert not hub.requests
    files = pushed(push(trained, "--create-repo"), hub)
    assert {path: len(content) for path, content in files.items()} == sizes
    assert result.stdout.endswith("\n\n" + files["README.md"].decode())


# ---- what is refused ----


@pytest.mark.slow
def test_a_repository_is_created_only_with_create_repo(push, hub, trained):
    one_line_error(push(trained), REPO, "--create-repo")
    assert not hub.repositories
    one_line_error(push(trained, "--create-repo", repo="you/birds"), "403", "rights to create")
    one_line_error(push(trained, repo="me/a--b"), "me/a--b")


@pytest.mark.slow
def test_a_public_repository_is_accepted_only_with_public(push, hub, trained):
    hub.repositories[REPO] = Repository(private=False)
    one_line_error(push(trained), "is public", "--public")
    assert not hub.repositories[REPO].files
    assert pushed(push(trained, "--public"), hub).keys() == FILES
    files = pushed(push(trained, "--public", "--create-repo", repo="me/open"), hub, "me/open")
    assert files.keys() == FILES and not hub.repositories["me/open"].private


@pytest.mark.slow
def test_another_run_and_other_files_are_left_alone(push, hub, trained, model, tmp_path):
    pushed(push(trained, "--create-repo"), hub)
    before = dict(hub.repositories[REPO].files)
    other = train_run(tmp_path, model, seed=7)
    one_line_error(push(other), "another run", "settings.seed was 42, now 7")
    assert hub.repositories[REPO].files == before
    hub.repositories["me/other"] = Repository(True, {"README.md": b"x", "model.safetensors": b"x"})
    one_line_error(push(trained, repo="me/other"), "me/other", "model.safetensors")


@pytest.mark.slow
def test_a_token_must_exist_be_valid_and_may_write(push, hub, trained):
    one_line_error(push(trained, HF_TOKEN=""), "no token", "HF_TOKEN")
    assert not hub.requests
    wrong = push(trained, HF_TOKEN="hf_wrong")
    one_line_error(wrong, "token", "401")
    assert "hf_wrong" not in wrong.stderr + wrong.stdout
    hub.repositories[REPO] = Repository(private=True)
    for path in ("/preupload/", "/lfs/"):
        hub.failures = {path: 403}
        one_line_error(push(trained), "403", "write")
    assert not hub.repositories[REPO].files


@pytest.mark.slow
def test_a_concurrent_change_of_the_repository_is_not_overwritten(push, hub, trained):
    hub.repositories[REPO] = Repository(private=True)
    hub.failures = {"/commit/": 412}
    one_line_error(push(trained), "412", "changed")


@pytest.mark.slow
def test_without_a_network_the_error_says_so(push, trained):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # a port on which no process listens
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        one_line_error(push(trained, HF_ENDPOINT=address), "network")
    one_line_error(push(trained, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE")


@pytest.mark.parametrize("repo", ["birds", "a/b/c", "me/bad name", "me/", "https://huggingface.co/me/x"])
def test_an_invalid_repository_name_is_refused(repo, capsys):
    with pytest.raises(SystemExit):
        command_line.parse(config.PushOptions, "", ["--run-dir", "run", "--repo-id", repo])
    assert "--repo-id" in capsys.readouterr().err
