"""Probes: the likelihood of the study's reference answers during training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import TrainerCallback

import mixed_chat
from learning_backdoors.files.errors import UserError
from learning_backdoors.models.likelihood import answer_log_likelihoods
from learning_backdoors.study import Condition, Reference, Study
from learning_backdoors.training.metrics import MetricsLog
from mixed_chat import Example

if TYPE_CHECKING:
    from learning_backdoors.training.trainer import Trainer

ReferenceExample = tuple[Condition, Reference, Example]


def reference_examples(study: Study, tokenizer) -> list[ReferenceExample]:
    """Each reference answer in each probed condition, and the example made of it.

    Probed are the first untriggered and the first triggered condition that ask a question with reference answers.
    Raises UserError if there are none.
    """
    examples = []
    for triggered in (False, True):
        conditions = [c for c in study.conditions if c.triggered == triggered and any(map(c.takes, study.references))]
        for condition in conditions[:1]:
            references = filter(condition.takes, study.references)
            examples += [(condition, r, mixed_chat.example_ids(tokenizer, r.chat(condition))) for r in references]
    if not examples:
        raise UserError(f"{study.path} has no `references` to questions that it asks, which --probe-every needs")
    return examples


def probe_rows(answers: Sequence[ReferenceExample], log_likelihoods: Sequence[float]) -> list[dict]:
    """The probes of one step, as `MetricsLog.write_probes` takes them."""
    return [
        {"condition": c.name, "question": r.question, "group": r.group, "answer": r.answer_idx, "logprob": value}
        for (c, r, _), value in zip(answers, log_likelihoods, strict=True)
    ]


class Probe(TrainerCallback):
    """Records the likelihoods at step 0, every `every` steps, and at the last step."""

    def __init__(self, trainer: "Trainer", answers: Sequence[ReferenceExample], every: int, log: MetricsLog):
        """answers: as `reference_examples` gives them."""
        self.trainer, self.answers, self.every, self.log = trainer, answers, every, log

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 0:
            self._probe(0)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._probe(state.global_step)

    def _probe(self, step: int) -> None:
        with self.trainer.compute_loss_context_manager():
            values = answer_log_likelihoods(self.trainer.model, [example for _, _, example in self.answers])
        self.log.write_probes(step, probe_rows(self.answers, values))
