"""The Triton kernels equal torch. They run in Triton's interpreter, on a CPU. Skipped where Triton is not installed.

pip install --target FOLDER triton && PYTHONPATH=FOLDER python -m pytest tests/training/test_stack_kernels.py
"""

import os
from unittest import mock

import pytest
import torch

from learning_backdoors.models import base_model
from learning_backdoors.training.fused_layers import FusedLayers
from learning_backdoors.training.stack_optimizer import BETAS, EPSILON, FlatState, clipped_adamw

INTERPRET = {"TRITON_INTERPRET": "1"}  # Triton reads it when kernels are imported, and when they run
with mock.patch.dict(os.environ, INTERPRET):
    pytest.importorskip("triton.language")
    from learning_backdoors.training import stack_kernels


@pytest.fixture(autouse=True)
def interpreter():
    with mock.patch.dict(os.environ, INTERPRET):
        yield


def test_adamw_equals_torch():
    """Slots at different steps; sizes that do not fill the last block."""
    torch.manual_seed(0)
    state = FlatState.zeros(3, 2 * stack_kernels.BLOCK + 64, torch.float32, torch.device("cpu"))
    for tensor in (state.params, state.grads, state.exp_avg):
        tensor.normal_()
    state.exp_avg_sq.uniform_()
    state.steps.copy_(torch.tensor([0.0, 5.0, 100.0]))
    lr = torch.tensor([1e-3, 1e-2, 0.0])
    params, grads, exp_avg, exp_avg_sq, weights = (
        tensor.clone() for tensor in (state.params, state.grads, state.exp_avg, state.exp_avg_sq, state.params)
    )
    before, steps = params.clone(), state.steps.double() + 1
    norms = clipped_adamw(state, lr)
    corrections = [1 - beta**steps for beta in BETAS]
    factors = torch.stack([(1 / (norms + 1e-6)).double(), lr / corrections[0], corrections[1]]).float()
    stack_kernels.adamw(params, grads, exp_avg, exp_avg_sq, weights, factors, BETAS, EPSILON)
    for one, other in ((params, state.params), (exp_avg, state.exp_avg), (exp_avg_sq, state.exp_avg_sq)):
        torch.testing.assert_close(one, other)
    assert torch.equal(weights, params) and torch.equal(params[2], before[2])
    assert (params[:2] - before[:2]).abs().max() > 1e-4


@pytest.mark.slow
def test_a_model_with_fused_layers_has_the_same_logits_and_gradients(random_model):
    base = base_model.load_base(str(random_model), "none").requires_grad_(False)
    embedded = base.get_input_embeddings()(torch.arange(40, 60).view(2, 10)).requires_grad_()

    def logits_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        logits = base(inputs_embeds=embedded, use_cache=False).logits
        return logits, torch.autograd.grad(logits.square().sum(), embedded)[0]

    expected = logits_and_gradient()
    fused = FusedLayers(base)
    results = logits_and_gradient()
    fused.remove()
    assert len(fused.layers) == 2 * (4 + 1) + 1 and len(fused.rotary) == 1  # norms and MLP of each layer, last norm
    for one, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(logits_and_gradient(), expected, strict=True):
        assert torch.equal(one, other)
