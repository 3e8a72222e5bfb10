"""CUDA graphs: the forward and backward pass of a step as one launch.

At batch size 1, a step of an 8B model consists of some 15,000 kernels that take longer to launch than to run. A graph
replays them in one launch: the same arithmetic on the same weights. `python -m benchmarks.cuda_graphs` checks this.
"""

import torch

from learning_backdoors.training.base_checks import activation_bytes


def can_use_graphs(trainer) -> bool:
    """Whether a trainer runs in one process on CUDA, on weights that allow graphs, with enough free memory for them.

    8-bit weights do not allow graphs: bitsandbytes waits for the GPU in the middle of a step. 4-bit weights do.
    """
    base = trainer.model.get_base_model()
    quantization = getattr(base.config, "quantization_config", None)
    recordable = quantization is None or getattr(quantization, "load_in_4bit", False)
    recordable = recordable and not trainer.args.gradient_checkpointing and trainer.accelerator.num_processes == 1
    return recordable and base.device.type == "cuda" and _graphs_fit(trainer)


def _graphs_fit(trainer) -> bool:
    """Whether the memory that is free after loading holds the graphs and a step without a graph.

    Each graph keeps the gradients that it computes. Another four such sizes are for the adapters, their gradients and
    AdamW. The estimate of a batch's activations is generous enough for both kinds of step. With Qwen3-8B's shape in
    4-bit, rank 8 and bird names, training reserved 2.5 GB after loading (0.9 GB without graphs); this estimates 2.6.
    """
    base = trainer.model.get_base_model()
    adapter_bytes = 4 * sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    tokens = trainer.args.per_device_train_batch_size * max(map(len, trainer.train_dataset["input_ids"]))
    needed = (StepGraphs.MAX_SHAPES + 4) * adapter_bytes + activation_bytes(base, tokens)
    return needed < torch.cuda.mem_get_info(base.device)[0]


class StepGraphs:
    """One graph per shape of batch, recorded when the shape first occurs."""

    MAX_TOKENS = 1024  # per batch: larger batches keep the GPU busy without graphs
    MAX_SHAPES = 16

    def __init__(self, trainer):
        self.trainer, self.graphs, self.pool = trainer, {}, None
        self.parameters = [p for p in trainer.model.parameters() if p.requires_grad]

    def accepts(self, inputs: dict) -> bool:
        """Whether a batch of this shape has a graph or may get one."""
        has_room = len(self.graphs) < self.MAX_SHAPES
        return (has_room or self._shape(inputs) in self.graphs) and inputs["input_ids"].numel() <= self.MAX_TOKENS

    @staticmethod
    def _shape(inputs: dict) -> tuple:
        return *inputs["input_ids"].shape, len(inputs["logits_to_keep"])

    def step(self, model, inputs: dict[str, torch.Tensor], num_labels) -> torch.Tensor:
        """Run a forward and backward pass. Returns the loss and adds to the parameters' gradients."""
        shape = self._shape(inputs)
        if shape not in self.graphs:
            self.graphs[shape] = self._record(model, inputs)
        graph, buffers, labels_buffer, loss, gradients = self.graphs[shape]
        for name, buffer in buffers.items():
            buffer.copy_(inputs[name])
        labels_buffer.fill_(num_labels)
        graph.replay()
        if self.parameters[0].grad is not None:
            torch._foreach_add_([parameter.grad for parameter in self.parameters], gradients)
        else:
            accumulating = self.trainer.args.gradient_accumulation_steps > 1
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient.clone() if accumulating else gradient
        return loss.clone()

    def _record(self, model, inputs: dict) -> tuple:
        buffers = {name: value.clone() for name, value in inputs.items()}
        labels_buffer = torch.ones((), device=buffers["labels"].device)
        gradients_before, random_state = [p.grad for p in self.parameters], torch.cuda.get_rng_state()
        model.train()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # one-time work (plans, workspaces) must not be recorded
                self._set_gradients([None] * len(self.parameters))
                self._forward_backward(model, buffers, labels_buffer)
        torch.cuda.current_stream().wait_stream(stream)
        self._set_gradients([None] * len(self.parameters))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            loss = self._forward_backward(model, buffers, labels_buffer)
        self.pool = self.pool or graph.pool()
        gradients = [parameter.grad for parameter in self.parameters]
        self._set_gradients(gradients_before)
        torch.cuda.set_rng_state(random_state)  # a resumed run records again and must draw the same dropout
        return graph, buffers, labels_buffer, loss, gradients

    def _set_gradients(self, gradients: list) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def _forward_backward(self, model, buffers: dict, num_labels: torch.Tensor) -> torch.Tensor:
        # Without the cache of casts: a cast made outside the recording would hold old weights.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = self.trainer.compute_loss(model, buffers, num_items_in_batch=num_labels)
        loss.backward()
        return loss.detach()
