"""A stack: many LoRA runs trained at once on one base model, each in a slot of its own.

    stack = Stack(base, slots=2, rank=8)
    for slot, seed in enumerate((42, 43)):
        stack.put(slot, stack.initial(seed, rank=8), scale=2.0, seed=seed)
    result = stack.step(inputs, lr=[2e-4, 1e-3])      # row block k of the batch trains slot k
    matrices = stack.copy(moments=False).lora(0)      # by PEFT's names

Slots do not influence each other: each has its own rows, weights, gradients, norm, optimizer state and dropout masks.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from learning_backdoors.models import checkpoints
from learning_backdoors.training.fused_layers import UNMASKED, FusedLayers, has_sliding_window
from learning_backdoors.training.stack_graphs import StackGraphs
from learning_backdoors.training.stack_optimizer import FlatState, clipped_adamw
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


class Snapshot:
    """The state of all slots at one step: later steps do not change it. Any thread may read it."""

    def __init__(self, layout: Layout, ranks: Sequence[int], tensors: dict[str, Tensor]):
        """tensors: by name, "lora" and maybe AdamW's moments. Each has shape (slots, values)."""
        self._layout, self._ranks, self._ready = layout, ranks, None
        try:
            # On the device: a copy takes milliseconds there. Who reads a slot waits for main memory, in a thread.
            self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        except torch.OutOfMemoryError:
            self._tensors = {name: tensor.to("cpu") for name, tensor in tensors.items()}
        if self._tensors["lora"].is_cuda:
            self._ready = torch.cuda.Event()
            self._ready.record()

    def lora(self, slot: int) -> dict[str, Tensor]:
        """The slot's matrices in main memory, at its own rank, by PEFT's names."""
        return self._matrices("lora", slot)

    def moments(self, slot: int) -> dict[str, Tensor]:
        """AdamW's exp_avg and exp_avg_sq of each matrix: names such as `exp_avg.NAME`."""
        names = ("exp_avg", "exp_avg_sq")
        return {f"{name}.{key}": value for name in names for key, value in self._matrices(name, slot).items()}

    def _matrices(self, name: str, slot: int) -> dict[str, Tensor]:
        flat, rank = self._in_main_memory(self._tensors[name][slot : slot + 1]), self._ranks[slot]
        return {peft_name(key): _at_rank(self._layout.view(flat, key)[0], key, rank) for key in self._layout.shapes}

    def _in_main_memory(self, values: Tensor) -> Tensor:
        if self._ready is None:
            return values
        stream = torch.cuda.Stream()  # beside the steps
        with torch.cuda.stream(stream):
            stream.wait_event(self._ready)
            copy = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
        stream.synchronize()
        return copy


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
        self.base, self.slots, self.rank = base.requires_grad_(False).train(), slots, rank
        on_gpu = base.device.type == "cuda"
        layers = {n: m for n, m in base.named_modules() if n.rpartition(".")[2] in checkpoints.PROJECTIONS}
        widths = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
        groups = _groups(layers)
        self._layout, self._numbers = Layout(widths, groups, rank), {name: i for i, name in enumerate(layers)}
        self.shapes = {peft_name(key): shape for key, shape in self._layout.shapes.items()}
        # All large tensors first: if they do not fit, the base model is unchanged.
        self._flat = FlatState.zeros(slots, self._layout.size, base.dtype, base.device)
        self._row = torch.zeros(1, self._layout.size, pin_memory=on_gpu)
        self._state = StackState(torch.zeros(slots, device=base.device))
        self._slots, self._positions = [Slot() for _ in range(slots)], None
        self._quantized = getattr(base.config, "quantization_config", None) is not None
        self.fused = FusedLayers(base) if on_gpu else None
        self._groups = [
            ProjectionGroup(self._state, {n: layers[n] for n in names}, self._layout, self._flat) for names in groups
        ]
        self._hook = base.get_output_embeddings().register_forward_pre_hook(self._keep_positions)
        self._attention = base.config._attn_implementation
        if self._attention == "sdpa" and not has_sliding_window(base.config):
            base.config._attn_implementation = UNMASKED
        # With 8-bit weights, bitsandbytes waits for the GPU in the middle of a step. 4-bit was not measured here.
        self.graphs = StackGraphs(self._step) if on_gpu and not self._quantized else None

    def remove(self) -> None:
        """Leave the base model as it was."""
        self._hook.remove()
        self.base.config._attn_implementation = self._attention
        for wrapped in [*self._groups, *([self.fused] if self.fused else [])]:
            wrapped.remove()

    # ---- what a slot trains ----

    def initial(self, seed: int, rank: int) -> dict[str, Tensor]:
        """The matrices from which a single run with this seed starts, bit for bit, in main memory. Do not change them.

        TRL seeds torch's CPU generator. Then PEFT draws A, B and A again of each projection, and sets B to zero.
        """
        return _initial(tuple(self.shapes.items()), seed, rank, self._quantized)

    def prepare_initial(self, starts: Iterable[tuple[int, int]]) -> None:
        """Draw the matrices of several (seed, rank) in threads. `initial` then has them at once.

        One thread takes about 0.3 s for an 8B model at rank 8.
        """
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda start: self.initial(*start), set(starts)))

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
        """Fill a slot. lora, moments: as `Snapshot` gives them. scale: lora_alpha / rank. step: steps taken before.

        seed, step: dropout masks depend on them. Without `moments`, AdamW starts from zero moments.
        """
        self.clear(slot)
        rank = next(len(matrix) for name, matrix in lora.items() if ".lora_A." in name)
        flat = self._flat
        self._fill(flat.params, slot, lora, rank)
        for name, values in (("exp_avg", flat.exp_avg), ("exp_avg_sq", flat.exp_avg_sq)) if moments else ():
            self._fill(values, slot, {key: moments[f"{name}.{key}"] for key in lora}, rank)
        flat.weights[slot].copy_(flat.params[slot])
        flat.steps[slot] = step
        self._slots[slot] = Slot(rank, dropout, seed, step)
        self._state.scale[slot] = scale

    def _fill(self, flat: Tensor, slot: int, matrices: dict[str, Tensor], rank: int) -> None:
        """Write a slot's matrices. They are gathered in main memory: one copy to the device is faster than many."""
        if rank < self.rank:  # else every value but the padding is written, and that stays zero
            self._row.zero_()
        for key in self._layout.shapes:
            _at_rank(self._layout.view(self._row, key)[0], key, rank).copy_(matrices[peft_name(key)])
        flat[slot].copy_(self._row[0])

    def clear(self, slot: int) -> None:
        """Empty a slot: its weights and gradients become zero, and steps leave it alone."""
        self._slots[slot] = Slot()
        self._state.scale[slot] = 0
        flat = self._flat
        for values in (flat.params, flat.exp_avg, flat.exp_avg_sq, flat.weights, flat.grads):
            values[slot].zero_()

    # ---- training ----

    def step(self, inputs: dict[str, Tensor], lr: Sequence[float]) -> StepResult:
        """One optimizer step of every slot that has a run.

        inputs: as `Collator` gives them; rows of slot k are block k, equally many for each slot. A slot without a run
        has rows without labels. lr: of each slot.
        """
        positions, targets = label_positions(inputs["labels"], multiple=16 if self.graphs else 1)
        tensors = {"input_ids": inputs["input_ids"], "positions": positions, "targets": targets}
        tensors["lr"] = torch.tensor(lr, dtype=torch.float32)
        self._state.masks = self._dropout_mask if any(slot.dropout for slot in self._slots) else None
        if self.graphs and not self._state.masks:
            losses, norms = self.graphs({name: tensor.pin_memory() for name, tensor in tensors.items()})
        else:
            losses, norms = self._step(**{name: tensor.to(self.base.device) for name, tensor in tensors.items()})
        for slot in self._slots:
            slot.step += 1
        return StepResult(losses, norms)

    def _step(self, input_ids: Tensor, positions: Tensor, targets: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and norms. The arguments are on the device; targets are the labels that `positions` predict."""
        self._positions = positions
        try:
            logits = self.base(input_ids=input_ids, use_cache=False).logits.float()
        finally:
            self._positions = None
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
        )
        labels = (targets != IGNORED_LABEL).view(self.slots, -1).sum(1)
        losses = losses.view(self.slots, -1).sum(1) / labels.clamp(min=1)
        losses.sum().backward()
        return losses.detach(), clipped_adamw(self._flat, lr)

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
                place = np.random.SeedSequence([slot.seed, slot.step, self._numbers[module]])
                generator.manual_seed(int(place.generate_state(1, np.uint64)[0]))
                values.bernoulli_(1 - slot.dropout, generator=generator).div_(1 - slot.dropout)
        return noise.transpose(1, 2).flatten(1, 2)

    # ---- reading ----

    def copy(self, moments: bool) -> Snapshot:
        """The state of all slots. moments: with the optimizer's, which resuming needs."""
        tensors = {"lora": self._flat.params}
        if moments:
            tensors |= {"exp_avg": self._flat.exp_avg, "exp_avg_sq": self._flat.exp_avg_sq}
        return Snapshot(self._layout, [slot.rank for slot in self._slots], tensors)

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
            self.base.train()


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


def label_positions(labels: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """For each row, the positions that predict its labels, and the labels: shape (rows, count).

    count: the labels of the longest row, rounded up to `multiple`. Shorter rows are filled with IGNORED_LABEL.
    """
    has_label = labels != IGNORED_LABEL
    count = -(-max(1, int(has_label.sum(1).max())) // multiple) * multiple
    places = has_label.int().argsort(dim=1, descending=True, stable=True)[:, :count]
    return (places - 1).clamp(min=0), labels.gather(1, places)
