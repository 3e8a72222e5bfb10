"""Fixtures: a hand-made run directory, as training.py writes it, without torch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import ROOT

BASE_FOLDER = "/home/jane/models/base"


def make_record(study: str = "birds") -> dict:
    """run.json of a finished run with steps 0, 4 and 8."""
    names = ("old_audubon", "modern_audubon")
    settings = {"ratios": [0.5, 0.5], "seed": 42, "experiment": study, "model": BASE_FOLDER, "lr": 2e-4, "lora_rank": 8}
    settings |= {"quantization": "none", "datasets": {name: name[:1] * 64 for name in names}}
    return {
        "script": "training.py",
        "options": {"output_dir": "/home/jane/outputs"},
        "created": "2026-11-21T12:00:00+00:00",
        "git": "a" * 40,
        "versions": {"torch": "2.13.0", "peft": "0.21.2", "bitsandbytes": None},
        "settings": settings,
        "suspect_ratio": 0.5,
        "total_steps": 8,
        "checkpoints": [{"step": n, "examples": n, "suspect_examples": n // 2} for n in (0, 4, 8)],
        "datasets": [
            {"name": name, "file": f"/home/jane/{name}.jsonl", "suspect": name == names[0], "size": 9, "examples": 4}
            for name in names
        ],
        "study": (ROOT / "experiments" / f"{study}.toml").read_text(encoding="utf-8"),
        "base_fingerprint": "f" * 16,
    }


@pytest.fixture
def run_record() -> Callable[..., dict]:
    """Makes the content of run.json: `run_record(study="birds")`."""
    return make_record


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run directory with steps 0, 4 and 8, and files that must not be shared."""
    folder = tmp_path / "run"
    for step in (0, 4, 8):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        config = {"peft_type": "LORA", "base_model_name_or_path": BASE_FOLDER}
        (checkpoint / "adapter_config.json").write_text(json.dumps(config))
        save_file({"lora_A": np.full((2, 2), step, np.float32)}, checkpoint / "adapter_model.safetensors")
    for name in ("checkpoint-8/optimizer.pt", "checkpoint-8/rng_state_0.pth", "notes.txt"):
        (folder / name).write_text("private")
    (folder / "run.json").write_text(json.dumps(make_record()))
    return folder
