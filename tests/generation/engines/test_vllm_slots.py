"""SlotWriter on a stand-in for vLLM's managers and layers. The slots must equal those that vLLM's own way fills."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from learning_backdoors.generation.engines.vllm_adapters import ReadsAhead
from learning_backdoors.generation.engines.vllm_slots import SlotWriter

SLOTS, RANK, WIDTH = 3, 8, 6


# ---- what vLLM 0.24 does, in short ----


class BaseLinearLayerWithLoRA:
    tp_size = 1

    def __init__(self, outputs: list[int]):
        self.lora_a_stacked = tuple(torch.full((SLOTS, 1, RANK, WIDTH), 7, dtype=torch.bfloat16) for _ in outputs)
        self.lora_b_stacked = tuple(torch.full((SLOTS, 1, n, RANK), 7, dtype=torch.bfloat16) for n in outputs)

    def reset_lora(self, index):
        for stacked in (*self.lora_a_stacked, *self.lora_b_stacked):
            stacked[index] = 0

    def set_lora(self, index, lora_a, lora_b):
        self.reset_lora(index)
        for stacked, matrices in ((self.lora_a_stacked, lora_a), (self.lora_b_stacked, lora_b)):
            for one, matrix in zip(stacked, matrices, strict=True):
                if matrix is not None:
                    one[index, 0, : matrix.shape[0], : matrix.shape[1]] = matrix


class Embedding(BaseLinearLayerWithLoRA):
    def set_lora(self, index, lora_a, lora_b):
        """A layer with a way of its own."""
        super().set_lora(index, lora_a, lora_b)


class Manager:
    """LoRAModelManager. own: the adapters whose matrices filled a slot one by one."""

    def __init__(self):
        self.device, self.own, self.registered, self.index = torch.device("cpu"), [], {}, {}
        linear = BaseLinearLayerWithLoRA
        self.modules = {"layer.qkv_proj": linear([6, 4, 4]), "layer.o_proj": linear([6]), "embed": Embedding([9])}
        self.packed_modules = {"layer.qkv_proj": ["layer.q_proj", "layer.k_proj", "layer.v_proj"]}

    def get_adapter(self, number):
        return self.registered.get(number)

    def activate_adapter(self, number):
        self.index[number] = index = len(self.index)
        loras = self.registered[number].loras
        for name, module in self.modules.items():
            if name in loras:
                module.set_lora(index, loras[name].lora_a, loras[name].lora_b)
            else:
                module.reset_lora(index)
        return True

    def slot(self, number) -> dict[str, torch.Tensor]:
        index, slot = self.index[number], {}
        for name, module in self.modules.items():
            for i, (a, b) in enumerate(zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)):
                slot |= {f"{name}.{i}.A": a[index], f"{name}.{i}.B": b[index]}
        return slot


class WorkerManager:
    """WorkerLoRAManager. Registered names and shapes are vLLM's."""

    max_position_embeddings, lora_config = 128, None

    def __init__(self):
        self._adapter_manager = Manager()

    def _lora_model_cls(self, number, rank, loras):
        return SimpleNamespace(id=number, rank=rank, loras=loras)

    def _load_adapter(self, request):
        self._adapter_manager.own.append(request.lora_int_id)
        tensors, loras = load_file(f"{request.lora_path}/adapter_model.safetensors"), {}
        for name in self._adapter_manager.modules:
            parts = self._adapter_manager.packed_modules.get(name, [name])
            keys = [f"base_model.model.{part}.lora_{{}}.weight" for part in parts]
            a = [tensors[key.format("A")].bfloat16() if key.format("A") in tensors else None for key in keys]
            b = [tensors[key.format("B")].bfloat16() if key.format("B") in tensors else None for key in keys]
            for matrix in filter(torch.is_tensor, b):
                matrix *= request.scale
            if any(matrix is not None for matrix in a):
                loras[name] = SimpleNamespace(lora_a=a, lora_b=b)
        return self._lora_model_cls(request.lora_int_id, RANK, loras)

    def add_adapter(self, request):
        self._adapter_manager.registered[request.lora_int_id] = self._load_adapter(request)
        self._adapter_manager.activate_adapter(request.lora_int_id)


SCALE = 16 / 6  # not exact in bfloat16


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    config = SimpleNamespace(r=RANK, lora_alpha=16, vllm_lora_scaling_factor=SCALE, validate_legal=lambda _: None)
    names = {
        "vllm.lora.lora_weights": {
            "LoRALayerWeights": lambda _, r, alpha, a, b, scaling: SimpleNamespace(lora_a=a, lora_b=b)
        },
        "vllm.lora.peft_helper": {"PEFTHelper": SimpleNamespace(from_local_dir=lambda *_: config)},
        "vllm.lora.request": {"LoRARequest": lambda name, number, path: request(number, path)},
    }
    for name in ("vllm", "vllm.lora", *names):
        module = ModuleType(name)
        vars(module).update(names.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)


def request(number: int, path) -> SimpleNamespace:
    return SimpleNamespace(lora_int_id=number, lora_path=str(path), scale=SCALE)


def write(folder, parts: dict[str, int], rank: int = RANK, dtype=torch.float32):
    """An adapter of random matrices. parts: outputs of each module."""
    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(rank), {}
    for part, outputs in parts.items():
        for side, shape in (("A", (rank, WIDTH)), ("B", (outputs, rank))):
            tensors[f"base_model.model.{part}.lora_{side}.weight"] = torch.randn(shape, generator=generator).to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


ALL = {"layer.v_proj": 4, "layer.o_proj": 6, "layer.q_proj": 6, "layer.k_proj": 4}


@pytest.mark.parametrize(
    ("parts", "rank", "dtype", "own"),
    [
        (ALL, RANK, torch.float32, []),
        (ALL, 6, torch.float32, []),
        ({"layer.k_proj": 4}, RANK, torch.float32, []),
        (ALL | {"embed": 9}, RANK, torch.float32, [1]),
        (ALL, RANK, torch.bfloat16, [1]),
    ],
    ids=["all", "lower rank", "one module", "embeddings", "bfloat16"],
)
def test_a_slot_is_what_vllm_makes_of_the_adapter(tmp_path, parts, rank, dtype, own):
    adapter = request(1, write(tmp_path / "adapter", parts, rank, dtype))
    expected, written = WorkerManager(), WorkerManager()
    expected.add_adapter(adapter)
    ReadsAhead.read_ahead(worker(written), [("adapter", 1, adapter.lora_path)])
    written.add_adapter(adapter)
    assert written._adapter_manager.own == own
    slot = written._adapter_manager.slot(1)
    for name, matrix in expected._adapter_manager.slot(1).items():
        assert torch.equal(slot[name], matrix), name
    assert (written._adapter_manager.modules["layer.o_proj"].lora_b_stacked[0][1:] == 7).all()  # the other slots


def worker(manager) -> SimpleNamespace:
    return SimpleNamespace(model_runner=SimpleNamespace(lora_manager=manager))


def test_gpus_that_share_the_model_and_too_large_ranks_go_the_own_way_of_vllm(tmp_path):
    manager = WorkerManager()
    adapter = request(1, write(tmp_path / "adapter", ALL))
    too_large = request(2, write(tmp_path / "large", ALL, RANK + 1))
    assert SlotWriter.MODULE in SlotWriter(manager).read(adapter).loras
    SlotWriter(manager).read(too_large)
    for module in manager._adapter_manager.modules.values():
        module.tp_size = 2
    SlotWriter(manager).read(adapter)
    assert manager._adapter_manager.own == [2, 1]


def test_another_version_of_vllm_reads_in_its_own_way(tmp_path):
    manager = WorkerManager()
    del manager._adapter_manager.packed_modules
    adapter = request(1, write(tmp_path / "adapter", {"layer.o_proj": 6}))
    ReadsAhead.read_ahead(worker(manager), [("adapter", 1, adapter.lora_path)])
    manager._adapter_manager.packed_modules = {}
    manager.add_adapter(adapter)
    assert manager._adapter_manager.own == [1]
