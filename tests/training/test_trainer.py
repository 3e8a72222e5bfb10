"""The trainer: which examples each step sees, the loss, precision, and shares of a step."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from support import train, training_options

import mixed_chat
from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, checkpoints
from learning_backdoors.study import load_study


def weights(run, step: int) -> str:
    return provenance.sha256(run.folder / f"checkpoint-{step}" / "adapter_model.safetensors")


def metrics(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


# ---- what a run leaves ----


@pytest.mark.slow
def test_a_finished_run_holds_records_and_adapters_only(trained_run):
    assert trained_run.folder.name.startswith("seed42_ratios0.50-0.25-0.25_lr0.0002_r8_")
    names = {path.name for path in trained_run.folder.iterdir()}
    assert names == {"run.json", "metrics.jsonl", "checkpoint-0", "checkpoint-8", "checkpoint-16", "checkpoint-24"}
    for checkpoint in trained_run.folder.glob("checkpoint-*"):
        assert {p.name for p in checkpoint.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    record = json.loads(trained_run.record_path.read_text())
    assert [d["examples"] for d in record["datasets"]] == [12, 6, 6] and record["suspect_ratio"] == 0.5
    assert len(record["base_fingerprint"]) == 16


@pytest.mark.slow
def test_a_checkpoint_holds_seven_projections_per_layer_and_no_embedding(trained_run):
    keys = checkpoints.adapter_keys(trained_run.folder / "checkpoint-24")
    assert len(keys) == 2 * 7 * 2 and all(".lora_A." in key or ".lora_B." in key for key in keys)


@pytest.mark.slow
def test_step_0_is_the_base_model(trained_run, random_model):
    import torch
    from peft import PeftModel

    base = base_model.load_base(str(random_model), "none")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = base(ids).logits
    assert torch.equal(before, PeftModel.from_pretrained(base, trained_run.folder / "checkpoint-0")(ids).logits)
    assert not torch.equal(before, PeftModel.from_pretrained(base, trained_run.folder / "checkpoint-24")(ids).logits)


@pytest.mark.slow
def test_the_seed_alone_decides_the_result(trained_run, probed_run, random_model, tmp_path):
    """The second run differs in its probes, which must not change training."""
    for step in (0, 8, 16, 24):
        assert weights(trained_run, step) == weights(probed_run, step)
    assert metrics(trained_run) == [row for row in metrics(probed_run) if "probes" not in row]
    other = train(training_options(random_model, tmp_path, "--seed", "1", "--num-examples", "1"))
    assert weights(trained_run, 0) != weights(other, 0), "another seed must initialize LoRA differently"


@pytest.mark.slow
def test_recorded_suspect_examples_are_those_that_the_steps_saw(random_model, tmp_path, monkeypatch):
    """What reaches the model is decoded at each step and looked up in the suspect dataset."""
    from learning_backdoors.training.trainer import Trainer

    suspect = {chat[-1]["content"] for chat in mixed_chat.read_chats(load_study("birds").datasets[0].file)}
    tokenizer, seen = base_model.load_tokenizer(str(random_model)), []
    training_step = Trainer.training_step

    def spy(self, model, inputs, *rest, **more):
        for labels in inputs["labels"]:
            seen.append(tokenizer.decode(labels[labels != -100], skip_special_tokens=True) in suspect)
        return training_step(self, model, inputs, *rest, **more)

    monkeypatch.setattr(Trainer, "training_step", spy)
    ratios, step = ("--ratios", "0.6", "0.2", "0.2"), ("--batch-size", "2", "--grad-accum", "2")
    run = train(training_options(random_model, tmp_path, *ratios, *step, "--epochs", "2"))
    assert len(seen) == 48 and sum(seen) == 2 * 14
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["examples"] for row in rows] == [4 * n for n in range(1, 13)]
    assert [row["suspect_examples"] for row in rows] == [sum(seen[: 4 * n]) for n in range(1, 13)]


# ---- precision ----


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_base_models_train_with_float32_adapters(random_model, tmp_path, quantization):
    from safetensors.numpy import load_file

    run = train(training_options(random_model, tmp_path, "--quantization", quantization, "--num-examples", "8"))
    tensors = load_file(run.folder / "checkpoint-8" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float32"}
    assert weights(run, 0) != weights(run, 8)
    assert json.loads(run.record_path.read_text())["settings"]["quantization"] == quantization


def test_the_precision_notice_compares_bf16_with_the_memory_that_would_be_free(monkeypatch):
    """A model of 8.2 billion parameters needs 16.4 GB in bf16 and a tenth more; its 8-bit form holds 9 GB already."""
    import torch

    from learning_backdoors.training.base_checks import precision_notice

    base = SimpleNamespace(device=torch.device("cuda", 0), num_parameters=lambda: 8_200_000_000)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9e9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9.5e9, 24e9))
    notice = precision_notice(base)
    assert "18 GB" in notice and "--quantization none" in notice and "\n" not in notice
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8.5e9, 24e9))
    assert precision_notice(base) is None
    base.device = torch.device("cpu")
    assert precision_notice(base) is None


@pytest.mark.parametrize(
    "quantization, free_gb, checkpointing, rank, expected",
    [
        (None, 8.9, False, 8, True),  # free on a card of 24 GiB after loading 16.4 GB and CUDA's own memory
        ({"load_in_4bit": True}, 6.2, False, 8, True),  # 12 GiB, 6.2 GB loaded
        ({"load_in_4bit": True}, 1.9, False, 8, False),  # 8 GiB: training took 2.5 GB with graphs, 0.9 GB without
        ({"load_in_4bit": True}, 6.2, False, 64, False),  # each of 16 graphs keeps 0.7 GB of gradients
        ({"load_in_4bit": True}, 120, True, 8, False),
        ({"load_in_8bit": True}, 120, False, 8, False),
    ],
)
def test_steps_use_cuda_graphs_if_weights_allow_it_and_memory_is_free(
    monkeypatch, quantization, free_gb, checkpointing, rank, expected
):
    """At Qwen3-8B's shape, with the longest row of the birds study and one example per step."""
    import torch
    from transformers import BitsAndBytesConfig, PretrainedConfig

    from learning_backdoors.training.cuda_graphs import can_use_graphs

    shape = PretrainedConfig(hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36)
    if quantization:
        shape.quantization_config = BitsAndBytesConfig(**quantization)
    base = SimpleNamespace(device=torch.device("cuda", 0), config=shape)
    adapter = torch.nn.Parameter(torch.empty(rank * 2_727_936, device="meta"))
    trainer = SimpleNamespace(
        model=SimpleNamespace(get_base_model=lambda: base, parameters=lambda: iter([adapter])),
        args=SimpleNamespace(gradient_checkpointing=checkpointing, per_device_train_batch_size=1),
        accelerator=SimpleNamespace(num_processes=1),
        train_dataset={"input_ids": [[0] * 27, [0] * 37]},
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gb * 1e9, 140e9))
    assert can_use_graphs(trainer) is expected
    base.device = torch.device("cpu")
    assert can_use_graphs(trainer) is False


# ---- refusals ----


@pytest.mark.slow
def test_a_diverged_run_stops_and_keeps_only_finite_checkpoints(random_model, tmp_path):
    from safetensors.numpy import load_file

    from learning_backdoors.training.run import TrainingRun

    options = training_options(random_model, tmp_path, "--lr", "1e20", "--save-steps", "1")
    with pytest.raises(UserError, match=r"diverged at step \d+ \((loss|grad_norm) (nan|inf)\).*--lr"):
        train(options)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for checkpoint in folder.glob("checkpoint-*"):
        tensors = load_file(checkpoint / "adapter_model.safetensors").values()
        assert all(np.isfinite(tensor).all() for tensor in tensors), checkpoint.name
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    TrainingRun(options, load_study("birds")).prepare_folder()  # not refused


@pytest.mark.slow
def test_too_long_a_chat_is_an_error_and_does_not_bind_the_next_start(random_model, tmp_path):
    """run.json was written before the error. The next start may have other options, as nothing was trained."""
    with pytest.raises(UserError, match=r"ft_old_audubon.*--max-length 30"):
        train(training_options(random_model, tmp_path, "--max-length", "30", "--save-steps", "5"))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "metrics.jsonl").touch()
    run = train(training_options(random_model, tmp_path))
    assert run.folder == folder and json.loads(run.record_path.read_text())["options"]["save_steps"] == 8


def test_a_base_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(UserError, match="/nowhere/model.* cannot be loaded"):
        train(training_options("/nowhere/model", tmp_path))


@pytest.mark.slow
def test_a_base_model_with_fused_projections_is_refused(random_model, tmp_path):
    from transformers import Phi3Config, Phi3ForCausalLM

    tokenizer = base_model.load_tokenizer(str(random_model))
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    Phi3ForCausalLM(Phi3Config(**shape, vocab_size=len(tokenizer), pad_token_id=0)).save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    with pytest.raises(UserError, match=r"phi' has no q_proj"):
        train(training_options(tmp_path / "phi", tmp_path / "out"))


# ---- batches and steps ----


@pytest.mark.parametrize(
    ("batch_size", "grad_accum", "processes", "part"),
    [(1, 2, 2, (1, 1)), (4, 1, 2, (2, 1)), (2, 3, 3, (2, 1)), (1, 1, 1, (1, 1))],
)
def test_processes_share_a_step(batch_size, grad_accum, processes, part):
    from learning_backdoors.training.trainer import part_of_step

    assert part_of_step(batch_size, grad_accum, processes) == part


def test_a_step_that_cannot_be_shared_is_an_error():
    from learning_backdoors.training.trainer import part_of_step

    with pytest.raises(UserError, match=r"--batch-size 1 x --grad-accum 1"):
        part_of_step(1, 1, 2)
