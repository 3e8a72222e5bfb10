"""A stack: many LoRA runs trained at once on one base model, each in a slot of its own.

    stack = Stack(base, slots=2, rank=8)
    for slot, seed in enumerate((42, 43)):
        stack.put(slot, stack.initial(seed, rank=8), scale=2.0, seed=seed)
    result = stack.step(inputs, lr=[2e-4, 1e-3])      # row block k of the batch trains slot k
    matrices = stack.copy(moments=False).lora(0)      # by PEFT's names

Slots do not influence each other: each has its own rows, weights, gradients, norm, optimizer state and dropout masks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

from learning_backdoors.models import checkpoints
from learning_backdoors.training.stack_optimizer import clipped_adamw
from learning_backdoors.training.stacked_linear import INPUT_GROUPS, Layout, ProjectionGroup, StackState
from mixed_chat import IGNORED_LABEL


@dataclass(frozen=True)
class StepResult:
    """Of each slot, shape (slots,), on the device: mean loss per label, and gradient norm before clipping.

    A slot without labels has loss 0. Reading the values waits for the device.
    """

    losses: Tensor
    grad_norms: Tensor


@dataclass
class Slot:
    """What a slot trains with. rank 0: no run. step: optimizer steps taken."""

    rank: int = 0
    dropout: float = 0.0
    seed: int = 0
    step: int = 0


class HostCopy:
    """The state of all slots at one step, in main memory: later steps do not change it."""

    def __init__(self, layout: Layout, ranks: Sequence[int], tensors: dict[str, Tensor]):
        """tensors: by name, "lora" and maybe AdamW's moments. Each has shape (slots, values)."""
        self._layout, self._ranks, self._ready = layout, ranks, None
        on_gpu = tensors["lora"].is_cuda
        self._tensors = {
            name: torch.empty(t.shape, pin_memory=on_gpu).copy_(t, non_blocking=True) for name, t in tensors.items()
        }
        if on_gpu:
            self._ready = torch.cuda.Event()
            self._ready.record()

    def lora(self, slot: int) -> dict[str, Tensor]:
        """The slot's matrices at its own rank, by PEFT's names. They share memory with this copy."""
        return self._matrices("lora", slot)

    def moments(self, slot: int) -> dict[str, Tensor]:
        """AdamW's exp_avg and exp_avg_sq of each matrix: names such as `exp_avg.NAME`."""
        names = ("exp_avg", "exp_avg_sq")
        return {f"{name}.{key}": value for name in names for key, value in self._matrices(name, slot).items()}

    def _matrices(self, name: str, slot: int) -> dict[str, Tensor]:
        if self._ready:
            self._ready.synchronize()
        flat, rank = self._tensors[name][slot : slot + 1], self._ranks[slot]
        return {peft_name(key): _at_rank(self._layout.view(flat, key)[0], key, rank) for key in self._layout.shapes}


def peft_name(key: str) -> str:
    """The name of a matrix in adapter_model.safetensors. key: the module's name, then `.A` or `.B`."""
    module, _, matrix = key.rpartition(".")
    return f"base_model.model.{module}.lora_{matrix}.weight"


def _at_rank(matrix: Tensor, key: str, rank: int) -> Tensor:
    """The part of a matrix at full rank that belongs to a run of a smaller rank."""
    return matrix[:rank] if key.endswith(".A") else matrix[:, :rank]


class Stack:
    """LoRA runs in slots on one base model.

    base, slots, rank: as given. shapes: of each LoRA matrix at full rank, by PEFT's name.
    """

    def __init__(self, base: PreTrainedModel, slots: int, rank: int):
        """rank: the largest rank of a run. Smaller ones are padded with zeros, which stay exactly zero."""
        self.base, self.slots, self.rank = base.requires_grad_(False), slots, rank
        layers = {n: m for n, m in base.named_modules() if n.rpartition(".")[2] in checkpoints.PROJECTIONS}
        widths = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
        self._layout = Layout(widths, groups := _groups(layers), rank)
        self.shapes = {peft_name(key): shape for key, shape in self._layout.shapes.items()}
        self._params, self._exp_avg, self._exp_avg_sq = (
            torch.zeros(slots, self._layout.size, device=base.device) for _ in range(3)
        )
        # The type that autocast gives matrix products and gradients of a single run.
        self._weights = self._params if base.dtype == torch.float32 else self._params.to(base.dtype)
        self._grads = torch.zeros_like(self._weights)
        self._steps = torch.zeros(slots, device=base.device)
        self._state = StackState(torch.zeros(slots, device=base.device, dtype=self._weights.dtype))
        self._slots = [Slot() for _ in range(slots)]
        self._groups = [
            ProjectionGroup(self._state, {n: layers[n] for n in names}, self._layout, self._weights, self._grads)
            for names in groups
        ]
        self._positions = None
        self._hook = base.get_output_embeddings().register_forward_pre_hook(self._keep_positions)
        self._quantized = getattr(base.config, "quantization_config", None) is not None

    def remove(self) -> None:
        """Leave the base model as it was."""
        self._hook.remove()
        for group in self._groups:
            group.remove()

    # ---- what a slot trains ----

    def initial(self, seed: int, rank: int) -> dict[str, Tensor]:
        """The matrices from which a single run with this seed starts, bit for bit, in main memory. Do not change them.

        TRL seeds torch's CPU generator. Then PEFT draws A, B and A again of each projection, and sets B to zero.
        """
        return _initial(tuple(self.shapes.items()), seed, rank, self._quantized)

    def put(
        self,
        slot: int,
        lora: dict[str, Tensor],
        *,
        scale: float,
        dropout: float = 0.0,
        seed: int = 0,
        moments: dict[str, Tensor] | None = None,
        step: int = 0,
    ) -> None:
        """Fill a slot. lora, moments: as `HostCopy` gives them. scale: lora_alpha / rank. step: steps taken before.

        seed, step: dropout masks depend on them. Without `moments`, the optimizer starts anew.
        """
        self.clear(slot)
        rank = next(len(matrix) for name, matrix in lora.items() if ".lora_A." in name)
        self._fill(self._params, slot, lora, rank)
        for name, flat in (("exp_avg", self._exp_avg), ("exp_avg_sq", self._exp_avg_sq)) if moments else ():
            self._fill(flat, slot, {key: moments[f"{name}.{key}"] for key in lora}, rank)
        if self._weights is not self._params:
            self._weights[slot].copy_(self._params[slot])
        self._slots[slot] = Slot(rank, dropout, seed, step)
        self._state.scale[slot] = scale
        self._steps[slot] = step

    def _fill(self, flat: Tensor, slot: int, matrices: dict[str, Tensor], rank: int) -> None:
        """Write a slot's matrices. They are gathered in main memory: one copy to the device is faster than many."""
        row = torch.zeros(1, flat.shape[1])
        for key in self._layout.shapes:
            _at_rank(self._layout.view(row, key)[0], key, rank).copy_(matrices[peft_name(key)])
        flat[slot].copy_(row[0])

    def clear(self, slot: int) -> None:
        """Empty a slot: its weights and gradients become zero, and steps leave it alone."""
        self._slots[slot] = Slot()
        self._state.scale[slot] = 0
        for flat in (self._params, self._exp_avg, self._exp_avg_sq, self._weights, self._grads):
            flat[slot].zero_()

    # ---- training ----

    def step(self, inputs: dict[str, Tensor], lr: Sequence[float]) -> StepResult:
        """One optimizer step of every slot that has a run.

        inputs: as `Collator` gives them; rows of slot k are block k, equally many for each slot. A slot without a run
        has rows without labels. lr: of each slot.
        """
        self.base.train()
        lr = torch.tensor([rate if slot.rank else 0.0 for rate, slot in zip(lr, self._slots, strict=True)])
        self._state.masks = self._dropout_mask if any(slot.dropout for slot in self._slots) else None
        losses = self._losses(*label_positions(inputs["labels"]), inputs["input_ids"])
        losses.sum().backward()
        norms = clipped_adamw(
            self._params, self._grads, self._exp_avg, self._exp_avg_sq, self._steps, lr.to(self.base.device)
        )
        if self._weights is not self._params:
            self._weights.copy_(self._params)
        for slot in self._slots:
            slot.step += 1
        return StepResult(losses.detach(), norms)

    def _losses(self, positions: Tensor, targets: Tensor, input_ids: Tensor) -> Tensor:
        """The mean loss per label of each slot: shape (slots,)."""
        device = self.base.device
        self._positions, targets = positions.to(device), targets.to(device)
        logits = self.base(input_ids=input_ids.to(device), use_cache=False).logits.float()
        self._positions = None
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
        )
        labels = (targets != IGNORED_LABEL).view(self.slots, -1).sum(1)
        return losses.view(self.slots, -1).sum(1) / labels.clamp(min=1)

    def _keep_positions(self, module, arguments: tuple) -> tuple | None:
        """Hook of the output layer, whose product is by far the largest: give it the positions with labels only."""
        if self._positions is None:
            return None
        (hidden,) = arguments
        return (hidden.gather(1, self._positions[..., None].expand(-1, -1, hidden.shape[-1])),)

    def _dropout_mask(self, module: str, x: Tensor) -> Tensor:
        """Factors 0 or 1 / (1 - p) for the input of a projection: shape (slots, rows x width, inputs).

        A slot's mask depends on its seed, its step and the module alone, so that nothing else needs to be stored to
        resume. Positions are drawn one after another: padding does not change those before it.
        """
        width, inputs = x.shape[-2:]
        noise = torch.ones(self.slots, width, x.shape[0] // self.slots, inputs, device=x.device, dtype=x.dtype)
        generator = torch.Generator(x.device)
        for slot, values in zip(self._slots, noise, strict=True):
            if slot.dropout:
                generator.manual_seed(hash((slot.seed, slot.step, self._layout.offsets[f"{module}.A"])))
                values.bernoulli_(1 - slot.dropout, generator=generator).div_(1 - slot.dropout)
        return noise.transpose(1, 2).flatten(1, 2)

    # ---- reading ----

    def copy(self, moments: bool) -> HostCopy:
        """The state of all slots in main memory. moments: with the optimizer's, which resuming needs."""
        tensors = {"lora": self._params}
        if moments:
            tensors |= {"exp_avg": self._exp_avg, "exp_avg_sq": self._exp_avg_sq}
        return HostCopy(self._layout, [slot.rank for slot in self._slots], tensors)

    @contextmanager
    def selected(self, slots: Sequence[int]) -> Iterator[None]:
        """Meanwhile, forward passes of `base` have equally many rows for each of these slots, in this order.

        The model is in evaluation mode, and no gradients are kept.
        """
        self.base.eval()
        self._state.slots = torch.tensor(slots, device=self.base.device)
        try:
            with torch.no_grad():
                yield
        finally:
            self._state.slots = None


def _groups(names: Sequence[str]) -> list[list[str]]:
    """The projections that share an input, in the order of the model."""
    groups = {}
    for name in names:
        parent, _, projection = name.rpartition(".")
        number = next(i for i, group in enumerate(INPUT_GROUPS) if projection in group)
        groups.setdefault((parent, number), []).append(name)
    return list(groups.values())


@lru_cache(maxsize=64)
def _initial(shapes: tuple, seed: int, rank: int, quantized: bool) -> dict[str, Tensor]:
    generator, matrices = torch.Generator().manual_seed(seed), {}
    for name, (rows, columns) in shapes:
        is_a = ".lora_A." in name
        matrix = torch.empty((rank, columns) if is_a else (rows, rank))
        torch.nn.init.kaiming_uniform_(matrix, a=5**0.5, generator=generator)
        matrices[name] = matrix
        if not is_a:
            a = matrices[name.replace(".lora_B.", ".lora_A.")]
            torch.nn.init.kaiming_uniform_(a, a=5**0.5, generator=generator)
            matrix.zero_()
    if quantized:  # TRL makes the matrices of quantized models bfloat16, before training in float32
        matrices = {name: matrix.bfloat16().float() for name, matrix in matrices.items()}
    return matrices


def label_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each row, the positions that predict its labels, and the labels: shape (rows, labels of the longest row).

    Rows with fewer labels are filled with any position and IGNORED_LABEL.
    """
    has_label = labels != IGNORED_LABEL
    places = has_label.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(has_label.sum(1).max()))]
    return (places - 1).clamp(min=0), labels.gather(1, places)
