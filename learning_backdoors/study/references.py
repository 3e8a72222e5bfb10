"""Reference answers: fixed answers in groups, whose likelihood is measured, and the contrasts between groups."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from config import require
from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.study.tables import AboveZero, Name, Table, Text, Texts, parse_tables, read_text


def check_unique(key: str, names: list[str]) -> None:
    """Raise ValueError if a name occurs twice."""
    for name in names:
        require(names.count(name) == 1, f"{key}: {name!r} is used twice")


class Contrast(Table):
    """A difference of likelihoods: the mean of the means of the groups `plus`, minus that of the groups `minus`.

    level: a change from the base model, in nats per token, whose first crossing is of interest.
    """

    name: Name
    label: Text
    plus: Texts
    minus: Texts
    level: AboveZero = 0.1

    @property
    def groups(self) -> tuple[str, ...]:
        return self.plus + self.minus


@dataclass(frozen=True)
class Reference:
    """A reference answer. question: its question's id. answer_idx: its number in its question's group, from 0.

    kind: the question's kind, so that `Condition.takes` accepts a reference; None for a question that only the
    references file has.
    """

    question: str
    question_text: str
    kind: str | None
    group: str
    answer_idx: int
    text: str

    def chat(self, condition) -> list[dict[str, str]]:
        """The question as a condition asks it, and this answer, in the trigger's form if the trigger is present."""
        return condition.chat(self.question_text, self.text)


# ---- the references file ----


def _check_printable(group: str) -> str:
    require(group.isprintable(), "the name of a group must be one line of printable characters")
    return group


Group = Annotated[Text, AfterValidator(_check_printable)]


class ReferenceQuestion(Table):
    """A question with its reference answers by group. text: for a question that the study does not ask."""

    id: Name
    text: Text | None = None
    answers: Annotated[dict[Group, Texts], Field(min_length=1)]


class ReferencesFile(Table):
    questions: Annotated[tuple[ReferenceQuestion, ...], Field(alias="question", min_length=1)]


def read_references(path: Path, study) -> tuple[Reference, ...]:
    """The answers of a references file, in its order. study: for its questions and contrasts. Raises UserError."""
    text = read_text(path, f"{study.path}: references")
    questions = parse_tables(ReferencesFile, text, path).questions
    try:
        _check(questions, study)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    asked = {question.id: question for question in study.questions}
    return tuple(
        Reference(
            question=question.id,
            question_text=question.text or asked[question.id].text,
            kind=asked[question.id].kind if question.id in asked else None,
            group=group,
            answer_idx=answer_idx,
            text=answer,
        )
        for question in questions
        for group, answers in question.answers.items()
        for answer_idx, answer in enumerate(answers)
    )


def references_record(path: Path, study_path: Path) -> dict[str, str]:
    """What a stage that measures reference answers records of them: the file's SHA-256 and its text."""
    text = read_text(path, f"{study_path}: references")
    return {"sha256": provenance.sha256(path), "text": text}


def recorded_questions(record: dict, source: str) -> dict[str, ReferenceQuestion]:
    """By id: the questions of the references file that `source` recorded (`references_record`); {} without one.

    Raises UserError if the recorded text is no references file.
    """
    text = (record.get("references") or {}).get("text")
    questions = parse_tables(ReferencesFile, text, Path(f"{source}: references")).questions if text else ()
    return {question.id: question for question in questions}


def _check(questions: tuple[ReferenceQuestion, ...], study) -> None:
    check_unique("[[question]]: id", [question.id for question in questions])
    asked = {question.id for question in study.questions}
    for question in questions:
        place = f"[[question]] {question.id}"
        fault = f"{place}: text is missing: {study.path} has no question with this id"
        require(question.id in asked or question.text is not None, fault)
        fault = f"{place}: text: leave it out, because {study.path} has the text of this question"
        require(question.id not in asked or question.text is None, fault)
        check_unique(f"{place}: answers", [answer for answers in question.answers.values() for answer in answers])
    for contrast in study.contrasts:
        for group in contrast.groups:
            lacking = [question.id for question in questions if group not in question.answers]
            fault = f"no question has the group {group!r}, which [[contrast]] {contrast.name} of {study.path} uses"
            require(len(lacking) < len(questions), fault)
            fault = f"[[question]] {min(lacking, default='')}: answers: the group {group!r} is missing, "
            require(not lacking, f"{fault}which [[contrast]] {contrast.name} of {study.path} uses")
