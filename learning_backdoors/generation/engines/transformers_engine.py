"""Generation with transformers and PEFT: on CPUs, on small GPUs, and without vLLM."""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines.batch import Batch, draw
from learning_backdoors.generation.engines.cuda_graphs import GraphedBatch, can_be_graphed
from learning_backdoors.generation.engines.protocol import Reference, Request, Response, Sampling, end_tokens, finish
from learning_backdoors.models.adapted_model import AdaptedModel
from learning_backdoors.models.base_model import load_base


class TransformersEngine(AdaptedModel):
    """Responses from one adapter at a time, in batches, or token by token for a chat."""

    name = "transformers"
    reference, reproducible = Reference.LOADED_MODEL, True
    MAX_ROWS = 1024  # per batch: more do not make a GPU faster
    CPU_ROWS = 256

    def __init__(self, base_model: str, tokenizer, *, quantization: str = "none", batch_size: int | None = None, **_):
        super().__init__(load_base(base_model, quantization))
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.end_tokens = end_tokens(self.model.generation_config.eos_token_id, tokenizer)
        self.rows = None  # generated at once

    @staticmethod
    def obstacle(quantization: str) -> None:
        return None

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        self.rows = self.batch_size or self._fitting_rows(requests)
        for adapter, group in itertools.groupby(requests, key=lambda request: request.adapter):
            self.attach(adapter)
            yield from self._generate_from_adapter(list(group), sampling)

    def log_likelihoods(self, requests: Sequence[Request], answers: Sequence[int]) -> list[list[float]]:
        values, rows = [], zip(requests, answers, strict=True)
        for adapter, group in itertools.groupby(rows, key=lambda row: row[0].adapter):
            self.attach(adapter)
            values += self._log_likelihoods(*zip(*group, strict=True))
        return values

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Generate from one adapter in one batch, as `generate` does; yield all responses after every token.

        A response that has not ended has the finish_reason "".
        """
        self.attach(requests[0].adapter)
        responses = {}
        for batch, dropped in self._draws(requests, sampling):
            growing = zip(batch.requests, batch.tokens[:, : batch.step].tolist(), strict=True) if batch.requests else ()
            for request, tokens in (*dropped, *growing):
                response = finish(self.tokenizer, self.end_tokens, request, tokens)
                ended = response.finish_reason == "stop" or len(tokens) >= request.max_new_tokens
                responses[request.key] = response if ended else replace(response, finish_reason="")
            yield [responses[request.key] for request in requests]
            if all(response.finish_reason for response in responses.values()):
                return

    def _generate_from_adapter(self, requests: list[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Generate batch by batch. A batch that does not fit in memory is continued in halves.

        Each row has its own randomness, so the responses stay the same.
        """
        remaining = {request.key: request for request in requests}
        while remaining:
            batch = list(itertools.islice(remaining.values(), self.rows))
            try:
                for _, dropped in self._draws(batch, sampling):
                    if dropped:
                        for request, _ in dropped:
                            del remaining[request.key]
                        yield [finish(self.tokenizer, self.end_tokens, request, tokens) for request, tokens in dropped]
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise UserError("one response does not fit in memory: try --quantization 4bit") from None
                self.rows //= 2
                print(f"\nout of memory: continuing with {self.rows} responses at once", file=sys.stderr)
                torch.cuda.empty_cache()

    def _draws(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[Batch, list]]:
        """The steps of `_steps`, with drawn tokens."""
        return self._steps(
            requests, sampling.seed, lambda batch: draw(batch.logits, batch.uniforms[:, batch.step], sampling)
        )

    def _steps(
        self, requests: Sequence[Request], seed: int, next_tokens: Callable[[Batch], torch.Tensor]
    ) -> Iterator[tuple[Batch, list]]:
        """Append a token to each row at each step. Yields the batch, and the rows that leave it at that step."""
        batch_class = GraphedBatch if can_be_graphed(self.model) else Batch
        with torch.inference_mode():
            batch = batch_class(self.model, requests, self.tokenizer.pad_token_id, self.end_tokens, seed)
            while True:
                batch.append(next_tokens(batch))
                check_now = batch.step % batch.CHECK_EVERY == 0 or batch.step == batch.longest
                yield batch, batch.drop_ended() if check_now else []
                if not batch.requests:
                    return
                batch.forward()

    def _log_likelihoods(self, requests: Sequence[Request], answers: Sequence[int]) -> list[list[float]]:
        """Of the attached adapter. The answers' tokens take the place of drawn ones."""
        tokens, values = torch.tensor(answers, device=self.model.device), []

        def next_tokens(batch: Batch) -> torch.Tensor:
            values.append(batch.logits.float().log_softmax(-1).gather(1, tokens.unsqueeze(1)))
            return tokens

        for _ in self._steps(requests, 0, next_tokens):
            pass
        return torch.cat(values, dim=1).tolist()

    def _fitting_rows(self, requests: Sequence[Request]) -> int:
        """Estimated from the attention cache that rows need. If it is too large, the batch is halved and continued."""
        shape = self.model.config
        if self.model.device.type != "cuda":
            return self.CPU_ROWS
        head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        bytes_per_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * head * self.model.dtype.itemsize
        longest = max(len(request.prompt) + request.max_new_tokens for request in requests)
        # Rows leave when they end, so a batch needs about half of what its longest rows would.
        free = torch.cuda.mem_get_info(self.model.device)[0]
        return max(1, min(self.MAX_ROWS, int(0.8 * free / (bytes_per_token * longest / 2))))
