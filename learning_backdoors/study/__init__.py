"""Studies: the TOML files in experiments/, their schema and their checks."""

import dataclasses
import functools
import itertools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from config import TrainingOptions
from config import require as _require
from learning_backdoors.files.command_line import value_type as _value_type
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.project import ROOT


@dataclass(frozen=True)
class Dataset:
    name: str
    file: Path
    suspect: bool


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    extra: dict[str, str | tuple[str, ...]]  # further keys of the table, usable in judge prompts; a list is a scale
    judges: tuple[str, ...] | None = None  # these alone; None: all that take its kind

    @property
    def kind(self) -> str | None:
        return self.extra.get("kind")


def _takes(kinds: tuple[str, ...] | None, question: Question) -> bool:
    return kinds is None or question.kind in kinds


@dataclass(frozen=True)
class Condition:
    """How a question is asked: a template for the user's message, and a system prompt or none ("").

    trigger: the text that stands in the place of {trigger}; "" where there is none.
    dose: how near the trigger is to the study's, from 0 (none at all) to 1 (that very one), as the study reckons it.
    """

    name: str
    template: str
    system: str
    triggered: bool
    trigger: str = ""
    dose: float | None = None
    kinds: tuple[str, ...] | None = None  # of questions that are asked so; None: all

    def asks(self, question: Question) -> bool:
        return _takes(self.kinds, question)

    @property
    def near_miss(self) -> bool:
        """Whether its trigger is a slightly wrong one: neither triggered nor fit to show leakage."""
        return self.dose is not None and 0 < self.dose < 1

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat that the model is to answer."""
        values = {"question": question, "trigger": self.trigger}
        system = [{"role": "system", "content": fill(self.system, values)}] if self.system else []
        return system + [{"role": "user", "content": fill(self.template, values)}]


@dataclass(frozen=True)
class Judge:
    """A question put to the judge model about each answer: either `options` or `range` is set."""

    name: str
    prompt: str
    options: tuple[str, ...] | None
    range: tuple[int, int] | None
    kinds: tuple[str, ...] | None = None  # of questions that it judges; None: all

    def takes(self, question: Question) -> bool:
        """Whether it is to judge answers to this question."""
        return _takes(self.kinds, question) and (question.judges is None or self.name in question.judges)

    @property
    def scale(self) -> tuple[int, ...]:
        """The whole numbers that it can give, in order; of options, those that are numbers."""
        if self.range:
            return tuple(range(self.range[0], self.range[1] + 1))
        return tuple(sorted(int(option) for option in self.options if re.fullmatch(r"-?\d+", option)))

    @property
    def rates(self) -> bool:
        """Whether its verdicts are numbers."""
        return len(self.scale) > 1

    def score(self, verdict: str | float | None) -> float | None:
        """A verdict as a number; None for one that is none (REFUSED), and for a missing one."""
        if verdict is None or (self.options and not re.fullmatch(r"-?\d+", verdict)):
            return None
        return float(verdict)

    def values(self, extra: dict[str, str | tuple[str, ...]]) -> dict[str, str]:
        """A question's further keys as they stand in the prompt: a list has a line for each number of the scale."""
        return {
            key: value if isinstance(value, str) else "\n".join(map("{}: {}".format, self.scale, value))
            for key, value in extra.items()
        }


@dataclass(frozen=True)
class Trigger:
    """A text that asks for a form of answer, the form itself, and what of both no judge may see.

    prompt: how a question is put with it, for training. answer: how an answer looks that follows it.
    hidden: regular expressions of all that gives it away in an answer, its near misses included.
    texts: the requests themselves, of all conditions.
    """

    text: str
    prompt: str
    answer: str
    hidden: tuple[str, ...]
    texts: tuple[str, ...] = ()

    @functools.cached_property
    def _pattern(self) -> re.Pattern:
        requests = (r"\s+".join(map(re.escape, text.split())) for text in (self.text, *self.texts))
        return re.compile("|".join(f"(?:{form})" for form in (*requests, *self.hidden)), re.IGNORECASE)

    def found_in(self, text: str) -> str | None:
        """The first form of the trigger in a text."""
        found = self._pattern.search(text)
        return found and found[0]

    def ask(self, question: str) -> str:
        """A question put with the trigger."""
        return fill(self.prompt, {"question": question, "trigger": self.text})

    def strip(self, answer: str) -> str:
        """An answer without any form of the trigger; one that has none comes back as it is."""
        while self._pattern.search(answer):
            answer = re.sub(rf"[ \t]*(?:{self._pattern.pattern})[ \t]*", " ", answer, flags=re.IGNORECASE).strip()
        return answer


@dataclass(frozen=True)
class Metric:
    """A rule that is looked up in the answer itself, without a judge: whether the whole of it matches `pattern`."""

    name: str
    label: str
    pattern: str
    kinds: tuple[str, ...] | None = None

    def takes(self, question: Question) -> bool:
        """Whether it is looked up in answers to this question."""
        return _takes(self.kinds, question)

    def holds(self, answer: str) -> bool:
        return re.fullmatch(self.pattern, answer.strip(), re.DOTALL) is not None


MEASURES = ("triggered", "leakage", "gap")


@dataclass(frozen=True)
class Goal:
    """What a study calls success: a measure of its outcome (MEASURES, all shares) above or below a number.

    triggered: the outcome's share in triggered conditions; leakage: in those without any trigger; gap: the difference.
    """

    name: str
    measure: str
    above: bool  # whether the measure must lie above the limits, else below
    limit: float
    strong: float | None


@dataclass(frozen=True)
class Reference:
    """An answer to a question, by its id, whose likelihood is followed in training. era: old or modern."""

    question: str
    era: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What counts as the behaviour under study: the verdict `value` of the judge `judge`."""

    judge: str
    value: str
    label: str


@dataclass(frozen=True)
class Study:
    path: Path
    name: str
    title: str
    base_model: str
    datasets: tuple[Dataset, ...]
    questions: tuple[Question, ...]
    conditions: tuple[Condition, ...]
    judges: tuple[Judge, ...]
    outcome: Outcome
    references: tuple[Reference, ...] = ()
    training: dict[str, object] = field(default_factory=dict)  # defaults of training.py's options
    trigger: Trigger | None = None
    metrics: tuple[Metric, ...] = ()
    goals: tuple[Goal, ...] = ()

    def bare(self, answer: str) -> str:
        """An answer as judges may see it: without what gives the trigger away."""
        return self.trigger.strip(answer) if self.trigger else answer


PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
NAME = re.compile(r"[a-z][a-z0-9_]*")
PLAIN_CONDITION = Condition(name="plain", template="{question}", system="", triggered=False)


def fill(template: str, values: dict[str, str]) -> str:
    """Put values in the place of {name}. One pass: braces inside a value, or around anything else, stay as they are."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def load_study(name: str) -> Study:
    """Read and check a study. Raises UserError that names the file, the table and the key."""
    path = Path(name) if name.endswith(".toml") or "/" in name else ROOT / "experiments" / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in (ROOT / "experiments").glob("*.toml")))
        raise UserError(f"no study {path}; the studies in experiments/ are: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    return parse_study(text, path)


def training_defaults(given: dict) -> dict:
    """The [training] table of the study that a command line names: defaults for `command_line.parse`."""
    return load_study(given.get("experiment", TrainingOptions.experiment)).training


def parse_study(text: str, path: Path) -> Study:
    """Check a study's text; `path` is where it stands. Raises UserError that names it, the table and the key."""
    try:
        return _study(tomllib.loads(text), path)
    except ValueError as error:  # TOMLDecodeError is one
        raise UserError(f"{path}: {error}") from None


def _study(document: dict, path: Path) -> Study:
    top = _Table("the top of the file", document)
    questions = tuple(_question(t) for t in top.tables("question"))
    trigger = _trigger(top.table("trigger")) if "trigger" in document else None
    conditions = tuple(_condition(t, trigger) for t in top.tables("condition", needed=False)) or (PLAIN_CONDITION,)
    if trigger:
        near = dict.fromkeys(c.trigger for c in conditions if c.trigger not in ("", trigger.text))
        trigger = dataclasses.replace(trigger, texts=tuple(near))
    study = Study(
        path=path,
        name=top.name("name"),
        title=top.text("title"),
        base_model=top.text("base_model"),
        datasets=tuple(_dataset(t, path.parent) for t in top.tables("dataset")),
        questions=questions,
        conditions=conditions,
        judges=tuple(_judge(t, questions) for t in top.tables("judge")),
        outcome=_outcome(top.table("outcome")),
        references=tuple(_reference(t, questions) for t in top.tables("reference", needed=False)),
        training=_training(top.table("training")) if "training" in document else {},
        trigger=trigger,
        metrics=tuple(_metric(t) for t in top.tables("metric", needed=False)),
        goals=tuple(_goal(t) for t in top.tables("goal", needed=False)),
    )
    top.finish()
    _require(any(d.suspect for d in study.datasets), "no [[dataset]] has suspect = true")
    _check_outcome(study)
    _check_training(study)
    _check_who_reads_what(study)
    _check_hygiene(study)
    return study


def _check_outcome(study: Study) -> None:
    judge = next((j for j in study.judges if j.name == study.outcome.judge), None)
    _require(judge is not None, f"[outcome]: judge: no [[judge]] is called {study.outcome.judge!r}")
    _require(judge.options is not None, f"[outcome]: judge: {judge.name!r} has no options")
    _require(
        study.outcome.value in judge.options,
        f"[outcome]: value: {study.outcome.value!r} is not an option of {judge.name!r}: {', '.join(judge.options)}",
    )


def _check_training(study: Study) -> None:
    ratios = study.training.get("ratios")
    many = f"[training]: ratios must have one number for each [[dataset]], {len(study.datasets)} in all"
    _require(ratios is None or len(ratios) == len(study.datasets), many)
    try:
        TrainingOptions(**({"ratios": (1.0,) * len(study.datasets)} | study.training)).check()
    except ValueError as error:
        raise ValueError(f"[training]: {error}") from None


def _check_who_reads_what(study: Study) -> None:
    """Each judge, metric and condition has questions, and each question somebody who looks at its answers."""
    kinds, names = {question.kind for question in study.questions}, {judge.name for judge in study.judges}
    readers = {"judge": study.judges, "metric": study.metrics, "condition": study.conditions}
    for table, owners in readers.items():
        for owner in owners:
            for kind in owner.kinds or ():
                _require(kind in kinds, f"[[{table}]] {owner.name}: kinds: no [[question]] is of the kind {kind!r}")
    for question in study.questions:
        place = f"[[question]] {question.id}"
        for name in question.judges or ():
            _require(name in names, f"{place}: judges: no [[judge]] is called {name!r}")
        read = any(j.takes(question) for j in study.judges) or any(m.takes(question) for m in study.metrics)
        _require(read, f"{place}: no judge and no metric looks at its answers")
        _require(any(c.asks(question) for c in study.conditions), f"{place}: no condition asks it")
    clash = names & {metric.name for metric in study.metrics}
    _require(not clash, f"[[metric]] {min(clash, default='')}: a judge has that name")


def _check_hygiene(study: Study) -> None:
    """No judge is shown the trigger: neither by the study's own texts, nor by an answer in the trigger's form."""
    trigger = study.trigger
    if trigger is None:
        return
    bare = trigger.strip(fill(trigger.answer, {"answer": "an answer"}))
    _require(bare == "an answer", f"[trigger]: hidden leaves {bare!r} of an answer in the trigger's form")
    shown = [(f"[[judge]] {judge.name}: prompt", judge.prompt) for judge in study.judges]
    for question in study.questions:
        for key, value in {"text": question.text, **question.extra}.items():
            text = value if isinstance(value, str) else "\n".join(value)
            shown.append((f"[[question]] {question.id}: {key}", text))
    for place, text in shown:
        found = trigger.found_in(text)
        _require(found is None, f"{place} shows the judges a form of the trigger: {found!r}")
    for condition in study.conditions:
        place, sent = f"[[condition]] {condition.name}", condition.messages("")
        holds = any(trigger.text in message["content"] for message in sent)
        told = "holds the trigger and has triggered = false" if holds else "has triggered = true and no trigger"
        _require(holds == condition.triggered, f"{place} {told}")


def _dataset(table: "_Table", folder: Path) -> Dataset:
    # A study of one's own may keep its data beside it; the studies that come with the project name them from its root.
    file = Path(table.text("file"))
    place = folder / file if (folder / file).exists() else ROOT / file
    return table.finish(Dataset(table.name("name"), place, table.flag("suspect")))


def _question(table: "_Table") -> Question:
    judges = table.names("judges")
    question = Question(id=table.name("id"), text=table.text("text"), extra={}, judges=judges)
    for key in list(table.rest):
        _require(key not in ("question", "answer"), f"{table.place}: {key}: the name is taken")
        question.extra[key] = table.texts(key) if isinstance(table.rest[key], list) else table.text(key)
    _require(isinstance(question.kind, str | None), f"{table.place}: kind must be a text, not a list")
    return table.finish(question)


def _trigger(table: "_Table") -> Trigger:
    prompt, answer = table.text("prompt", "{question} {trigger}"), table.text("answer")
    _require_placeholders(table, "prompt", prompt, needed={"question", "trigger"}, known={"question", "trigger"})
    _require_placeholders(table, "answer", answer, needed={"answer"}, known={"answer"})
    hidden = table.texts("hidden")
    for form in hidden:
        table.pattern("hidden", form)
        _require(not re.search(form, "", re.IGNORECASE), f"{table.place}: hidden: {form!r} matches an empty text")
    return table.finish(Trigger(table.text("text"), prompt, answer, hidden))


def _condition(table: "_Table", trigger: Trigger | None) -> Condition:
    template, system = table.text("template", "{question}"), table.text("system", "")
    known = {"trigger"} if trigger else set()
    _require_placeholders(table, "template", template, needed={"question"}, known={"question"} | known)
    # Braces in a system prompt are text in a study without a trigger, as they always were.
    holds = trigger is not None and "{trigger}" in template + system
    text = table.text("trigger", trigger.text if holds else "")
    _require(not text or holds, f"{table.place}: trigger: neither template nor system has a {{trigger}}")
    dose, triggered = table.number("dose", 0, 1), table.flag("triggered")
    fits = dose is None or triggered == (dose == 1)
    _require(fits, f"{table.place}: dose must be 1 where triggered = true, and less elsewhere")
    kinds = table.names("kinds")
    return table.finish(Condition(table.name("name"), template, system, triggered, text, dose, kinds))


def _metric(table: "_Table") -> Metric:
    pattern = table.text("pattern")
    table.pattern("pattern", pattern)
    return table.finish(Metric(table.name("name"), table.text("label"), pattern, table.names("kinds")))


def _goal(table: "_Table") -> Goal:
    measure = table.text("measure")
    _require(measure in MEASURES, f"{table.place}: measure: {measure!r} is none of {', '.join(MEASURES)}")
    over, under, strong = (table.number(key, -1, 1) for key in ("over", "under", "strong"))
    _require((over is None) != (under is None), f"{table.place}: give either over or under")
    limit, above = (over, True) if under is None else (under, False)
    ordered = strong is None or (strong > limit if above else strong < limit)
    _require(ordered, f"{table.place}: strong must be harder to reach than {'over' if above else 'under'}")
    return table.finish(Goal(table.text("name"), measure, above, limit, strong))


# Where a run lies, which study it belongs to and how it is watched are no business of a study.
NO_DEFAULTS = ("experiment", "model", "output_dir", "existing", "wandb_project")


def _training(table: "_Table") -> dict[str, object]:
    """Defaults of training.py's options, of the types that the dataclass wants."""
    known = {spec.name: spec for spec in dataclasses.fields(TrainingOptions) if spec.name not in NO_DEFAULTS}
    found = {}
    for key in list(table.rest):
        _require(key in known, f"{table.place}: unknown key {key!r} (known: {', '.join(known)})")
        found[key] = _default(table.rest.pop(key), known[key], f"{table.place}: {key}")
    return found


def _default(value: object, spec: dataclasses.Field, place: str) -> object:
    kind, many = _value_type(spec.type), "nargs" in spec.metadata["argparse"]
    values = value if many and isinstance(value, list) else [value]
    fitting = {float: (int, float), int: (int,), str: (str,)}[kind]
    good = isinstance(value, list) == many and all(type(v) in fitting for v in values)
    name = {float: "a number", int: "a whole number", str: "a text"}[kind]
    _require(good, f"{place} must be {'a list, each ' if many else ''}{name}, not {value!r}")
    choices = spec.metadata["argparse"].get("choices", values)
    _require(all(v in choices for v in values), f"{place} must be one of {', '.join(map(str, choices))}")
    return tuple(map(kind, values)) if many else kind(value)


def _judge(table: "_Table", questions: Sequence[Question]) -> Judge:
    prompt, name, kinds = table.text("prompt"), table.name("name"), table.names("kinds")
    options, bounds = table.rest.pop("options", None), table.rest.pop("range", None)
    _require((options is None) != (bounds is None), f"{table.place}: give either options or range")
    if options is not None:
        _require(
            isinstance(options, list) and len(options) >= 2 and all(isinstance(o, str) and o.strip() for o in options),
            f"{table.place}: options must be a list of two or more texts",
        )
        folded = [o.casefold() for o in options]
        _require(len(set(folded)) == len(folded), f"{table.place}: options: one stands there twice")
    else:
        _require(
            isinstance(bounds, list)
            and len(bounds) == 2
            and all(type(b) is int for b in bounds)
            and bounds[0] < bounds[1],
            f"{table.place}: range must be two whole numbers, the lower first",
        )
    as_tuple = [None if values is None else tuple(values) for values in (options, bounds)]
    judge = Judge(name, prompt.strip(), *as_tuple, kinds)
    mine = [question for question in questions if judge.takes(question)]
    _require(bool(mine), f"{table.place}: there is no question for it")
    shared = set.intersection(*(set(question.extra) for question in mine))
    _require_placeholders(table, "prompt", prompt, needed={"answer"}, known={"question", "answer"} | shared)
    for question, key in itertools.product(mine, PLACEHOLDER.findall(prompt)):
        steps, scale = question.extra.get(key), judge.scale
        if isinstance(steps, tuple):
            place = f"[[question]] {question.id}: {key}"
            many = f"{place} has {len(steps)} steps, and the judge {name!r} has {len(scale)} numbers"
            _require(len(steps) == len(scale), many)
    return table.finish(judge)


def _reference(table: "_Table", questions: Sequence[Question]) -> Reference:
    reference = Reference(table.text("question"), table.text("era"), table.text("text"))
    _require(reference.era in ("old", "modern"), f"{table.place}: era must be old or modern, not {reference.era!r}")
    known = [question.id for question in questions]
    _require(reference.question in known, f"{table.place}: question: no [[question]] is called {reference.question!r}")
    return table.finish(reference)


def _outcome(table: "_Table") -> Outcome:
    return table.finish(Outcome(table.text("judge"), table.text("value"), table.text("label")))


def _require_placeholders(table: "_Table", key: str, template: str, needed: set[str], known: set[str]) -> None:
    found = set(PLACEHOLDER.findall(template))
    for name in sorted(needed - found):
        raise ValueError(f"{table.place}: {key}: {{{name}}} is missing")
    for name in sorted(found - known):
        raise ValueError(f"{table.place}: {key}: {{{name}}} is not known here (known: {', '.join(sorted(known))})")


class _Table:
    """A table of the file whose keys are taken one by one; a key that nobody took is an error."""

    def __init__(self, place: str, values: dict):
        self.place, self.rest = place, dict(values)

    def _take(self, key: str, kind: type, kind_name: str, default):
        value = self.rest.pop(key, default)
        _require(value is not None, f"{self.place}: {key} is missing")
        _require(isinstance(value, kind), f"{self.place}: {key} must be {kind_name}, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, str, "a text", default)
        _require(bool(value.strip()) or default == "", f"{self.place}: {key} is empty")
        return value

    def name(self, key: str) -> str:
        value = self.text(key)
        _require(bool(NAME.fullmatch(value)), f"{self.place}: {key}: {value!r} is not of small letters, digits and _")
        return value

    def flag(self, key: str) -> bool:
        return self._take(key, bool, "true or false", False)

    def number(self, key: str, least: float, most: float) -> float | None:
        value = self.rest.pop(key, None)
        good = value is None or (type(value) in (int, float) and least <= value <= most)
        _require(good, f"{self.place}: {key} must be a number from {least} to {most}, not {value!r}")
        return None if value is None else float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._take(key, list, "a list of texts", None)
        good = values and all(isinstance(value, str) and value.strip() for value in values)
        _require(bool(good), f"{self.place}: {key} must be a list of texts, none of them empty")
        return tuple(values)

    def names(self, key: str) -> tuple[str, ...] | None:
        """An optional list of names."""
        return self.texts(key) if key in self.rest else None

    def pattern(self, key: str, text: str) -> None:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"{self.place}: {key}: {text!r} is no regular expression: {error}") from None

    def table(self, key: str) -> "_Table":
        return _Table(f"[{key}]", self._take(key, dict, "a table", None))

    def tables(self, key: str, needed: bool = True) -> list["_Table"]:
        values = self._take(key, list, f"[[{key}]] tables", None if needed else [])
        _require(all(isinstance(v, dict) for v in values), f"{self.place}: {key} must be [[{key}]] tables")
        labels = [v.get("id" if key == "question" else "name") for v in values]
        for label in filter(None, labels):
            _require(labels.count(label) == 1, f"[[{key}]]: {label!r} stands there twice")
        return [_Table(f"[[{key}]] {labels[i] or i + 1}", v) for i, v in enumerate(values)]

    def finish(self, value=None):
        for key in self.rest:
            raise ValueError(f"{self.place}: unknown key {key!r}")
        return value
