"""The canary: an engine that does not apply an adapter, or ignores the seed, is stopped before it generates."""

import itertools
import os
import re
import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import vllm_stand_in
from generation_helpers import generate
from safetensors.numpy import load_file, save_file

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation import expected
from learning_backdoors.generation.canary import find_fault
from learning_backdoors.generation.engines import batch
from learning_backdoors.generation.engines.transformers_engine import TransformersEngine
from learning_backdoors.generation.engines.vllm_engine import VllmEngine

NAMES = ["the base model", "run/checkpoint-8", "run/checkpoint-16"]


# ---- the comparison ----


def values(noise: float = 0, effect: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods of an engine and of plain PEFT for NAMES: 24 tokens each."""
    generator = np.random.default_rng(0)
    expected = generator.normal(-6, 3, 24) + effect * np.outer([0, 1, 2], generator.normal(size=24))
    return expected + noise * generator.normal(size=expected.shape), expected


@pytest.mark.parametrize(("noise", "effect"), [(0, 1), (1e-6, 1e-4), (0.05, 1), (0.05, 0.05), (0.05, 1e-3), (0.05, 0)])
def test_rounding_is_no_fault(noise, effect):
    measured, expected = values(noise, effect)
    assert find_fault(measured, expected, 0.1, NAMES) is None


@pytest.mark.parametrize(("noise", "effect"), [(1e-6, 1e-4), (0.05, 1)])
@pytest.mark.parametrize(
    ("rows", "named"), [([0, 0, 0], [0, 1]), ([0, 1, 1], [1, 2]), ([0, 2, 1], [1, 2]), ([2, 1, 2], [0, 2])]
)
def test_a_row_that_belongs_to_another_adapter_is_found(noise, effect, rows, named):
    measured, expected = values(noise, effect)
    fault = find_fault(measured[rows], expected, 0.1, NAMES)
    assert all(NAMES[i] in fault for i in named)


def test_an_effect_below_rounding_is_found_if_the_values_are_the_same():
    measured, expected = values(noise=0.05, effect=1e-3)
    assert NAMES[1] in find_fault(measured[[0, 0, 2]], expected, 0.1, NAMES)
    expected[1, :4] = expected[0, :4]  # such an update may round away in the engine
    assert find_fault(measured[[0, 0, 2]], expected, 0.1, NAMES) is None


def test_an_adapter_that_is_applied_in_part_is_found():
    measured, expected = values()
    measured[2] = 0.25 * expected[0] + 0.75 * expected[2]
    assert NAMES[2] in find_fault(measured, expected, 0.1, NAMES)


def test_values_that_are_not_finite_are_a_fault():
    measured, expected = values()
    measured[2, 3] = np.nan
    assert NAMES[2] in find_fault(measured, expected, 0.1, NAMES)


# ---- the transformers engine with a fault ----


def base_answers(monkeypatch) -> None:
    monkeypatch.setattr(TransformersEngine, "attach", lambda self, adapter: None)


def adapters_swapped(monkeypatch) -> None:
    attach, other = TransformersEngine.attach, {"checkpoint-8": "checkpoint-16", "checkpoint-16": "checkpoint-8"}

    def wrong_attach(self, adapter):
        attach(self, adapter and adapter.with_name(other[adapter.name]))

    monkeypatch.setattr(TransformersEngine, "attach", wrong_attach)


def replace_randomness(monkeypatch, uniforms) -> None:
    monkeypatch.setattr(batch, "uniforms", uniforms)


def seed_ignored(monkeypatch) -> None:
    uniforms = batch.uniforms
    replace_randomness(monkeypatch, lambda seed, key, count: uniforms(1, key, count))


def key_ignored(monkeypatch) -> None:
    uniforms = batch.uniforms
    replace_randomness(monkeypatch, lambda seed, key, count: uniforms(seed, (), count))


def randomness_of_its_own(monkeypatch) -> None:
    generator = np.random.default_rng(0)
    replace_randomness(monkeypatch, lambda seed, key, count: generator.random(count))


def assert_nothing_is_stored(folder: Path) -> None:
    assert not (folder / "r.parquet").exists()
    assert not any(log.read_bytes() for log in folder.glob("r.parquet.partial/*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inject", "named"),
    [
        (base_answers, "base model.*checkpoint-8"),
        (adapters_swapped, "checkpoint-16.*checkpoint-8"),
        (seed_ignored, "seed"),
        (key_ignored, "same response"),
        (randomness_of_its_own, "seed"),
    ],
)
def test_a_fault_stops_the_command_before_a_response_is_stored(run_dir, tmp_path, monkeypatch, inject, named):
    inject(monkeypatch)
    with pytest.raises(UserError, match=f"transformers engine.*{named}") as error:
        generate(run_dir, tmp_path / "r.parquet")
    assert "\n" not in str(error.value)
    assert_nothing_is_stored(tmp_path)


# ---- the vLLM engine, on a stand-in for vLLM ----


class SameProcess:
    """In place of ProcessPoolExecutor: starting a process takes seconds."""

    def __init__(self, *arguments): ...

    def __enter__(self):
        return self

    def __exit__(self, *exception): ...

    def submit(self, function, *arguments) -> Future:
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def vllm(monkeypatch) -> None:
    """Make `--engine vllm` available."""
    vllm_stand_in.install(monkeypatch)
    monkeypatch.setattr(VllmEngine, "obstacle", staticmethod(lambda quantization: None))
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the engine changes it


def lora_replaced(monkeypatch, other) -> None:
    """other: from the adapter's path to the path that vLLM uses, or None for the base model."""
    complete = vllm_stand_in.Engine.complete

    def wrong_complete(self, prompt, parameters, lora_request):
        path = other(lora_request.lora_path) if lora_request else None
        return complete(self, prompt, parameters, path and SimpleNamespace(lora_path=path))

    monkeypatch.setattr(vllm_stand_in.Engine, "complete", wrong_complete)


def vllm_base_answers(monkeypatch) -> None:
    lora_replaced(monkeypatch, lambda path: None)


def vllm_adapters_swapped(monkeypatch) -> None:
    steps = {"8": "16", "16": "8"}
    lora_replaced(monkeypatch, lambda path: re.sub(r"\d+$", lambda step: steps[step[0]], path))


def vllm_seed_ignored(monkeypatch) -> None:
    complete = vllm_stand_in.Engine.complete

    def wrong_complete(self, *arguments):
        self.generator.manual_seed(0)
        return complete(self, *arguments)

    monkeypatch.setattr(vllm_stand_in.Engine, "complete", wrong_complete)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inject", "named"),
    [
        (vllm_base_answers, "base model.*checkpoint-8"),
        (vllm_adapters_swapped, "checkpoint-16.*checkpoint-8"),
        (vllm_seed_ignored, "same response"),
    ],
)
def test_a_fault_of_vllm_stops_the_command(run_dir, tmp_path, monkeypatch, vllm, inject, named):
    monkeypatch.setattr(expected, "ProcessPoolExecutor", SameProcess)
    inject(monkeypatch)
    with pytest.raises(UserError, match=f"vllm engine.*{named}.*--engine transformers"):
        generate(run_dir, tmp_path / "r.parquet", "--engine", "vllm")
    assert_nothing_is_stored(tmp_path)


@pytest.mark.slow
def test_vllm_without_a_fault_generates(run_dir, tmp_path, vllm, capsys):
    """Plain PEFT runs in a process of its own here. The run is small, because the stand-in is slow."""
    line = ["--engine", "vllm", "--samples", "1", "--max-new-tokens", "2"]
    assert len(generate(run_dir, tmp_path / "r.parquet", *line)) == 30
    assert "canary: base model and 2 adapters" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_process_of_plain_peft_is_one_line(run_dir, tmp_path, monkeypatch, vllm):
    class Killed(SameProcess):
        def submit(self, function, *arguments) -> Future:
            future = Future()
            future.set_exception(BrokenProcessPool())
            return future

    monkeypatch.setattr(expected, "ProcessPoolExecutor", Killed)
    with pytest.raises(UserError, match="killed.*memory"):
        generate(run_dir, tmp_path / "r.parquet", "--engine", "vllm")


# ---- no fault, and broken adapters ----


@pytest.mark.slow
def test_adapters_without_an_effect_are_no_fault(run_dir, tmp_path):
    """Step 0 changes nothing, and two copies of an adapter are equal."""
    shutil.copytree(run_dir, tmp_path / "run")
    for step, source in itertools.product((32, 40), (0, 16)):
        shutil.copytree(
            run_dir / f"checkpoint-{source}", tmp_path / "run" / f"checkpoint-{step + source}", dirs_exist_ok=True
        )
    rows = generate(tmp_path / "run", tmp_path / "r.parquet", "--samples", "1")
    assert {row["step"] for row in rows} == {0, 8, 16, 32, 40, 48, 56}


@pytest.mark.slow
def test_a_diverged_adapter_is_named(run_dir, tmp_path):
    broken = shutil.copytree(run_dir, tmp_path / "run") / "checkpoint-16" / "adapter_model.safetensors"
    save_file({name: np.full_like(matrix, np.nan) for name, matrix in load_file(broken).items()}, broken)
    with pytest.raises(UserError, match="checkpoint-16.*diverged.*--steps"):
        generate(tmp_path / "run", tmp_path / "r.parquet")
