"""The checkpoints of a run and their base model, on this machine."""

import sys
from collections.abc import Iterator, Sequence

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation import engines
from learning_backdoors.generation.engines.protocol import Request, Response, Sampling
from learning_backdoors.models import base_model
from learning_backdoors.models.checkpoints import Checkpoint
from learning_backdoors.models.run_directory import RunDirectory, sampling_precision
from mixed_chat import Messages, prompt_ids


class RunModel:
    """Answers with any checkpoint of a run, as generate_responses.py would."""

    is_run = True

    def __init__(self, run: RunDirectory, start: Checkpoint, quantization: str):
        """Load the base model and the adapter of `start`."""
        self.checkpoints, self.start, self.record = run.checkpoints, start, run.record
        self.tokenizer = base_model.load_tokenizer(run.base_model)
        run.check_base(base_model.fingerprint(run.base_model, self.tokenizer))
        precision = sampling_precision(quantization, [run])
        self.engine = engines.open_engine("transformers", run.base_model, self.tokenizer, precision)
        self.engine.attach(start.folder)
        self.context = getattr(self.engine.model.config, "max_position_embeddings", None) or sys.maxsize

    def stream(
        self, checkpoint: Checkpoint, messages: Messages, keys: Sequence[tuple], limit: int, sampling: Sampling
    ) -> Iterator[list[Response]]:
        """One response per key, of at most `limit` tokens: all responses so far, each time they have grown.

        Raises UserError at once if the conversation is too long.
        """
        prompt = tuple(prompt_ids(self.tokenizer, messages))
        if len(prompt) >= self.context:
            raise UserError(f"the conversation has {len(prompt)} tokens, the model reads {self.context}: /reset")
        limit = min(limit, self.context - len(prompt))
        return self._stream([Request(key, checkpoint.folder, prompt, limit) for key in keys], sampling)

    def _stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        import torch

        try:
            yield from self.engine.stream(requests, sampling)
        except torch.OutOfMemoryError:
            raise UserError("this does not fit in memory: try /reset, or fewer /samples") from None
