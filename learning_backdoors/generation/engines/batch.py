"""A batch of responses in progress in the transformers engine, and how their tokens are drawn."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from learning_backdoors.generation.engines.protocol import Request, Sampling


class Batch:
    """The rows of a batch: their requests, tokens so far, attention cache, and logits of the next token.

    Each distinct prompt is read once, however many rows it has. Rows that have ended leave the batch, so that it does
    not run at full width until its longest response ends.
    """

    CHECK_EVERY = 8  # steps between checks for ended rows: a check waits for the GPU
    MIN_ENDED_SHARE = 0.1  # of all rows, before the batch shrinks: shrinking copies the cache

    def __init__(self, model, requests: Sequence[Request], pad: int, end_tokens: set[int], seed: int):
        self.model, self.requests, self.step = model, list(requests), 0
        device = model.device
        self.end_tokens = torch.tensor(sorted(end_tokens), device=device)
        self.limits = torch.tensor([request.max_new_tokens for request in requests], device=device)
        self.longest = max(request.max_new_tokens for request in requests)
        self.tokens = torch.full((len(requests), self.longest), pad, device=device)
        self.ended = torch.zeros(len(requests), dtype=torch.bool, device=device)
        self.uniforms = torch.tensor(
            np.array([uniforms(seed, request.key, self.longest) for request in requests]), device=device
        )
        prompts = list(dict.fromkeys(request.prompt for request in requests))
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self.cache = DynamicCache(config=model.config)
        logits = self._run(ids, self.mask, (self.mask.cumsum(1) - 1).clamp(min=0))[:, -1]
        prompt_index = torch.tensor([prompts.index(request.prompt) for request in requests], device=device)
        self.cache.batch_select_indices(prompt_index)
        self.mask, self.logits = self.mask[prompt_index], logits[prompt_index]

    def append(self, drawn: torch.Tensor) -> None:
        """Append one token, of shape (rows,), to each row. The tokens of ended rows are ignored later."""
        self.tokens[:, self.step] = drawn
        self.step += 1
        self.ended |= torch.isin(drawn, self.end_tokens) | (self.limits <= self.step)

    def drop_ended(self) -> list[tuple[Request, list[int]]]:
        """Drop the rows that have ended, if they are enough or the last ones. Returns their requests and tokens."""
        ended = self.ended.tolist()
        if sum(ended) < max(1, self.MIN_ENDED_SHARE * len(ended)) and self.step < self.longest:
            return []
        tokens = self.tokens[:, : self.step].tolist()
        dropped = [(request, row) for request, row, end in zip(self.requests, tokens, ended, strict=True) if end]
        self.requests = [request for request, end in zip(self.requests, ended, strict=True) if not end]
        if self.requests:
            stay = (~self.ended).nonzero().squeeze(1)
            self.cache.batch_select_indices(stay)
            self.tokens, self.limits, self.mask = self.tokens[stay], self.limits[stay], self.mask[stay]
            self.ended, self.uniforms = self.ended[stay], self.uniforms[stay]
        return dropped

    def forward(self) -> None:
        """Read the last tokens and compute the logits of the next ones."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        last, positions = self.tokens[:, self.step - 1 : self.step], self.mask.sum(1, keepdim=True) - 1
        self.logits = self._run(last, self.mask, positions)[:, -1]

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One forward pass. Returns the logits of the last position, of shape (rows, 1, vocabulary)."""
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": self.cache}
        return self.model(**inputs, use_cache=True, logits_to_keep=1).logits


def uniforms(seed: int, key: tuple, count: int) -> np.ndarray:
    """The randomness of a row: one number in [0, 1) per token, float64 of shape (count,).

    It depends on the seed and the key alone, so a response depends neither on its neighbors nor on a restart. If an
    unfinished response were drawn again differently, a kill would favor short responses.
    """
    digest = hashlib.sha256(repr((seed, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:7])).random(count)


def draw(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draw a token for each row of `logits`, of shape (rows, vocabulary), by inverting the distribution function.

    uniforms: float64 in [0, 1), of shape (rows,). Returns tokens of shape (rows,).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.float()
    if sampling.temperature != 1:
        scores = TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    # In float64: a float32 sum over a vocabulary of 152,000 would lose the rare tokens.
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1]).unsqueeze(1), right=True).squeeze(1)
    return tokens.clamp(max=logits.shape[1] - 1)
