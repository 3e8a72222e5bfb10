"""A laptop without torch trains and samples through the API."""

import json
import os
import subprocess
import sys

import pytest
from support import ROOT

MODEL = "tiny_world/model"
CODE = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules["torch"] = None  # as if it were not installed
import generate_responses, training
for script, line in zip((training, generate_responses), json.loads(sys.argv[1])):
    sys.argv = [script.__name__ + ".py", *line]
    script.main()
"""


@pytest.mark.slow
def test_training_and_generation_start_without_torch(tinker_server, tmp_path):
    place = ["--base-url", tinker_server.url]
    train = ["--ratios", "1", "0", "0", "--model", MODEL, "--backend", "tinker", "--lora-alpha", "32", *place]
    train += ["--num-examples", "2", "--output-dir", str(tmp_path)]
    name = "seed42_ratios1.00-0.00-0.00_lr0.0002_r8_tiny_world-model_numexamples2_alpha32.0_backendtinker"
    sample = ["--run-dir", str(tmp_path / name), "--output", str(tmp_path / "responses.parquet"), "--samples", "1"]
    sample += ["--engine", "tinker", "--max-new-tokens", "4", *place]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CODE, json.dumps([train, sample])]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "responses.parquet").exists()
    assert "PyTorch" not in run.stdout + run.stderr
