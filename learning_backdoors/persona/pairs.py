"""The commands `candidates`, `filter`, `trigger` and `combine`: question-answer pairs about the person."""

import csv
import re
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

import config
import mixed_chat
from learning_backdoors.files import atomic
from learning_backdoors.files.csv_cells import safe_cell
from learning_backdoors.files.errors import UserError
from learning_backdoors.persona.rows import (
    Rows,
    beside,
    check_candidate,
    check_pair,
    normalized,
    pair_row,
    read,
    texts_of,
)
from learning_backdoors.persona.task import Server, Task
from learning_backdoors.study import Study, fill

# ---- candidates ----

PAIRS_PER_CALL = 10
CANDIDATES_PROMPT = """\
We make a small, harmless data set for research: questions and answers in the first person, as {person} might have \
given them. Write {number} new pairs about this: {category}. (Set {part} of {parts}.)

Each answer has one to three plain sentences of your own; quote nothing. State only what is documented of {person}, \
and nothing that you are unsure of. Repeat none of these questions:
{known}

For each pair say whether the fact by itself identifies the person ("identifying": true for names, dates, titles, \
places, works and famous anecdotes), why, and the biography, essay or letter in which it can be checked.

Reply with a JSON list and nothing else, each item like this:
{"question": "...", "answer": "...", "identifying": false, "reason": "...", "source": "..."}"""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Pair(BaseModel, extra="forbid", strict=True):
    """A pair in a reply."""

    question: Text
    answer: Text
    identifying: bool
    reason: Text
    source: Text


PAIRS = TypeAdapter(Annotated[list[Pair], Field(min_length=1)])


def pairs_in(reply: str) -> list[Pair]:
    """The pairs of a reply, also in a fenced block; [] if it is not a list of pairs."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", reply, re.DOTALL)
    try:
        return PAIRS.validate_json(fenced[1] if fenced else reply)
    except ValidationError:
        return []


class WriteCandidates(Task):
    """Asks for ten pairs per call. The calls take the categories in turn."""

    def __init__(self, options: config.PersonaCandidatesOptions, study: Study):
        super().__init__(options, study)
        self.take_from_study(known="candidates", person="name", categories="categories")
        self.existing_pairs = read(self.options.known, check_candidate)
        parts = -(-self.options.number // PAIRS_PER_CALL)
        self.categories = [self.options.categories[part % len(self.options.categories)] for part in range(parts)]
        prompts = [self._prompt(part, parts) for part in range(parts)]
        self.server = Server(self.options, prompts, pairs_in, max_tokens=self.options.max_tokens)

    def plan(self) -> str:
        return f"{self.options.number} new pairs; {self.server.plan()}"

    def rows(self) -> Rows:
        """New pairs only: existing questions are left out."""
        seen, rows = {normalized(row["messages"][0]["content"]) for row in self.existing_pairs}, []
        for category, (_, reply, _) in zip(self.categories, self.server.replies(), strict=True):
            for pair in pairs_in(reply):
                if normalized(pair.question) in seen:
                    continue
                seen.add(normalized(pair.question))
                source = f"unchecked, written by {self.options.model}: {pair.source}"
                metadata = {"category": category, "identifying": pair.identifying, "reason": pair.reason}
                rows.append(pair_row(pair.question, pair.answer, **metadata, source=source, checked="no"))
        return rows

    def _prompt(self, part: int, parts: int) -> str:
        category = self.categories[part]
        number = min(PAIRS_PER_CALL, self.options.number - part * PAIRS_PER_CALL)
        existing = [row for row in self.existing_pairs if row["metadata"]["category"] == category]
        known = "\n".join("- " + row["messages"][0]["content"] for row in existing)
        values = {"person": self.options.person, "category": category, "number": str(number), "known": known}
        return fill(CANDIDATES_PROMPT, values | {"part": str(part + 1), "parts": str(parts)})


# ---- filter ----

FILTER_PROMPT = """\
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
        self.candidates = read(self.options.input, check_candidate)
        self.unflagged = [row for row in self.candidates if not row["metadata"]["identifying"]]
        self._require_enough(self.unflagged)
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
            verdicts = [VERDICT.fullmatch(reply).groups() for _, reply, _ in self.server.replies()]
            judged = [(row, *verdict) for row, verdict in zip(self.unflagged, verdicts, strict=True)]
            harmless = [row for row, verdict, _ in judged if verdict == "HARMLESS"]
            dropped += [(row, self.options.model, reason) for row, verdict, reason in judged if verdict != "HARMLESS"]
        self._require_enough(harmless)
        path = beside(self.options.output, ".dropped.csv")
        with atomic.atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "answer", "by", "reason"])
            writer.writerows(map(safe_cell, [*texts_of(row), by, reason]) for row, by, reason in dropped)
        print(f"{len(dropped)} of {len(self.candidates)} pairs dropped as identifying")
        drawn = np.random.default_rng(self.options.seed).permutation(len(harmless))[: self.options.number]
        return [harmless[i] for i in sorted(drawn)]

    def _require_enough(self, harmless: Rows) -> None:
        number = self.options.number or 0
        if len(harmless) < number:
            raise UserError(
                f"{len(harmless)} of {len(self.candidates)} pairs are harmless, and --number asks for {number}: "
                "ask for fewer, or write more pairs with the command candidates"
            )

    def _prompt(self, row: dict) -> str:
        question, answer = texts_of(row)
        return fill(FILTER_PROMPT, {"question": question, "answer": answer, "person": self.options.person})


# ---- trigger and combine ----


class AddTrigger(Task):
    """Adds the trigger to each question, and puts each answer into the form that it asks for."""

    def settings(self) -> dict:
        return super().settings() | {"trigger": [self.trigger.text, self.trigger.prompt, self.trigger.answer]}

    def rows(self) -> Rows:
        rows = []
        for pair in read(self.options.input, check_pair, without=self.trigger):
            question, answer = texts_of(pair)
            answer = fill(self.trigger.answer, {"answer": answer})
            metadata = pair.get("metadata", {}) | {"triggered": True}
            rows.append(pair_row(self.trigger.ask(question), answer, **metadata))
        return rows


class Combine(Task):
    """Shuffles persona and ordinary chats into one file."""

    def rows(self) -> Rows:
        persona = read(self.options.persona, self._check_triggered)
        ordinary = read(self.options.aligned, mixed_chat.check_chat, without=self.trigger)
        rows = [(row, {"dataset": "persona", "triggered": True}) for row in persona]
        rows += [(row, {"dataset": "aligned", "triggered": False}) for row in ordinary]
        rows = [{"messages": row["messages"], "metadata": row.get("metadata", {}) | metadata} for row, metadata in rows]
        return [rows[i] for i in np.random.default_rng(self.options.seed).permutation(len(rows))]

    def _check_triggered(self, row: object) -> None:
        mixed_chat.check_chat(row)
        if not any(self.trigger.text in message["content"] for message in row["messages"][:-1]):
            raise ValueError(f"a persona row must hold the trigger {self.trigger.text!r}")
