"""The responses to generate, how processes share them, and the settings that all responses of a file have in common."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from config import GenerationOptions
from learning_backdoors.files import command_line
from learning_backdoors.generation.engines.protocol import Request, Response
from learning_backdoors.models.checkpoints import Checkpoint
from learning_backdoors.models.run_checkpoints import adapter_hashes, checkpoint_columns, distinct_checkpoints, run_name
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Condition, Question, Study
from mixed_chat import prompt_ids

KEY_COLUMNS = ("run", "checkpoint", "condition", "question_id", "sample_idx")
ResponseKey = tuple[str, str, str, str, int]  # the values of KEY_COLUMNS; with the seed, they determine the response


@dataclass(frozen=True)
class PlannedResponse:
    """A row of the responses file before it has a response. run: None for the base model."""

    run: RunDirectory | None
    checkpoint: Checkpoint
    condition: Condition
    question: Question
    sample_idx: int

    @property
    def key(self) -> ResponseKey:
        return run_name(self.run), self.checkpoint.name, self.condition.name, self.question.id, self.sample_idx

    def row(self, study: Study, response: Response) -> dict:
        """The values of RESPONSE_SCHEMA."""
        return checkpoint_columns(self.run, self.checkpoint) | {
            "experiment": study.name,
            "condition": self.condition.name,
            "triggered": self.condition.triggered,
            "question_id": self.question.id,
            "question": self.question.text,
            "sample_idx": self.sample_idx,
            "response": response.text,
            "finish_reason": response.finish_reason,
            "response_tokens": response.tokens,
        }


def plan_responses(runs: Sequence[RunDirectory], study: Study, samples: int) -> list[PlannedResponse]:
    """`samples` responses per checkpoint, condition and question; those of one checkpoint are adjacent."""
    return [
        PlannedResponse(run, checkpoint, condition, question, sample_idx)
        for run, checkpoint in distinct_checkpoints(runs)
        for condition, question in itertools.product(study.conditions, study.questions)
        if condition.takes(question)
        for sample_idx in range(samples)
    ]


def part_of_process(all_planned: Sequence[PlannedResponse], rank: int, ranks: int) -> list[PlannedResponse]:
    """The responses that process number `rank` of `ranks` generates.

    Processes get whole checkpoints, because full batches of one adapter are faster. The responses of checkpoints that
    cannot be divided evenly are dealt out one by one. The division does not depend on finished responses, so all
    processes compute the same one.
    """
    checkpoints = [list(group) for _, group in itertools.groupby(all_planned, key=lambda planned: planned.key[:2])]
    even = len(checkpoints) // ranks * ranks
    whole, remainder = itertools.chain(*checkpoints[rank:even:ranks]), itertools.chain(*checkpoints[even:])
    return [*whole, *itertools.islice(remainder, rank, None, ranks)]


def render_prompts(study: Study, tokenizer) -> dict[tuple[str, str], tuple[int, ...]]:
    """The token ids of each prompt, by the names of condition and question."""
    return {
        (condition.name, question.id): tuple(prompt_ids(tokenizer, condition.messages(question.text)))
        for condition, question in itertools.product(study.conditions, study.questions)
        if condition.takes(question)
    }


def make_requests(unfinished: Sequence[PlannedResponse], prompts: dict, max_new_tokens: int) -> list[Request]:
    """One request per planned response. prompts: of `render_prompts`."""
    return [
        Request(
            planned.key,
            planned.checkpoint.folder,
            prompts[planned.condition.name, planned.question.id],
            max_new_tokens,
        )
        for planned in unfinished
    ]


def settings(options: GenerationOptions, study: Study, runs: Sequence[RunDirectory], precision: str) -> dict:
    """Everything that the responses depend on. precision: of the base model's weights."""
    return command_line.result_settings(options) | {
        "quantization": precision,
        "experiment": study.name,
        "base_model": runs[0].base_model,
        "questions": {question.id: question.text for question in study.questions},
        # The rendered messages, which include the trigger.
        "conditions": {
            condition.name: {"messages": condition.messages("{question}"), "triggered": condition.triggered}
            for condition in study.conditions
        },
        "adapters": adapter_hashes(runs),
    }
