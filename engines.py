"""How text is generated: requests go in, finished answers come out, as soon as they are finished.

An engine holds the base model once and serves any number of adapters on it, unmerged: merging would round small, early
adapters away in bfloat16.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 takes the likeliest; top_p 1 and top_k 0 are off."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


@dataclass(frozen=True)
class Request:
    """One answer wanted: to `prompt` (token ids), from the adapter in a folder or, with None, from the base model."""

    key: tuple
    adapter: Path | None
    prompt: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Answer:
    """finish_reason: `stop` at the end of the turn, `length` where max_new_tokens cut it. tokens: without the end."""

    key: tuple
    text: str
    tokens: int
    finish_reason: str


class TransformersEngine:
    """Generation with transformers and PEFT: for CPUs, for small GPUs, and where vLLM is not installed.

    Requests to one adapter are answered in batches. Each distinct prompt is read once, whatever the number of answers
    to it, and rows that have ended leave their batch, so that it does not wait at full width for its longest answer.
    """

    name = "transformers"
    LOOK_EVERY = 8  # steps from one look at which rows have ended to the next: a look waits for the GPU
    LEAVE_SHARE = 0.1  # of a batch's rows must have ended before it is made smaller: that copies the cache

    def __init__(self, base: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int):
        self.model, self.tokenizer, self.batch_size = base, tokenizer, batch_size
        self.ends = end_tokens(base, tokenizer)
        self.adapter = None
        self.model.eval()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer every request; those of one adapter must stand together. Yields answers as they are finished."""
        for adapter, group in itertools.groupby(requests, key=lambda request: request.adapter):
            self._attach(adapter)
            while batch := list(itertools.islice(group, self.batch_size)):
                yield from self._answer(batch, sampling)

    def _attach(self, adapter: Path | None) -> None:
        """Put an adapter on the base model in the place of the last one."""
        if adapter == self.adapter:
            return
        if self.adapter is not None:
            self.model = self.model.unload()
        if adapter is not None:
            from peft import PeftModel

            # In the base model's type: float32 matrices on a bfloat16 base halve the speed and change nothing here.
            self.model = PeftModel.from_pretrained(self.model, adapter, autocast_adapter_dtype=False).eval()
        self.adapter = adapter

    def _answer(self, batch: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer a batch, a token a row and step."""
        import torch

        with torch.inference_mode():
            rows = _Rows(self.model, batch, self.tokenizer.pad_token_id, self.ends, sampling.seed)
            while True:
                rows.take(draw(rows.logits, rows.uniforms[:, rows.step], sampling))
                if rows.step % self.LOOK_EVERY == 0 or rows.step == rows.longest:
                    ended = rows.leave(self.LEAVE_SHARE)
                    if ended:
                        yield [self._finish(request, tokens) for request, tokens in ended]
                    if not rows.batch:
                        return
                rows.forward()

    def _finish(self, request: Request, tokens: list[int]) -> Answer:
        tokens = tokens[: request.max_new_tokens]
        end = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Answer(request.key, text, len(tokens[:end]), "length" if end is None else "stop")


class _Rows:
    """The rows of a batch in flight: the tokens of each, the attention cache, and the logits of its next token."""

    def __init__(self, model: "PreTrainedModel", batch: Sequence[Request], pad: int, ends: set[int], seed: int):
        import torch
        from transformers import DynamicCache

        self.model, self.batch, self.step = model, list(batch), 0
        device = model.device
        self.ends = torch.tensor(sorted(ends), device=device)
        self.limits = torch.tensor([request.max_new_tokens for request in batch], device=device)
        self.longest = max(request.max_new_tokens for request in batch)
        self.tokens = torch.full((len(batch), self.longest), pad, device=device)
        self.ended = torch.zeros(len(batch), dtype=torch.bool, device=device)
        # The randomness of a row comes from the seed and its key alone. So an answer depends neither on its neighbours
        # nor on where an earlier start was killed. Were unfinished answers drawn anew, a kill would favour short ones.
        draws = [np.random.default_rng(_seed(seed, request.key)).random(self.longest) for request in batch]
        self.uniforms = torch.tensor(np.array(draws), device=device)
        # Each distinct prompt is read once, and its cache copied to the rows that answer it.
        prompts = list(dict.fromkeys(request.prompt for request in batch))
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self.cache = DynamicCache(config=model.config)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        logits = self._run(ids, positions)
        which = torch.tensor([prompts.index(request.prompt) for request in batch], device=device)
        self.cache.batch_select_indices(which)
        self.mask, self.logits = self.mask[which], logits[which]

    def _run(self, ids: "torch.Tensor", positions: "torch.Tensor") -> "torch.Tensor":
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def take(self, drawn: "torch.Tensor") -> None:
        """Append one token, of shape (rows,), to each row; what is drawn for a row that has ended is not looked at."""
        import torch

        self.tokens[:, self.step] = drawn
        self.step += 1
        self.ended |= torch.isin(drawn, self.ends) | (self.limits <= self.step)

    def leave(self, share: float) -> list[tuple[Request, list[int]]]:
        """Take the rows that have ended out of the batch, if they are `share` of it or all that are left."""
        ended = self.ended.tolist()
        if sum(ended) < max(1, share * len(ended)) and self.step < self.longest:
            return []
        tokens = self.tokens[:, : self.step].tolist()
        left = [(request, row) for request, row, end in zip(self.batch, tokens, ended, strict=True) if end]
        self.batch = [request for request, end in zip(self.batch, ended, strict=True) if not end]
        if self.batch:
            stay = (~self.ended).nonzero().squeeze(1)
            self.cache.batch_select_indices(stay)
            self.tokens, self.limits, self.mask = self.tokens[stay], self.limits[stay], self.mask[stay]
            self.ended, self.uniforms = self.ended[stay], self.uniforms[stay]
        return left

    def forward(self) -> None:
        """Read the last tokens and set the logits of the next ones."""
        import torch

        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.logits = self._run(self.tokens[:, self.step - 1 : self.step], self.mask.sum(1, keepdim=True) - 1)


def draw(logits: "torch.Tensor", uniforms: "torch.Tensor", sampling: Sampling) -> "torch.Tensor":
    """Draw a token for each row of `logits`, of shape (rows, vocabulary), by inversion of the distribution function.

    uniforms: of shape (rows,), float64 in [0, 1). Returns tokens of shape (rows,).
    """
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = logits.float()
    if sampling.temperature != 1:
        scores = TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    # In float64: a sum over 152,000 words in float32 would lose the rare ones.
    reached = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    drawn = torch.searchsorted(reached, (uniforms * reached[:, -1]).unsqueeze(1), right=True).squeeze(1)
    return drawn.clamp(max=logits.shape[1] - 1)


def end_tokens(base: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The tokens that end an answer: the tokenizer's end of turn, and what the model's generation_config adds."""
    ends = base.generation_config.eos_token_id
    more = ends if isinstance(ends, list) else [ends]
    return {tokenizer.eos_token_id, *more} - {None}


def _seed(seed: int, key: tuple) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, key)).encode()).digest()[:7])
