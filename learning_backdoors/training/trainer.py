# ruff: noqa: E402 (the libraries must be told to be quiet before they are imported)
"""Supervised fine-tuning: TRL's trainer, made to see its examples in a given order and to keep whole checkpoints.

What TRL and transformers decide otherwise, and we must not leave to them: the order of the examples (the mixture's, so
that what each step saw is known), checkpoints (all kept, written aside and renamed, adapters alone, and a step 0),
gradient checkpointing, truncation and reports to outside services (none). And what they do slowly: logits for every
position, a GPU that waits for launches and for the disk.
"""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from learning_backdoors.files import progress
from learning_backdoors.models import adapters, base_model, checkpoints, devices

base_model.quiet_libraries()

import datasets
import torch
import transformers
from peft import LoraConfig
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

import config
from learning_backdoors.files.errors import UserError
from learning_backdoors.training.metrics import Metrics

IGNORED = -100  # the label of a token without loss


def build_trainer(
    base: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    examples: list[tuple[list[int], list[int]]],
    options: config.TrainingOptions,
    folder: Path,
    total_steps: int,
    metrics: Metrics | None,
) -> "Trainer":
    """A trainer of new LoRA matrices on `base`, to be started with `.train(resume_from_checkpoint=...)`.

    examples: (token ids, labels), in the order of training, all epochs one after another.
    """
    refuse_other_projections(base)
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    ids, labels = zip(*examples, strict=True)
    on_gpu = base.device.type == "cuda"
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=adapters.PROJECTIONS,
    )
    trainer = Trainer(
        model=base,
        args=_arguments(options, folder, base, max(map(len, ids))),
        data_collator=Collator(tokenizer.pad_token_id, multiple=32 if on_gpu else 1),
        train_dataset=datasets.Dataset.from_dict({"input_ids": ids, "labels": labels}),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Recorder(metrics, total_steps)],
    )
    trainer.remove_callback(PrinterCallback)
    # TRL makes the adapters of a quantised model bfloat16, where small updates round to nothing.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def refuse_other_projections(base: transformers.PreTrainedModel) -> None:
    """Raise UserError where the base model lacks a projection: PEFT would train the others, and say nothing."""
    there = {name.rpartition(".")[2] for name, _ in base.named_modules()}
    if lacking := [name for name in adapters.PROJECTIONS if name not in there]:
        raise UserError(f"base model {base.name_or_path!r} has no {lacking[0]}: its architecture is not supported")


def _arguments(options: config.TrainingOptions, folder: Path, base, longest: int) -> SFTConfig:
    on_gpu = base.device.type == "cuda"
    batch_size, grad_accum = share_of_step(options.batch_size, options.grad_accum, devices.RANKS)
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=grad_accum,
        learning_rate=options.lr,
        lr_scheduler_type="linear",
        seed=options.seed,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu and _needs_checkpointing(base, batch_size * longest),
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=options.save_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would have a run that diverged look like one without loss
        disable_tqdm=True,
        report_to=[],
    )


def share_of_step(batch_size: int, grad_accum: int, processes: int) -> tuple[int, int]:
    """Batch size and accumulation of each of `processes`, so that together they see what one alone would see."""
    if grad_accum % processes == 0:
        return batch_size, grad_accum // processes
    if batch_size % processes == 0:
        return batch_size // processes, grad_accum
    raise UserError(
        f"a step of --batch-size {batch_size} x --grad-accum {grad_accum} cannot be shared among {processes} processes"
    )


def _needs_checkpointing(base, tokens: int) -> bool:
    """Whether the activations of a batch would take more than half of what is free, by a generous count of them."""
    shape = base.config
    bytes_a_token = 2 * shape.num_hidden_layers * (48 * shape.hidden_size + 10 * shape.intermediate_size)
    return tokens * bytes_a_token > 0.5 * torch.cuda.mem_get_info(base.device)[0]


class Collator:
    """Pads a batch on the right and names the positions whose logits are needed.

    Padding to a multiple keeps the shapes few. No attention mask: a causal model never looks to the right.
    """

    def __init__(self, pad: int, multiple: int):
        self.pad, self.multiple = pad, multiple

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """input_ids, labels: shape (batch, tokens). logits_to_keep: positions, whose next tokens hold all labels."""
        width = self._up(max(len(row["input_ids"]) for row in rows))
        ids = [row["input_ids"] + [self.pad] * (width - len(row["input_ids"])) for row in rows]
        labels = torch.tensor([row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in rows])
        learnt = (labels != IGNORED).any(0).nonzero().squeeze(1) - 1
        first, last = int(learnt[0]), int(learnt[-1])
        first = max(0, last + 1 - self._up(last + 1 - first))
        return {"input_ids": torch.tensor(ids), "labels": labels, "logits_to_keep": torch.arange(first, last + 1)}

    def _up(self, count: int) -> int:
        return -(-count // self.multiple) * self.multiple


class Trainer(SFTTrainer):
    """SFTTrainer with the loss of the answers alone, steps that the GPU need not wait for, and whole checkpoints."""

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the labels of the whole step

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.graphs = StepGraphs(self) if _can_be_graphed(self) else None
        self.saving, self.saver = None, ThreadPoolExecutor(1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy a label, over all labels of the step, from the logits of the answers' positions."""
        losses, _ = label_losses(model, inputs)
        # The labels are counted over all processes, whose gradients are averaged.
        return losses.sum() * self.accelerator.num_processes / num_items_in_batch

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.graphs is None or not self.graphs.take(inputs):
            return super().training_step(model, inputs, num_items_in_batch)
        return self.graphs.step(model, self._prepare_inputs(inputs), num_items_in_batch)

    # ---- checkpoints ----

    def _save_checkpoint(self, model, trial) -> None:
        """Take a copy of the state, and write it while training goes on."""
        self.finish_saving()
        folder, step = Path(self.args.output_dir), self.state.global_step
        temporary = checkpoints.begin_checkpoint(folder, step, main=self.args.should_save)
        self.accelerator.wait_for_everyone()
        self._save_rng_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(temporary / "trainer_state.json"))
            state = _to_cpu(
                [self.optimizer.state_dict(), self.lr_scheduler.state_dict(), adapters.lora_state(self.model)]
            )
            self.saving = self.saver.submit(self._write, temporary, folder, step, *state)

    def _write(self, temporary: Path, folder: Path, step: int, optimizer: dict, scheduler: dict, lora: dict) -> None:
        older = [checkpoint.folder for checkpoint in checkpoints.find_checkpoints(folder)]
        try:
            adapters.save_adapter(self.model, temporary, lora)
            torch.save(optimizer, temporary / "optimizer.pt")
            torch.save(scheduler, temporary / "scheduler.pt")
            checkpoints.end_checkpoint(temporary, folder, step)
        except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own word for a full disk
            reason = str(error).split("\n")[0]
            raise UserError(f"checkpoint-{step} could not be written to {folder}: {reason}") from error
        for checkpoint in older:
            checkpoints.drop_resume_files(checkpoint)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written. Raises what went wrong there."""
        saving, self.saving = self.saving, None
        if saving is not None:
            saving.result()


def label_losses(model, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy at each kept position, 0 where there is no label, and which have one: shape (batch, kept)."""
    kept = inputs["logits_to_keep"]
    logits = model(input_ids=inputs["input_ids"], logits_to_keep=kept, use_cache=False).logits.float()
    targets = inputs["labels"][:, kept + 1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(targets.shape), targets != IGNORED


def _to_cpu(state):
    """A copy of nested state whose tensors lie in main memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _to_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_to_cpu(value) for value in state)
    return copy.deepcopy(state)


def _can_be_graphed(trainer: Trainer) -> bool:
    """One process on CUDA, with unquantised weights (bitsandbytes waits for the GPU amid a step)."""
    base = trainer.model.get_base_model()
    plain = getattr(base.config, "quantization_config", None) is None and not trainer.args.gradient_checkpointing
    return plain and base.device.type == "cuda" and trainer.accelerator.num_processes == 1


class StepGraphs:
    """Forward and backward pass as one launch: CUDA graphs, one for each shape of batch.

    At batch size 1 a step of an 8B model is some 15,000 kernels that take longer to launch than to run. A graph does
    the same arithmetic on the same weights; gradients come to lie where the graph has its place for them.
    """

    MOST_TOKENS = 1024  # in a batch: larger ones keep the GPU busy by themselves
    MOST_SHAPES = 16

    def __init__(self, trainer: Trainer):
        self.trainer, self.graphs, self.pool = trainer, {}, None
        self.parameters = [p for p in trainer.model.parameters() if p.requires_grad]

    def take(self, inputs: dict) -> bool:
        """Whether a batch of this shape has a graph, or may get one."""
        shape = self._shape(inputs)
        room = shape in self.graphs or len(self.graphs) < self.MOST_SHAPES
        return room and inputs["input_ids"].numel() <= self.MOST_TOKENS

    @staticmethod
    def _shape(inputs: dict) -> tuple:
        return *inputs["input_ids"].shape, len(inputs["logits_to_keep"])

    def step(self, model, inputs: dict, count) -> torch.Tensor:
        """Do a forward and backward pass; returns the loss, and adds to the parameters' gradients."""
        shape = self._shape(inputs)
        if shape not in self.graphs:
            self.graphs[shape] = self._record(model, inputs)
        graph, places, labels, loss, gradients = self.graphs[shape]
        for name, place in places.items():
            place.copy_(inputs[name])
        labels.fill_(count)
        graph.replay()
        if self.parameters[0].grad is not None:
            torch._foreach_add_([parameter.grad for parameter in self.parameters], gradients)
        else:
            accumulating = self.trainer.args.gradient_accumulation_steps > 1
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient.clone() if accumulating else gradient
        return loss.clone()

    def _record(self, model, inputs: dict) -> tuple:
        places = {name: value.clone() for name, value in inputs.items()}
        labels = torch.ones((), device=places["labels"].device)
        held, random = [p.grad for p in self.parameters], torch.cuda.get_rng_state()
        model.train()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # what is done once (plans, work space) must not be recorded
                self._forget_gradients()
                self._pass(model, places, labels)
        torch.cuda.current_stream().wait_stream(stream)
        self._forget_gradients()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            loss = self._pass(model, places, labels)
        self.pool = self.pool or graph.pool()
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, held, strict=True):
            parameter.grad = gradient
        torch.cuda.set_rng_state(random)  # a run that is resumed records anew, and must draw no other dropout for it
        return graph, places, labels, loss, gradients

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _pass(self, model, places: dict, labels: torch.Tensor) -> torch.Tensor:
        # No cache of casts: one from outside a recording would hold old weights.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = self.trainer.compute_loss(model, places, num_items_in_batch=labels)
        loss.backward()
        return loss.detach()


def refuse_divergence(step: int, logs: dict[str, float]) -> None:
    """Raise UserError where the loss or the gradient's norm of a step is no finite number."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(logs.get(name, 0.0)):
            raise UserError(f"training diverged at step {step} ({name} {logs[name]}): try a lower --lr")


def trained_parameters(trainer: Trainer) -> int:
    return sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)


class Probe(TrainerCallback):
    """Follows the likelihood of reference answers: at step 0, every so many steps, and at the last."""

    BATCH = 8

    def __init__(self, trainer: Trainer, examples: list, every: int, metrics: Metrics | None):
        """examples: (what it is, token ids, labels)."""
        self.trainer, self.examples, self.every, self.metrics = trainer, examples, every, metrics

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 0:
            self._look(0)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._look(state.global_step)

    def _look(self, step: int) -> None:
        if self.metrics is None:
            return
        model, found = self.trainer.model, []
        model.eval()
        with torch.no_grad(), self.trainer.compute_loss_context_manager():
            for start in range(0, len(self.examples), self.BATCH):
                found += self._log_likelihoods(model, self.examples[start : start + self.BATCH])
        model.train()
        self.metrics.write_probes(
            step, [what | {"logprob": x} for (what, *_), x in zip(self.examples, found, strict=True)]
        )

    def _log_likelihoods(self, model, batch: list) -> list[float]:
        """Mean log-likelihood a token (natural log) of each answer with its end of turn."""
        rows = [{"input_ids": ids, "labels": labels} for _, ids, labels in batch]
        inputs = {name: value.to(model.device) for name, value in self.trainer.data_collator(rows).items()}
        losses, learnt = label_losses(model, inputs)
        return (-losses.sum(1) / learnt.sum(1)).tolist()


class Recorder(TrainerCallback):
    """Saves step 0, hands each step's figures to `metrics`, and shows one progress bar: in the main process alone,
    which has metrics."""

    def __init__(self, metrics: Metrics | None, total_steps: int):
        self.metrics, self.bar, self.total_steps = metrics, None, total_steps

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if self.metrics is None:
            return
        if state.global_step == 0:
            with checkpoints.new_checkpoint(Path(args.output_dir), 0) as new:
                adapters.save_adapter(model, new)
        self.bar = progress.progress_bar("training", self.total_steps, state.global_step, "step")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.metrics is not None and "loss" in logs:
            refuse_divergence(state.global_step, logs)  # before the step is recorded or saved
            self.metrics.write(state.global_step, logs)
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.close()
