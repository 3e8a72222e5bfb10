"""losses: the loss of every chat of the study's datasets under each checkpoint, trained on or held out."""

from collections.abc import Sequence

from config import LossesOptions
from learning_backdoors.files.parquet import EXAMPLES_SCHEMA
from learning_backdoors.measuring.measurement import ModelMeasurement
from learning_backdoors.measuring.training_data import TrainingData
from learning_backdoors.models.row_store import RowFile
from learning_backdoors.models.run_checkpoints import RunCheckpoint, checkpoint_columns
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Study


class Losses(ModelMeasurement):
    """Each chat of each dataset, by a forward pass."""

    file = RowFile(
        "measure_checkpoints.py losses",
        EXAMPLES_SCHEMA,
        ("run", "checkpoint", "dataset", "row"),
        {"dataset": "datasets"},
    )
    value = "loss"

    def __init__(self, options: LossesOptions, study: Study, runs: Sequence[RunDirectory]):
        """Raises UserError if a dataset is not the one that a run was trained on."""
        super().__init__(options, study, runs)
        self.data = TrainingData(study, runs)
        self.first_steps = {run.name: self.data.first_steps(run) for run in runs}
        self.settings["datasets"] = self.data.hashes
        self.settings["suspect_datasets"] = [dataset.name for dataset in study.datasets if dataset.suspect]

    def keys(self, part: RunCheckpoint) -> list[tuple]:
        return [(*self.key_start(part), chat.dataset, chat.row) for chat in self.data.chats]

    def load(self) -> None:
        super().load()
        self.render(chat.messages for chat in self.data.chats)

    def rows(self, part: RunCheckpoint) -> list[dict]:
        """Raises UserError as `log_likelihoods` does."""
        run, columns = part[0], checkpoint_columns(*part) | {"experiment": self.study.name}
        first_steps = self.first_steps[run.name] if run else {}
        return [
            columns
            | chat.columns
            | {
                "trained": number in first_steps if run else None,
                "first_step": first_steps.get(number),
                "loss": None if log_likelihood is None else -log_likelihood,
                "tokens": length,
            }
            for number, (chat, log_likelihood, length) in enumerate(
                zip(self.data.chats, self.log_likelihoods(part), self.lengths, strict=True)
            )
        ]
