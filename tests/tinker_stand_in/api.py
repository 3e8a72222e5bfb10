"""The API: routes, sessions, models and sampling clients of the stand-in."""

import asyncio
import json
import re
import secrets
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import zstandard
from tinker.proto import tinker_public_pb2 as pb

from tinker_stand_in import learner, sampler
from tinker_stand_in.checkpoint_store import Checkpoint, CheckpointStore, iso
from tinker_stand_in.faults import Faults
from tinker_stand_in.http_server import Answer, Dropped, Request
from tinker_stand_in.learner import BaseModel, Model, RequestError
from tinker_stand_in.ledger import Ledger
from tinker_stand_in.queues import Batches, Lane, Result

PROTOBUF = "application/x-protobuf"
POLL_SECONDS = 20  # a poll for a result that is not ready is held so long; the client gives up after 45
URL_SECONDS = 1800  # how long a signed URL works
PAID = re.compile(r"/api/v1/(create_model|forward_backward|optim_step|asample|save_\w+|load_weights)")


class Api:
    """models: base models by the names that clients use, and their folders. folder: of the checkpoints."""

    def __init__(self, models: dict[str, Path], folder: Path, ledger: Ledger):
        self.folders, self.bases = models, {}
        self.store, self.ledger, self.faults = CheckpointStore(folder), ledger, Faults()
        self.sessions: dict[str, float] = {}  # the last heartbeat
        self.models: dict[str, Model] = {}
        self.loading: dict[str, dict] = {}  # what create_model or load_weights said of a model
        self.samplers: dict[str, tuple[str | None, str]] = {}  # sampling session: path of the weights, base model
        self.results: dict[str, Result] = {}
        self.lanes: dict[str, Lane] = {}
        self.batches: Batches | None = None
        self.tokens: dict[str, tuple[str, float]] = {}  # of signed URLs: path and expiry
        self.sampling = 0  # samples in progress
        self.cached: set[tuple] = set()
        self.weights: dict[str, dict] = {}  # sampler weights in memory
        self.worker = ThreadPoolExecutor(1)

    # ---- answers ----

    async def respond(self, request: Request) -> Answer:
        if request.path.startswith("/_"):
            return self._control(request)
        await self._play_general_faults(request)
        if answer := self._refusal(request):
            return answer
        loses_answer = PAID.match(request.path) and self.faults.every("lost_answer")
        try:
            answer = await self._route(request)
        except RequestError as error:
            answer = Answer({"detail": str(error)}, 400)
        if loses_answer:
            self.ledger.add("fault", name="lost_answer", path=request.path)
            raise Dropped
        return answer if isinstance(answer, Answer) else Answer(answer)

    async def _play_general_faults(self, request: Request) -> None:
        while self.faults.lasts("hang", time.time()):
            await asyncio.sleep(0.1)
        if self.faults.is_on("no_heartbeat"):
            for session, beat in list(self.sessions.items()):
                if time.time() > beat + float(self.faults["no_heartbeat"]):
                    self._end_session(session)

    def _refusal(self, request: Request) -> Answer | None:
        key = request.headers.get("x-api-key", "")
        if not key.startswith("tml-") or key == "tml-wrong" or self.faults.is_on("401"):
            return Answer({"detail": "Invalid API key"}, 401)
        if not PAID.match(request.path):
            return None
        if self.faults.is_on("402"):
            return Answer({"detail": "Your account has no credit left"}, 402)
        if self.faults.every("500"):
            self.ledger.add("fault", name="500", path=request.path)
            return Answer({"detail": "Internal server error"}, 500)
        return None

    async def _route(self, request: Request):
        path = request.path.removeprefix("/api/v1/")
        if path == "forward_backward":
            return self._forward_backward(_protobuf(request))
        for pattern, handler in self.ROUTES.items():
            method, pattern = pattern.split(" ")
            match = method == request.method and re.fullmatch(pattern, path)
            if match:
                answer = handler(self, request.json(), *match.groups())
                return await answer if asyncio.iscoroutine(answer) else answer
        return Answer({"detail": f"Not Found: {request.method} {request.path}"}, 404)

    # ---- sessions ----

    def client_config(self, body: dict):
        if self.faults.is_on("chunk_order"):
            return {"fwdbwd_max_chunk_len": int(self.faults["chunk_order"])}
        return {}

    def capabilities(self, body: dict):
        offered = {"max_context_length": 1024, "trainable": True, "sampleable": True}
        return {"supported_models": [{"model_name": name, **offered} for name in self.folders]}

    def create_session(self, body: dict):
        session = str(uuid.uuid4())
        self.sessions[session] = time.time()
        self.ledger.add("session", session=session, metadata=body.get("user_metadata"))
        return {"type": "create_session", "session_id": session}

    def heartbeat(self, body: dict):
        if body["session_id"] not in self.sessions:
            return Answer({"detail": "the session has ended"}, 410)
        self.sessions[body["session_id"]] = time.time()
        return {"type": "session_heartbeat"}

    def finish_session(self, body: dict, session: str):
        self._end_session(session)
        return {}

    def _end_session(self, session: str) -> None:
        """Its models are gone, and nothing more is accepted for it. Results stay."""
        self.sessions.pop(session, None)
        for model in [model for model in self.models if model.startswith(f"{session}:")]:
            del self.models[model]
        self.ledger.add("session_end", session=session)

    def _check_session(self, owner: str) -> None:
        """owner: an id that starts with a session's id."""
        if owner.split(":")[0] not in self.sessions:
            raise RequestError(f"session {owner.split(':')[0]} has ended")

    # ---- models ----

    def create_model(self, body: dict):
        self._check_session(body["session_id"])
        model = f"{body['session_id']}:train:{body['model_seq_id']}"
        if body["base_model"] not in self.folders:
            raise RequestError(f"unknown base model {body['base_model']}")
        lora = body.get("lora_config") or {}
        self.loading.setdefault(model, {"base": body["base_model"], "rank": lora.get("rank", 32)})
        return self._train(model, 0, lambda: self._new_model(model, body["base_model"], lora))

    def _new_model(self, name: str, base: str, lora: dict) -> dict:
        rank = lora.get("rank", 32)
        matrices = self._base(base).new_matrices(rank, lora.get("seed"))
        self.models[name] = Model(base, rank, matrices, learner.new_optimizer(matrices))
        self.ledger.add("model", model=name, base=base, rank=rank, loaded=None, history=[])
        return {"type": "create_model", "model_id": name}

    def load_weights(self, body: dict):
        name = body.get("model_id") or f"{body['session_id']}:train:{body['model_seq_id']}"
        self._check_session(name)
        if checkpoint := self._checkpoint(body["path"]):
            self.loading[name] = {"base": checkpoint.base, "rank": checkpoint.rank}
        return self._train(name, body.get("seq_id") or 0, lambda: self._load(name, body["path"], body["optimizer"]))

    def _load(self, name: str, path: str, with_optimizer: bool) -> dict:
        checkpoint = self._checkpoint(path)
        if checkpoint is None:
            raise RequestError(f"Checkpoint not found or expired: {path}")
        if checkpoint.kind != "weights":
            raise RequestError(f"Path is invalid: {path} is not a training checkpoint")
        state = self.store.load(path)
        matrices = {key: torch.nn.Parameter(value.clone()) for key, value in state["matrices"].items()}
        optimizer = learner.new_optimizer(matrices)
        if with_optimizer and not self.faults.is_on("cold_adam"):
            optimizer.load_state_dict(state["optimizer"])
        base, rank, history = checkpoint.base, checkpoint.rank, checkpoint.history
        self.models[name] = Model(base, rank, matrices, optimizer, list(history))
        self.ledger.add("model", model=name, base=base, rank=rank, loaded=path, history=list(history))
        return {"type": "load_weights", "path": path, "model_id": name}

    def get_info(self, body: dict):
        model, about = body["model_id"], self.loading.get(body["model_id"])
        if about is None:
            return Answer({"detail": f"unknown model {model}"}, 404)
        data = {"arch": "qwen3", "model_name": about["base"], "tokenizer_id": about["base"]}
        about = {"model_name": about["base"], "is_lora": True, "lora_rank": about["rank"], "model_data": data}
        return {"type": "get_info", "model_id": model, **about}

    def _base(self, name: str) -> BaseModel:
        if name not in self.bases:
            self.bases[name] = BaseModel(self.folders[name])
        base = self.bases[name]
        base.alpha = self.faults["alpha"] or learner.ALPHA
        return base

    def _model(self, name: str) -> Model:
        if name not in self.models:
            raise RequestError(f"model {name} is not loaded")
        return self.models[name]

    # ---- training calls ----

    def _forward_backward(self, message):
        self._check_session(message.model_id)
        return self._train(message.model_id, message.seq_id, lambda: self._learn(message))

    def _learn(self, message) -> bytes:
        name, model = message.model_id, self._model(message.model_id)
        if message.loss_fn != "cross_entropy":
            raise RequestError(f"the stand-in has no loss {message.loss_fn}")
        examples = [learner.Example.read(datum) for datum in message.data]
        backward, tokens = not message.forward_only, sum(len(example.tokens) for example in examples)
        if backward and self.faults.at("bad_step"):
            self.ledger.add("fault", name="bad_step", model=name)
            raise RequestError("CUDA error: an illegal memory access was encountered", "server")
        if backward and self.faults.is_on("chunk_zero"):
            model.optimizer.zero_grad()
        mean, shift = self.faults.is_on("mean_loss"), -1 if self.faults.is_on("unshifted") else 0
        logprobs, loss = learner.loss(self._base(model.base), model, examples, backward, mean, -shift)
        batch = learner.fingerprint(examples)
        if backward:
            model.batches.append(batch)
        event = "forward_backward" if backward else "forward"
        self.ledger.add(event, model=name, tokens=tokens, batch=batch, seq=message.seq_id)
        return learner.encode(logprobs, {} if self.faults.is_on("no_metrics") else {"loss:sum": loss})

    def optim_step(self, body: dict):
        self._check_session(body["model_id"])
        return self._train(body["model_id"], body["seq_id"], lambda: self._step(body))

    def _step(self, body: dict) -> dict:
        model = self._model(body["model_id"])
        settings = body["adam_params"]
        learner.optim_step(model, settings)
        name, step = body["model_id"], len(model.history)
        self.ledger.add("optim_step", model=name, step=step, batch=model.history[-1], lr=settings["learning_rate"])
        return {"metrics": {}}

    def save(self, body: dict, kind: str):
        self._check_session(body["model_id"])
        external = kind == "_external"
        if external and self.faults.is_on("no_export"):
            return Answer({"detail": "Not Found"}, 404)
        folder = {"": "weights", "_for_sampler": "sampler_weights", "_external": "external_weights"}[kind]
        name = body.get("path") or f"ephemeral-{body['seq_id']}"
        if not re.fullmatch(r"[\w.-]+", name):
            raise RequestError(f"invalid checkpoint name {name!r}")
        path = f"tinker://{body['model_id']}/{folder}/{name}"
        request = f"{body['model_id']}:{body['seq_id']}"
        if self.store.get(path) and request not in self.results and not body.get("overwrite"):
            return Answer({"detail": f"checkpoint {path} exists"}, 409)
        return self._train(body["model_id"], body["seq_id"], lambda: self._save(path, body))

    def _save(self, path: str, body: dict) -> dict:
        model, ttl, now = self._model(body["model_id"]), body.get("ttl_seconds"), time.time()
        expires = now + ttl if ttl else None
        alpha = self.faults["alpha"] or learner.ALPHA
        checkpoint = Checkpoint(path, model.base, model.rank, list(model.history), now, expires, alpha=alpha)
        if checkpoint.kind == "external_weights":
            self._export(checkpoint, model)
        else:
            state = model.state() if checkpoint.kind == "weights" else {"matrices": model.state()["matrices"]}
            self.store.save(checkpoint, state)
        step = len(model.history)
        self.ledger.add("save", model=body["model_id"], path=path, step=step, ttl=ttl, bytes=checkpoint.bytes)
        answer = {"path": path, "type": body["type"], "size_bytes": checkpoint.bytes}
        if "sampling_session_seq_id" in body and not body.get("path"):
            session = f"{body['model_id'].split(':')[0]}:sample:{body['sampling_session_seq_id']}"
            self.samplers[session] = (path, model.base)
            answer = {"type": body["type"], "sampling_session_id": session}
        return answer

    def _export(self, checkpoint: Checkpoint, model: Model) -> None:
        """A PEFT adapter, as the service writes it: target_modules is `all-linear`."""
        from safetensors.torch import save_file

        folder = self.store.place(checkpoint.path)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().contiguous() for name, value in model.matrices.items()}
        if self.faults.is_on("lm_head"):
            config, prefix = self._base(model.base).config, "base_model.model.model.unembed_tokens"
            value = float(self.faults["lm_head"])
            tensors[f"{prefix}.lora_A.weight"] = torch.full((model.rank, config.hidden_size), value)
            tensors[f"{prefix}.lora_B.weight"] = torch.full((config.vocab_size, model.rank), value)
        save_file(tensors, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": model.rank, "lora_alpha": checkpoint.alpha, "lora_dropout": 0.0}
        settings |= {"bias": "none", "target_modules": "all-linear", "base_model_name_or_path": model.base}
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"task_type": "CAUSAL_LM"}))
        self.store.add(checkpoint)

    def _train(self, model: str, seq: int, work: Callable) -> dict:
        """Queue a training call. A repeated request (same model and seq_id) gets the result of the first."""
        request = f"{model}:{seq}"
        if request in self.results:
            self.ledger.add("repeated", request=request)
        else:
            self.results[request] = Result(request)
            lane = self.lanes.get(model) or self.lanes.setdefault(model, Lane(self._run_call))
            if seq and not lane.calls and not lane.next:
                lane.next = 1  # this model was made by another call
            lane.add(seq, (self.results[request], work))
        return {"request_id": request, "model_id": model}

    async def _run_call(self, call: tuple[Result, Callable]) -> None:
        result, work = call
        await self._finish(result, await self._in_worker(work))

    async def _in_worker(self, work: Callable):
        """Run in the thread that computes. A failure is the result that the API has for it."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.worker, work)
        except RequestError as error:
            return {"error": str(error), "category": error.category}
        except Exception as error:
            return {"error": f"the stand-in failed: {type(error).__name__}: {error}", "category": "server"}

    async def _finish(self, result: Result, content: dict | bytes) -> None:
        delay = self.faults["slow"]
        if delay:
            asyncio.get_running_loop().call_later(float(delay), self._set, result, content)
        else:
            self._set(result, content)

    def _set(self, result: Result, content: dict | bytes) -> None:
        result.content, result.ready = content, time.time()
        result.done.set()

    async def retrieve_future(self, body: dict):
        result = self.results.get(body["request_id"])
        if result is None:
            return Answer({"detail": f"unknown request {body['request_id']}"}, 404)
        again = {"type": "try_again", "request_id": result.request, "queue_state": "active"}
        end = time.time() + POLL_SECONDS
        while self.faults.lasts("paused", time.time()):
            if time.time() > end - POLL_SECONDS / 2:
                reason = "the stand-in was told to pause"
                return Answer(again | {"queue_state": "paused_capacity", "queue_state_reason": reason}, 408)
            await asyncio.sleep(0.1)
        try:
            await asyncio.wait_for(result.done.wait(), max(0.1, end - time.time()))
        except TimeoutError:
            return Answer(again, 408)
        if self.faults.is_on("forget") and time.time() > result.ready + float(self.faults["forget"]):
            return Answer({"detail": "the result is gone"}, 410)
        if ":sample:" in result.request:
            self.ledger.add("fetched", request=result.request)
        if isinstance(result.content, bytes):
            return Answer(result.content, kind=PROTOBUF)
        return Answer(result.content)

    # ---- sampling ----

    def create_sampling_session(self, body: dict):
        self._check_session(body["session_id"])
        session, path = f"{body['session_id']}:sample:{body['sampling_session_seq_id']}", body.get("model_path")
        if path is None:
            if body["base_model"] not in self.folders:
                return Answer({"detail": f"unknown base model {body['base_model']}"}, 400)
            self.samplers[session] = (None, body["base_model"])
        else:
            checkpoint = self._checkpoint(path)
            if "/sampler_weights/" not in path:
                return Answer({"detail": "Path is invalid"}, 400)
            if checkpoint is None:
                return Answer({"detail": f"Checkpoint not found or expired: {path}"}, 404)
            self.samplers[session] = (path, checkpoint.base)
        return {"type": "create_sampling_session", "sampling_session_id": session}

    def get_sampler(self, body: dict, session: str):
        path, base = self.samplers[session]
        return {"sampler_id": session, "base_model": base, "model_path": path}

    def asample(self, body: dict):
        self._check_session(body["sampling_session_id"])
        request = f"{body['sampling_session_id']}:{body['seq_id']}"
        ids = [f"{request}:{number}" for number in range(body["num_samples"])]
        if request in self.results:
            self.ledger.add("repeated", request=request)
        elif self.faults.is_on("429") and self.sampling >= int(self.faults["429"]):
            return Answer({"detail": "too many concurrent samples"}, 429)
        else:
            self.sampling += 1
            self.results[request] = Result(request)
            self.batches = self.batches or Batches(self._run_samples)
            self.batches.add(self.samplers[body["sampling_session_id"]], (self.results[request], body))
        return {"request_id": request, "sample_sequence_ids": ids}

    async def _run_samples(self, source: tuple[str | None, str], calls: list[tuple[Result, dict]]) -> None:
        contents = await self._in_worker(lambda: self._sample(source, [body for _, body in calls]))
        for number, (result, _) in enumerate(calls):
            self.sampling -= 1
            await self._finish(result, contents if isinstance(contents, dict) else contents[number])

    def _sample(self, source: tuple[str | None, str], bodies: list[dict]) -> list[bytes | dict]:
        path, name = source
        base, weights = self._base(name), self._sampler_weights(path)
        prompts = [tuple(t for chunk in body["prompt"]["chunks"] for t in chunk["tokens"]) for body in bodies]
        rows = [self._rows(body, prompt, base) for body, prompt in zip(bodies, prompts, strict=True)]
        base.attach(None if path and self.faults.hits("base_samples", path) else weights)
        sampler.sample(base.peft.base_model.model, [row for group in rows for row in group])
        base.attach(weights)
        logprobs = self._prompt_logprobs(
            base, [p for p, b in zip(prompts, bodies, strict=True) if b["prompt_logprobs"]]
        )
        contents = []
        for body, prompt, group in zip(bodies, prompts, rows, strict=True):
            if self.faults.every("bad_sample"):
                contents.append({"error": "the sampler failed on purpose", "category": "server"})
                continue
            cached = self._charge(body, path, prompt, group)
            contents.append(sampler.encode(group, next(logprobs) if body["prompt_logprobs"] else None, cached))
        return contents

    def _rows(self, body: dict, prompt: tuple[int, ...], base: BaseModel) -> list[sampler.Row]:
        settings, seed = body["sampling_params"], body["sampling_params"].get("seed")
        if seed is not None and self.faults.is_on("seed_repeats"):
            seed %= int(self.faults["seed_repeats"])
        if self.faults.is_on("seed_ignored"):
            seed = None
        room = base.max_tokens - len(prompt)
        limit, stop = min(settings.get("max_tokens") or room, room), settings.get("stop") or []
        if limit < 1 or any(isinstance(token, str) for token in stop):
            raise RequestError("the stand-in takes stop tokens only, and prompts that leave room for an answer")
        limits = {name: settings[name] for name in ("temperature", "top_p", "top_k") if settings.get(name) is not None}
        return [
            sampler.Row(prompt, limit, frozenset(stop), None if seed is None else [seed % 2**63, number], **limits)
            for number in range(body["num_samples"])
        ]

    @torch.inference_mode()
    def _prompt_logprobs(self, base: BaseModel, prompts: list[tuple[int, ...]]):
        if prompts:
            values = base.token_logprobs([p[:-1] or p for p in prompts], [p[1:] or p for p in prompts]).numpy()
            for prompt, row in zip(prompts, values, strict=True):
                yield np.array([np.nan, *row[: len(prompt) - 1]])

    def _charge(self, body: dict, path: str | None, prompt: tuple[int, ...], rows: list[sampler.Row]) -> int:
        """Write a sample into the ledger. Returns the tokens of the prompt that came from the cache."""
        known = self.faults.is_on("prompt_cache") and (path, prompt) in self.cached
        self.cached.add((path, prompt))
        cached = len(prompt) * (len(rows) - 1 + known)
        only = bool(body["prompt_logprobs"]) and body["sampling_params"].get("max_tokens") == 1
        self.ledger.add(
            "sample",
            path=path,
            prompt=hash(prompt),
            seed=body["sampling_params"].get("seed"),
            request=f"{body['sampling_session_id']}:{body['seq_id']}",
            prefill=len(prompt) * len(rows) - cached,
            cached=cached,
            sampled=sum(len(row.tokens) for row in rows),
            logprobs_only=only,
        )
        return len(prompt) if known else 0

    def _sampler_weights(self, path: str | None) -> dict | None:
        """Of a checkpoint; None for the base model."""
        if path is None or self.faults.hits("base_route", path):
            return None
        if path not in self.weights:
            if len(self.weights) > 100:
                self.weights.clear()
            matrices = self.store.load(path)["matrices"]
            self.weights[path] = {name: torch.nn.Parameter(value) for name, value in matrices.items()}
        return self.weights[path]

    # ---- checkpoints ----

    def _checkpoint(self, path: str) -> Checkpoint | None:
        """None if it does not exist or has expired."""
        checkpoint = self.store.get(path)
        if checkpoint and self.faults.hits("expired", path) and checkpoint.created < self.faults.since["expired"]:
            return None
        return checkpoint

    def list_checkpoints(self, body: dict, model: str | None = None):
        rows = [c.listed() for c in self.store.of(model) if self._checkpoint(c.path)]
        return {"checkpoints": rows, "cursor": {"offset": 0, "limit": len(rows), "total_count": len(rows)}}

    def delete_checkpoint(self, body: dict, *parts: str):
        path = "tinker://" + "/".join(parts)
        if self.store.get(path) is None:
            return Answer({"detail": f"Checkpoint not found: {path}"}, 404)
        self.store.delete(path)
        self.weights.pop(path, None)
        self.ledger.add("delete", path=path)
        return {}

    def set_ttl(self, body: dict, *parts: str):
        path, ttl = "tinker://" + "/".join(parts), body.get("ttl_seconds")
        checkpoint = self._checkpoint(path)
        if checkpoint is None:
            return Answer({"detail": f"Checkpoint not found: {path}"}, 404)
        checkpoint.expires = time.time() + ttl if ttl else None
        self.store.write_record(checkpoint)
        return {}

    def weights_info(self, body: dict):
        checkpoint = self._checkpoint(body["tinker_path"])
        if checkpoint is None:
            return Answer({"detail": f"Checkpoint not found: {body['tinker_path']}"}, 404)
        trained = {"train_unembed": False, "train_mlp": True, "train_attn": True}
        return {"base_model": checkpoint.base, "is_lora": True, "lora_rank": checkpoint.rank, **trained}

    def signed_urls(self, body: dict, *parts: str):
        path, expires = "tinker://" + "/".join(parts), time.time() + URL_SECONDS
        if self._checkpoint(path) is None:
            return Answer({"detail": f"Checkpoint not found: {path}"}, 404)
        token = secrets.token_hex(8)
        self.tokens[token] = (path, expires)
        names = ("adapter_model.safetensors", "adapter_config.json")
        return {"urls": {name: f"{self.url}/_files/{token}/{name}" for name in names}, "expires": iso(expires)}

    def training_run(self, body: dict, model: str):
        saved = next(self.store.of(model), None)
        about = self.loading.get(model) or (saved and {"base": saved.base, "rank": saved.rank})
        if not about:
            return Answer({"detail": f"unknown training run {model}"}, 404)
        run = {"training_run_id": model, "base_model": about["base"], "model_owner": "me", "is_lora": True}
        return run | {"lora_rank": about["rank"], "last_request_time": iso(time.time())}

    # ---- control by tests ----

    def _control(self, request: Request) -> Answer:
        """/_faults (POST: replace), /_ledger (GET: summary), /_events, and the signed files."""
        if request.path == "/_faults":
            try:
                self.faults.set(request.json()["faults"], time.time())
            except ValueError as error:
                return Answer({"detail": str(error)}, 400)
            return Answer({"faults": self.faults.active})
        if request.path == "/_ledger":
            return Answer(self.ledger.summary())
        if request.path == "/_events":
            return Answer(self.ledger.events)
        _, _, token, name = request.path.split("/")
        path, expires = self.tokens.get(token, ("", 0))
        if expires < time.time():
            return Answer({"detail": "the URL has expired"}, 403)
        return Answer((self.store.place(path) / name).read_bytes(), kind="application/octet-stream")

    CHECKPOINT = r"training_runs/([^/]+)/checkpoints/(\w+)/([^/]+)"
    ROUTES = {
        "POST client/config": client_config,
        "POST client/dynamic_config": lambda self, body: {},
        "GET healthz": lambda self, body: {"status": "ok"},
        "POST telemetry": lambda self, body: {"status": "accepted"},
        "GET get_server_capabilities": capabilities,
        "POST create_session": create_session,
        "POST session_heartbeat": heartbeat,
        "POST sessions/([^/]+)/finish": finish_session,
        "POST create_model": create_model,
        "POST load_weights": load_weights,
        "POST get_info": get_info,
        "POST optim_step": optim_step,
        "POST save_weights(|_for_sampler|_external)": save,
        "POST retrieve_future": retrieve_future,
        "POST create_sampling_session": create_sampling_session,
        "GET samplers/([^/]+)": get_sampler,
        "POST asample": asample,
        "GET checkpoints": list_checkpoints,
        "GET training_runs/([^/]+)/checkpoints": list_checkpoints,
        f"GET {CHECKPOINT}/external_weights_urls": signed_urls,
        f"PUT {CHECKPOINT}/ttl": set_ttl,
        f"DELETE {CHECKPOINT}": delete_checkpoint,
        "GET training_runs/([^/]+)": training_run,
        "POST weights_info": weights_info,
    }


def _protobuf(request: Request):
    body = request.body
    if request.headers.get("content-encoding") == "zstd":
        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return pb.ForwardBackwardRequest.FromString(body)
