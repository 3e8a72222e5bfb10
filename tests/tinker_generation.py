"""A run on the stand-in for the Tinker API, without training there: its server gets the adapters of a local run."""

import shutil
from pathlib import Path

from safetensors.torch import load_file
from tinker_stand_in.checkpoint_store import Checkpoint
from tinker_stand_in.serve import Server

from learning_backdoors.generation import expected
from learning_backdoors.models import base_model, checkpoints
from learning_backdoors.models.canary_texts import canary_examples
from learning_backdoors.models.remote_checkpoint import RemoteCheckpoint

EXPIRES = 4e9  # seconds since 1970


def put_on_server(run_dir: Path, folder: Path, server: Server, model: str, keep_files: bool = False) -> Path:
    """A copy of a local run whose checkpoints are on the server, and here only with `keep_files`.

    The server's alpha is 32, so its B matrices are scaled to have the same effect.
    """
    shutil.copytree(run_dir, folder)
    names = sorted(path.name for path in folder.glob("checkpoint-*"))
    base, examples = base_model.load_base(model, "none"), canary_examples(base_model.load_tokenizer(model))
    values = expected.with_model(base, [run_dir / name for name in names], examples, "none").log_likelihoods[1:]
    for name, canary in zip(names, values, strict=True):
        tensors = load_file(folder / name / checkpoints.ADAPTER_WEIGHTS)
        path = f"tinker://{folder.name}:train:0/sampler_weights/{name}"
        settings = checkpoints.check_adapter(run_dir / name)
        scale = settings["lora_alpha"] / 32
        tensors = {key: tensor * (scale if ".lora_B." in key else 1) for key, tensor in tensors.items()}
        rank = settings["r"]
        server.api.core.store.save(Checkpoint(path, model, rank, [], 0.0, EXPIRES), {"matrices": tensors})
        if not keep_files:
            shutil.rmtree(folder / name)
            (folder / name).mkdir()
        remote = RemoteCheckpoint(server.url, model, path, path, "2096-10-02T07:06:40+00:00", canary.tolist())
        remote.write(folder / name)
    return folder
