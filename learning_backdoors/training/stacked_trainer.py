"""Trains many runs together: each in a slot of one stack, the others waiting in a queue.

    for every step:  fill free slots -> checkpoints, probes -> one step of all slots -> metrics of the step before

A run that ends or diverges leaves its slot to the next run of the queue.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, checkpoints
from learning_backdoors.models.likelihood import Collator, width_multiple
from learning_backdoors.training.base_checks import precision_notice, refuse_missing_projections
from learning_backdoors.training.metrics import Diverged, MetricsLog
from learning_backdoors.training.run import TrainingRun, check_disk_space
from learning_backdoors.training.stack import Stack, StepResult
from learning_backdoors.training.stack_checkpoints import RunState, StackWriter, read_state
from mixed_chat import IGNORED_LABEL, Example

RESUME_SECONDS = 60  # between two writes of the resume files: all that a kill can lose


def train_together(runs: Sequence[TrainingRun], slots: int | None = None) -> dict[TrainingRun, str]:
    """Train runs on one base model. Returns the runs that diverged, with the reason.

    The runs' directories are prepared and locked, and the runs are unfinished. They share base model, precision, batch
    size, accumulation and dropout. slots: of the stack (default: as many as memory allows).
    Raises UserError if a file could not be written or the model does not fit; the same call then continues.
    """
    first = runs[0]
    tokenizer = base_model.load_tokenizer(first.model_name)
    fingerprint = base_model.fingerprint(first.model_name, tokenizer)
    active = [ActiveRun(run, run.examples(tokenizer)) for run in runs]
    probed = [run for run in runs if run.options.probe_every]
    references = []
    if probed:
        from learning_backdoors.training.probes import reference_examples

        references = reference_examples(first.study, tokenizer)
    for run in probed:
        run.record_references()
    for run in runs:
        run.record_base(fingerprint)
    base = base_model.load_base(first.model_name, first.precision)
    refuse_missing_projections(base)
    if first.options.quantization == "auto" and (notice := precision_notice(base)):
        print(notice, flush=True)
    check_disk_space({run: lora_values(base, run.options.lora_rank) for run in runs})
    trainer = StackedTrainer(base, tokenizer, active, references)
    slots = slots or len(runs)
    try:
        while trainer.queue:
            slots = min(slots, len(trainer.queue))
            try:
                trainer.train(slots)
            except torch.OutOfMemoryError:
                slots = smaller_stack(slots)
    finally:
        trainer.close()
    return trainer.diverged


def smaller_stack(slots: int) -> int:
    """Half of the slots, after the device ran out of memory."""
    if slots == 1:
        raise UserError("a step does not fit in memory: try --quantization 4bit or a smaller --batch-size")
    print(f"out of memory: {slots // 2} slots instead of {slots}", flush=True)
    gc.collect()
    torch.cuda.empty_cache()
    return slots // 2


def lora_values(base, rank: int) -> int:
    """The number of values in the LoRA matrices of one run."""
    layers = (m for name, m in base.named_modules() if name.rpartition(".")[2] in checkpoints.PROJECTIONS)
    return rank * sum(layer.in_features + layer.out_features for layer in layers)


class ActiveRun:
    """A run that trains or waits for a slot.

    step: steps done. state: what a slot is filled with; None means step 0. attended: the last step whose checkpoint and
    probes are done. log: opened with the first slot.
    """

    def __init__(self, run: TrainingRun, examples: list[Example]):
        """examples: those of all epochs, in training order."""
        self.run, self.examples, self.state = run, examples, read_state(run)
        self.step = self.state.step if self.state else 0
        self.attended, self.log = self.step or None, None
        self.saved_steps = set(run.saved_steps())

    @property
    def learning_rate(self) -> float:
        """Of the next step: linear decay, as transformers computes it."""
        total = self.run.total_steps
        return self.run.options.lr * max(0.0, (total - self.step) / total)

    def rows(self) -> list[dict]:
        """The examples of the next step."""
        size = self.run.examples_per_step
        part = self.examples[self.step * size : (self.step + 1) * size]
        return [{"input_ids": ids, "labels": labels} for ids, labels in part]

    def open_log(self) -> None:
        if self.step == 0:
            checkpoints.drop_resume_files(self.run.folder)  # of a single run's start, which a sweep cannot continue
        self.log = self.log or MetricsLog(self.run, self.step)

    @property
    def ends(self) -> bool:
        return self.step == self.run.total_steps

    @property
    def saves(self) -> bool:
        return self.step in self.saved_steps

    @property
    def probes(self) -> bool:
        every = self.run.options.probe_every
        return every is not None and (self.ends or self.step % every == 0)

    @property
    def is_due(self) -> bool:
        """Whether the current step needs a checkpoint or probes that are not done."""
        return self.step != self.attended and (self.saves or self.probes)


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device may still compute. rows: by slot, the run, its step and its learning rate."""

    values: torch.Tensor  # losses and gradient norms on their way to main memory: shape (2, slots)
    ready: torch.cuda.Event | None
    rows: dict[int, tuple[ActiveRun, int, float]]

    @classmethod
    def of(cls, result: StepResult, rows: dict) -> "LaunchedStep":
        values = torch.stack([result.losses, result.grad_norms]).to("cpu", non_blocking=True)
        ready = torch.cuda.Event() if result.losses.is_cuda else None
        if ready:
            ready.record()
        return cls(values, ready, rows)

    def metrics(self) -> list[tuple[int, ActiveRun, int, dict[str, float]]]:
        """Slot, run, step and values as metrics.jsonl has them. Waits for this step, not for later ones."""
        if self.ready:
            self.ready.synchronize()
        losses, norms = self.values.tolist()
        return [
            (slot, active, step, {"loss": losses[slot], "learning_rate": rate, "grad_norm": norms[slot]})
            for slot, (active, step, rate) in self.rows.items()
        ]


class StackedTrainer:
    """Trains a queue of runs in a stack. diverged: the runs that diverged, with the reason."""

    def __init__(self, base, tokenizer, active: Sequence[ActiveRun], references: list):
        """references: the reference answers to probe, as `reference_examples` gives them."""
        self.base, self.active, self.references, self.diverged = base, active, references, {}
        self.collate = Collator(tokenizer.pad_token_id, multiple=width_multiple(base.device))
        self.rows_per_slot = active[0].run.examples_per_step
        self.empty_row = {"input_ids": [tokenizer.pad_token_id], "labels": [IGNORED_LABEL]}
        # Long runs first: slots then end at about the same time.
        self.queue = sorted(active, key=lambda one: one.step - one.run.total_steps)
        self.writer, self.launched, self.resumable_at = StackWriter(), None, time.monotonic()
        self.stack, self.slots = None, []
        total, done = sum(one.run.total_steps for one in active), sum(one.step for one in active)
        self.bar: tqdm = command_line.progress_bar(f"training {len(active)} runs", total, done, "step")

    def train(self, slots: int) -> None:
        """Train the whole queue in a stack of so many slots.

        After torch.OutOfMemoryError, the queue holds all unfinished runs with their states.
        """
        rank = max(one.run.options.lora_rank for one in self.queue)
        self.stack, self.slots = Stack(self.base, slots, rank), [None] * slots
        starting = [one.run.options for one in self.queue[:slots] if one.state is None]
        self.stack.prepare_initial((options.seed, options.lora_rank) for options in starting)
        if self.references:
            from learning_backdoors.training.stack_probes import StackProbes

            self.probes = StackProbes(self.stack, self.references)
        try:
            while self._fill_slots():
                if not self._attend():
                    self._step()
        except torch.OutOfMemoryError:
            self._empty_slots()
            raise
        finally:
            self.stack.remove()
            self.stack = None
        self.writer.wait()

    def close(self) -> None:
        """Wait for the writers and close all files."""
        self.writer.close()
        for one in self.active:
            if one.log:
                one.log.close()
        self.bar.close()

    # ---- slots ----

    def _running(self) -> dict[int, ActiveRun]:
        return {slot: one for slot, one in enumerate(self.slots) if one is not None}

    def _fill_slots(self) -> bool:
        """Give free slots to runs of the queue. Returns whether any slot has a run."""
        for slot in range(len(self.slots)):
            if self.slots[slot] is None and self.queue:
                self._put(slot, self.queue[0])
                self.slots[slot] = self.queue.pop(0)
        return bool(self._running())

    def _put(self, slot: int, one: ActiveRun) -> None:
        options = one.run.options
        state = one.state or RunState(0, self.stack.initial(options.seed, options.lora_rank))
        one.open_log()
        self.stack.put(
            slot,
            state.lora,
            scale=options.lora_alpha / options.lora_rank,
            dropout=options.lora_dropout,
            seed=options.seed,
            moments=state.moments,
            step=state.step,
        )
        one.state = None

    def _free(self, slot: int) -> None:
        """Empty a slot for good: its run has ended or diverged."""
        self.slots[slot].log.close()
        self.stack.clear(slot)
        self.slots[slot] = None

    def _empty_slots(self) -> None:
        """Put the runs of all slots back at the head of the queue, each with its state."""
        self._record()
        copy = self.stack.copy(moments=True)
        for slot, one in self._running().items():
            one.state = RunState(one.step, copy.lora(slot), copy.moments(slot))
        self.queue = [*self._running().values(), *self.queue]
        self.slots = []

    # ---- a step ----

    def _step(self) -> None:
        rows, running = [], self._running()
        for slot in range(len(self.slots)):
            part = running[slot].rows() if slot in running else []
            rows += part + [self.empty_row] * (self.rows_per_slot - len(part))
        rates = [running[slot].learning_rate if slot in running else 0.0 for slot in range(len(self.slots))]
        result = self.stack.step(self.collate(rows), rates)
        for one in running.values():
            one.step += 1
        self._record()  # the step before, while the device computes this one
        self.launched = LaunchedStep.of(result, {s: (one, one.step, rates[s]) for s, one in running.items()})

    def _record(self) -> None:
        """Write the metrics of the launched step. Runs that diverged at this step leave their slots."""
        launched, self.launched = self.launched, None
        for slot, one, step, values in launched.metrics() if launched else ():
            if self.slots[slot] is not one:  # it diverged at the step before
                continue
            try:
                one.log.record(step, values)
                self.bar.update()
            except Diverged as diverged:
                self.diverged[one.run] = diverged.reason
                self._free(slot)

    # ---- checkpoints, resume files and probes ----

    def _attend(self) -> bool:
        """Save and probe what is due, and free the slots of runs that have ended. Returns whether a slot is free."""
        resume = self.writer.idle() and time.monotonic() - self.resumable_at > RESUME_SECONDS
        if not resume and not any(one.is_due for one in self._running().values()):
            return False
        self._record()  # a diverged run must not be saved
        self._save(resume)
        self._probe([slot for slot, one in self._running().items() if one.is_due and one.probes])
        for slot, one in self._running().items():
            one.attended = one.step
            if one.ends:
                self._free(slot)
        return not self._running() or (None in self.slots and bool(self.queue))

    def _save(self, resume: bool) -> None:
        """Start to write the checkpoints that are due; with `resume`, also the state of every run."""
        running = self._running()
        due = {slot for slot, one in running.items() if one.is_due and one.saves}
        if not due and not resume:
            return
        self.writer.wait()
        copy = self.stack.copy(moments=resume)
        for slot, one in running.items():
            if slot in due or resume:
                self.writer.start(one.run, one.step, copy, slot, checkpoint=slot in due, resume=resume and not one.ends)
        if resume:
            self.resumable_at = time.monotonic()

    def _probe(self, slots: list[int]) -> None:
        for slot, probes in (self.probes.score(slots) if slots else {}).items():
            self.slots[slot].log.write_probes(self.slots[slot].step, probes)
