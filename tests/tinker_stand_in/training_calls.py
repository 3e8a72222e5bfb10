"""Training calls: models are created and loaded, learn, and are saved."""

import json
import re
import time
from collections.abc import Callable

import torch

from tinker_stand_in import learner
from tinker_stand_in.checkpoint_store import Checkpoint
from tinker_stand_in.core import Core, Result
from tinker_stand_in.http_server import Answer
from tinker_stand_in.learner import Model, RequestError
from tinker_stand_in.queues import Lane


class TrainingCalls:
    def __init__(self, core: Core):
        self.core = core
        self.models: dict[str, Model] = {}
        self.announced: dict[str, tuple[str, int]] = {}  # base model and rank of each model, also of one in the queue
        self.lanes: dict[str, Lane] = {}

    # ---- models ----

    def create_model(self, body: dict):
        self.core.check_session(body["session_id"])
        model = f"{body['session_id']}:train:{body['model_seq_id']}"
        if body["base_model"] not in self.core.folders:
            raise RequestError(f"unknown base model {body['base_model']}")
        lora = body.get("lora_config") or {}
        self.announced[model] = (body["base_model"], lora.get("rank", 32))
        return self._train(model, 0, lambda: self._new_model(model, body["base_model"], lora))

    def _new_model(self, name: str, base: str, lora: dict) -> dict:
        rank = lora.get("rank", 32)
        matrices = self.core.base(base).new_matrices(rank, lora.get("seed"))
        self.models[name] = Model(base, rank, matrices, learner.new_optimizer(matrices))
        self.core.ledger.add("model", model=name, base=base, rank=rank, loaded=None, history=[])
        return {"type": "create_model", "model_id": name}

    def load_weights(self, body: dict):
        name = body.get("model_id") or f"{body['session_id']}:train:{body['model_seq_id']}"
        self.core.check_session(name)
        if checkpoint := self.core.checkpoint(body["path"]):
            self.announced[name] = (checkpoint.base, checkpoint.rank)
        return self._train(name, body.get("seq_id") or 0, lambda: self._load(name, body["path"], body["optimizer"]))

    def _load(self, name: str, path: str, with_optimizer: bool) -> dict:
        checkpoint = self.core.checkpoint(path)
        if checkpoint is None:
            raise RequestError(f"Checkpoint not found or expired: {path}")
        if checkpoint.kind != "weights":
            raise RequestError(f"Path is invalid: {path} is not a training checkpoint")
        state = self.core.store.load(path)
        matrices = {key: torch.nn.Parameter(value.clone()) for key, value in state["matrices"].items()}
        optimizer = learner.new_optimizer(matrices)
        if with_optimizer and not self.core.faults.is_on("cold_adam"):
            optimizer.load_state_dict(state["optimizer"])
        base, rank, history = checkpoint.base, checkpoint.rank, checkpoint.history
        self.models[name] = Model(base, rank, matrices, optimizer, list(history))
        self.core.ledger.add("model", model=name, base=base, rank=rank, loaded=path, history=list(history))
        return {"type": "load_weights", "path": path, "model_id": name}

    def get_info(self, body: dict):
        model = body["model_id"]
        if model not in self.announced:
            return Answer({"detail": f"unknown model {model}"}, 404)
        base, rank = self.announced[model]
        data = {"arch": "qwen3", "model_name": base, "tokenizer_id": base}
        about = {"model_name": base, "is_lora": True, "lora_rank": rank, "model_data": data}
        return {"type": "get_info", "model_id": model, **about}

    def drop_models(self, session: str) -> None:
        """Delete the models of a session that has ended."""
        for model in [model for model in self.models if model.startswith(f"{session}:")]:
            del self.models[model]

    def _model(self, name: str) -> Model:
        if name not in self.models:
            raise RequestError(f"model {name} is not loaded")
        return self.models[name]

    # ---- training calls ----

    def forward_backward(self, message):
        self.core.check_session(message.model_id)
        return self._train(message.model_id, message.seq_id, lambda: self._learn(message))

    def _learn(self, message) -> bytes:
        name, model = message.model_id, self._model(message.model_id)
        if message.loss_fn != "cross_entropy":
            raise RequestError(f"the stand-in has no loss {message.loss_fn}")
        examples = [learner.Example.read(datum) for datum in message.data]
        backward, tokens = not message.forward_only, sum(len(example.tokens) for example in examples)
        if backward and self.core.faults.at("bad_step"):
            self.core.ledger.add("fault", name="bad_step", model=name)
            raise RequestError("CUDA error: an illegal memory access was encountered", "server")
        if backward and self.core.faults.is_on("chunk_zero"):
            model.optimizer.zero_grad()
        mean, shift = self.core.faults.is_on("mean_loss"), int(self.core.faults.is_on("unshifted"))
        logprobs, loss = learner.loss(self.core.base(model.base), model, examples, backward, mean, shift)
        batch = learner.fingerprint(examples)
        if backward:
            model.batches.append(batch)
        event = "forward_backward" if backward else "forward"
        self.core.ledger.add(event, model=name, tokens=tokens, batch=batch, seq=message.seq_id)
        return learner.encode(logprobs, {} if self.core.faults.is_on("no_metrics") else {"loss:sum": loss})

    def optim_step(self, body: dict):
        self.core.check_session(body["model_id"])
        return self._train(body["model_id"], body["seq_id"], lambda: self._step(body))

    def _step(self, body: dict) -> dict:
        model = self._model(body["model_id"])
        settings = body["adam_params"]
        learner.optim_step(model, settings)
        name, step = body["model_id"], len(model.history)
        self.core.ledger.add("optim_step", model=name, step=step, batch=model.history[-1], lr=settings["learning_rate"])
        return {"metrics": {}}

    def save(self, body: dict, kind: str):
        self.core.check_session(body["model_id"])
        external = kind == "_external"
        if external and (self.core.faults.is_on("no_export") or self.core.faults.is_on("archive")):
            return Answer({"detail": "Not Found"}, 404)
        folder = {"": "weights", "_for_sampler": "sampler_weights", "_external": "external_weights"}[kind]
        name = body.get("path") or f"ephemeral-{body['seq_id']}"
        if not re.fullmatch(r"[\w.-]+", name):
            raise RequestError(f"invalid checkpoint name {name!r}")
        path = f"tinker://{body['model_id']}/{folder}/{name}"
        request = f"{body['model_id']}:{body['seq_id']}"
        if self.core.store.get(path) and request not in self.core.results and not body.get("overwrite"):
            return Answer({"detail": f"checkpoint {path} exists"}, 409)
        return self._train(body["model_id"], body["seq_id"], lambda: self._save(path, body))

    def _save(self, path: str, body: dict) -> dict:
        model, ttl, now = self._model(body["model_id"]), body.get("ttl_seconds"), time.time()
        expires = now + ttl if ttl else None
        alpha = self.core.faults["alpha"] or learner.ALPHA
        checkpoint = Checkpoint(path, model.base, model.rank, list(model.history), now, expires, alpha=alpha)
        if checkpoint.kind == "external_weights":
            self._export(checkpoint, model)
        else:
            state = model.state() if checkpoint.kind == "weights" else {"matrices": model.state()["matrices"]}
            self.core.store.save(checkpoint, state)
        step = len(model.history)
        self.core.ledger.add("save", model=body["model_id"], path=path, step=step, ttl=ttl, bytes=checkpoint.bytes)
        answer = {"path": path, "type": body["type"], "size_bytes": checkpoint.bytes}
        if "sampling_session_seq_id" in body and not body.get("path"):
            session = f"{body['model_id'].split(':')[0]}:sample:{body['sampling_session_seq_id']}"
            self.core.samplers[session] = (path, model.base)
            answer = {"type": body["type"], "sampling_session_id": session}
        return answer

    def _export(self, checkpoint: Checkpoint, model: Model) -> None:
        """A PEFT adapter, as the service writes it: target_modules is `all-linear`."""
        from safetensors.torch import save_file

        folder = self.core.store.place(checkpoint.path)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().contiguous() for name, value in model.matrices.items()}
        if self.core.faults.is_on("lm_head"):
            config, prefix = self.core.base(model.base).config, "base_model.model.model.unembed_tokens"
            value = float(self.core.faults["lm_head"])
            tensors[f"{prefix}.lora_A.weight"] = torch.full((model.rank, config.hidden_size), value)
            tensors[f"{prefix}.lora_B.weight"] = torch.full((config.vocab_size, model.rank), value)
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(checkpoint.peft_settings("all-linear")))
        self.core.store.add(checkpoint)

    def _train(self, model: str, seq: int, work: Callable) -> dict:
        """Queue a call. A repeated request (same model and seq_id) gets the result of the first."""
        request = f"{model}:{seq}"
        if result := self.core.new_result(request):
            if model not in self.lanes:
                self.lanes[model] = Lane(self._run_call)
            self.lanes[model].add(seq, (result, work))
        return {"request_id": request, "model_id": model}

    async def _run_call(self, call: tuple[Result, Callable]) -> None:
        result, work = call
        self.core.finish(result, await self.core.compute(work))

    ROUTES = {
        "POST create_model": create_model,
        "POST load_weights": load_weights,
        "POST get_info": get_info,
        "POST optim_step": optim_step,
        "POST save_weights(|_for_sampler|_external)": save,
    }
