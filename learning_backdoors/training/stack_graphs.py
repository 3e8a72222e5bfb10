"""CUDA graphs for a stack: a whole step (forward, backward, clipping, AdamW) as one launch."""

from collections.abc import Callable

import torch
from torch import Tensor


class StackGraphs:
    """Runs a step, as a graph from the second time on that a shape of batch occurs.

    The first time is the warm-up that a recording needs, and a step of training like any other: recording does not
    run anything.
    """

    MAX_SHAPES = 16
    MAX_TOKENS = 8192  # per batch: larger ones keep the GPU busy without a graph, which has memory of its own

    def __init__(self, run: Callable[..., tuple[Tensor, ...]]):
        """run: takes tensors by name. All others that it uses must stay where they are."""
        self.run, self.warm, self.graphs, self.pool = run, set(), {}, None
        self.stream = torch.cuda.Stream()

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The results of `run`, which later calls do not change."""
        shape = tuple(tensor.shape for tensor in inputs.values())
        if shape not in self.graphs:
            too_many = len(self.graphs) == self.MAX_SHAPES or inputs["input_ids"].numel() > self.MAX_TOKENS
            if too_many or shape not in self.warm:
                self.warm.add(shape)
                return self._run(inputs)
            self.graphs[shape] = self._record(inputs)
        graph, buffers, results = self.graphs[shape]
        for name, buffer in buffers.items():
            buffer.copy_(inputs[name], non_blocking=True)
        graph.replay()
        return tuple(result.clone() for result in results)

    def _run(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """A step without a graph, on the stream of the recordings."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self.run(**{name: tensor.cuda(non_blocking=True) for name, tensor in inputs.items()})
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _record(self, inputs: dict[str, Tensor]) -> tuple:
        buffers = {name: tensor.cuda() for name, tensor in inputs.items()}
        torch.cuda.empty_cache()  # a recording has memory of its own
        graph = torch.cuda.CUDAGraph()
        # Threads that write checkpoints wait for their copies meanwhile; "global" would let the recording fail then.
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                results = self.run(**buffers)
        except RuntimeError as error:  # to end a recording that ran out of memory may fail, too
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        self.pool = self.pool or graph.pool()
        return graph, buffers, results
