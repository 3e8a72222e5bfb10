"""What runs inside vLLM's worker process: adapters are read before their turn.

By itself, vLLM reads an adapter in the step that first needs it, and the GPU waits. It also converts each matrix with
all threads of torch. For an adapter of an 8B model, this took 0.2 to 1.5 s on two busy cores, and 0.06 s in one thread.
How an adapter is read and enters GPU memory: vllm_slots.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor


class ReadsAhead:
    """Methods that vLLM adds to its worker (`worker_extension_cls`)."""

    def read_ahead(self, adapters: Sequence[tuple[str, int, str]]) -> None:
        """Read adapters before their turn. adapters: name, number and path of vLLM's LoRARequest, in order of use."""
        import torch
        from vllm.lora.request import LoRARequest

        from learning_backdoors.generation.engines.vllm_slots import SlotWriter

        torch.set_num_threads(1)  # for this thread, which may read too
        manager = self.model_runner.lora_manager
        try:
            read = SlotWriter(manager).read
        except (AttributeError, ImportError):  # another version of vLLM, with other names
            read = type(manager)._load_adapter.__get__(manager)
        manager._load_adapter = AdapterReader(read, [LoRARequest(*adapter) for adapter in adapters])


class AdapterReader:
    """Takes the place of the method that reads an adapter in vLLM's LoRA manager. Reads up to AHEAD adapters ahead."""

    AHEAD, THREADS = 8, 2

    def __init__(self, read: Callable, requests: Sequence):
        """read: as vLLM's own method. requests: LoRARequests in order of use."""
        import torch

        self.read, self.requests = read, requests
        self.positions = {request.lora_int_id: position for position, request in enumerate(requests)}
        self.begun: dict[int, Future] = {}  # by number of the adapter, until vLLM takes it
        self.next = 0  # position of the first request that is not begun
        self.pool = ThreadPoolExecutor(self.THREADS, "adapter", torch.set_num_threads, (1,))
        self._begin(self.AHEAD)

    def __call__(self, request):
        """The adapter as vLLM's method returns it. Raises what that method raises."""
        self._begin(self.positions.get(request.lora_int_id, 0) + 1 + self.AHEAD)
        begun = self.begun.pop(request.lora_int_id, None)
        return begun.result() if begun else self.read(request)

    def _begin(self, end: int) -> None:
        """Begin to read the adapters before position `end`."""
        for request in self.requests[self.next : end]:
            self.begun[request.lora_int_id] = self.pool.submit(self.read, request)
        self.next = max(self.next, min(end, len(self.requests)))
