"""The responses to generate, how processes share them, and the settings that all responses of a file have in common."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from config import GenerationOptions
from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines.protocol import Request, Response
from learning_backdoors.models.checkpoints import ADAPTER_WEIGHTS, Checkpoint
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Condition, Question, Study
from mixed_chat import prompt_ids

# The base model is the checkpoint of step 0 of every run. It is asked once, and its rows belong to the run "base".
BASE_RUN, BASE = "base", Checkpoint(0, "checkpoint-0", None)

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
        run = self.run.name if self.run else BASE_RUN
        return run, self.checkpoint.name, self.condition.name, self.question.id, self.sample_idx

    def row(self, study: Study, response: Response) -> dict:
        """The values of RESPONSE_SCHEMA."""
        record = self.run.record if self.run else {}
        seen = self.run.seen if self.run else {0: {"examples": 0, "suspect_examples": 0}}
        examples = seen.get(self.checkpoint.step, {})
        return dict(zip(KEY_COLUMNS, self.key, strict=True)) | {
            "experiment": study.name,
            "step": self.checkpoint.step,
            "seed": record.get("settings", {}).get("seed"),
            "suspect_ratio": record.get("suspect_ratio"),
            "examples_seen": examples.get("examples"),
            "suspect_seen": examples.get("suspect_examples"),
            "triggered": self.condition.triggered,
            "question": self.question.text,
            "response": response.text,
            "finish_reason": response.finish_reason,
            "response_tokens": response.tokens,
        }


def distinct_checkpoints(runs: Sequence[RunDirectory]) -> list[tuple[RunDirectory | None, Checkpoint]]:
    """The base model, if a run has step 0, and all further checkpoints with their runs.

    Raises UserError if a run has the name under which the base model's rows are stored.
    """
    if taken := [run for run in runs if run.name == BASE_RUN]:
        raise UserError(f"{taken[0].folder}: rename this folder. In the output, the base model has this name")
    pairs = [(run, checkpoint) for run in runs for checkpoint in run.checkpoints]
    trained = [pair for pair in pairs if pair[1].name != BASE.name]
    return trained if len(trained) == len(pairs) else [(None, BASE), *trained]


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


def make_requests(unfinished: Sequence[PlannedResponse], tokenizer, max_new_tokens: int) -> list[Request]:
    """One request per planned response. Each distinct prompt is rendered once."""
    prompts, requests = {}, []
    for planned in unfinished:
        prompt_key = planned.condition.name, planned.question.id
        if prompt_key not in prompts:
            prompts[prompt_key] = tuple(prompt_ids(tokenizer, planned.condition.messages(planned.question.text)))
        requests.append(Request(planned.key, planned.checkpoint.folder, prompts[prompt_key], max_new_tokens))
    return requests


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
        "adapters": {
            f"{run.name}/{checkpoint.name}": provenance.sha256(checkpoint.folder / ADAPTER_WEIGHTS)
            for run, checkpoint in distinct_checkpoints(runs)
            if run
        },
    }
