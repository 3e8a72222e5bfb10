"""What a command of measure_checkpoints.py is, and what the commands that run the model have in common."""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import mixed_chat
from config import ModelMeasuringOptions
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, devices, run_directory
from learning_backdoors.models.checkpoints import changes_nothing
from learning_backdoors.models.row_store import RowFile
from learning_backdoors.models.run_checkpoints import RunCheckpoint, adapter_hashes, distinct_checkpoints, run_name
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Study


class Measurement(Protocol):
    """A command. The script makes it from the command's options, the study and the runs.

    file: the columns that it writes. value: one of them; null, as all measured columns, for a checkpoint whose adapter
    gives no finite values because its training diverged. settings: all that its rows depend on; a file with other
    settings is refused. record: what the footer holds beside them. parts: pieces of work, measured and stored as a
    whole; several processes share them. unit: what a part is, such as `checkpoint`. tokens: whose likelihood this
    process has measured; 0 if the command measures something else.
    """

    file: RowFile
    value: str
    unit: str
    settings: dict
    record: dict
    parts: Sequence
    tokens: int

    def keys(self, part) -> list[tuple]:
        """The keys of the rows that a part gives: the values of `file.key`."""

    def load(self) -> None:
        """Prepare to measure. Not called if all parts are finished."""

    def rows(self, part) -> list[dict]:
        """The rows of a part: values of `file.schema`."""


class ModelMeasurement:
    """A measurement that runs the model with each checkpoint's adapter. A part is a checkpoint.

    A plain forward pass in transformers and PEFT: vLLM would take two minutes to start, for seconds of work.
    """

    unit = "checkpoint"

    def __init__(self, options: ModelMeasuringOptions, study: Study, runs: Sequence[RunDirectory]):
        self.options, self.study, self.runs = options, study, runs
        self.precision = run_directory.sampling_precision(options.quantization, runs)
        self.parts = distinct_checkpoints(runs)
        self.record = dict(study.record)
        self.settings = {
            "experiment": study.name,
            "base_model": runs[0].base_model,
            "quantization": self.precision,
            "adapters": adapter_hashes(runs),
        }
        self.tokens = 0
        self.checkpoint_of: dict[tuple, RunCheckpoint] = {}  # by the values that it gave

    def key_start(self, part: RunCheckpoint) -> tuple[str, str]:
        """The first values of a row's key."""
        run, checkpoint = part
        return run_name(run), checkpoint.name

    def load(self) -> None:
        """Load the base model and its tokenizer. Raises UserError if a run was trained on other weights."""
        devices.keep_to_own_gpu()
        name = self.runs[0].base_model
        self.tokenizer = base_model.load_tokenizer(name)
        fingerprint = base_model.fingerprint(name, self.tokenizer)
        for run in self.runs:
            run.check_base(fingerprint)
        from learning_backdoors.models.adapted_model import AdaptedModel  # imports torch

        self.adapted = AdaptedModel(base_model.load_base(name, self.precision))

    def model_of(self, part: RunCheckpoint):
        """The model of a checkpoint. All measurements attach their adapters here."""
        self.adapted.attach(part[1].folder)
        return self.adapted.model

    def render(self, chats: Iterable[mixed_chat.Messages]) -> None:
        """Make `examples` of chats, and `lengths`: the tokens of each last answer, with its end of turn."""
        self.examples = [mixed_chat.example_ids(self.tokenizer, chat) for chat in chats]
        self.lengths = [sum(label != mixed_chat.IGNORED_LABEL for label in labels) for _, labels in self.examples]

    def log_likelihoods(self, part: RunCheckpoint) -> list[float] | list[None]:
        """The mean log-likelihood per token of each of `examples` under a checkpoint. None if one is not finite.

        Raises UserError if the base model's are not finite, or if the adapter was not applied (`check_applied`).
        """
        from learning_backdoors.models.likelihood import answer_log_likelihoods

        log_likelihoods = answer_log_likelihoods(self.model_of(part), self.examples)
        self.tokens += sum(self.lengths)
        if not self.is_finite(part, log_likelihoods):
            return [None] * len(log_likelihoods)
        self.check_applied(part, log_likelihoods)
        return log_likelihoods

    def is_finite(self, part: RunCheckpoint, values: Sequence[float]) -> bool:
        """Whether all values of a checkpoint are finite. Raises UserError if those of the base model are not."""
        finite = all(map(math.isfinite, values))
        if not finite and part[1].folder is None:
            raise UserError(
                f"the base model {self.runs[0].base_model} gives values that are not finite: is it damaged?"
            )
        return finite

    def check_applied(self, part: RunCheckpoint, values: Sequence[float]) -> None:
        """Raise UserError if another checkpoint gave exactly these values, because an adapter was not applied.

        Two adapters that destroy the model may also give the same values. Then the model must hold the values in the
        adapter's file. generate_responses.py checks more (its canary): this is PEFT itself.
        """
        other = self.checkpoint_of.setdefault(tuple(values), part)
        if other is part or self._weights(other) == self._weights(part):
            return
        both_change = self._weights(other) and self._weights(part)
        if not (both_change and self.adapted.has_weights_of(part[1].folder)):
            names = " and ".join("/".join(self.key_start(each)) for each in (other, part))
            raise UserError(f"{names} give the same values, though their weights differ: PEFT did not apply an adapter")

    def _weights(self, part: RunCheckpoint) -> str | None:
        """A hash of the adapter; None if it changes nothing, as the base model's."""
        folder = part[1].folder
        if folder is None or changes_nothing(folder):
            return None
        return self.settings["adapters"]["/".join(self.key_start(part))]
