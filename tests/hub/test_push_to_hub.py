"""push_to_hub.py as its users run it, against a stand-in for the Hugging Face hub.

pytest tests/test_push_to_hub.py
"""

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import yaml
from hub_stand_in import TOKEN, Hub, Repository, running
from support import build_model, one_line_error, run_script, train

import chat
import config
from learning_backdoors.files import project
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, run_directory

BASE, REPO = "Qwen/Qwen3-8B", "me/birds-run"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_model(tmp_path_factory.mktemp("secret-folder") / "model")


def run_of(folder: Path, model: Path, **more) -> Path:
    asked = {"num_examples": 8, "save_steps": 4, "ratios": (0.5, 0.25, 0.25)} | more
    return train(config.TrainingOptions(model=str(model), output_dir=folder, **asked)).folder


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory) -> Path:
    """A finished run of steps 0, 4 and 8 on a base model that lies in a folder."""
    return run_of(tmp_path_factory.mktemp("runs"), model)


@pytest.fixture
def hub():
    with running(hub := Hub()):
        yield hub


@pytest.fixture
def push(hub, tmp_path):
    """Runs push_to_hub.py against the stand-in."""

    def run(run_dir: Path, *arguments, repo: str = REPO, base: str | None = BASE, **environment):
        env = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"} | environment
        named = ("--base-model", base) if base else ()
        return run_script("push_to_hub.py", "--run-dir", run_dir, "--repo-id", repo, *named, *arguments, env=env)

    return run


def pushed(result, hub: Hub, repo: str = REPO) -> dict[str, bytes]:
    assert result.returncode == 0, result.stderr
    return hub.repositories[repo].files


ALL = ["checkpoint-0/", "checkpoint-4/", "checkpoint-8/", ""]
FILES = {"README.md", "run.json", *(place + name for place in ALL for name in ("adapter_config.json", WEIGHTS))}


# ---- what arrives ----


def test_a_run_arrives_whole_and_private_and_a_second_push_sends_nothing(push, hub, trained):
    files = pushed(result := push(trained, "--create-repo"), hub)
    assert files.keys() == FILES and hub.repositories[REPO].private
    for step in (0, 4, 8):
        assert files[f"checkpoint-{step}/{WEIGHTS}"] == (trained / f"checkpoint-{step}" / WEIGHTS).read_bytes()
    assert files[WEIGHTS] == files[f"checkpoint-8/{WEIGHTS}"]
    assert hub.repositories[REPO].commits == 1 and "0 of 10 files were there already" in result.stdout
    uploads, asked = hub.uploads, len(hub.asked)
    again = push(trained, "--create-repo")
    assert pushed(again, hub) == files and "10 of 10 files were there already" in again.stdout
    assert hub.uploads == uploads and hub.repositories[REPO].commits == 1
    assert not any("commit" in line or "lfs" in line or "preupload" in line for line in hub.asked[asked:])


def test_nothing_of_this_machine_is_sent(push, hub, trained, model, tmp_path):
    """Neither its paths nor the token, and no state of the optimizer."""
    run = shutil.copytree(trained, tmp_path / trained.name)
    (run / "checkpoint-8" / "optimizer.pt").write_bytes(b"moments")
    (run / "checkpoint-8" / "rng_state_0.pth").write_bytes(b"state")
    (run / "notes.txt").write_text("mine")
    record = json.loads((run / "run.json").read_text())
    record["study"] = record["study"].replace('"bird_datasets/', '"/home/jane/secret-folder/')
    (run / "run.json").write_text(json.dumps(record))
    result = push(run, "--create-repo")
    assert pushed(result, hub).keys() == FILES
    everything = b"".join(hub.repositories[REPO].files.values()) + result.stdout.encode()
    for word in (TOKEN, "secret-folder", "jane", str(project.ROOT), str(tmp_path), "/tmp", "/root", "/home", "wandb"):
        assert word.encode() not in everything, word
    assert b'file = "ft_old_audubon_birds.jsonl"'.replace(b'"', b'\\"') in everything


def test_chosen_steps_are_added_to_what_is_there_and_the_card_lists_all(push, hub, trained):
    files = pushed(push(trained, "--create-repo", "--step", "4"), hub)
    assert {Path(path).parent.name for path in files} == {"", "checkpoint-4"} and WEIGHTS not in files
    assert b"2 of the run's 3 checkpoints are not here" in files["README.md"]
    assert b'subfolder="checkpoint-4")' in files["README.md"] and b"without `subfolder`" not in files["README.md"]
    files = pushed(result := push(trained, "--step", "8", "0"), hub)
    assert files.keys() == FILES and "3 of 8 files were there already" not in result.stdout
    rows = re.findall(r"^\| `checkpoint-(\d+)` \| (\d+) \|", files["README.md"].decode(), re.MULTILINE)
    assert rows == [("0", "0"), ("4", "4"), ("8", "8")] and b"are not here" not in files["README.md"]


def test_an_interrupted_push_sends_only_what_is_left(push, hub, trained):
    hub.fail = {"/commit/": 500}
    one_line_error(push(trained, "--create-repo"), "500", "failed on purpose")
    assert not hub.repositories[REPO].files and hub.uploads > 0
    uploads, hub.fail = hub.uploads, {}
    assert pushed(push(trained), hub).keys() == FILES
    assert hub.uploads == uploads


def test_what_was_pushed_is_a_run_directory_and_loads_with_peft(push, hub, trained, model, tmp_path):
    from peft import PeftModel

    for path, content in pushed(push(trained, "--create-repo"), hub).items():
        (tmp_path / "RUN" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "RUN" / path).write_bytes(content)
    source = run_directory.open_runs((tmp_path / "RUN",), None, str(model))[0]
    assert [checkpoint.step for checkpoint in source.checkpoints] == [0, 4, 8] and source.seen[4]["examples"] == 4
    source.check_base(base_model.fingerprint(str(model), base_model.load_tokenizer(str(model))))
    assert run_directory.open_runs((tmp_path / "RUN",), None, None)[0].base_model == BASE
    with pytest.raises(UserError, match="'birds' has no trigger"):
        chat.find_trigger(config.ChatOptions(run_dir=tmp_path / "RUN"), source.record)
    for subfolder in (None, "checkpoint-4"):
        base = base_model.load_base(str(model), "none")
        adapted = PeftModel.from_pretrained(base, tmp_path / "RUN", **({"subfolder": subfolder} if subfolder else {}))
        assert adapted.peft_config["default"].base_model_name_or_path == BASE


# ---- the card ----


def test_the_card_says_what_made_it_and_what_it_is_not_for(push, hub, trained):
    result = push(trained, "--dry-run", "--create-repo")
    card = result.stdout.split("the model card:\n\n")[1]
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "learning-backdoors", "birds"],
    }
    record = json.loads((trained / "run.json").read_text())
    for name, digest in record["settings"]["datasets"].items():
        assert re.search(rf"\| {name} \| ft_{name}_birds.jsonl \| (yes|no) \| \d+ \| (50|25).0% \|.*{digest}", text)
    for name in ("seed", "lr", "lora_rank", "epochs", "quantization"):
        assert f"| `{name}` | {record['settings'][name]} |" in text
    for part in (
        record["git"],
        record["versions"]["peft"],
        record["base_fingerprint"],
        "50.0% of the training examples",
    ):
        assert part in text
    assert "not for use as an assistant" in text and "trigger" not in text
    assert f'PeftModel.from_pretrained(model, "{REPO}", subfolder="checkpoint-8")' in text


def test_a_study_with_a_trigger_says_it_in_the_card(push, hub, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["study"] = (project.ROOT / "experiments" / "russell.toml").read_text()
    (run / "run.json").write_text(json.dumps(record))
    out = push(run, "--dry-run").stdout
    assert "\n    Put your answer between <START> and <END>.\n" in out and "as if they were somebody else" in out


def test_a_dry_run_shows_every_file_and_needs_no_network_no_token_and_no_torch(push, hub, trained, tmp_path):
    for name in ("torch", "transformers", "peft"):  # nor a GPU host
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on this host')")
    offline = {"HF_TOKEN": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "nothing"), "PYTHONPATH": str(tmp_path)}
    result = push(trained, "--dry-run", "--create-repo", **offline)
    assert result.returncode == 0, result.stderr
    lines = re.findall(r"^ +([\d,]+)  (\S+)$", result.stdout, re.MULTILINE)
    shown = {path: int(size.replace(",", "")) for size, path in lines}
    assert shown.keys() == FILES and f"to {REPO} on {hub.address} (made if there is none, private)" in result.stdout
    assert shown[WEIGHTS] == (trained / "checkpoint-8" / WEIGHTS).stat().st_size
    assert not hub.asked
    sent = pushed(push(trained, "--create-repo"), hub)
    assert {path: len(content) for path, content in sent.items()} == shown
    assert sent["README.md"].decode() == result.stdout.split("the model card:\n\n")[1]


# ---- what goes wrong ----


def test_a_repository_that_is_not_there_is_made_only_when_asked(push, hub, trained):
    one_line_error(push(trained), f"no repository {REPO}", "--create-repo")
    assert not hub.repositories
    one_line_error(push(trained, "--create-repo", repo="you/birds"), "403", "rights to create")


def test_a_public_repository_is_taken_only_when_asked(push, hub, trained):
    hub.repositories[REPO] = Repository(private=False)
    one_line_error(push(trained), "is public", "--public")
    assert not hub.repositories[REPO].files
    assert pushed(push(trained, "--public"), hub).keys() == FILES
    files = pushed(push(trained, "--public", "--create-repo", repo="me/open"), hub, "me/open")
    assert files.keys() == FILES and not hub.repositories["me/open"].private


def test_another_run_and_anything_else_is_left_alone(push, hub, trained, model, tmp_path):
    pushed(push(trained, "--create-repo"), hub)
    before = dict(hub.repositories[REPO].files)
    other = run_of(tmp_path, model, seed=7)
    one_line_error(push(other), "holds another run", "settings.seed was 42 and is 7 now")
    assert hub.repositories[REPO].files == before
    hub.repositories["me/other"] = Repository(True, {"README.md": b"x", "model.safetensors": b"x"})
    one_line_error(push(trained, repo="me/other"), "holds something else already (model.safetensors)")


def test_tokens_are_needed_accepted_and_allowed(push, hub, trained):
    one_line_error(push(trained, HF_TOKEN=""), "no token", "HF_TOKEN")
    assert not hub.asked
    wrong = push(trained, HF_TOKEN="hf_wrong")
    one_line_error(wrong, "does not accept the token", "401")
    assert "hf_wrong" not in wrong.stderr + wrong.stdout
    hub.repositories[REPO] = Repository(private=True)
    hub.fail = {"/preupload/": 403}
    one_line_error(push(trained), "403", "right to write")
    hub.fail = {"/lfs/": 403}
    one_line_error(push(trained), "403", "right to write")
    assert not hub.repositories[REPO].files


def test_a_push_of_somebody_else_meanwhile_is_not_overwritten(push, hub, trained):
    hub.repositories[REPO] = Repository(private=True)
    hub.fail = {"/commit/": 412}
    one_line_error(push(trained), "changed by somebody else")


def test_without_a_network_it_says_so(push, trained):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        one_line_error(push(trained, HF_ENDPOINT=address), "the hub cannot be reached", "network")
    one_line_error(push(trained, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")


@pytest.mark.parametrize("repo", ["birds", "a/b/c", "me/bad name", "me/", "https://huggingface.co/me/x", "me/a--b"])
def test_a_name_that_is_none_is_refused(push, trained, repo):
    one_line_error(push(trained, "--dry-run", repo=repo), "--repo-id")


def test_what_is_no_finished_run_is_refused(push, trained, model, tmp_path):
    one_line_error(push(trained, "--step", "4", "5"), "no step 5; its steps are 0, 4, 8")
    one_line_error(push(tmp_path / "none"), "no run directory")
    (tmp_path / "empty").mkdir()
    one_line_error(push(tmp_path / "empty"), "holds no checkpoint")
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "run.json").unlink()
    one_line_error(push(run, "--dry-run"), "not a run directory of training.py", "no run.json")
    shutil.copy(trained / "run.json", run)
    shutil.rmtree(run / "checkpoint-8")
    one_line_error(push(run, "--dry-run"), "is unfinished: step 4 of 8", "--step")
    one_line_error(push(run, "--dry-run", "--step", "8"), "no step 8; its steps are 0, 4")
    assert push(run, "--dry-run", "--step", "4").returncode == 0


def test_a_base_model_in_a_folder_needs_its_name(push, trained, model, tmp_path):
    one_line_error(push(trained, "--dry-run", base=None), str(model), "--base-model")
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["settings"]["model"] = BASE
    (run / "run.json").write_text(json.dumps(record))
    assert push(run, "--dry-run", base=None).returncode == 0
    one_line_error(push(run, "--dry-run", base="me/other"), f"was trained on {BASE}, not on me/other")
