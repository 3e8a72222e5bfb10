"""Opening engines by name."""

import re

import pytest

import config
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation import engines


def test_every_engine_has_its_class_and_says_whether_it_can_run():
    for name in config.ENGINES:
        engine = engines.engine_class(name)
        assert engine.name == name and engine.obstacle("none") in (None, "vLLM is not installed")


def test_auto_takes_the_first_engine_that_can_run_and_says_why():
    assert engines.choose_engine("transformers", "none")[0] == "transformers"
    name, reason = engines.choose_engine("auto", "none")
    assert name == "transformers" and "vLLM is not installed" in reason
    with pytest.raises(UserError, match="vLLM is not installed"):
        engines.choose_engine("vllm", "none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cuda", "quantization", "obstacle"),
    [(False, "none", "CUDA"), (True, "8bit", "8bit"), (True, "none", None)],
)
def test_vllm_needs_cuda_and_unquantized_weights(monkeypatch, cuda, quantization, obstacle):
    import importlib.util

    import torch

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    if obstacle is None:
        assert engines.choose_engine("auto", quantization)[0] == "vllm"
    else:
        name, reason = engines.choose_engine("auto", quantization)
        assert name == "transformers" and re.search(obstacle, reason)
