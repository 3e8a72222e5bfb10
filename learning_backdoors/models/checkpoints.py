"""The checkpoints of a run directory. Each is a folder with a PEFT adapter, or with the place of one on a server."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from learning_backdoors.files import atomic, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.parquet import step_of
from learning_backdoors.models.remote_checkpoint import is_remote, read_remote

# The two files of a PEFT adapter.
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# The projections that get LoRA matrices. Supporting an architecture with other names starts here.
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Files in the newest checkpoint of an unfinished run only: what exact resuming needs.
RESUME_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
# The same for an unfinished run of a sweep. It lies in the run directory, as it may be newer than every checkpoint.
SWEEP_RESUME_FILE = "resume.safetensors"


# ---- reading ----


@dataclass(frozen=True)
class Checkpoint:
    """A state of a run. `folder` holds its adapter, or its place on a server; None stands for the base model."""

    step: int
    name: str
    folder: Path | None


def find_checkpoints(run_dir: Path, steps: tuple[int, ...] | None = None) -> list[Checkpoint]:
    """The checkpoints of a run by step, with the base model as step 0. Raises UserError if there are none.

    steps: only these. Raises UserError if one of them is absent.
    """
    if not run_dir.is_dir():
        raise UserError(f"no run directory {run_dir}")
    folders = [f for f in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", f.name)]
    by_step = {step: folder for folder in folders if (step := step_of(folder.name)) is not None}
    if not by_step:
        raise UserError(f"{run_dir} holds no checkpoints")
    for folder in by_step.values():
        base_name(folder)
    by_step = {0: None} | by_step
    if absent := sorted(set(steps or ()) - by_step.keys()):
        raise UserError(f"{run_dir} has no step {absent[0]}; its steps are {', '.join(map(str, sorted(by_step)))}")
    return [Checkpoint(step, f"checkpoint-{step}", by_step[step]) for step in sorted(set(steps or by_step))]


def has_adapter(folder: Path) -> bool:
    """Whether a checkpoint's weights are here, and not on a server only."""
    return (folder / ADAPTER_WEIGHTS).is_file() or not is_remote(folder)


def require_files(folder: Path) -> None:
    """Raise UserError if a checkpoint's weights are on a server only."""
    if not has_adapter(folder):
        raise UserError(
            f"the adapter of {folder} is on a server: only generate_responses.py --engine tinker can use it"
        )


def base_name(folder: Path) -> str | None:
    """The base model that a checkpoint names. Raises UserError if the checkpoint cannot be read."""
    if has_adapter(folder):
        return check_adapter(folder).get("base_model_name_or_path")
    return read_remote(folder).base_model


def content_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights. If they are on a server only: of their path there, which is never reused."""
    if has_adapter(folder):
        return provenance.sha256(folder / ADAPTER_WEIGHTS)
    return provenance.sha256(read_remote(folder).sampler_path.encode())


def check_adapter(folder: Path) -> dict:
    """The adapter's configuration. Raises UserError if `folder` holds no readable PEFT adapter."""
    from safetensors import SafetensorError

    require_files(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no adapter: {name} is missing")
    try:
        adapter_keys(folder)
        settings = json.loads((folder / ADAPTER_CONFIG).read_text())
        if not isinstance(settings, dict) or "peft_type" not in settings:
            raise ValueError(f"{ADAPTER_CONFIG} has no peft_type")
        return settings
    except (SafetensorError, ValueError) as error:
        raise UserError(f"the adapter in {folder} cannot be read: {error}") from None


def adapter_keys(folder: Path) -> list[str]:
    """The names of the tensors in an adapter."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as file:
        return list(file.keys())


def have_same_form(first: Path, second: Path) -> bool:
    """Whether two adapters have equal configurations and tensor names, so that they differ in their values only."""
    return check_adapter(first) == check_adapter(second) and set(adapter_keys(first)) == set(adapter_keys(second))


def changes_nothing(folder: Path) -> bool:
    """Whether an adapter leaves the base model as it is: all its B matrices are zero, as at step 0."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        return not any(file.get_tensor(key).any() for key in file.keys() if ".lora_B." in key)  # noqa: SIM118


# ---- writing ----


def lora_config(rank: int, alpha: float, dropout: float, base_name: str | None = None):
    """PEFT's configuration of the adapters that training makes. PEFT fills in the base model's name if it is None."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=PROJECTIONS,
        base_model_name_or_path=base_name,
    )


def lora_state(model) -> dict:
    """The LoRA matrices of a PEFT model, by their names in files."""
    state = model.state_dict()
    return {name.replace(".default.", "."): tensor for name, tensor in state.items() if ".lora_" in name}


def save_adapter(model, folder: Path, lora: dict | None = None) -> None:
    """Write a PEFT model's adapter into `folder`, without any weights of the base model.

    lora: the matrices to write, if they are not the model's current ones.
    """
    write_adapter(folder, model.peft_config["default"], lora or lora_state(model))


def write_adapter(folder: Path, config, lora: dict) -> None:
    """Write LoRA matrices, by their names in files, and their PEFT configuration into `folder`."""
    from safetensors.numpy import save_file  # the function for torch writes the same bytes in twice the time

    settings = config.to_dict() | {"inference_mode": True}  # as PEFT writes it
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, in random order
    atomic.write_json(folder / ADAPTER_CONFIG, dict(sorted(settings.items())))
    arrays = {name: tensor.numpy(force=True) for name, tensor in lora.items()}
    save_file(arrays, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def can_resume(checkpoint: Path | None) -> bool:
    """Whether a checkpoint holds everything that exact resuming needs."""
    return checkpoint is not None and all((checkpoint / name).is_file() for name in RESUME_FILES)


def drop_resume_files(run_dir: Path, except_step: int | None = None) -> None:
    """Leave only adapters in a run's checkpoints, but keep all files in the one of `except_step`."""
    for file in run_dir.glob(f"*{SWEEP_RESUME_FILE}*"):  # also parts that a kill left behind
        file.unlink()
    for file in run_dir.glob("checkpoint-*/*"):
        is_resume_file = file.name in RESUME_FILES or file.name.startswith("rng_state")
        if is_resume_file and file.parent.name != f"checkpoint-{except_step}":
            file.unlink()


def begin_checkpoint(run_dir: Path, step: int, main: bool = True) -> Path:
    """The folder that `end_checkpoint` will rename. Of several processes, only the main one creates it.

    An older checkpoint of this step, from a start that resumed before it, is deleted.
    """
    temporary, older = run_dir / f".checkpoint-{step}.tmp", run_dir / f"checkpoint-{step}"
    if main:
        shutil.rmtree(temporary, ignore_errors=True)
        if older.exists():  # not deleted in place: a kill would leave half of it under its name
            older.rename(temporary)
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
    return temporary


def end_checkpoint(temporary: Path, run_dir: Path, step: int) -> None:
    """Flush a filled folder to disk and give it its final name: a checkpoint is complete or absent."""
    atomic.sync_files(temporary)
    temporary.rename(run_dir / f"checkpoint-{step}")
    atomic.sync_folder(run_dir)
