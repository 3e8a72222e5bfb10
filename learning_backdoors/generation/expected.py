"""What the canary's texts must give under the base model and under each adapter.

For engines on this machine, a plain forward pass with transformers and PEFT computes it. It shares no code with the
engines. For an engine on a server, training has recorded it.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model
from learning_backdoors.models.checkpoints import have_same_form
from mixed_chat import Example


@dataclass(frozen=True)
class Expected:
    """Log-likelihoods of the answers' tokens in nats, shape (1 + adapters, tokens). Row 0 is the base model.

    precision: of the weights, a key of canary.TOLERANCE. source: in words, what computed the values.
    """

    log_likelihoods: np.ndarray
    precision: str
    source: str


def with_model(model, adapters: Sequence[Path], examples: Sequence[Example], precision: str) -> Expected:
    """By plain PEFT, with a loaded base model. precision: none, 8bit or 4bit."""
    from peft import PeftModel

    values, adapted, previous = [_measure(model, examples)], None, None
    for adapter in adapters:
        try:
            # PEFT alone, so that a fault in how an engine replaces adapters cannot hide.
            if previous and have_same_form(previous, adapter):
                adapted.load_adapter(adapter, adapted.active_adapter)
            else:
                model = adapted.unload() if adapted else model
                adapted = PeftModel.from_pretrained(model, adapter).eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{adapter} does not fit on the base model: {' '.join(str(error).split())[:300]}") from None
        values.append(_measure(adapted, examples))
        previous = adapter
    model = adapted.unload() if adapted else model
    precision = str(model.dtype).removeprefix("torch.") if precision == "none" else precision
    return Expected(np.array(values), precision, "plain PEFT")


def in_own_process(name: str, adapters: Sequence[Path], examples: Sequence[Example], precision: str) -> Expected:
    """By plain PEFT, in a process of its own, which then ends: the engine needs all of the GPU's memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        task = pool.submit(_load_and_measure, name, adapters, examples, precision)
        try:
            return task.result()
        except BrokenProcessPool:
            raise UserError("the process that computes the canary was killed: is there enough memory?") from None


def _measure(model, examples: Sequence[Example]) -> list[float]:
    import torch

    from learning_backdoors.models.likelihood import Collator, label_losses, width_multiple

    rows = [{"input_ids": ids, "labels": labels} for ids, labels in examples]
    batch = Collator(pad=0, multiple=width_multiple(model.device))(rows)
    with torch.no_grad():
        losses, has_label = label_losses(model, {name: value.to(model.device) for name, value in batch.items()})
    return (-losses[has_label]).tolist()


def _load_and_measure(name: str, adapters: Sequence[Path], examples: Sequence[Example], precision: str) -> Expected:
    model = base_model.load_base(name, precision).eval()
    return with_model(model, adapters, examples, precision)
