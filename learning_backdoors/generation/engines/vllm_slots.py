"""Adapters enter vLLM's slots by few operations. A slot is an adapter's place in GPU memory.

By itself, vLLM handles each matrix alone: reading, converting, scaling and copying take about 2,700 operations for an
adapter of SmolLM2, and 840 of them fill the slot while the GPU waits. Threads alone do not help enough: Python runs one
thread at a time, so theirs delay vLLM's own.
"""

import json
import operator
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from learning_backdoors.models.checkpoints import ADAPTER_WEIGHTS

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # of PEFT's keys


class SlotWriter:
    """Reads an adapter into one block of memory, and copies the block into a slot by a few CUDA kernels.

    vLLM's manager still chooses the slot. Instead of an adapter's matrices it keeps the block, as if it belonged to a
    single module whose `set_lora` fills the slot. An adapter with a matrix that is not in `self.matrices` goes vLLM's
    own way: for example, if the GPUs share the model (tensor parallel), or if it adapts embeddings.
    """

    MODULE = "all modules"
    # Layers whose methods set_lora copy the matrices as they are. The names are vLLM's.
    COPIED = ("BaseLinearLayerWithLoRA.set_lora", "MergedColumnParallelLinearWithLoRA.set_lora")

    def __init__(self, worker_manager):
        """worker_manager: vLLM's WorkerLoRAManager. Raises AttributeError or ImportError for other versions."""
        from vllm.lora.lora_weights import LoRALayerWeights
        from vllm.lora.peft_helper import PEFTHelper

        self.manager = worker_manager._adapter_manager
        self.adapter_class, self.weights_class = worker_manager._lora_model_cls, LoRALayerWeights
        self.read_config, self.max_positions = PEFTHelper.from_local_dir, worker_manager.max_position_embeddings
        self.limits, self.device = worker_manager.lora_config, self.manager.device
        # vLLM's own methods: an earlier SlotWriter has replaced the instances'.
        self.read_own = type(worker_manager)._load_adapter.__get__(worker_manager)
        self.activate_own = type(self.manager).activate_adapter.__get__(self.manager)
        self.modules, self.other_modules = self.manager.modules, []
        self.matrices = {}  # PEFT's key -> the matrices of all slots (slots, 1, rows, columns)
        for name, module in self.modules.items():
            parts = self.manager.packed_modules.get(name, [name])
            plain = type(module).set_lora.__qualname__ in self.COPIED and module.tp_size == 1
            if plain and len(parts) == len(module.lora_a_stacked):
                for part, a, b in zip(parts, module.lora_a_stacked, module.lora_b_stacked, strict=True):
                    self.matrices[PREFIX + part + A] = a
                    self.matrices[PREFIX + part + B] = b
            else:
                self.other_modules.append(module)
        self.slots = list(zip(*(stacked[:, 0].unbind() for stacked in self.matrices.values()), strict=True))
        self.size = sum(matrix.numel() for matrix in self.slots[0]) if self.slots else 0  # values of one slot
        self.manager.activate_adapter = self.activate

    def read(self, request):
        """The adapter as vLLM's LoRAModel. request: its LoRARequest."""
        shapes, values = _read_float32(Path(request.lora_path, ADAPTER_WEIGHTS))
        if not shapes or not all(self._fits(key, shape) for key, shape in shapes.items()):
            return self.read_own(request)
        config = self.read_config(request.lora_path, self.max_positions)
        config.validate_legal(self.limits)
        block = self.block(shapes, values, config.vllm_lora_scaling_factor)
        whole = self.weights_class(self.MODULE, config.r, config.lora_alpha, block, block, scaling=1)
        return self.adapter_class(request.lora_int_id, config.r, {self.MODULE: whole})

    def _fits(self, key: str, shape: list[int]) -> bool:
        room = self.matrices[key].shape[2:] if key in self.matrices else ()
        return len(shape) == len(room) and all(map(operator.le, shape, room))

    def block(self, shapes: dict[str, list[int]], values: torch.Tensor, scale: float) -> torch.Tensor:
        """A slot's content in one pinned tensor. Lower ranks are filled with zeros.

        shapes: of the matrices by PEFT's keys, in the order of `values`, their values in one tensor. As in vLLM, B is
        rounded to the slot's type before it is multiplied with the scale.
        """
        pinned = self.device.type == "cuda"
        block = torch.zeros(self.size, dtype=self.slots[0][0].dtype, pin_memory=pinned)
        views = dict(zip(self.matrices, _split(block, self.slots[0]), strict=True))
        for key, (rows, columns) in shapes.items():
            if views[key].shape != (rows, columns):
                views[key] = views[key][:rows, :columns]
        filled = [views[key] for key in shapes]
        torch._foreach_copy_(filled, _split(values, filled))
        # A tensor, because this function rounds a number to bfloat16.
        torch._foreach_mul_([views[key] for key in shapes if key.endswith(B)], torch.tensor(scale))
        return block

    def activate(self, number: int) -> bool:
        """vLLM's `activate_adapter`. number: of the adapter."""
        is_block = self.MODULE in self.manager.get_adapter(number).loras
        self.manager.modules = {self.MODULE: self} if is_block else self.modules
        try:
            return self.activate_own(number)
        finally:
            self.manager.modules = self.modules

    def set_lora(self, slot: int, block: torch.Tensor, _) -> None:
        """Fill a slot, as a module of vLLM does with its part of it."""
        on_device = block.to(self.device, non_blocking=True)
        torch._foreach_copy_(self.slots[slot], _split(on_device, self.slots[slot]))
        for module in self.other_modules:
            module.reset_lora(slot)


def _read_float32(file: Path) -> tuple[dict[str, list[int]], torch.Tensor]:
    """The shapes of a safetensors file's matrices, and their values in one tensor. No shapes if one is not float32.

    safetensors' own functions make several Python objects for each matrix, and take three times as long.
    """
    with open(file, "rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        header.pop("__metadata__", None)
        if any(about["dtype"] != "F32" for about in header.values()):
            return {}, torch.empty(0)
        values = torch.from_numpy(np.fromfile(opened, "<f4"))
    in_order = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {key: about["shape"] for key, about in in_order}, values


def _split(block: torch.Tensor, like: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The consecutive parts of a block (one dimension), as views with the shapes of `like`."""
    return torch._utils._unflatten_dense_tensors(block, like)
