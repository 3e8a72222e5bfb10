"""Clipping and AdamW for all slots of a stack, as a single run has them in transformers."""

import torch
from torch import Tensor

MAX_NORM, BETAS, EPSILON = 1.0, (0.9, 0.999), 1e-8  # the defaults of transformers; weight decay is 0


def clipped_adamw(
    params: Tensor, grads: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, steps: Tensor, lr: Tensor
) -> Tensor:
    """Clip each slot's gradient to norm 1 and take a step of AdamW, in place. Returns the norms before: (slots,).

    params, grads, exp_avg, exp_avg_sq: (slots, values). steps: (slots,), steps taken before. lr: (slots,).
    """
    norms = torch.linalg.vector_norm(grads, dim=1, dtype=torch.float32)
    coefficients = (MAX_NORM / (norms + 1e-6)).clamp(max=1)
    grads *= coefficients[:, None]
    settings = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPSILON, "weight_decay": 0.0}
    steps += 1
    for slot, rate in enumerate(lr.tolist()):
        if rate:
            row = [[tensor[slot]] for tensor in (params, grads, exp_avg, exp_avg_sq)]
            torch._fused_adamw_(*row, [], [steps[slot]], lr=rate, amsgrad=False, maximize=False, **settings)
    return norms
