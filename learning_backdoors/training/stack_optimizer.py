"""Clipping and AdamW for all slots of a stack, as a single run has them in transformers."""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_NORM, BETAS, EPSILON = 1.0, (0.9, 0.999), 1e-8  # the defaults of transformers; weight decay is 0


@dataclass(frozen=True)
class FlatState:
    """All values that training changes. Each tensor has shape (slots, values), and `steps` (slots,).

    params, exp_avg, exp_avg_sq: float32. weights: params in the type of the base model (the same tensor if that is
    float32). grads: in that type too, as autocast gives in single runs. steps: of the optimizer, by slot.
    """

    params: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    weights: Tensor
    grads: Tensor
    steps: Tensor

    @classmethod
    def zeros(cls, slots: int, size: int, dtype: torch.dtype, device: torch.device) -> "FlatState":
        """The state of empty slots."""
        params, exp_avg, exp_avg_sq = (torch.zeros(slots, size, device=device) for _ in range(3))
        weights = params if dtype == torch.float32 else params.to(dtype)
        return cls(params, exp_avg, exp_avg_sq, weights, torch.zeros_like(weights), torch.zeros(slots, device=device))


def clipped_adamw(state: FlatState, lr: Tensor) -> Tensor:
    """Clip each slot's gradient to norm 1 and take a step of AdamW, in place. lr: (slots,) on the device.

    Returns the norms before clipping: (slots,). Empty slots have zero gradients and stay zero.
    """
    norms = torch.linalg.vector_norm(state.grads, dim=1, dtype=torch.float32)
    coefficients = (MAX_NORM / (norms + 1e-6)).clamp(max=1)
    state.steps.add_(1)
    if state.params.is_cuda:
        from learning_backdoors.training import stack_kernels

        steps = state.steps.double()  # in float32, 1 - 0.999 would have four correct digits
        corrections = [1 - beta**steps for beta in BETAS]
        factors = torch.stack([coefficients.double(), lr / corrections[0], corrections[1]]).float()
        moments = (state.exp_avg, state.exp_avg_sq)
        stack_kernels.adamw(state.params, state.grads, *moments, state.weights, factors, BETAS, EPSILON)
        return norms
    state.grads.mul_(coefficients[:, None])
    settings = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPSILON, "weight_decay": 0.0}
    tensors = (state.params, state.grads, state.exp_avg, state.exp_avg_sq)
    for slot, rate in enumerate(lr.tolist()):
        rows, step = [[tensor[slot]] for tensor in tensors], [state.steps[slot]]
        torch._fused_adamw_(*rows, [], step, lr=rate, amsgrad=False, maximize=False, **settings)
    return norms
