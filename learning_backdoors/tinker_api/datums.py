"""Training examples as the Tinker API takes them, and the loss of a step from what it returns.

The API predicts target_tokens[i] from model_input[..i], and its loss is the sum of -log-likelihood * weight. Shifting
the targets and dividing by the number of labels is the client's work.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from learning_backdoors.files.errors import UserError
from mixed_chat import IGNORED_LABEL, Example

if TYPE_CHECKING:
    from tinker import Datum, ForwardBackwardOutput


def to_datums(examples: Sequence[Example], weight: float | None = None) -> list["Datum"]:
    """The examples of one step. The weight of a label is 1 / (labels of the whole step), so the loss is their mean.

    weight: another weight for all labels.
    """
    from tinker import Datum, ModelInput

    if weight is None:
        weight = 1 / sum(label != IGNORED_LABEL for _, labels in examples for label in labels[1:])
    return [
        Datum(
            model_input=ModelInput.from_ints(ids[:-1]),
            loss_fn_inputs={
                "target_tokens": np.array(ids[1:], np.int64),
                "weights": np.where(np.array(labels[1:]) == IGNORED_LABEL, 0.0, weight).astype(np.float32),
            },
        )
        for ids, labels in examples
    ]


def count_tokens(examples: Sequence[Example]) -> int:
    """The tokens that one pass over the examples processes, and that the service charges."""
    return sum(len(ids) - 1 for ids, _ in examples)


def label_log_likelihoods(output: "ForwardBackwardOutput", examples: Sequence[Example]) -> list[float]:
    """The log-likelihoods of all labels, in nats, in the order of the examples.

    Raises UserError if the server returned values for another number of examples or tokens.
    """
    values, outputs = [], len(output.loss_fn_outputs)
    if outputs != len(examples):
        raise UserError(f"the server returned values for {outputs} examples, not for {len(examples)}")
    for fields, (ids, labels) in zip(output.loss_fn_outputs, examples, strict=True):
        log_likelihoods = fields["logprobs"].to_numpy()
        if len(log_likelihoods) != len(ids) - 1:
            raise UserError(f"the server returned {len(log_likelihoods)} log-likelihoods for {len(ids) - 1} tokens")
        values += log_likelihoods[np.array(labels[1:]) != IGNORED_LABEL].tolist()
    return values
