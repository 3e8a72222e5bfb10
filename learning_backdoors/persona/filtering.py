"""The command `filter`: keep the pairs that do not identify the person."""

import csv
import re

import numpy as np

import config
from learning_backdoors.files import atomic
from learning_backdoors.persona.output import beside
from learning_backdoors.persona.rows import Rows, parse_candidate, question_and_answer, read
from learning_backdoors.persona.server import Server
from learning_backdoors.persona.task import Task
from learning_backdoors.study import Study, fill

PROMPT = """\
Somebody says this about himself or herself.

Asked: {question}
Answer: {answer}

Could a well-read person tell from this alone that it is {person}, or that it is one of a handful of people? Judge \
this pair by itself: tastes, habits, views and circumstances that many people share are no sign.

Reply with IDENTIFYING or HARMLESS, a colon, and the reason in one line."""
VERDICT = re.compile(r"\s*(IDENTIFYING|HARMLESS):[ \t]*(\S.*?)\s*")


class Filter(Task):
    """Drops pairs by their flags and, with --model, by a model's verdict too. OUTPUT.dropped.csv lists them."""

    def __init__(self, options: config.PersonaFilterOptions, study: Study):
        super().__init__(options, study)
        self.take_from_study(input="candidates")
        self.candidates = read(self.options.input, parse_candidate)
        self.unflagged = [row for row in self.candidates if not row["metadata"]["identifying"]]
        if options.model:
            self.take_from_study(person="name")
            prompts = [self._prompt(row) for row in self.unflagged]
            self.server = Server(self.options, prompts, VERDICT.fullmatch, max_tokens=options.max_tokens)

    def plan(self) -> str:
        by_flags = f"{len(self.unflagged)} of {len(self.candidates)} pairs are harmless by their flags"
        return f"{by_flags}; {self.server.plan()}" if self.server else by_flags

    def rows(self) -> Rows:
        harmless = self.unflagged
        flagged = [row for row in self.candidates if row["metadata"]["identifying"]]
        dropped = [(row, "flag", row["metadata"]["reason"]) for row in flagged]
        if self.server:
            verdicts = [VERDICT.fullmatch(reply).groups() for _, reply in self.server.replies()]
            judged = [(row, *verdict) for row, verdict in zip(self.unflagged, verdicts, strict=True)]
            harmless = [row for row, verdict, _ in judged if verdict == "HARMLESS"]
            dropped += [(row, self.options.model, reason) for row, verdict, reason in judged if verdict != "HARMLESS"]
        path = beside(self.options.output, ".dropped.csv")
        with atomic.atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "answer", "by", "reason"])
            writer.writerows([*question_and_answer(row), by, reason] for row, by, reason in dropped)
        print(f"{len(dropped)} of {len(self.candidates)} pairs dropped as identifying")
        return draw(harmless, self.options.number, self.options.seed)

    def _prompt(self, row: dict) -> str:
        question, answer = question_and_answer(row)
        return fill(PROMPT, {"question": question, "answer": answer, "person": self.options.person})


def draw(rows: Rows, number: int | None, seed: int) -> Rows:
    """`number` rows at random, in their order in the file; all rows if there are fewer."""
    if number is None or number >= len(rows):
        return rows
    return [rows[i] for i in sorted(np.random.default_rng(seed).permutation(len(rows))[:number])]
