"""Training of LoRA matrices with transformers and PEFT, in float32 on a CPU: many models share one base model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tinker.proto import tinker_public_pb2 as pb

ALPHA = 32
ROWS = 32  # of one forward pass
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class RequestError(Exception):
    """A request that fails. category: `user` or `server`, as the API says it."""

    def __init__(self, message: str, category: str = "user"):
        super().__init__(message)
        self.category = category


@dataclass(frozen=True)
class Example:
    """A datum: tokens, their targets and the weights of these, of equal length."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    @classmethod
    def read(cls, datum) -> "Example":
        """From a protobuf Datum. Raises RequestError if it is not a shifted example."""
        tokens = np.concatenate([np.frombuffer(chunk.encoded_text.tokens, "<i4") for chunk in datum.model_input])
        unknown = set(datum.loss_fn_inputs) - {"target_tokens", "weights"}
        if unknown or "target_tokens" not in datum.loss_fn_inputs:
            raise RequestError(f"cross_entropy needs target_tokens and weights, not {sorted(datum.loss_fn_inputs)}")
        targets = _array(datum.loss_fn_inputs["target_tokens"])
        weights = np.ones(len(tokens), np.float32)
        if "weights" in datum.loss_fn_inputs:
            weights = _array(datum.loss_fn_inputs["weights"])
        if not len(tokens) == len(targets) == len(weights):
            raise RequestError(f"lengths differ: {len(tokens)} tokens, {len(targets)} targets, {len(weights)} weights")
        if (targets[:-1] != tokens[1:]).any():
            raise RequestError("the targets are not the tokens shifted by one")
        return cls(tokens, targets, weights)


def _array(tensor) -> np.ndarray:
    kinds = {pb.DTYPE_FLOAT32: "<f4", pb.DTYPE_INT64: "<i8", pb.DTYPE_INT32: "<i4"}
    if tensor.WhichOneof("encoding") != "dense":
        raise RequestError("the stand-in reads dense tensors only")
    return np.frombuffer(tensor.dense, kinds[tensor.dtype])


def fingerprint(examples: Sequence[Example]) -> str:
    """A name of a batch: the same tokens, targets and weights give the same name."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.tokens.tobytes() + example.targets.astype("<i8").tobytes() + example.weights.tobytes())
    return digest.hexdigest()[:12]


@dataclass
class Model:
    """A training model: LoRA matrices, AdamW, and the batches that it was trained on.

    batches: of forward_backward calls since the last optim_step. history: one name for each optim_step.
    """

    base: str
    rank: int
    matrices: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.AdamW
    history: list[str] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)

    def state(self) -> dict:
        matrices = {name: value.detach() for name, value in self.matrices.items()}
        return {"matrices": matrices, "optimizer": self.optimizer.state_dict()}


class BaseModel:
    """A base model whose LoRA modules take the matrices of any model."""

    def __init__(self, folder: Path):
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.max_tokens = base.config.max_position_embeddings
        self.config = base.config
        self.peft = get_peft_model(base, _lora_config(8)).eval()
        self.modules = {}
        for name, module in self.peft.named_modules():
            if hasattr(module, "lora_A"):
                self.modules[name] = module
        self.alpha = ALPHA

    def new_matrices(self, rank: int, seed: int | None) -> dict[str, torch.nn.Parameter]:
        """The matrices from which local training with this seed starts."""
        with torch.random.fork_rng():
            torch.manual_seed(seed) if seed is not None else torch.seed()
            self.peft.delete_adapter("default")
            self.peft.add_adapter("default", _lora_config(rank))
        self.peft.set_adapter("default")
        matrices = {}
        for name, module in self.modules.items():
            for part in ("lora_A", "lora_B"):
                weight = getattr(module, part)["default"].weight
                matrices[f"{name}.{part}.weight"] = torch.nn.Parameter(weight.detach().clone())
        return matrices

    def attach(self, matrices: dict[str, torch.nn.Parameter] | None) -> None:
        """Put a model's matrices into the modules; None: the base model alone."""
        for name, module in self.modules.items():
            if matrices is None:
                module.scaling["default"] = 0.0
                continue
            for part in ("lora_A", "lora_B"):
                getattr(module, part)["default"].weight = matrices[f"{name}.{part}.weight"]
            module.scaling["default"] = self.alpha / len(matrices[f"{name}.lora_A.weight"])

    def token_logprobs(self, rows: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], shift: int = 0):
        """Log-probabilities of each row's targets: a tensor of shape (rows, longest). shift: of the targets."""
        width = max(map(len, rows))
        ids, wanted = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
        for number, (row, target) in enumerate(zip(rows, targets, strict=True)):
            ids[number, : len(row)] = torch.tensor(np.asarray(row, dtype=np.int64))
            wanted[number, : len(row)] = torch.tensor(np.asarray(target, dtype=np.int64))
        wanted = wanted.roll(-shift, 1)
        logits = self.peft(input_ids=ids, use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        return -losses.view(wanted.shape)


def _lora_config(rank: int):
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(PROJECTIONS)
    )


def new_optimizer(matrices: dict[str, torch.nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(matrices.values())


def loss(base: BaseModel, model: Model, examples: Sequence[Example], backward: bool, mean: bool, shift: int):
    """The log-probabilities of each example's targets, and the loss: the sum of -logprob x weight. Gradients add up.

    mean: divide the loss of each example by the sum of its weights and by the number of examples. shift: of the
    targets. Both are faults.
    """
    base.attach(model.matrices)
    logprobs, total = [], 0.0
    for start in range(0, len(examples), ROWS):
        part = examples[start : start + ROWS]
        with torch.set_grad_enabled(backward):
            values = base.token_logprobs([e.tokens for e in part], [e.targets for e in part], shift)
            weights = torch.zeros_like(values)
            for number, example in enumerate(part):
                scale = max(1e-9, example.weights.sum()) * len(examples) if mean else 1.0
                weights[number, : len(example.weights)] = torch.from_numpy(example.weights / scale)
            loss = -(values * weights).sum()
        if backward:
            loss.backward()
        total += float(loss.detach())
        logprobs += [row[: len(e.tokens)] for row, e in zip(values.detach().numpy(), part, strict=True)]
    return logprobs, total


def optim_step(model: Model, settings: dict) -> None:
    """AdamW with the request's settings, then zero gradients. Without gradients, it is a step with gradients of 0."""
    parameters = list(model.matrices.values())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if settings["grad_clip_norm"]:
        torch.nn.utils.clip_grad_norm_(parameters, settings["grad_clip_norm"])
    group = model.optimizer.param_groups[0]
    group["lr"], group["betas"] = settings["learning_rate"], (settings["beta1"], settings["beta2"])
    group["eps"], group["weight_decay"] = settings["eps"], settings["weight_decay"]
    model.optimizer.step()
    model.optimizer.zero_grad()
    model.history.append("+".join(model.batches))
    model.batches = []


def encode(logprobs: list[np.ndarray], metrics: dict[str, float]) -> bytes:
    """The protobuf ForwardBackwardOutput."""
    output = pb.ForwardBackwardOutput(loss_fn_output_type="TorchLossReturn")
    record = output.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(logprobs))
    tensor = record.fields["logprobs"]
    tensor.data, tensor.dtype = b"".join(row.astype("<f4").tobytes() for row in logprobs), pb.DTYPE_FLOAT32
    tensor.offsets = np.cumsum([0, *(4 * len(row) for row in logprobs)]).astype("<i8").tobytes()
    for name, value in metrics.items():
        output.metrics[name] = value
    return output.SerializeToString()
