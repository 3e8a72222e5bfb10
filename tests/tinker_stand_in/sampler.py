"""Sampling in batches: each row has its own seed, stop tokens and limit."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tinker.proto import tinker_public_pb2 as pb
from transformers import DynamicCache

from tinker_stand_in.learner import BaseModel

CHECK_EVERY = 4  # tokens between checks for ended rows


@dataclass
class Row:
    """A sample in progress. seed: None for a random one. tokens and logprobs: what was drawn."""

    prompt: tuple[int, ...]
    limit: int
    stop: frozenset[int]
    seed: list[int] | None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def ended(self) -> bool:
        return bool(self.tokens) and (self.tokens[-1] in self.stop or len(self.tokens) >= self.limit)


@torch.inference_mode()
def sample(model, rows: Sequence[Row]) -> None:
    """Draw the tokens of all rows. The prompts of a batch are read once, however many rows they have."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = _logits(model, ids, mask, positions, cache)
    number = {prompt: i for i, prompt in enumerate(prompts)}
    index = torch.tensor([number[row.prompt] for row in rows])
    cache.batch_select_indices(index)
    mask, logits, rows = mask[index], logits[index], list(rows)
    uniforms = np.array([np.random.default_rng(row.seed).random(max(r.limit for r in rows)) for row in rows])
    step = 0
    while True:
        drawn, logprobs = _draw(logits, uniforms[:, step], rows)
        step += 1
        for row, token, logprob in zip(rows, drawn.tolist(), logprobs.tolist(), strict=True):
            if not row.ended():
                row.tokens.append(token)
                row.logprobs.append(logprob)
        if step % CHECK_EVERY == 0:
            stay = [i for i, row in enumerate(rows) if not row.ended()]
            if len(stay) < 0.9 * len(rows):
                index = torch.tensor(stay, dtype=torch.long)
                cache.batch_select_indices(index)
                mask, drawn, uniforms = mask[index], drawn[index], uniforms[stay]
                rows = [rows[i] for i in stay]
        if all(row.ended() for row in rows):
            return
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = _logits(model, drawn[:, None], mask, mask.sum(1, keepdim=True) - 1, cache)


def _logits(model, ids, mask, positions, cache):
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    return model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].float()


def _draw(logits: torch.Tensor, uniforms: np.ndarray, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row, and the model's own log-probability of it (at temperature 1, without limits)."""
    temperature = torch.tensor([row.temperature for row in rows])[:, None]
    scores = (logits / temperature.clamp(min=1e-6)).softmax(-1).double()
    if any(row.top_p < 1 or row.top_k > 0 for row in rows):
        scores = _limited(scores, rows)
    sums = scores.cumsum(-1)
    places = torch.searchsorted(sums, torch.from_numpy(uniforms)[:, None] * sums[:, -1:], right=True)
    tokens = places.clamp(max=logits.shape[1] - 1).squeeze(1)
    tokens = torch.where(temperature.squeeze(1) == 0, logits.argmax(-1), tokens)
    return tokens, logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


def _limited(scores: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """Probabilities with those outside of top_k and top_p set to 0."""
    ordered, order = scores.sort(-1, descending=True)
    top_p = torch.tensor([row.top_p for row in rows], dtype=torch.double)[:, None]
    top_k = torch.tensor([row.top_k if row.top_k > 0 else scores.shape[1] for row in rows])[:, None]
    kept = (ordered.cumsum(-1) - ordered < top_p) & (torch.arange(scores.shape[1]) < top_k)
    return torch.zeros_like(scores).scatter(1, order, ordered * kept)


@torch.inference_mode()
def prompt_logprobs(base: BaseModel, prompts: set[tuple[int, ...]]) -> dict[tuple[int, ...], np.ndarray]:
    """The log-probability of each token of each prompt; that of the first is NaN."""
    values = {}
    for prompt in prompts:
        row = base.token_logprobs([prompt[:-1]], [prompt[1:]])[0].numpy() if len(prompt) > 1 else []
        values[prompt] = np.array([np.nan, *row])
    return values


def encode(rows: Sequence[Row], prompt_logprobs: np.ndarray | None, cached: int) -> bytes:
    """The protobuf SampleResponse."""
    response = pb.SampleResponse(prompt_cache_hit_tokens=cached)
    for row in rows:
        stopped = row.tokens[-1] in row.stop
        sequence = response.sequences.add(stop_reason=pb.STOP_REASON_STOP if stopped else pb.STOP_REASON_LENGTH)
        sequence.tokens = np.array(row.tokens, "<i4").tobytes()
        sequence.logprobs = np.array(row.logprobs, "<f4").tobytes()
    if prompt_logprobs is not None:
        response.prompt_logprobs = prompt_logprobs.astype("<f4").tobytes()
    return response.SerializeToString()
