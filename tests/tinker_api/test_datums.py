"""What the server returns must fit what it was sent."""

from types import SimpleNamespace

import numpy as np
import pytest

from learning_backdoors.files.errors import UserError
from learning_backdoors.tinker_api.datums import label_log_likelihoods
from mixed_chat import IGNORED_LABEL

EXAMPLE = ([5, 6, 7], [IGNORED_LABEL, 6, 7])


def output(*rows: list[float]) -> SimpleNamespace:
    fields = [{"logprobs": SimpleNamespace(to_numpy=lambda row=row: np.array(row))} for row in rows]
    return SimpleNamespace(loss_fn_outputs=fields)


def test_log_likelihoods_are_those_of_the_labels():
    assert label_log_likelihoods(output([-1.0, -2.0]), [EXAMPLE]) == [-1.0, -2.0]
    assert label_log_likelihoods(output([-1.0, -2.0]), [([5, 6, 7], [IGNORED_LABEL, IGNORED_LABEL, 7])]) == [-2.0]


@pytest.mark.parametrize("rows", [[], [[-1.0]], [[-1.0, -2.0], [-1.0, -2.0]]])
def test_values_for_other_examples_or_tokens_are_refused(rows):
    with pytest.raises(UserError, match="the server returned"):
        label_log_likelihoods(output(*rows), [EXAMPLE])
