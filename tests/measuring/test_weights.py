"""measure_checkpoints.py weights: one row per checkpoint and part of the model; a run is measured as a whole."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import measure_checkpoints
from learning_backdoors.files import parquet
from learning_backdoors.files.errors import UserError

MODULES = {"model.layers.0.self_attn.q_proj": (6, 5), "model.layers.1.mlp.up_proj": (8, 5)}


def write_checkpoint(run, step, seed=0, **more):
    """An adapter of rank 2. more: further tensors."""
    random, tensors = np.random.default_rng([seed, step]), dict(more)
    for module, (out, into) in MODULES.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ones((2, into), np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = random.standard_normal((out, 2)).astype(np.float32)
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "lora_alpha": 4, "base_model_name_or_path": "org/model"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")


def cosine(*folders) -> float:
    """Between the full updates of two adapters of equal scale."""
    updates = []
    for folder in folders:
        tensors = load_file(folder / "adapter_model.safetensors")
        names = sorted(name for name in tensors if ".lora_B." in name)
        parts = [tensors[name].astype(float) @ tensors[name.replace("lora_B", "lora_A")] for name in names]
        updates.append(np.concatenate([part.ravel() for part in parts]))
    return updates[0] @ updates[1] / np.linalg.norm(updates[0]) / np.linalg.norm(updates[1])


def measure(monkeypatch, capsys, output, *arguments):
    """The table after a command, and what it printed."""
    line = ["measure_checkpoints.py", "weights", "--experiment", "birds", "--output", str(output), *map(str, arguments)]
    monkeypatch.setattr("sys.argv", line)
    measure_checkpoints.main()
    return parquet.read_rows(output, parquet.WEIGHTS_SCHEMA).to_pandas(), capsys.readouterr().out


def test_runs_are_added_and_a_run_with_other_checkpoints_is_refused(tmp_path, monkeypatch, capsys):
    first, second, output = tmp_path / "seed1", tmp_path / "seed2", tmp_path / "weights.parquet"
    for run, steps in ((first, (20, 40)), (second, (20,))):
        for step in steps:
            write_checkpoint(run, step)
    table, _ = measure(monkeypatch, capsys, output, "--run-dir", first)
    assert len(table) == 3 * 3  # the base model and two checkpoints; two parts and the whole model
    assert table["norm"][table["step"] == 0].eq(0).all() and table["norm"][table["step"] > 0].gt(0).all()
    whole, parts = table[table["projection"] == "all"], table[table["projection"] != "all"]
    assert whole["norm"].to_numpy() ** 2 == pytest.approx(parts.groupby("step")["norm"].agg(lambda x: (x**2).sum()))
    assert set(zip(parts["layer"], parts["projection"], strict=True)) == {(0, "q_proj"), (1, "up_proj")}

    table, printed = measure(monkeypatch, capsys, output, "--run-dir", first, second)
    assert "1 already measured" in printed
    assert table.groupby("run")["step"].unique().map(list).to_dict() == {"seed1": [0, 20, 40], "seed2": [0, 20]}

    footer = parquet.read_footer(output)["final_cosines"]
    assert footer["seed1"]["seed1"] == pytest.approx(1) and footer["seed2"].keys() == {"seed1", "seed2"}
    assert footer["seed1"]["seed2"] == pytest.approx(cosine(first / "checkpoint-40", second / "checkpoint-20"))

    write_checkpoint(second, 40)  # the last update is another one now, so every row of the run would change
    with pytest.raises(UserError, match="seed2.*--overwrite"):
        measure(monkeypatch, capsys, output, "--run-dir", first, second)
    table, _ = measure(monkeypatch, capsys, output, "--run-dir", first, second, "--overwrite")
    assert len(table) == 2 * 3 * 3


@pytest.mark.parametrize("bad", [(40,), (20, 40)])
def test_a_checkpoint_with_values_that_are_not_finite_is_left_out_and_named(tmp_path, monkeypatch, capsys, bad):
    for step in (20, 40):
        write_checkpoint(tmp_path / "whole", step)
        write_checkpoint(tmp_path / "diverged", step)
    for step in bad:
        file = tmp_path / "diverged" / f"checkpoint-{step}" / "adapter_model.safetensors"
        save_file({name: tensor * np.float32("inf") for name, tensor in load_file(file).items()}, file)
    runs = ("--run-dir", tmp_path / "whole", tmp_path / "diverged")
    table, printed = measure(monkeypatch, capsys, tmp_path / "w.parquet", *runs)
    assert all(f"diverged/checkpoint-{step}" in printed for step in bad) and "diverged/checkpoint-0" not in printed
    values = table.set_index(["run", "step"]).drop(columns=["experiment", "checkpoint", "layer", "projection"])
    measured = values.drop(columns=["seed", "suspect_ratio", "examples_seen", "suspect_seen"])
    of_diverged = measured.loc["diverged"]
    assert measured.loc["whole", "norm"].notna().all() and of_diverged.loc[list(bad)].isna().all(axis=None)
    assert of_diverged.drop(list(bad))["norm"].notna().all()


def test_tensors_that_are_not_measured_are_named(tmp_path, monkeypatch, capsys):
    write_checkpoint(tmp_path / "run", 20, **{"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)})
    _, printed = measure(monkeypatch, capsys, tmp_path / "w.parquet", "--run-dir", tmp_path / "run")
    assert "lm_head.weight" in printed
