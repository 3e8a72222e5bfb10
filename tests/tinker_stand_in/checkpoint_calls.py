"""Calls about checkpoints, and the files of exported ones."""

import io
import json
import secrets
import tarfile
import time

from safetensors.torch import save

from tinker_stand_in.checkpoint_store import iso
from tinker_stand_in.core import Core
from tinker_stand_in.http_server import Answer

URL_SECONDS = 1800  # how long a signed URL works
CHECKPOINT = r"training_runs/([^/]+)/checkpoints/(\w+)/([^/]+)"


class CheckpointCalls:
    def __init__(self, core: Core):
        self.core = core
        self.tokens: dict[str, tuple[str, float]] = {}  # of signed URLs: path and expiry

    def list_checkpoints(self, body: dict, model: str | None = None):
        rows = [c.listed() for c in self.core.store.of(model) if self.core.checkpoint(c.path)]
        return {"checkpoints": rows, "cursor": {"offset": 0, "limit": len(rows), "total_count": len(rows)}}

    def delete_checkpoint(self, body: dict, *parts: str):
        path = "tinker://" + "/".join(parts)
        if self.core.store.get(path) is None:
            return Answer({"detail": f"Checkpoint not found: {path}"}, 404)
        self.core.store.delete(path)
        self.core.ledger.add("delete", path=path)
        return {}

    def set_ttl(self, body: dict, *parts: str):
        path, ttl = "tinker://" + "/".join(parts), body.get("ttl_seconds")
        checkpoint = self.core.checkpoint(path)
        if checkpoint is None:
            return Answer({"detail": f"Checkpoint not found: {path}"}, 404)
        checkpoint.expires = time.time() + ttl if ttl else None
        self.core.store.write_record(checkpoint)
        return {}

    def weights_info(self, body: dict):
        checkpoint = self.core.checkpoint(body["tinker_path"])
        if checkpoint is None:
            return Answer({"detail": f"Checkpoint not found: {body['tinker_path']}"}, 404)
        trained = {"train_unembed": False, "train_mlp": True, "train_attn": True}
        return {"base_model": checkpoint.base, "is_lora": True, "lora_rank": checkpoint.rank, **trained}

    def signed_urls(self, body: dict, *parts: str):
        path, expires = "tinker://" + "/".join(parts), time.time() + URL_SECONDS
        if self.core.checkpoint(path) is None:
            return Answer({"detail": f"Checkpoint not found: {path}"}, 404)
        token = secrets.token_hex(8)
        self.tokens[token] = (path, expires)
        names = ("adapter_model.safetensors", "adapter_config.json")
        return {"urls": {name: f"{self.core.url}/_files/{token}/{name}" for name in names}, "expires": iso(expires)}

    def archive(self, body: dict, model: str, name: str):
        """Sampler weights as SkyRL gives them: a PEFT adapter without target_modules, as tar.gz."""
        checkpoint = self.core.checkpoint(f"tinker://{model}/sampler_weights/{name}")
        if checkpoint is None or not self.core.faults.is_on("archive"):
            return Answer({"detail": "Not Found"}, 404)
        matrices = self.core.store.load(checkpoint.path)["matrices"]
        settings = json.dumps(checkpoint.peft_settings(None)).encode()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as file:
            for name, content in (("adapter_model.safetensors", save(matrices)), ("adapter_config.json", settings)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
        return Answer(buffer.getvalue(), kind="application/octet-stream")

    def training_run(self, body: dict, model: str):
        saved = next(self.core.store.of(model), None)
        if saved is None:
            return Answer({"detail": f"the stand-in knows no checkpoint of training run {model}"}, 404)
        run = {"training_run_id": model, "base_model": saved.base, "model_owner": "me", "is_lora": True}
        return run | {"lora_rank": saved.rank, "last_request_time": iso(time.time())}

    def file(self, token: str, name: str) -> Answer:
        """What a signed URL leads to."""
        path, expires = self.tokens.get(token, ("", 0))
        if expires < time.time():
            return Answer({"detail": "the URL has expired"}, 403)
        return Answer((self.core.store.place(path) / name).read_bytes(), kind="application/octet-stream")

    ROUTES = {
        "GET checkpoints": list_checkpoints,
        "GET training_runs/([^/]+)/checkpoints": list_checkpoints,
        f"GET {CHECKPOINT}/external_weights_urls": signed_urls,
        "GET training_runs/([^/]+)/checkpoints/([^/]+)/archive": archive,
        f"PUT {CHECKPOINT}/ttl": set_ttl,
        f"DELETE {CHECKPOINT}": delete_checkpoint,
        "GET training_runs/([^/]+)": training_run,
        "POST weights_info": weights_info,
    }
