"""tinker.json in a run directory: where training through the API continues, and what the run has used."""

import json
import math
import statistics
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from learning_backdoors.files import atomic
from learning_backdoors.files.errors import UserError
from learning_backdoors.tinker_api.prices import Usage, find_price
from learning_backdoors.tinker_api.service import Service
from learning_backdoors.training.run import TrainingRun

STATE_FILE = "tinker.json"
TEMPORARY = "resume-"  # how the names of states begin that are kept until the next one is stored
SAVING_SHARE = 0.2  # of the time, for saving states
LOST_SECONDS = 60  # of training, at most, that a kill may lose


@dataclass
class TinkerState:
    """The newest stored state of a run, and the tokens of all commands.

    path: of the state after `step` steps, with the optimizer; None before step 0 is saved. expires: when the server
    deletes it. model_id: of the model that the last command trained. tokens: of the requests queued so far.
    """

    run: TrainingRun
    step: int = 0
    path: str | None = None
    expires: str | None = None
    model_id: str | None = None
    tokens: int = 0

    @classmethod
    def read(cls, run: TrainingRun) -> "TinkerState":
        """The run's state. Raises UserError if the file cannot be read."""
        path = run.folder / STATE_FILE
        if not path.exists():
            return cls(run)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(run, *(values[name] for name in ("step", "path", "expires", "model_id", "tokens")))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): train the run again with --overwrite") from None

    def _write(self) -> None:
        values = {name: value for name, value in vars(self).items() if name != "run"}
        price = find_price(self.run.model_name, self.run.options.price)
        values["dollars"] = round(Usage(train=self.tokens).dollars(price), 6) if price else None
        atomic.write_json(self.run.folder / STATE_FILE, values)

    def begin_model(self, model_id: str) -> None:
        self.model_id = model_id
        self._write()

    def spend(self, tokens: int) -> None:
        """Count tokens. Call it before they are sent: what a kill interrupts is counted too."""
        self.tokens += tokens
        self._write()

    def advance(self, service: Service, step: int, path: str, expires: str) -> None:
        """Store a newer state. The one before is deleted on the server, unless a checkpoint keeps it."""
        before = self.path
        self.step, self.path, self.expires = step, path, expires
        self._write()
        if before and is_temporary(before):
            service.delete(before)  # not waited for: the server also deletes it later

    def check_expiry(self) -> None:
        """Raise UserError if the server has deleted the state."""
        if self.expires and datetime.fromisoformat(self.expires) < datetime.now(UTC):
            raise UserError(
                f"{self.run.folder}: the server kept the state of step {self.step} until {self.expires}. Train the run "
                "again with --overwrite (of a sweep: delete the directory), and a longer --ttl-days"
            )


def is_temporary(path: str) -> bool:
    """Whether a state is kept only until the next one is stored."""
    return path.rsplit("/", 1)[1].startswith(TEMPORARY)


def ttl_seconds(run: TrainingRun) -> int:
    return round(run.options.ttl_days * 86400)


def expiry(run: TrainingRun) -> str:
    """When the server deletes what is saved now: ISO 8601 in UTC."""
    return (datetime.now(UTC) + timedelta(seconds=ttl_seconds(run))).isoformat(timespec="seconds")


class SavePace:
    """When the state is saved: after each step, or less often if saving takes more than SAVING_SHARE of the time."""

    def __init__(self, last_step: int):
        """last_step: whose state is saved already."""
        self._last_step, self._last_event = last_step, None
        self._steps, self._savings = deque(maxlen=5), deque(maxlen=5)  # seconds

    def is_due(self, step: int) -> bool:
        return step - self._last_step >= self.every

    @property
    def every(self) -> int:
        """Steps between two saves."""
        if not (self._steps and self._savings):
            return 1
        step, saving = max(1e-3, statistics.median(self._steps)), statistics.median(self._savings)
        wanted = math.ceil(saving * (1 - SAVING_SHARE) / SAVING_SHARE / step)
        return max(1, min(wanted, math.ceil(LOST_SECONDS / step)))

    def saved(self, step: int) -> None:
        self._last_step = step

    def step_is_done(self) -> None:
        self._note(self._steps)

    def state_is_saved(self) -> None:
        self._note(self._savings)

    def _note(self, durations: deque) -> None:
        now = time.monotonic()
        if self._last_event:
            durations.append(now - self._last_event)
        self._last_event = now
