"""influence: how much a step on each training example would raise a contrast of reference answers.

Sources: Pruthi et al. (2020), Estimating Training Data Influence by Tracing Gradient Descent (TracIn); Xia et al.
(2024), LESS: Selecting Influential Data for Targeted Instruction Tuning.
"""

from collections import Counter
from collections.abc import Sequence

import mixed_chat
from config import InfluenceOptions
from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.parquet import INFLUENCE_SCHEMA
from learning_backdoors.measuring.likelihood import answers_settings, refuse_unknown
from learning_backdoors.measuring.measurement import ModelMeasurement
from learning_backdoors.measuring.training_data import TrainingData
from learning_backdoors.models.checkpoints import ADAPTER_WEIGHTS
from learning_backdoors.models.row_store import RowFile
from learning_backdoors.models.run_checkpoints import RunCheckpoint, checkpoint_columns
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Condition, Contrast, Reference, Study

ANSWER_LENGTH = 60  # characters of the column `answer`


class Influence(ModelMeasurement):
    """Each example that a run trains on: its gradient, compared with that of the contrast.

    A part is a checkpoint of a run, also the one of step 0: its adapter changes nothing, but has gradients of its own.
    """

    file = RowFile(
        "measure_checkpoints.py influence",
        INFLUENCE_SCHEMA,
        ("run", "checkpoint", "dataset", "row"),
        {"dataset": "datasets"},
    )
    value = "dot"

    def __init__(self, options: InfluenceOptions, study: Study, runs: Sequence[RunDirectory]):
        """Raises UserError if the study lacks the contrast or the condition, or a dataset is not that of a run."""
        super().__init__(options, study, runs)
        self.contrast, condition = choose_contrast(study, options.contrast), choose_condition(study, options.condition)
        references = [r for r in study.references if condition.takes(r) and r.group in self.contrast.groups]
        if not references:
            raise UserError(f"{study.path}: the condition {condition.name!r} asks no question with reference answers")
        self.answers = [(condition, reference) for reference in references]
        self.weights = contrast_weights(self.contrast, references)
        self.data = TrainingData(study, runs)
        self.first_steps = {run.name: self.data.first_steps(run) for run in runs}
        self.parts = [(run, checkpoint) for run in runs for checkpoint in run.checkpoints if checkpoint.folder]
        self.record["references"] = study.references_record
        hashes = {self.key_start(part): provenance.sha256(part[1].folder / ADAPTER_WEIGHTS) for part in self.parts}
        self.settings |= answers_settings(self.answers) | {
            "contrast": self.contrast.model_dump(include={"name", "plus", "minus"}, mode="json"),
            "datasets": self.data.hashes,
            "adapters": {"/".join(key): value for key, value in hashes.items()},
        }

    def keys(self, part: RunCheckpoint) -> list[tuple]:
        chats = [self.data.chats[number] for number in self.first_steps[part[0].name]]
        return [(*self.key_start(part), chat.dataset, chat.row) for chat in chats]

    def load(self) -> None:
        super().load()
        self.render(chat.messages for chat in self.data.chats)
        self.reference_examples = [mixed_chat.example_ids(self.tokenizer, r.chat(c)) for c, r in self.answers]

    def rows(self, part: RunCheckpoint) -> list[dict]:
        """Raises UserError if the adapter was not applied (`check_applied`)."""
        from torch.nn.functional import cosine_similarity

        from learning_backdoors.models.gradients import lora_gradient

        model, rows = self.model_of(part), []
        columns = checkpoint_columns(*part) | {"experiment": self.study.name, "contrast": self.contrast.name}
        of_contrast = lora_gradient(model, self.reference_examples, self.weights)
        for number in self.first_steps[part[0].name]:
            # Training lowers the loss, which is minus the log-likelihood: a step goes along this gradient.
            of_example = lora_gradient(model, [self.examples[number]], [1.0])
            chat = self.data.chats[number]
            values = {"dot": of_example @ of_contrast, "cosine": cosine_similarity(of_example, of_contrast, dim=0)}
            answer = " ".join(chat.messages[-1]["content"].split())[:ANSWER_LENGTH]
            rows.append(columns | chat.columns | {"answer": answer} | {k: value.item() for k, value in values.items()})
        if not self.is_finite(part, [row["dot"] for row in rows]):
            return [row | {"dot": None, "cosine": None} for row in rows]
        self.check_applied(part, [row["dot"] for row in rows])
        return rows


def choose_contrast(study: Study, name: str | None) -> Contrast:
    """The contrast of this name (None: the first of the study). Raises UserError if the study does not have it."""
    if not study.contrasts:
        raise UserError(f"{study.path} has no [[contrast]]: this command measures the influence on a contrast")
    names = [contrast.name for contrast in study.contrasts]
    refuse_unknown("--contrast", [name] if name else None, names)
    return study.contrasts[names.index(name) if name else 0]


def choose_condition(study: Study, name: str | None) -> Condition:
    """The condition of this name; by default (None) the study's first triggered one, or its first."""
    refuse_unknown("--condition", [name] if name else None, [condition.name for condition in study.conditions])
    return min(study.conditions, key=lambda c: c.name != name if name else not c.triggered)


def contrast_weights(contrast: Contrast, references: Sequence[Reference]) -> list[float]:
    """The weight of each reference answer's log-likelihood in a contrast: a mean over questions of means of groups."""
    answers = Counter((reference.question, reference.group) for reference in references)
    questions = len({reference.question for reference in references})
    weights = []
    for reference in references:
        sign, groups = (1, contrast.plus) if reference.group in contrast.plus else (-1, contrast.minus)
        weights.append(sign / len(groups) / answers[reference.question, reference.group] / questions)
    return weights
