"""Projections with a stack of LoRA matrices: each slot's rows of a batch go through the slot's own matrices.

The matrices of all projections of one slot are views into one row of a flat tensor, so that copying, clipping and the
optimizer need one kernel for all of them. Projections that read the same input (q, k, v and gate, up) form a group,
which computes their products with the input together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learning_backdoors.training.stack_optimizer import FlatState

INPUT_GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
ALIGNMENT = 64  # values: GPUs read matrices faster that start at a multiple of 128 bytes


class Layout:
    """Where the LoRA matrices of each projection lie in a slot's flat row.

    size: values in a row. shapes: of each matrix at full rank, by PEFT's name, in PEFT's order (A, B of each projection
    in module order). offsets: where each matrix starts.
    """

    def __init__(self, widths: dict[str, tuple[int, int]], groups: Sequence[Sequence[str]], rank: int):
        """widths: inputs and outputs of each projection, by its module's name. groups: names that share an input."""
        self.rank, self.size, self.offsets = rank, 0, {}
        for group in groups:
            for key in [f"{name}.A" for name in group] + [f"{name}.B" for name in group]:
                self.offsets[key] = self.size
                name, _, matrix = key.rpartition(".")
                self.size += rank * widths[name][matrix == "B"]
                if not (matrix == "A" and name != group[-1]):  # the A of a group are adjacent: one wide matrix
                    self.size = -(-self.size // ALIGNMENT) * ALIGNMENT
        self.shapes = {}
        for name, (inputs, outputs) in widths.items():
            self.shapes[f"{name}.A"], self.shapes[f"{name}.B"] = (rank, inputs), (outputs, rank)

    def view(self, flat: Tensor, key: str, count: int = 1) -> Tensor:
        """A matrix of all slots: shape (slots, rows, columns). count: this many adjacent A as one."""
        rows, columns = self.shapes[key]
        start = self.offsets[key]
        return flat[:, start : start + count * rows * columns].view(len(flat), count * rows, columns)


class StackState:
    """What all groups of a stack share.

    slots: those whose rows a forward pass has; None means all, in order. scale: (slots,), float32, the factor of each
    slot's LoRA term. anchor: a tensor that requires gradients, so that autograd calls the backward pass. masks: makes
    dropout masks, None without dropout.
    """

    def __init__(self, scale: Tensor):
        self.scale, self.slots, self.masks = scale, None, None
        self.anchor = torch.zeros((), device=scale.device, requires_grad=True)


class ProjectionGroup:
    """Projections that read the same input, wrapped: y = base_layer(x) + scale * B (A x) with each slot's A and B."""

    def __init__(self, state: StackState, layers: dict[str, nn.Module], layout: Layout, flat: FlatState):
        """layers: by module name."""
        self.state, self.names, self.layers = state, list(layers), list(layers.values())
        self.rank, first = layout.rank, f"{self.names[0]}.A"
        self.a, self.grad_a = (layout.view(values, first, len(layers)) for values in (flat.weights, flat.grads))
        self.b, self.grad_b = (
            [layout.view(values, f"{name}.B") for name in layers] for values in (flat.weights, flat.grads)
        )
        # bitsandbytes layers compute their own output and gradient.
        self.plain = all(type(layer) is nn.Linear for layer in self.layers)
        self.input, self.outputs, self.base_forwards = None, {}, [layer.forward for layer in self.layers]
        for number, layer in enumerate(self.layers):
            layer.forward = lambda x, number=number: self._output(number, x)

    def remove(self) -> None:
        """Give the layers their own forward methods back."""
        self.input, self.outputs = None, {}  # a pass that ran out of memory leaves them
        for layer in self.layers:
            del layer.forward

    def _output(self, number: int, x: Tensor) -> Tensor:
        """The output of one projection. The first call for an input computes those of all."""
        if x is not self.input:
            bases = () if self.plain else [forward(x) for forward in self.base_forwards]
            outputs = _StackedLora.apply(x, self.state.anchor, self, *bases)
            self.input, self.outputs = x, dict(enumerate(outputs))
        output = self.outputs.pop(number)
        if not self.outputs:
            self.input = None
        return output

    def parts(self, x: Tensor) -> list[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
        """The products with A that a pass needs: A, dropout mask, A's gradient, columns of the product.

        One for the group, or one for each projection with dropout, whose masks differ.
        """
        a = self.a if self.state.slots is None else self.a[self.state.slots]
        if self.state.masks is None or self.state.slots is not None:
            return [(a, None, self.grad_a, slice(None))]
        columns = [slice(i * self.rank, (i + 1) * self.rank) for i in range(len(self.names))]
        masks = (self.state.masks(name, x) for name in self.names)
        return [(a[:, c], mask, self.grad_a[:, c], c) for c, mask in zip(columns, masks, strict=True)]


class _StackedLora(torch.autograd.Function):
    """The outputs of a group of projections; the backward pass writes the LoRA gradients into their flat buffer."""

    @staticmethod
    def forward(ctx, x: Tensor, anchor: Tensor, group: ProjectionGroup, *bases: Tensor) -> tuple[Tensor, ...]:
        state = group.state
        chosen = slice(None) if state.slots is None else state.slots
        scale = state.scale[chosen]
        rows = x.reshape(len(scale), -1, x.shape[-1])
        products = [torch.bmm(rows if mask is None else rows * mask, a.mT) for a, mask, _, _ in group.parts(x)]
        xa = _scaled(products[0] if len(products) == 1 else torch.cat(products, -1), scale)
        outputs = [base.clone() for base in bases]
        outputs = outputs or [nn.functional.linear(x, layer.weight, layer.bias) for layer in group.layers]
        for output, b, part in zip(outputs, group.b, xa.split(group.rank, -1), strict=True):
            output.view(*rows.shape[:2], -1).baddbmm_(part, b[chosen].mT)
        ctx.save_for_backward(x, xa)
        ctx.group, ctx.has_bases = group, bool(bases)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        group, (x, xa) = ctx.group, ctx.saved_tensors
        rows = x.reshape(len(xa), -1, x.shape[-1])
        grads = [grad.contiguous() for grad in grads]
        by_slot = [grad.view(*rows.shape[:2], -1) for grad in grads]
        for grad, part, grad_b in zip(by_slot, xa.split(group.rank, -1), group.grad_b, strict=True):
            _store(grad_b.mT, part.mT, grad)
        grad_xa = torch.cat([torch.bmm(grad, b) for grad, b in zip(by_slot, group.b, strict=True)], -1)
        grad_xa = _scaled(grad_xa, group.state.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(rows) if ctx.has_bases else _base_gradient(group.layers, grads).view(rows.shape)
        for a, mask, grad_a, columns in group.parts(x):
            part = grad_xa[..., columns]
            _store(grad_a, part.mT, rows if mask is None else rows * mask)
            if grad_x is not None:
                grad_x = grad_x.baddbmm_(part, a) if mask is None else grad_x + torch.bmm(part, a) * mask
        grad_x = None if grad_x is None else grad_x.view(x.shape)
        return grad_x, None, None, *(grads if ctx.has_bases else ())


def _scaled(products: Tensor, scale: Tensor) -> Tensor:
    """Products of each slot times its factor. In bfloat16, factors such as 4 / 3 would be wrong by 0.2%."""
    return (products * scale[:, None, None]).to(products.dtype)


def _store(target: Tensor, one: Tensor, two: Tensor) -> None:
    """Write the product of two batches of matrices. A CPU is faster with a contiguous result."""
    if target.is_cuda:
        torch.bmm(one, two, out=target)
    else:
        target.copy_(torch.bmm(one, two))


def _base_gradient(layers: list[nn.Module], grads: Sequence[Tensor]) -> Tensor:
    """The gradient of a group's input through the base model's weights: shape (rows, inputs)."""
    flat = [grad.view(-1, grad.shape[-1]) for grad in grads]
    total = flat[0] @ layers[0].weight
    for grad, layer in zip(flat[1:], layers[1:], strict=True):
        total.addmm_(grad, layer.weight)
    return total
