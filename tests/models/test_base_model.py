"""learning_backdoors/models/base_model.py: loading base models, and telling them apart."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import build_model

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, devices


def test_fingerprints_differ_between_base_models_and_survive_a_move(random_model, tmp_path):
    moved, other = tmp_path / "moved", build_model(tmp_path / "other", initializer_range=0.5)
    shutil.copytree(random_model, moved)
    tokenizer = base_model.load_tokenizer(str(random_model))
    first, same, different = (base_model.fingerprint(str(f), tokenizer) for f in (random_model, moved, other))
    assert first == same != different
    tokenizer.chat_template += " "
    assert base_model.fingerprint(str(random_model), tokenizer) != first


def test_sharding_does_not_change_the_fingerprint(random_model, tmp_path):
    base_model.load_base(str(random_model), "none").save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    tokenizer = base_model.load_tokenizer(str(random_model))
    sharded, whole = (base_model.fingerprint(str(folder), tokenizer) for folder in (tmp_path, random_model))
    assert sharded == whole


def test_unsupported_and_missing_models_are_one_line(random_model, tmp_path):
    save_file({"transformer.wte.weight": np.zeros((4, 4))}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="embed_tokens"):
        base_model.fingerprint(str(tmp_path), base_model.load_tokenizer(str(random_model)))
    with pytest.raises(UserError, match="nothing") as caught:
        base_model.load_tokenizer(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)
    for folder in ("my/models/qwen", "./qwen", str(tmp_path / "nothing")):
        with pytest.raises(UserError, match=f"{folder}.* no such folder$"):
            base_model.load_tokenizer(folder)


@pytest.mark.parametrize(("limit", "variable", "threads"), [(1e9, None, [1]), (0, None, []), (1e9, "2", [])])
def test_a_small_model_runs_in_one_thread_unless_the_user_decides(random_model, monkeypatch, limit, variable, threads):
    chosen = []
    monkeypatch.setattr(devices, "ONE_THREAD_BELOW", limit)
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", variable or "")
    base_model.load_base(str(random_model), "none")
    assert chosen == threads
