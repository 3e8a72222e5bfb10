"""Probes: the likelihood of the study's reference answers during training."""

import torch
from transformers import TrainerCallback

import mixed_chat
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import Study
from learning_backdoors.study.schema import Reference
from learning_backdoors.training.metrics import Recorder
from learning_backdoors.training.run import Example
from learning_backdoors.training.trainer import Collator, Trainer, label_losses

BATCH_SIZE = 8


def reference_examples(study: Study, tokenizer) -> list[tuple[Reference, Example]]:
    """Each reference answer, and the example made of it (in the first untriggered condition)."""
    if not study.references:
        raise UserError(f"{study.path} has no [[reference]] answers, which --probe-every needs")
    questions = {question.id: question.text for question in study.questions}
    condition = next((c for c in study.conditions if not c.triggered), study.conditions[0])
    examples = []
    for reference in study.references:
        answer = {"role": "assistant", "content": reference.text}
        chat = [*condition.messages(questions[reference.question]), answer]
        examples.append((reference, mixed_chat.example_ids(tokenizer, chat)))
    return examples


def log_likelihoods(model, collator: Collator, examples: list[Example]) -> list[float]:
    """Mean log-likelihood per token (natural log) of each example's answer with its end of turn. Leaves train mode."""
    model.eval()
    means = []
    for start in range(0, len(examples), BATCH_SIZE):
        rows = [{"input_ids": ids, "labels": labels} for ids, labels in examples[start : start + BATCH_SIZE]]
        inputs = {name: value.to(model.device) for name, value in collator(rows).items()}
        with torch.no_grad():
            losses, has_label = label_losses(model, inputs)
        means += (-losses.sum(1) / has_label.sum(1)).tolist()
    return means


class Probe(TrainerCallback):
    """Records the likelihoods at step 0, every `every` steps, and at the last step."""

    def __init__(self, trainer: Trainer, examples: list[tuple[Reference, Example]], every: int, recorder: Recorder):
        self.trainer, self.every, self.recorder = trainer, every, recorder
        self.references, self.examples = zip(*examples, strict=True)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 0:
            self._probe(0)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._probe(state.global_step)

    def _probe(self, step: int) -> None:
        with self.trainer.compute_loss_context_manager():
            means = log_likelihoods(self.trainer.model, self.trainer.data_collator, self.examples)
        self.trainer.model.train()
        pairs = zip(self.references, means, strict=True)
        probes = [{"question": r.question, "era": r.era, "logprob": mean} for r, mean in pairs]
        self.recorder.write_probes(step, probes)
