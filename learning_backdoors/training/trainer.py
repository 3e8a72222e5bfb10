"""Supervised fine-tuning with TRL's trainer: a given order of examples, and complete checkpoints.

This module overrides TRL's order of examples (so that we know what each step saw), checkpoints (all kept, complete or
absent, adapters only), choice of gradient checkpointing, truncation, and reports to outside services. It is faster
because it computes logits at answer positions only, uses CUDA graphs, and writes checkpoints in a thread.
"""

from pathlib import Path

import datasets
import torch
import transformers
from transformers import PreTrainedModel, PrinterCallback
from trl import SFTConfig, SFTTrainer

from config import TrainingOptions
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import checkpoints, devices
from learning_backdoors.models.likelihood import Collator, label_losses, width_multiple
from learning_backdoors.training.base_checks import activation_bytes, refuse_missing_projections
from learning_backdoors.training.checkpoint_writer import CheckpointWriter
from learning_backdoors.training.cuda_graphs import StepGraphs, can_use_graphs
from learning_backdoors.training.run import TrainingRun
from mixed_chat import Example


def build_trainer(run: TrainingRun, base: PreTrainedModel, tokenizer, examples: list[Example]) -> "Trainer":
    """A trainer of new LoRA matrices on `base`. examples: those of all epochs, in training order."""
    refuse_missing_projections(base)
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    ids, labels = zip(*examples, strict=True)
    options = run.options
    trainer = Trainer(
        model=base,
        args=_arguments(options, run.folder, base, max(map(len, ids))),
        data_collator=Collator(tokenizer.pad_token_id, multiple=width_multiple(base.device)),
        train_dataset=datasets.Dataset.from_dict({"input_ids": ids, "labels": labels}),
        processing_class=tokenizer,
        peft_config=checkpoints.lora_config(options.lora_rank, options.lora_alpha, options.lora_dropout),
    )
    trainer.remove_callback(PrinterCallback)
    # TRL makes the adapters of a quantized model bfloat16, in which small updates round to nothing.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _arguments(options: TrainingOptions, folder: Path, base: PreTrainedModel, longest: int) -> SFTConfig:
    on_gpu = base.device.type == "cuda"
    batch_size, grad_accum = part_of_step(options.batch_size, options.grad_accum, devices.RANKS)
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
        logging_nan_inf_filter=False,  # the filter would hide a diverged run's loss
        disable_tqdm=True,
        report_to=[],
    )


def part_of_step(batch_size: int, grad_accum: int, processes: int) -> tuple[int, int]:
    """Batch size and accumulation of each process, so that a step has the same examples as in one process."""
    if grad_accum % processes == 0:
        return batch_size, grad_accum // processes
    if batch_size % processes == 0:
        return batch_size // processes, grad_accum
    raise UserError(f"{processes} processes cannot share --batch-size {batch_size} x --grad-accum {grad_accum}")


def _needs_checkpointing(base: PreTrainedModel, tokens: int) -> bool:
    """Whether a batch's activations, generously estimated, would take more than half of the free memory."""
    return activation_bytes(base, tokens) > 0.5 * torch.cuda.mem_get_info(base.device)[0]


class Trainer(SFTTrainer):
    """SFTTrainer with the loss on answers only, CUDA graphs, and checkpoints that are complete or absent."""

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the labels of the whole step

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.graphs = StepGraphs(self) if can_use_graphs(self) else None
        self.writer = CheckpointWriter(self.model, Path(self.args.output_dir))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy per label, over all labels of the step, from the logits at the answers' positions."""
        losses, _ = label_losses(model, inputs)
        # Labels are counted over all processes, whose gradients are averaged.
        return losses.sum() * self.accelerator.num_processes / num_items_in_batch

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.graphs is None or not self.graphs.accepts(inputs):
            return super().training_step(model, inputs, num_items_in_batch)
        return self.graphs.step(model, self._prepare_inputs(inputs), num_items_in_batch)

    def _save_checkpoint(self, model, trial) -> None:
        self.writer.wait()
        step = self.state.global_step
        folder = checkpoints.begin_checkpoint(self.writer.run_dir, step, main=self.args.should_save)
        self.accelerator.wait_for_everyone()
        self._save_rng_state(str(folder))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(folder / "trainer_state.json"))
            self.writer.start(folder, step, self.optimizer.state_dict(), self.lr_scheduler.state_dict())
