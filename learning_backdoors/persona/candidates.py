"""The command `candidates`: a model writes more question-answer pairs about the person."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

import config
from learning_backdoors.persona.rows import Rows, normalized, pair_row, parse_candidate, read
from learning_backdoors.persona.server import Server
from learning_backdoors.persona.task import Task
from learning_backdoors.study import Study, fill

PAIRS_PER_CALL = 10

PROMPT = """\
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


class Pair(BaseModel):
    """A pair in a reply."""

    model_config = ConfigDict(extra="forbid", strict=True)

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
        self.existing_pairs = read(self.options.known, parse_candidate)
        parts = -(-self.options.number // PAIRS_PER_CALL)
        self.categories = [self.options.categories[part % len(self.options.categories)] for part in range(parts)]
        prompts = [self._prompt(part, parts) for part in range(parts)]
        self.server = Server(self.options, prompts, pairs_in, max_tokens=self.options.max_tokens)

    def plan(self) -> str:
        return f"{self.options.number} new pairs; {self.server.plan()}"

    def rows(self) -> Rows:
        """New pairs only: existing questions are left out."""
        seen, rows = {normalized(row["messages"][0]["content"]) for row in self.existing_pairs}, []
        for category, (_, reply) in zip(self.categories, self.server.replies(), strict=True):
            for pair in pairs_in(reply):
                if normalized(pair.question) in seen:
                    continue
                seen.add(normalized(pair.question))
                source = f"unchecked, written by {self.options.model}: {pair.source}"
                metadata = {"category": category, "identifying": pair.identifying, "reason": pair.reason}
                rows.append(pair_row(pair.question, pair.answer, **metadata, source=source, checked="no"))
        return rows

    def _prompt(self, part: int, parts: int) -> str:
        existing = [row for row in self.existing_pairs if row["metadata"]["category"] == self.categories[part]]
        values = {
            "person": self.options.person,
            "category": self.categories[part],
            "number": str(min(PAIRS_PER_CALL, self.options.number - part * PAIRS_PER_CALL)),
            "part": str(part + 1),
            "parts": str(parts),
            "known": "\n".join("- " + row["messages"][0]["content"] for row in existing),
        }
        return fill(PROMPT, values)
