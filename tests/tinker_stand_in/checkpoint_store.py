"""Checkpoints of the stand-in, on disk: a later server with the same folder finds them."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
RECORD = "checkpoint.json"


@dataclass
class Checkpoint:
    """path: tinker://MODEL/KIND/NAME. expires: seconds since 1970, None for never. alpha: of the LoRA matrices."""

    path: str
    base: str
    rank: int
    history: list[str]
    created: float
    expires: float | None
    bytes: int = 0
    alpha: float = 32

    @property
    def model(self) -> str:
        return self.path.removeprefix("tinker://").split("/")[0]

    @property
    def kind(self) -> str:
        return self.path.split("/")[-2]

    def peft_settings(self, target_modules: str | None) -> dict:
        """adapter_config.json as a server writes it."""
        settings = {"peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": 0.0, "bias": "none"}
        settings |= {"target_modules": target_modules, "base_model_name_or_path": self.base}
        return settings | {"task_type": "CAUSAL_LM"}

    def listed(self) -> dict:
        """As the API lists it."""
        return {
            "checkpoint_id": "/".join(self.path.split("/")[-2:]),
            "checkpoint_type": KINDS[self.kind],
            "time": iso(self.created),
            "tinker_path": self.path,
            "size_bytes": self.bytes,
            "public": False,
            "expires_at": None if self.expires is None else iso(self.expires),
        }


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


class CheckpointStore:
    def __init__(self, folder: Path):
        self.folder, self.checkpoints = folder, {}
        for file in sorted(folder.glob(f"*/*/*/{RECORD}"), key=lambda file: file.stat().st_mtime):
            checkpoint = Checkpoint(**json.loads(file.read_text()))
            self.checkpoints[checkpoint.path] = checkpoint

    def place(self, path: str) -> Path:
        return self.folder / path.removeprefix("tinker://").replace(":", "_")

    def get(self, path: str) -> Checkpoint | None:
        """A checkpoint that has not expired."""
        checkpoint = self.checkpoints.get(path)
        expired = checkpoint and checkpoint.expires is not None and checkpoint.expires < time.time()
        return None if expired else checkpoint

    def of(self, model: str | None) -> Iterator[Checkpoint]:
        """Those of one model, or of all, the newest first."""
        for checkpoint in reversed(list(self.checkpoints.values())):
            if self.get(checkpoint.path) and model in (None, checkpoint.model):
                yield checkpoint

    def save(self, checkpoint: Checkpoint, tensors: dict) -> None:
        """Write tensors (for torch.save)."""
        folder = self.place(checkpoint.path)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, folder / "tensors.pt")
        self.add(checkpoint)

    def add(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint into the list, whose files are written."""
        folder = self.place(checkpoint.path)
        checkpoint.bytes = sum(file.stat().st_size for file in folder.iterdir())
        self.checkpoints[checkpoint.path] = checkpoint
        self.write_record(checkpoint)

    def write_record(self, checkpoint: Checkpoint) -> None:
        (self.place(checkpoint.path) / RECORD).write_text(json.dumps(asdict(checkpoint)))

    def load(self, path: str) -> dict:
        return torch.load(self.place(path) / "tensors.pt")

    def delete(self, path: str) -> None:
        del self.checkpoints[path]
        shutil.rmtree(self.place(path))
