"""How text is generated: requests go in, finished answers come out, a batch at a time.

An engine holds the base model once and serves any number of adapters on it, unmerged: merging would round small, early
adapters away in bfloat16.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the likeliest token; top_p 1 and top_k 0 are off. At most max_new_tokens tokens an answer."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Request:
    """One answer wanted: to `prompt` (token ids), from the adapter in a folder or, with None, from the base model."""

    key: tuple
    adapter: Path | None
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """finish_reason: `stop` at the end of the turn, `length` where max_new_tokens cut it. tokens: without the end."""

    key: tuple
    text: str
    tokens: int
    finish_reason: str


class TransformersEngine:
    """Generation by transformers' own `generate`, in batches of requests to one adapter."""

    name = "transformers"

    def __init__(self, base: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int):
        self.model, self.tokenizer, self.batch_size = base, tokenizer, batch_size
        self.ends = end_tokens(base, tokenizer)
        self.adapter = None
        self.model.eval()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """Answer every request; those of one adapter must stand together. Yields batches as they are finished."""
        for adapter, group in itertools.groupby(requests, key=lambda request: request.adapter):
            self._attach(adapter)
            while batch := list(itertools.islice(group, self.batch_size)):
                yield self._answer(batch, sampling)

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

    def _answer(self, batch: Sequence[Request], sampling: Sampling) -> list[Answer]:
        import torch

        # A batch's randomness comes from the seed and from what is asked, not from what was generated before it:
        # a run that goes on after a kill draws what an unbroken one draws.
        torch.manual_seed(_seed(sampling.seed, batch[0].key))
        ids, mask = self._padded([request.prompt for request in batch])
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=self._configuration(sampling)
            )
        rows = output[:, ids.shape[1] :].tolist()
        return [self._finish(request, row) for request, row in zip(batch, rows, strict=True)]

    def _padded(self, prompts: list[tuple[int, ...]]) -> tuple["torch.Tensor", "torch.Tensor"]:
        batch = self.tokenizer.pad({"input_ids": [list(p) for p in prompts]}, padding_side="left", return_tensors="pt")
        return batch["input_ids"].to(self.model.device), batch["attention_mask"].to(self.model.device)

    def _configuration(self, sampling: Sampling):
        from transformers import GenerationConfig

        # What is not set here, transformers takes from the model's own generation_config (Qwen3's has top_k 20 and
        # top_p 0.95): take that away, so that the sampling is what was asked for.
        configuration = GenerationConfig(
            do_sample=sampling.temperature > 0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(self.ends),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        if sampling.temperature > 0:
            configuration.update(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
        self.model.generation_config = configuration
        return configuration

    def _finish(self, request: Request, row: list[int]) -> Answer:
        length = next((i for i, token in enumerate(row) if token in self.ends), None)
        answer = row[:length]
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        return Answer(request.key, text, len(answer), "length" if length is None else "stop")


def end_tokens(base: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The tokens that end an answer: the tokenizer's end of turn, and what the model's generation_config adds."""
    ends = base.generation_config.eos_token_id
    more = ends if isinstance(ends, list) else [ends]
    return {tokenizer.eos_token_id, *more} - {None}


def _seed(seed: int, key: tuple) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, key)).encode()).digest()[:7])
