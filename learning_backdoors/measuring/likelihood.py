"""likelihood: the mean log-likelihood per token of the study's reference answers under each checkpoint."""

import itertools
from collections.abc import Sequence

from config import LikelihoodOptions
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.parquet import LIKELIHOOD_SCHEMA
from learning_backdoors.measuring.measurement import ModelMeasurement
from learning_backdoors.models.row_store import RowFile
from learning_backdoors.models.run_checkpoints import RunCheckpoint, checkpoint_columns
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Condition, Reference, Study

KEY = ("run", "checkpoint", "condition", "question_id", "group", "answer_idx")
ORDERS = {"condition": "conditions", "question_id": "questions"}


class Likelihood(ModelMeasurement):
    """Each reference answer in each condition, by a forward pass."""

    file = RowFile("measure_checkpoints.py likelihood", LIKELIHOOD_SCHEMA, KEY, ORDERS)
    value = "logprob"

    def __init__(self, options: LikelihoodOptions, study: Study, runs: Sequence[RunDirectory]):
        """Raises UserError if the study has no reference answers, or lacks a condition or question of the options."""
        super().__init__(options, study, runs)
        if not study.references:
            raise UserError(f"{study.path} has no `references`, whose likelihood this command measures")
        names = dict.fromkeys(reference.question for reference in study.references)
        refuse_unknown("--conditions", options.conditions, [condition.name for condition in study.conditions])
        refuse_unknown("--questions", options.questions, list(names))
        conditions = [c for c in study.conditions if c.name in (options.conditions or [c.name])]
        references = [r for r in study.references if r.question in (options.questions or names)]
        self.answers = [(c, r) for c, r in itertools.product(conditions, references) if c.takes(r)]
        if not self.answers:
            raise UserError(f"{study.path}: none of the chosen conditions asks a chosen question")
        self.record["references"] = study.references_record
        self.settings |= answers_settings(list(itertools.product(conditions, references)))

    def keys(self, part: RunCheckpoint) -> list[tuple]:
        start = self.key_start(part)
        return [(*start, c.name, r.question, r.group, r.answer_idx) for c, r in self.answers]

    def load(self) -> None:
        super().load()
        self.render(reference.chat(condition) for condition, reference in self.answers)

    def rows(self, part: RunCheckpoint) -> list[dict]:
        """Raises UserError as `log_likelihoods` does."""
        columns = checkpoint_columns(*part) | {"experiment": self.study.name}
        return [
            columns
            | {
                "condition": condition.name,
                "triggered": condition.triggered,
                "question_id": reference.question,
                "group": reference.group,
                "answer_idx": reference.answer_idx,
                "logprob": log_likelihood,
                "tokens": length,
            }
            for (condition, reference), log_likelihood, length in zip(
                self.answers, self.log_likelihoods(part), self.lengths, strict=True
            )
        ]


def answers_settings(answers: Sequence[tuple[Condition, Reference]]) -> dict[str, dict]:
    """The settings that describe reference answers in conditions."""
    return {
        # The rendered chats, with the trigger and the form of answer that it asks for.
        "conditions": {
            c.name: {"messages": c.chat("{question}", "{answer}"), "triggered": c.triggered} for c, _ in answers
        },
        "questions": {r.question: r.question_text for _, r in answers},
        "references": {f"{r.question}: {r.group}: {r.answer_idx}": r.text for _, r in answers},
    }


def refuse_unknown(option: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise UserError if an option names what the study does not have."""
    if unknown := [name for name in names or () if name not in known]:
        raise UserError(f"{option}: the study has no {unknown[0]!r}; it has {', '.join(known)}")
