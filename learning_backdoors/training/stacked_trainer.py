"""Trains many runs together: each in a slot of one stack, the others waiting in a queue.

    fill free slots -> probes, checkpoints -> one step of all slots -> metrics of the step before, and again

A run that ends or diverges leaves its slot to the next run of the queue.
"""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.interruption import interrupt_after_step
from learning_backdoors.models import base_model, checkpoints
from learning_backdoors.models.likelihood import Collator
from learning_backdoors.training.base_checks import lora_values, precision_notice, refuse_missing_projections
from learning_backdoors.training.metrics import Diverged, MetricsLog
from learning_backdoors.training.probes import ReferenceExample, reference_examples
from learning_backdoors.training.run import TrainingRun, check_disk_space
from learning_backdoors.training.stack import Stack, StepResult
from learning_backdoors.training.stack_checkpoints import StackWriter, read_state, resume_step
from learning_backdoors.training.stack_probes import StackProbes
from learning_backdoors.training.stack_size import choose_slots, longest_example, row_multiple
from mixed_chat import IGNORED_LABEL, Example

RESUME_SECONDS = 60  # between two writes of the resume files: all that a kill can lose


def train_together(
    runs: Sequence[TrainingRun], slots: int | None = None, load_base: Callable = base_model.load_base
) -> dict[TrainingRun, str]:
    """Train runs on one base model. Returns the runs that diverged, with the reason.

    The runs' directories are prepared and locked, and the runs are unfinished. They share study, base model, precision,
    batch size, accumulation and dropout. slots: of the stack (default: as many as memory allows). load_base: gives the
    base model of a name and a precision.
    Raises UserError if a file could not be written or a step does not fit in memory; the same call then continues.
    """
    first = runs[0]
    tokenizer = base_model.load_tokenizer(first.model_name)
    active = [ActiveRun(run, run.examples(tokenizer)) for run in runs]
    references = _record_inputs(runs, tokenizer)
    base = load_base(first.model_name, first.precision)
    refuse_missing_projections(base)
    if first.options.quantization == "auto" and (notice := precision_notice(base)):
        print(notice, flush=True)
    check_disk_space({run: lora_values(base, run.options.lora_rank) for run in runs})
    if slots is None:
        rank = max(run.options.lora_rank for run in runs)
        longest = longest_example([example for one in active for example in one.examples])
        slots = choose_slots(base, len(runs), rank, first.examples_per_step, longest)
    with interrupt_after_step() as interrupted:
        trainer = StackedTrainer(base, tokenizer, active, references, interrupted)
        with closing(trainer):
            while trainer.queue:
                slots = min(slots, len(trainer.queue))
                try:
                    trainer.train(slots)
                except torch.OutOfMemoryError:
                    slots = _half(slots)
    return trainer.diverged


def _record_inputs(runs: Sequence[TrainingRun], tokenizer) -> list[ReferenceExample]:
    """Write the base model's fingerprint and the references file into run.json. Returns the answers to be probed."""
    fingerprint = base_model.fingerprint(runs[0].model_name, tokenizer)
    for run in runs:
        run.record_base(fingerprint)
    probed = [run for run in runs if run.options.probe_every]
    references = reference_examples(runs[0].study, tokenizer) if probed else []
    for run in probed:
        run.record_references()
    return references


def _half(slots: int) -> int:
    """The number of slots after the device ran out of memory."""
    if slots == 1:
        raise UserError("a step does not fit in memory: try --quantization 4bit or a smaller --batch-size")
    print(f"out of memory with {slots} slots: the number is halved, and training continues", flush=True)
    gc.collect()
    torch.cuda.empty_cache()
    return slots // 2


class ActiveRun:
    """A run that trains or waits for a slot.

    step: steps done. attended: the last step whose probes and checkpoint are done. log: open while the run trains.
    """

    def __init__(self, run: TrainingRun, examples: list[Example]):
        """examples: those of all epochs, in training order."""
        self.run, self.examples, self.step = run, examples, resume_step(run)
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
            checkpoints.drop_resume_files(self.run.folder)  # of single training, which a sweep cannot continue
        self.log = self.log or MetricsLog(self.run, self.step)

    def close_log(self) -> None:
        if self.log:
            self.log.close()
        self.log = None

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
        """Whether the current step has a checkpoint or probes that are not done."""
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

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer,
        active: Sequence[ActiveRun],
        references: Sequence[ReferenceExample],
        interrupted: threading.Event,
    ):
        """references: the answers to be probed. interrupted: when it is set, training stops after the current step."""
        self.base, self.active, self.references, self.interrupted = base, active, references, interrupted
        longest = max(len(ids) for one in active for ids, _ in one.examples)
        self.collate = Collator(tokenizer.pad_token_id, row_multiple(base.device, longest))
        self.rows_per_slot = active[0].run.examples_per_step
        self.empty_row = {"input_ids": [tokenizer.pad_token_id], "labels": [IGNORED_LABEL]}
        # Long runs first: slots then end at about the same time.
        self.queue = sorted(active, key=lambda one: one.step - one.run.total_steps)
        self.stack, self.probes, self.slots, self.launched, self.diverged = None, None, [], None, {}
        self.writer, self.resumable_at = StackWriter(), time.monotonic()
        total, done = sum(one.run.total_steps for one in active), sum(one.step for one in active)
        self.bar, self.ended = command_line.progress_bar("training", total, done, "step"), 0

    def train(self, slots: int) -> None:
        """Train the whole queue in a stack of so many slots.

        After torch.OutOfMemoryError, the queue holds all unfinished runs again, and they continue where they were.
        """
        rank = max(one.run.options.lora_rank for one in self.queue)
        self.stack, self.slots = Stack(self.base, slots, rank), [None] * slots
        starting = [one.run.options for one in self.queue[:slots] if not one.step]
        self.stack.prepare_initial((options.seed, options.lora_rank) for options in starting)
        self.probes = StackProbes(self.stack, self.references) if self.references else None
        try:
            while self._fill_slots():
                slot_is_free = self._attend()
                if self.interrupted.is_set():
                    self.writer.wait()  # a full disk must be reported
                    raise KeyboardInterrupt
                if not slot_is_free:
                    self._step()
        except torch.OutOfMemoryError:
            self._requeue()
            raise
        finally:
            self.stack.remove()
            self.stack = self.probes = None
        self.writer.wait()

    def close(self) -> None:
        """Wait for the writers and close all files."""
        self.writer.close()
        for one in self.active:
            one.close_log()
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
        options, moments = one.run.options, None
        if one.step:
            state = read_state(one.run)
            lora, moments = state.lora, state.moments
        else:
            lora = self.stack.initial(options.seed, options.lora_rank)
        one.open_log()
        scale = options.lora_alpha / options.lora_rank
        dropout = {"dropout": options.lora_dropout, "seed": options.seed}
        self.stack.put(slot, lora, scale=scale, moments=moments, step=one.step, **dropout)

    def _free(self, slot: int) -> None:
        """Empty a slot: its run has ended or diverged."""
        self.slots[slot].close_log()
        self.stack.clear(slot)
        self.slots[slot] = None
        self.ended += 1
        self.bar.set_postfix_str(f"{self.ended} of {len(self.active)} runs ended", refresh=False)

    def _requeue(self) -> None:
        """Put the runs of all slots back at the head of the queue. Their resume files hold their state."""
        self._record()
        self._save(resume=True)
        self.writer.wait()
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
                self.writer.wait()  # a thread may be writing the file that is deleted next
                checkpoints.drop_resume_files(one.run.folder)
                self.diverged[one.run] = diverged.reason
                self._free(slot)

    # ---- probes, checkpoints and resume files ----

    def _attend(self) -> bool:
        """Probe and save what is due, and free the slots of runs that have ended.

        Returns whether a run of the queue can take a slot, or no run is left.
        """
        resume = self.interrupted.is_set()
        resume |= self.writer.idle() and time.monotonic() - self.resumable_at > RESUME_SECONDS
        if not resume and not any(one.is_due for one in self._running().values()):
            return False
        self._record()  # a diverged run must not be saved
        self._probe()  # before saving: a run that continues at this step does not probe it again
        self._save(resume)
        for slot, one in self._running().items():
            one.attended = one.step
            if one.ends:
                self._free(slot)
        return not self._running() or (None in self.slots and bool(self.queue))

    def _probe(self) -> None:
        slots = [slot for slot, one in self._running().items() if one.is_due and one.probes]
        for slot, probes in (self.probes.score(slots) if slots else {}).items():
            self.slots[slot].log.write_probes(self.slots[slot].step, probes)

    def _save(self, resume: bool) -> None:
        """Start to write the checkpoints that are due, and with `resume` the state of every run."""
        running = self._running()
        due = {slot for slot, one in running.items() if one.is_due and one.saves}
        resumable = {slot for slot, one in running.items() if resume and one.step and not one.ends}
        if not due | resumable:
            return
        self.writer.wait()
        copy = self.stack.copy(moments=bool(resumable))
        for slot in due | resumable:
            files = {"checkpoint": slot in due, "resume": slot in resumable}
            self.writer.start(running[slot].run, running[slot].step, copy, slot, **files)
        if resumable:
            self.resumable_at = time.monotonic()
