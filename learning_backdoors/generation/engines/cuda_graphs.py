"""Generation steps as CUDA graphs: one launch per step, where single kernels take twice as long to launch as to run."""

import torch

from learning_backdoors.generation.engines.batch import Batch


def can_be_graphed(model) -> bool:
    """Whether the model is on CUDA, unquantized, with full attention only.

    With 8-bit weights, bitsandbytes waits for the GPU in the middle of a step. 4-bit weights were not measured.
    """
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"]
    quantized = getattr(model.config, "quantization_config", None) is not None
    return model.device.type == "cuda" and not quantized and set(kinds) == {"full_attention"}


class GraphedBatch(Batch):
    """A batch whose steps are replays of a CUDA graph.

    A graph is recorded for a segment of steps, in which rows and cache keep their shape and their memory.
    """

    CHECK_EVERY = 64  # steps per segment
    MIN_ENDED_SHARE = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.cache, self.graph = SegmentCache(self.cache), None

    def drop_ended(self) -> list:
        self.graph = None
        return super().drop_ended()

    def forward(self) -> None:
        if self.graph is None:
            self._record()
        self.ids.copy_(self.tokens[:, self.step - 1 : self.step])
        self.positions += 1
        self.cache.column += 1
        self.visible.index_fill_(3, self.cache.column, True)
        self.mask = self.visible[:, 0, 0, : self.mask.shape[1] + 1]
        self.graph.replay()
        self.logits = self.output[:, -1]

    def _record(self) -> None:
        """Reserve cache for a segment and record a step.

        The step runs once to warm up. The first replay overwrites what it wrote into the cache.
        """
        width = self.mask.shape[1]
        self.cache.reserve(width, self.CHECK_EVERY)
        self.ids = self.tokens[:, self.step - 1 : self.step].clone()
        self.positions = self.mask.sum(1, keepdim=True)
        self.visible = torch.nn.functional.pad(self.mask.bool(), (0, self.CHECK_EVERY))[:, None, None, :].contiguous()
        self.visible[..., width] = True
        self._run(self.ids, self.visible, self.positions)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self._run(self.ids, self.visible, self.positions)
        # `forward` advances both before each replay, also before the first.
        self.positions -= 1
        self.cache.column -= 1


class SegmentCache:
    """Keys and values of full attention, in buffers with room for a segment of steps. Rows share the next column."""

    def __init__(self, cache):
        """cache: the DynamicCache of the prompts."""
        self.layers = [[layer.keys, layer.values] for layer in cache.layers]

    def reserve(self, width: int, steps: int) -> None:
        """Keep the first `width` columns and add `steps` after them."""
        for layer in self.layers:  # one by one, so that old and new buffers never coexist for all layers
            layer[:] = [torch.nn.functional.pad(part[:, :, :width], (0, 0, 0, steps)) for part in layer]
        self.column = torch.tensor([width], device=self.layers[0][0].device)

    def batch_select_indices(self, rows: torch.Tensor) -> None:
        for layer in self.layers:
            layer[:] = [part[rows] for part in layer]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_, **__) -> tuple:
        """Called by the model's attention layers: store the new column and return the whole buffers."""
        buffers = self.layers[layer_idx]
        buffers[0].index_copy_(2, self.column, keys)
        buffers[1].index_copy_(2, self.column, values)
        return tuple(buffers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # unused if positions and mask are given
