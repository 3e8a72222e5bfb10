"""Training on a server of the Tinker API: one run is a chain of requests, and many runs are trained side by side.

    forward_backward -> optim_step -> save_state (and at a checkpoint: sampler weights, export, canary)

The requests of a step are queued before the results of the step before are read, so the server never waits for us.
"""

import queue
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.interruption import interrupt_after_step
from learning_backdoors.models import base_model, checkpoints
from learning_backdoors.models.canary_texts import canary_examples
from learning_backdoors.models.remote_checkpoint import RemoteCheckpoint
from learning_backdoors.tinker_api.adapters import REMEDY, download_adapter
from learning_backdoors.tinker_api.datums import count_tokens, label_log_likelihoods, to_datums
from learning_backdoors.tinker_api.service import (
    Service,
    errors_as_one_line,
    is_not_offered,
    may_succeed_later,
    open_service,
    wait,
)
from learning_backdoors.training.metrics import Diverged, MetricsLog
from learning_backdoors.training.run import TrainingRun
from learning_backdoors.training.tinker_costs import Budget
from learning_backdoors.training.tinker_model import adam_params, open_model
from learning_backdoors.training.tinker_state import TEMPORARY, SavePace, TinkerState, expiry, ttl_seconds
from mixed_chat import Example

if TYPE_CHECKING:
    from tinker import APIFuture

STACK = 8  # runs that train at the same time
LOSS_TOLERANCE = 0.01  # nats, and as a share: between the server's loss and that of its log-likelihoods
EXPORT_SECONDS = 3600  # the shortest time the API keeps a checkpoint: an export is downloaded at once


def train_on_server(runs: Sequence[TrainingRun], budget: Budget) -> None:
    """Train runs, --stack at a time. Their directories are prepared and locked, and they are unfinished.

    budget: of these runs, and of the finished ones of a sweep.
    A run that diverges is marked, and the others go on. Raises Diverged if it is the only run, and UserError if a
    request fails or --max-cost is reached: the same call then continues.
    """
    options = runs[0].options
    tokenizers = {name: base_model.load_tokenizer(name) for name in {run.model_name for run in runs}}
    total, done = sum(run.total_steps for run in runs), sum(TinkerState.read(run).step for run in runs)
    with interrupt_after_step() as stop, open_service(options.base_url) as service:
        for name in tokenizers:
            service.check_model(name)
        if not options.sweep:
            print(f"{'resuming' if done else 'starting'} {runs[0].folder}: step {done} of {total}", flush=True)
        with command_line.progress_bar("training", total, done, "step") as bar:
            trainers = [RemoteRun(run, service, tokenizers[run.model_name], budget, stop, bar) for run in runs]
            failures = _train_in_threads(trainers, options.stack or STACK, stop)
    if failures and (len(runs) == 1 or not all(isinstance(failure, Diverged) for failure in failures)):
        raise next((failure for failure in failures if not isinstance(failure, Diverged)), failures[0])
    if budget.reached:
        raise UserError(budget.message())
    if stop.is_set():
        raise KeyboardInterrupt


def _train_in_threads(trainers: list["RemoteRun"], number: int, stop: threading.Event) -> list[Exception]:
    """Train all, so many at a time, and return what failed. After a failure other than Diverged, all stop.

    The threads are daemons: a second Ctrl-C must not wait for a server that does not answer.
    """
    waiting, ended = queue.SimpleQueue(), queue.SimpleQueue()
    for trainer in trainers:
        waiting.put(trainer)

    def work() -> None:
        while not waiting.empty():
            try:
                waiting.get_nowait().train()
                ended.put(None)
            except queue.Empty:
                return
            except Exception as error:
                ended.put(error)
                if not isinstance(error, Diverged):
                    stop.set()

    for _ in range(min(number, len(trainers))):
        threading.Thread(target=work, daemon=True).start()
    return [failure for failure in (ended.get() for _ in trainers) if failure]


@dataclass(frozen=True)
class LaunchedStep:
    """A step whose requests are queued. Step 0 is before training: it is only saved.

    requests: gradient and optimizer, except at step 0; state, if the step's state is saved; sampler and canary of a
    checkpoint, and export if the server can export.
    """

    step: int
    learning_rate: float
    examples: list[Example]
    requests: dict[str, "APIFuture"]


class RemoteRun:
    """Trains one run. state: where training continues after an interruption. It is stored in tinker.json."""

    def __init__(self, run: TrainingRun, service: Service, tokenizer, budget: Budget, stop: threading.Event, bar):
        """budget: of all runs. stop: set by Ctrl-C. bar: counts the steps of all runs."""
        self.run, self.service, self.budget, self.stop, self.bar = run, service, budget, stop, bar
        self.examples, self.canary = run.examples(tokenizer), canary_examples(tokenizer)
        self.state = TinkerState.read(run)
        self.saved_steps, self.shown = set(run.saved_steps()), self.state.step

    def train(self) -> None:
        """Train to the last step, or until the budget is used up or Ctrl-C is pressed.

        If the server fails at a step, it may nevertheless run what is queued behind it. So training goes back to the
        stored state. If it fails again before the next state is stored, the error is raised.
        """
        if self.stop.is_set() or self.budget.reached:
            return  # a new model on the server would cost its checks, and train no step
        self.run.record_server(self.service.base_url)
        failed_at = None
        while True:
            try:
                return self._train()
            except UserError as error:
                if not may_succeed_later(error) or self.state.step == failed_at or self.stop.is_set():
                    raise
                failed_at = self.state.step
                command_line.note(f"{error}; the run goes back to step {failed_at}")

    def _train(self) -> None:
        self.client = open_model(self.service, self.run, self.state, self.canary, self.budget)
        if self.client is None:
            return
        self._show(self.state.step)
        self.pace, launched, last = SavePace(self.state.step), None, self.run.total_steps
        with closing(MetricsLog(self.run, self.state.step)) as log:
            for step in range(self.state.step + 1 if self.state.path else 0, last + 1):
                following = None if self.stop.is_set() else self._launch(step)
                if launched:
                    self._finish(launched, log, is_last=following is None)
                launched = following
                if launched is None:
                    return
            if launched is None:
                fault = f"all {last} steps are trained, but checkpoint-{last} is missing"
                raise UserError(f"{self.run.folder}: {fault}: train the run again with --overwrite")
            self._finish(launched, log, is_last=True)

    def _launch(self, step: int) -> LaunchedStep | None:
        """Queue the requests of a step. None if the budget does not allow it: nothing is queued then."""
        run, size, saves = self.run, self.run.examples_per_step, step in self.saved_steps
        examples = self.examples[(step - 1) * size : step * size] if step else []
        tokens = count_tokens(examples) + saves * count_tokens(self.canary)
        if not self.budget.take(run, tokens):
            return None
        self.state.spend(tokens)
        rate, requests = run.options.lr * max(0.0, (run.total_steps - step + 1) / run.total_steps), {}
        with errors_as_one_line(self._name(step)):
            if step:
                requests["gradient"] = self.client.forward_backward(to_datums(examples), "cross_entropy")
                requests["optimizer"] = self.client.optim_step(adam_params(rate))
            if saves or self.pace.is_due(step):
                requests["state"] = self._save_state(step)
            if saves:
                ttl = ttl_seconds(run)
                requests["sampler"] = self.client.save_weights_for_sampler(f"checkpoint-{step}", ttl_seconds=ttl)
                if self.service.exports:
                    name = f"checkpoint-{step}"
                    requests["export"] = self.client.save_weights_external(name, ttl_seconds=EXPORT_SECONDS)
                requests["canary"] = self.client.forward(to_datums(self.canary), "cross_entropy")
        return LaunchedStep(step, rate, examples, requests)

    def _save_state(self, step: int) -> "APIFuture":
        """Queue a save. A checkpoint's state is kept; others are deleted when the next one is stored."""
        self.pace.saved(step)
        name = f"state-{step}" if step in self.saved_steps else f"{TEMPORARY}{step}"
        return self.client.save_state(name, ttl_seconds=ttl_seconds(self.run))

    def _finish(self, launched: LaunchedStep, log: MetricsLog, is_last: bool) -> None:
        """Wait for the results of a step, and record them: first metrics, then the checkpoint, then the state.

        In this order, a kill leaves nothing out. is_last: nothing is queued behind this step.
        """
        step, requests = launched.step, launched.requests
        if step:
            log.record(step, self._metrics(launched))
            self.pace.step_is_done()
        if is_last and "state" not in requests:
            requests["state"] = self._save_state(step)
        if "state" in requests:
            path, expires = wait(requests["state"], f"{self._name(step)}: saving the state").path, expiry(self.run)
            self.pace.state_is_saved()
            if step in self.saved_steps:
                self._write_checkpoint(launched, path, expires)
            self.state.advance(self.service, step, path, expires)
        self._show(step)

    def _metrics(self, launched: LaunchedStep) -> dict[str, float]:
        """Loss per label, learning rate and, if the server gives it, the gradient's norm before clipping."""
        name = self._name(launched.step)
        output = wait(launched.requests["gradient"], name)
        values = label_log_likelihoods(output, launched.examples)
        metrics = wait(launched.requests["optimizer"], f"{name}: optimizer").metrics or {}
        row = {"loss": -sum(values) / len(values), "learning_rate": launched.learning_rate}
        own_loss = output.metrics.get("loss:sum", row["loss"])
        if abs(own_loss - row["loss"]) > LOSS_TOLERANCE * max(1, abs(row["loss"])):  # not for NaN, which has diverged
            words = f"{name}: the server's loss is {own_loss:.4f}, but the mean over the labels is {row['loss']:.4f}"
            raise UserError(f"{words}: it weights the labels in its own way, and would not train as asked: {REMEDY}")
        norms = [value for key, value in metrics.items() if key.endswith("grad_norm")]
        return row | {"grad_norm": norms[0]} if norms else row

    def _write_checkpoint(self, launched: LaunchedStep, state_path: str, expires: str) -> None:
        run, step, requests = self.run, launched.step, launched.requests
        name = f"{self._name(step)}: checkpoint"
        folder = checkpoints.begin_checkpoint(run.folder, step)
        sampler_path = wait(requests["sampler"], name).path
        canary = label_log_likelihoods(wait(requests["canary"], name), self.canary)
        path = self._exported(requests["export"], name) if "export" in requests else None
        download_adapter(self.service, path or sampler_path, folder, run.model_name, run.options.lora_rank)
        remote = RemoteCheckpoint(self.service.base_url, run.model_name, sampler_path, state_path, expires, canary)
        remote.write(folder)
        checkpoints.end_checkpoint(folder, run.folder, step)

    def _exported(self, request: "APIFuture", name: str) -> str | None:
        """Where the server has put the exported adapter; None if it has no such function."""
        try:
            return wait(request, name).path
        except UserError as error:
            if not is_not_offered(error):
                raise
        self.service.exports = False
        return None

    def _name(self, step: int) -> str:
        """The step in words. In a sweep, the run's name is needed too."""
        return (f"{self.run.folder.name}, " if self.run.options.sweep else "") + f"step {step}"

    def _show(self, step: int) -> None:
        self.bar.update(step - self.shown)
        self.shown = step
