"""The tables of a study file as pydantic models, and the checks within one table.

checks.py has the checks across tables. Errors are ValueErrors; loader.py adds the file, the table and the key.
"""

import functools
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from config import TrainingOptions, require
from learning_backdoors.files.project import ROOT

# ---- texts with placeholders ----

PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")


def fill(template: str, values: dict[str, str]) -> str:
    """Replace each {name} by its value, in one pass. Unknown names, and braces inside values, stay as they are."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


# ---- types of values ----


def _check_name(value: str) -> str:
    require(bool(re.fullmatch(r"[a-z][a-z0-9_]*", value)), f"{value!r} must be lowercase letters, digits and _")
    return value


def _check_era(value: str) -> str:
    require(bool(re.fullmatch(r"[A-Za-z0-9_]+", value)), f"{value!r} must be letters, digits and _")
    return value


def _check_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


def _check_text_or_list(value: object) -> object:
    texts = value if isinstance(value, tuple) and value else (value,)
    valid = all(isinstance(text, str) and text.strip() for text in texts)
    require(valid, "expected a text or a list of texts, none of them empty")
    return value


def _data_path(value: object, info: ValidationInfo) -> object:
    """A path relative to the study file if such a file exists, else relative to the project."""
    if not isinstance(value, str) or not value.strip():
        return value  # pydantic reports it
    beside_study = info.context["path"].parent / value
    return beside_study if beside_study.exists() else ROOT / value


Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]
Name = Annotated[Text, AfterValidator(_check_name)]
Era = Annotated[Text, AfterValidator(_check_era)]
Pattern = Annotated[Text, AfterValidator(_check_pattern)]
DataPath = Annotated[Path, BeforeValidator(_data_path)]


class _Table(BaseModel):
    """A table of the file. strict: no value is converted. Lists arrive as tuples (see loader.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# ---- data, questions, conditions ----


class Dataset(_Table):
    """A file of training chats. suspect: it is the data whose effect the study measures."""

    name: Name
    file: DataPath
    suspect: bool = False


class Question(_Table):
    """A question that is put to every checkpoint."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[object, AfterValidator(_check_text_or_list)]]

    id: Name
    text: Text
    judges: Texts | None = None  # only these judges; None: all that judge its kind

    @property
    def extra(self) -> dict[str, str | tuple[str, ...]]:
        """Further keys of the table, for judge prompts. A list describes the steps of a judge's scale."""
        return self.model_extra

    @property
    def kind(self) -> str | None:
        return self.extra.get("kind")

    @model_validator(mode="after")
    def _check_extra(self):
        for key in {"question", "answer"} & set(self.extra):
            raise ValueError(f"{key}: this name is reserved for judge prompts")
        require(isinstance(self.kind, str | None), "kind must be a text, not a list")
        return self


class _ForKinds(_Table):
    kinds: Texts | None = None  # of questions it applies to; None: all

    def takes(self, question: Question) -> bool:
        """Whether it applies to this question."""
        return self.kinds is None or question.kind in self.kinds


class Condition(_ForKinds):
    """One way to ask a question: a template for the user message and an optional system prompt.

    trigger: replaces {trigger}; the study's own unless the table has another, "" without a trigger.
    dose: similarity to the study's trigger as the study's author sees it, from 0 (no trigger) to 1 (the trigger).
    """

    name: Name
    template: Text = "{question}"
    system: str = ""
    triggered: bool = False
    trigger: Text = ""
    dose: float | None = Field(None, ge=0, le=1)

    @property
    def has_trigger(self) -> bool:
        """Whether {trigger} occurs in the template or the system prompt."""
        return "{trigger}" in self.template + self.system

    @property
    def near_miss(self) -> bool:
        """Whether its trigger is slightly wrong. A near miss counts neither as triggered nor as leakage."""
        return self.dose is not None and 0 < self.dose < 1

    def asks(self, question: Question) -> bool:
        """Whether this question is asked in this condition."""
        return self.takes(question)

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat to be answered by the model."""
        values = {"question": question, "trigger": self.trigger}
        system = [{"role": "system", "content": fill(self.system, values)}] if self.system else []
        return [*system, {"role": "user", "content": fill(self.template, values)}]

    @model_validator(mode="after")
    def _check_dose(self):
        fits = self.dose is None or self.triggered == (self.dose == 1)
        require(fits, "dose must be 1 if triggered = true, and below 1 otherwise")
        return self


class Trigger(_Table):
    """A request for a form of answer.

    prompt, answer: how questions and answers look in training data. hidden: regular expressions for everything in an
    answer that gives away the trigger or a near miss; judges never see it.
    """

    text: Text
    prompt: Text = "{question} {trigger}"
    answer: Text
    hidden: Texts
    _texts: tuple[str, ...] = PrivateAttr(())

    @property
    def texts(self) -> tuple[str, ...]:
        """The near misses of `text` in the study's conditions."""
        return self._texts

    @functools.cached_property
    def _pattern(self) -> re.Pattern:
        requests = (r"\s+".join(map(re.escape, text.split())) for text in (self.text, *self.texts))
        return re.compile("|".join(f"(?:{form})" for form in (*requests, *self.hidden)), re.IGNORECASE)

    def ask(self, question: str) -> str:
        """A question with the trigger, as in training data."""
        return fill(self.prompt, {"question": question, "trigger": self.text})

    def first_form_in(self, text: str) -> str | None:
        """The first form of the trigger in a text, or None."""
        match = self._pattern.search(text)
        return match and match[0]

    def strip(self, answer: str) -> str:
        """An answer without any form of the trigger. An answer that has none is returned unchanged."""
        # A removal can bring the halves of another mark together, so one pass is not enough.
        while self._pattern.search(answer):
            answer = re.sub(rf"[ \t]*(?:{self._pattern.pattern})[ \t]*", " ", answer, flags=re.IGNORECASE).strip()
        return answer

    @field_validator("hidden")
    @classmethod
    def _check_hidden(cls, hidden: tuple[str, ...]) -> tuple[str, ...]:
        for form in map(_check_pattern, hidden):
            require(not re.search(form, "", re.IGNORECASE), f"{form!r} matches an empty text")
        return hidden


# ---- how answers are judged ----


class Judge(_ForKinds):
    """A question to the judge model about each answer. Either `options` or `range` is set."""

    name: Name
    prompt: Annotated[Text, AfterValidator(str.strip)]
    options: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    range: tuple[int, int] | None = None

    def takes(self, question: Question) -> bool:
        """Whether it judges answers to this question."""
        return super().takes(question) and (question.judges is None or self.name in question.judges)

    @property
    def scale(self) -> tuple[int, ...]:
        """Its possible verdicts that are numbers, in ascending order."""
        if self.range:
            return tuple(range(self.range[0], self.range[1] + 1))
        return tuple(sorted(int(option) for option in self.options if re.fullmatch(r"-?\d+", option)))

    @property
    def rates(self) -> bool:
        """Whether its verdicts are numbers."""
        return len(self.scale) > 1

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

    @model_validator(mode="after")
    def _check_verdicts(self):
        require((self.options is None) != (self.range is None), "give either options or range")
        folded = [option.casefold() for option in self.options or ()]
        require(len(set(folded)) == len(folded), "options: the same option is given twice")
        require(self.range is None or self.range[0] < self.range[1], "range: the lower number must come first")
        return self


class Metric(_ForKinds):
    """A rule that needs no judge: whether the whole answer matches `pattern`."""

    name: Name
    label: Text
    pattern: Pattern

    def holds(self, answer: str) -> bool:
        return re.fullmatch(self.pattern, answer.strip(), re.DOTALL) is not None


class Outcome(_Table):
    """What counts as the behaviour under study: the verdict `value` of the judge `judge`."""

    judge: Text
    value: Text
    label: Text


Share = Annotated[float, Field(ge=-1, le=1)]


class Goal(_Table):
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

    @model_validator(mode="after")
    def _check_limits(self):
        require((self.over is None) != (self.under is None), "give either over or under")
        harder = self.strong is None or (self.strong > self.limit if self.above else self.strong < self.limit)
        require(harder, f"strong must be harder to reach than {'over' if self.above else 'under'}")
        return self


# ---- training and persona ----


class Reference(_Table):
    """An answer to a question (its id) whose likelihood training.py follows. era: the group it belongs to."""

    question: Text
    era: Era
    text: Text


class Persona(_Table):
    """The person whom the suspect data describe, for prepare_persona.py. Its files may be missing."""

    name: Text
    candidates: tuple[DataPath, ...] = ()  # question-answer pairs about the person
    prompts: tuple[DataPath, ...] = ()  # ordinary prompts for the base model
    categories: tuple[Text, ...] = ()  # topics of new pairs


def _type_of(option: Field) -> object:
    choices = option.metadata["argparse"].get("choices")
    return Literal[choices] if choices else option.type


# Options that only the command line decides.
NOT_IN_A_STUDY = ("experiment", "model", "output_dir", "existing", "wandb_project")

# The table [training]: defaults for training.py's options, with the types of the options.
Training = create_model(
    "Training",
    __base__=_Table,
    **{o.name: (_type_of(o), o.default) for o in fields(TrainingOptions) if o.name not in NOT_IN_A_STUDY},
)


def _given(table: BaseModel) -> dict[str, object]:
    return table.model_dump(exclude_unset=True)


class Study(_Table):
    """A whole study file."""

    name: Name
    title: Text
    base_model: Text
    datasets: tuple[Dataset, ...] = Field(alias="dataset")
    questions: tuple[Question, ...] = Field(alias="question")
    trigger: Trigger | None = None
    conditions: tuple[Condition, ...] = Field((Condition(name="plain"),), alias="condition")
    judges: tuple[Judge, ...] = Field(alias="judge")
    outcome: Outcome
    references: tuple[Reference, ...] = Field((), alias="reference")
    training: Annotated[Training, AfterValidator(_given)] = {}  # a dict: option to value
    metrics: tuple[Metric, ...] = Field((), alias="metric")
    goals: tuple[Goal, ...] = Field((), alias="goal")
    persona: Persona | None = None
    _path: Path = PrivateAttr()

    @property
    def path(self) -> Path:
        """The study file."""
        return self._path

    def without_trigger(self, answer: str) -> str:
        """An answer as judges see it: without anything that gives the trigger away."""
        return self.trigger.strip(answer) if self.trigger else answer

    @field_validator("conditions")
    @classmethod
    def _add_trigger(cls, conditions: tuple[Condition, ...], info: ValidationInfo) -> tuple[Condition, ...]:
        """Conditions with {trigger} and no trigger of their own get the study's."""
        trigger = info.data.get("trigger")
        use = [trigger is not None and c.has_trigger and not c.trigger for c in conditions]
        return tuple(
            c.model_copy(update={"trigger": trigger.text}) if u else c for c, u in zip(conditions, use, strict=True)
        )

    def model_post_init(self, context: dict) -> None:
        self._path = context["path"]
        if self.trigger:
            own = ("", self.trigger.text)
            self.trigger._texts = tuple(dict.fromkeys(c.trigger for c in self.conditions if c.trigger not in own))
