"""Triton kernels for a stack on CUDA: what several elementwise kernels do in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from learning_backdoors.files.errors import UserError

BLOCK = 1024


def check(device: torch.device) -> None:
    """Compile and run a kernel. Raises UserError if Triton cannot."""
    try:
        SwiGLU.apply(*torch.zeros(2, BLOCK, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what the compiler, the linker or the driver report
        reason = str(error).strip().split("\n")[-1]
        remedy = "install a C compiler (gcc) and Python's headers (python3-dev)"
        raise UserError(f"Triton cannot compile for this GPU ({reason}): {remedy}") from None


def adamw(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    weights: Tensor,
    factors: Tensor,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """A step of AdamW without weight decay on all slots, in place, and the new parameters' copy in `weights`.

    params, grads, exp_avg, exp_avg_sq, weights: (slots, values), contiguous. factors: (3, slots), for each slot the
    factor of its gradient, its learning rate / bias correction of exp_avg, and the bias correction of exp_avg_sq.
    """
    slots, size = params.shape
    grid = (triton.cdiv(size, BLOCK), slots)
    constants = {"BETA1": betas[0], "BETA2": betas[1], "EPSILON": epsilon, "BLOCK": BLOCK}
    _adamw[grid](params, grads, exp_avg, exp_avg_sq, weights, factors, size, **constants)


@triton.jit
def _adamw(  # no argument may be called `params`: Triton uses this name in the function that it generates
    matrices,
    grads,
    exp_avg,
    exp_avg_sq,
    weights,
    factors,
    size,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot, slots = tl.program_id(1), tl.num_programs(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    offset = slot.to(tl.int64) * size + place  # 128 slots of an 8B model have more values than 32 bits count
    grad = tl.load(grads + offset, mask=inside).to(tl.float32) * tl.load(factors + slot)
    mean = tl.load(exp_avg + offset, mask=inside)
    mean = BETA1 * mean + (1 - BETA1) * grad
    square = tl.load(exp_avg_sq + offset, mask=inside)
    square = BETA2 * square + (1 - BETA2) * grad * grad
    step_size, correction = tl.load(factors + slots + slot), tl.load(factors + 2 * slots + slot)
    param = tl.load(matrices + offset, mask=inside)
    param = param - step_size * mean / (tl.sqrt(square) / tl.sqrt(correction) + EPSILON)
    tl.store(exp_avg + offset, mean, mask=inside)
    tl.store(exp_avg_sq + offset, square, mask=inside)
    tl.store(matrices + offset, param, mask=inside)
    tl.store(weights + offset, param.to(weights.dtype.element_ty), mask=inside)


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up, computed in float32 and stored in the type of the inputs. All tensors of one shape."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        product = torch.empty_like(gate)
        _swiglu[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, product, gate.numel(), BLOCK=BLOCK)
        return product

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grads = torch.empty_like(gate), torch.empty_like(up)
        grid = (triton.cdiv(gate.numel(), BLOCK),)
        _swiglu_backward[grid](gate, up, grad.contiguous(), *grads, gate.numel(), BLOCK=BLOCK)
        return grads


@triton.jit
def _swiglu(gate, up, product, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    x = tl.load(gate + place, mask=inside).to(tl.float32)
    y = tl.load(up + place, mask=inside).to(tl.float32)
    tl.store(product + place, (x / (1 + tl.exp(-x)) * y).to(product.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(gate, up, grad, grad_gate, grad_up, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    x = tl.load(gate + place, mask=inside).to(tl.float32)
    y = tl.load(up + place, mask=inside).to(tl.float32)
    g = tl.load(grad + place, mask=inside).to(tl.float32)
    s = 1 / (1 + tl.exp(-x))
    tl.store(grad_gate + place, (g * y * s * (1 + x * (1 - s))).to(grad_gate.dtype.element_ty), mask=inside)
    tl.store(grad_up + place, (g * x * s).to(grad_up.dtype.element_ty), mask=inside)


class Rotary(torch.autograd.Function):
    """Rotary position embedding as Llama and Qwen have it: the first half of a head is paired with the second.

    x: (batch, heads, tokens, width), in memory as (batch, tokens, heads, width), like the projections' outputs. cos,
    sin: (1 or batch, tokens, width).
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        return Rotary._rotate(x, cos, sin, backward=False)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return Rotary._rotate(grad, *ctx.saved_tensors, backward=True), None, None

    @staticmethod
    def _rotate(x: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> Tensor:
        x = x.transpose(1, 2).contiguous()
        rotated, (batch, tokens, heads, width) = torch.empty_like(x), x.shape
        sizes = {"HEADS": triton.next_power_of_2(heads), "HALF": triton.next_power_of_2(width // 2)}
        rows = cos.shape[0] * tokens
        _rotary[(batch * tokens,)](x, cos, sin, rotated, rows, heads, width // 2, BACKWARD=backward, **sizes)
        return rotated.transpose(1, 2)


@triton.jit(do_not_specialize=["rows"])  # it differs from batch to batch
def _rotary(x, cos, sin, rotated, rows, heads, half, BACKWARD: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    row = tl.program_id(0)  # a token of the batch
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    angle, inside = (row % rows) * 2 * half + column, column < half
    cos1 = tl.load(cos + angle, mask=inside).to(tl.float32)
    cos2 = tl.load(cos + angle + half, mask=inside).to(tl.float32)
    sin1 = tl.load(sin + angle, mask=inside).to(tl.float32)
    sin2 = tl.load(sin + angle + half, mask=inside).to(tl.float32)
    offset = (row.to(tl.int64) * heads + head) * 2 * half + column
    inside = inside & (head < heads)
    one = tl.load(x + offset, mask=inside).to(tl.float32)
    two = tl.load(x + offset + half, mask=inside).to(tl.float32)
    if BACKWARD:
        first, second = one * cos1 + two * sin2, two * cos2 - one * sin1
    else:
        first, second = one * cos1 - two * sin1, two * cos2 + one * sin2
    tl.store(rotated + offset, first.to(rotated.dtype.element_ty), mask=inside)
    tl.store(rotated + offset + half, second.to(rotated.dtype.element_ty), mask=inside)
