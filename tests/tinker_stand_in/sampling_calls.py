"""Sampling calls: sampling clients, samples and the log-probabilities of prompts."""

import torch

from tinker_stand_in import sampler
from tinker_stand_in.core import Core, Result
from tinker_stand_in.http_server import Answer
from tinker_stand_in.learner import BaseModel, RequestError
from tinker_stand_in.queues import Batches


class SamplingCalls:
    def __init__(self, core: Core):
        self.core = core
        self.batches: Batches | None = None
        self.in_progress = 0
        self.cached: set[tuple] = set()  # prompts that were read before, with their weights
        self.weights: dict[str, dict] = {}  # sampler weights in memory

    def create_sampling_session(self, body: dict):
        self.core.check_session(body["session_id"])
        session, path = f"{body['session_id']}:sample:{body['sampling_session_seq_id']}", body.get("model_path")
        if path is None:
            if body["base_model"] not in self.core.folders:
                return Answer({"detail": f"unknown base model {body['base_model']}"}, 400)
            self.core.samplers[session] = (None, body["base_model"])
        else:
            checkpoint = self.core.checkpoint(path)
            if "/sampler_weights/" not in path:
                return Answer({"detail": "Path is invalid"}, 400)
            if checkpoint is None:
                return Answer({"detail": f"Checkpoint not found or expired: {path}"}, 404)
            self.core.samplers[session] = (path, checkpoint.base)
        return {"type": "create_sampling_session", "sampling_session_id": session}

    def get_sampler(self, body: dict, session: str):
        path, base = self.core.samplers[session]
        return {"sampler_id": session, "base_model": base, "model_path": path}

    def asample(self, body: dict):
        self.core.check_session(body["sampling_session_id"])
        request = f"{body['sampling_session_id']}:{body['seq_id']}"
        ids = [f"{request}:{number}" for number in range(body["num_samples"])]
        if any(isinstance(token, str) for token in body["sampling_params"].get("stop") or []):
            raise RequestError("the stand-in takes stop tokens only")
        most, new = self.core.faults["429"], request not in self.core.results
        if new and most is not None and self.in_progress >= int(most):
            self.core.ledger.add("fault", name="429", path=request)
            return Answer({"detail": "too many concurrent samples"}, 429)
        if result := self.core.new_result(request):
            self.in_progress += 1
            self.batches = self.batches or Batches(self._run_samples)
            self.batches.add(self.core.samplers[body["sampling_session_id"]], (result, body))
        return {"request_id": request, "sample_sequence_ids": ids}

    async def _run_samples(self, source: tuple[str | None, str], calls: list[tuple[Result, dict]]) -> None:
        contents = await self.core.compute(lambda: self._sample(source, [body for _, body in calls]))
        for number, (result, _) in enumerate(calls):
            self.in_progress -= 1
            self.core.finish(result, contents if isinstance(contents, dict) else contents[number])

    def _sample(self, source: tuple[str | None, str], bodies: list[dict]) -> list[bytes | dict]:
        path, name = source
        base, weights = self.core.base(name), self._sampler_weights(path)
        prompts = [tuple(t for chunk in body["prompt"]["chunks"] for t in chunk["tokens"]) for body in bodies]
        rows = [self._rows(body, prompt, base) for body, prompt in zip(bodies, prompts, strict=True)]
        base.attach(None if self.core.faults.hits("base_samples", path or "") else weights)
        sampler.sample(base.peft.base_model.model, [row for group in rows for row in group])
        base.attach(weights)
        logprobs = sampler.prompt_logprobs(
            base, {prompt for prompt, body in zip(prompts, bodies, strict=True) if body["prompt_logprobs"]}
        )
        contents = []
        for body, prompt, group in zip(bodies, prompts, rows, strict=True):
            if self.core.faults.every("bad_sample"):
                contents.append({"error": "the sampler failed on purpose", "category": "server"})
                continue
            cached = self._charge(body, path, prompt, group)
            contents.append(sampler.encode(group, logprobs.get(prompt) if body["prompt_logprobs"] else None, cached))
        return contents

    def _rows(self, body: dict, prompt: tuple[int, ...], base: BaseModel) -> list[sampler.Row]:
        settings, seed = body["sampling_params"], body["sampling_params"].get("seed")
        if seed is not None and self.core.faults.is_on("seed_repeats"):
            seed %= int(self.core.faults["seed_repeats"])
        if self.core.faults.is_on("seed_ignored"):
            seed = None
        room, stop = max(1, base.max_tokens - len(prompt)), settings.get("stop")
        stop = [base.config.eos_token_id] if stop is None else stop
        limit = min(settings.get("max_tokens") or room, room)
        limits = {name: settings[name] for name in ("temperature", "top_p", "top_k") if settings.get(name) is not None}
        return [
            sampler.Row(prompt, limit, frozenset(stop), None if seed is None else [seed % 2**63, number], **limits)
            for number in range(body["num_samples"])
        ]

    def _charge(self, body: dict, path: str | None, prompt: tuple[int, ...], rows: list[sampler.Row]) -> int:
        """Write a sample into the ledger. Returns the tokens of the prompt that came from the cache."""
        known = self.core.faults.is_on("prompt_cache") and (path, prompt) in self.cached
        self.cached.add((path, prompt))
        cached = len(prompt) * (len(rows) - 1 + known)
        only = bool(body["prompt_logprobs"]) and body["sampling_params"].get("max_tokens") == 1
        self.core.ledger.add(
            "sample",
            path=path,
            prompt=hash(prompt),
            seed=body["sampling_params"].get("seed"),
            request=f"{body['sampling_session_id']}:{body['seq_id']}",
            prefill=len(prompt) * len(rows) - cached,
            cached=cached,
            sampled=sum(len(row.tokens) for row in rows),
            limit=rows[0].limit,
            logprobs_only=only,
        )
        return len(prompt) if known else 0

    def _sampler_weights(self, path: str | None) -> dict | None:
        """Of a checkpoint; None for the base model."""
        if path is None or self.core.faults.hits("base_route", path):
            return None
        if path not in self.weights:
            if len(self.weights) > 100:
                self.weights.clear()
            matrices = self.core.store.load(path)["matrices"]
            self.weights[path] = {name: torch.nn.Parameter(value) for name, value in matrices.items()}
        return self.weights[path]

    ROUTES = {
        "POST create_sampling_session": create_sampling_session,
        "GET samplers/([^/]+)": get_sampler,
        "POST asample": asample,
    }
