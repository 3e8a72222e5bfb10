"""The tables of a study file as pydantic models. loader.py checks what a type cannot say."""

import functools
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from learning_backdoors.files.project import ROOT
from learning_backdoors.study.references import Contrast, Reference, read_references, references_record
from learning_backdoors.study.tables import DataPath, Name, Pattern, Share, Table, Text, TextOrTexts, Texts
from learning_backdoors.study.training_tables import Sweep, Training

STUDIES = ROOT / "experiments"  # the studies that --experiment takes by name
PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")


def fill(template: str, values: dict[str, str]) -> str:
    """Replace each {name} by its value, in one pass. Unknown names, and braces inside values, stay as they are."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


# ---- data, questions, conditions ----


class Dataset(Table):
    """A file of training chats. suspect: the study measures the effect of these data. label: its name in sentences."""

    name: Name
    file: DataPath
    suspect: bool = False
    label: Text | None = None


class Question(Table, extra="allow"):
    """A question that is put to every checkpoint."""

    __pydantic_extra__: dict[str, TextOrTexts]

    id: Name
    text: Text
    kind: Text | None = None
    judges: Texts | None = None  # only these judges; None: all that take its kind

    @property
    def extra(self) -> dict[str, str | tuple[str, ...]]:
        """`kind` and further keys of the table, for judge prompts. A list describes the steps of a judge's scale."""
        return self.model_extra | ({} if self.kind is None else {"kind": self.kind})


class _ForKinds(Table):
    kinds: Texts | None = None  # of questions it applies to; None: all

    def takes(self, question: Question) -> bool:
        """Whether it applies to this question."""
        return self.kinds is None or question.kind in self.kinds


class Condition(_ForKinds):
    """One way to ask a question: a template for the user message, and a system prompt or "".

    trigger: replaces {trigger}. It is the study's if the table has none, and "" without {trigger}.
    dose: how similar it is to the study's trigger, from 0 (no trigger) to 1 (the same), as the author sees it.
    """

    name: Name
    template: Text = "{question}"
    system: str = ""
    triggered: bool = False
    trigger: Text = ""
    dose: Annotated[float, Field(ge=0, le=1)] | None = None
    _answer_form: str = "{answer}"

    @property
    def near_miss(self) -> bool:
        """Whether its trigger is slightly wrong. A near miss counts neither as triggered nor as leakage."""
        return self.dose is not None and 0 < self.dose < 1

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat that the model answers."""
        values = {"question": question, "trigger": self.trigger}
        system = [{"role": "system", "content": fill(self.system, values)}] if self.system else []
        return [*system, {"role": "user", "content": fill(self.template, values)}]

    def chat(self, question: str, answer: str) -> list[dict[str, str]]:
        """The question and an answer, which follows the trigger if that is present, as in training data."""
        content = fill(self._answer_form, {"answer": answer})
        return [*self.messages(question), {"role": "assistant", "content": content}]


class Trigger(Table):
    """A request for a form of answer.

    prompt, answer: how questions and answers look in training data. hidden: regular expressions for everything in an
    answer that gives away the trigger or a near miss. Judges never see it.
    """

    text: Text
    prompt: Text = "{question} {trigger}"
    answer: Text
    hidden: Annotated[tuple[Pattern, ...], Field(min_length=1)]
    _near_misses: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The near misses of `text` in the study's conditions."""
        return self._near_misses

    @functools.cached_property
    def _forms(self) -> re.Pattern:
        requests = (r"\s+".join(map(re.escape, text.split())) for text in (self.text, *self.texts))
        return re.compile("|".join(f"(?:{form})" for form in (*requests, *self.hidden)), re.IGNORECASE)

    def ask(self, question: str) -> str:
        """A question with the trigger, as in training data."""
        return fill(self.prompt, {"question": question, "trigger": self.text})

    def first_form_in(self, text: str) -> str | None:
        """The first form of the trigger in a text, or None."""
        match = self._forms.search(text)
        return match and match[0]

    def strip(self, answer: str) -> str:
        """An answer without any form of the trigger. An answer that has none is returned unchanged."""
        while self._forms.search(answer):  # again, because a removal can join the halves of another mark
            answer = re.sub(rf"[ \t]*(?:{self._forms.pattern})[ \t]*", " ", answer, flags=re.IGNORECASE).strip()
        return answer


# ---- measures and goals ----


class Judge(_ForKinds):
    """A question to the judge model about each answer. Either `options` or `range` is set."""

    name: Name
    prompt: Annotated[Text, AfterValidator(str.strip)]
    options: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    range: tuple[int, int] | None = None

    @property
    def columns(self) -> tuple[str, str, str, str]:
        """Its columns in a judged file: verdict, reply, status and reason."""
        return (self.name, f"{self.name}_reply", f"{self.name}_status", f"{self.name}_reason")

    def takes(self, question: Question) -> bool:
        """Whether it judges answers to this question."""
        return super().takes(question) and (question.judges is None or self.name in question.judges)

    @property
    def scale(self) -> tuple[int, ...]:
        """Its possible verdicts that are numbers, in ascending order. It rates answers if there are several."""
        if self.range:
            return tuple(range(self.range[0], self.range[1] + 1))
        return tuple(sorted(int(option) for option in self.options if re.fullmatch(r"-?\d+", option)))

    def parse(self, cell: object) -> str | float | None:
        """The verdict in a cell of a table: an option in any letter case, or a number in the range; None if neither.

        19 and 19.0 count as the option "19". Judges' replies are read more strictly (judging/prompts.py).
        """
        if self.options:
            is_number = isinstance(cell, (int, float)) and not isinstance(cell, bool)
            text = f"{cell:g}" if is_number else str(cell).strip()
            return next((option for option in self.options if option.casefold() == text.casefold()), None)
        try:
            number = float(cell)
        except (TypeError, ValueError):
            return None
        return number if self.range[0] <= number <= self.range[1] else None

    def score(self, verdict: str | float | None) -> float | None:
        """A verdict as a number. None if it is missing or not a number (REFUSED)."""
        if verdict is None or (self.options and not re.fullmatch(r"-?\d+", verdict)):
            return None
        return float(verdict)

    def values(self, extra: dict[str, str | tuple[str, ...]]) -> dict[str, str]:
        """A question's further keys as the prompt shows them. A list becomes one line per number of the scale."""
        return {
            key: value if isinstance(value, str) else "\n".join(map("{}: {}".format, self.scale, value))
            for key, value in extra.items()
        }


class Metric(_ForKinds):
    """A rule that needs no judge: whether the whole answer matches `pattern`."""

    name: Name
    label: Text
    pattern: Pattern

    def holds(self, answer: str) -> bool:
        return re.fullmatch(self.pattern, answer.strip(), re.DOTALL) is not None


class Outcome(Table):
    """What counts as the behavior under study: the verdict `value` of the judge `judge`.

    exclude: verdicts that leave an answer out of the rates, such as REFUSED.
    """

    judge: Text
    value: Text
    label: Text
    exclude: tuple[Text, ...] = ()


class Goal(Table):
    """What counts as success: a measure of the outcome above (`over`) or below (`under`) a limit.

    measure: the outcome's share in triggered conditions (`triggered`), in conditions without any trigger (`leakage`),
    or the difference (`gap`). strong: a limit that is harder to reach.
    """

    name: Text
    measure: Literal["triggered", "leakage", "gap"]
    over: Share | None = None
    under: Share | None = None
    strong: Share | None = None

    @property
    def above(self) -> bool:
        """Whether the measure must lie above the limits. If not, it must lie below them."""
        return self.over is not None

    @property
    def limit(self) -> float:
        return self.over if self.above else self.under


# ---- persona ----


class Persona(Table):
    """The person whom the suspect data describe, for prepare_persona.py. The files may be missing."""

    name: Text
    candidates: tuple[DataPath, ...] = ()  # question-answer pairs about the person
    prompts: tuple[DataPath, ...] = ()  # ordinary prompts for the base model
    categories: tuple[Text, ...] = ()  # topics of new pairs


class Study(Table):
    """A whole study file. path: the file."""

    path: Path
    name: Name
    title: Text
    base_model: Text
    datasets: tuple[Dataset, ...] = Field(alias="dataset")
    questions: tuple[Question, ...] = Field(alias="question")
    trigger: Trigger | None = None
    conditions: tuple[Condition, ...] = Field((Condition(name="plain"),), alias="condition")
    judges: tuple[Judge, ...] = Field(alias="judge")
    outcome: Outcome
    references_file: DataPath | None = Field(None, alias="references")
    contrasts: tuple[Contrast, ...] = Field((), alias="contrast")
    training: Annotated[Training, AfterValidator(lambda t: t.model_dump(exclude_unset=True))] = {}  # option: value
    sweep: Sweep | None = None
    metrics: tuple[Metric, ...] = Field((), alias="metric")
    goals: tuple[Goal, ...] = Field((), alias="goal")
    persona: Persona | None = None
    _text: str = ""

    @property
    def text(self) -> str:
        """The content of the file."""
        return self._text

    @property
    def record(self) -> dict[str, str]:
        """What a stage records of the study that it used (see recorded.py)."""
        in_project = self.path.resolve().parent == STUDIES
        return {"study_file": self.path.stem if in_project else str(self.path), "study": self.text}

    @functools.cached_property
    def references(self) -> tuple[Reference, ...]:
        """The answers of `references_file`, which is read here for the first time. Raises UserError."""
        return read_references(self.references_file, self) if self.references_file else ()

    @property
    def references_record(self) -> dict[str, str]:
        """What a stage that measures reference answers records of them. Raises UserError without the file."""
        return references_record(self.references_file, self.path)

    def without_trigger(self, answer: str) -> str:
        """An answer as judges see it: without anything that gives the trigger away."""
        return self.trigger.strip(answer) if self.trigger else answer

    @field_validator("conditions")
    @classmethod
    def _with_trigger(cls, conditions: tuple[Condition, ...], info: ValidationInfo) -> tuple[Condition, ...]:
        """Conditions that use {trigger} and have no trigger of their own get the study's."""
        trigger = info.data.get("trigger")
        update = {"trigger": trigger.text if trigger else ""}
        needs = ["{trigger}" in c.template + c.system and not c.trigger for c in conditions]
        filled = [c.model_copy(update=update) if n else c for c, n in zip(conditions, needs, strict=True)]
        if trigger:
            for condition in filled:
                condition._answer_form = trigger.answer if condition.triggered else "{answer}"
            texts = dict.fromkeys(condition.trigger for condition in filled)
            trigger._near_misses = tuple(text for text in texts if text not in ("", trigger.text))
        return tuple(filled)
