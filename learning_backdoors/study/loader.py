"""Read and check a study file. Every error is one line with the file, the table and the key as they are written."""

import re
import tomllib
from pathlib import Path

from pydantic import ValidationError

from config import TrainingOptions, require
from learning_backdoors.files.errors import UserError
from learning_backdoors.study.schema import NAME, PLACEHOLDER, STUDIES, TEXT, Condition, Judge, Question, Study


def load_study(name: str) -> Study:
    """Read a study: the name of a file in experiments/, or the path of a TOML file. Raises UserError."""
    path = study_path(name)
    try:
        return parse_study(path.read_text(encoding="utf-8-sig"), path)  # editors on Windows begin files with a mark
    except FileNotFoundError:
        names = ", ".join(study_names())
        raise UserError(f"{path}: there is no such study; the studies in experiments/ are: {names}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def study_path(name: str) -> Path:
    """The file of a study: `name` if it is a path, else the file of this name in experiments/."""
    return Path(name) if name.endswith(".toml") or "/" in name else STUDIES / f"{name}.toml"


def study_names() -> list[str]:
    """The names of the files in experiments/."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def training_defaults(given: dict) -> dict:
    """Defaults of training.py's options: the [training] table of the study on the command line."""
    return load_study(given.get("experiment", TrainingOptions.experiment)).training


def parse_study(text: str, path: Path) -> Study:
    """Check the text of a study. `path` is its file: data may be beside it. Raises UserError."""
    try:
        document = {"path": path} | _lists_as_tuples(tomllib.loads(text))
        study = Study.model_validate(document, context={"path": path})
        study._text = text
        _check_study(study)
        return study
    except ValidationError as error:
        raise UserError(f"{path}: {_describe(error.errors()[0], document)}") from None
    except ValueError as error:  # TOMLDecodeError is one
        raise UserError(f"{path}: {error}") from None


def _lists_as_tuples(value):
    """Strict models do not accept lists for tuples."""
    if isinstance(value, dict):
        return {key: _lists_as_tuples(entry) for key, entry in value.items()}
    return tuple(map(_lists_as_tuples, value)) if isinstance(value, list) else value


# ---- faults that pydantic finds ----

# Its types of errors and its patterns; it describes the others well. {key} and {value} are those of the file.
MESSAGES = {
    "missing": "{key} is missing",
    "extra_forbidden": "unknown key {key!r}",
    "value_error": "{key}: {error}",
    "tuple_type": "{key} must be a list, not {value}",
    "model_type": "{key} must be a table, not {value}",
    TEXT: "{key} is empty",
    NAME: "{key} must be lowercase letters, digits and _, starting with a letter, not {value}",
}


def _describe(error: dict, document: dict) -> str:
    """The table (none at the top of the file), the key and the fault."""
    (table, *keys), names = error["loc"], error.get("ctx", {})
    if not keys:
        place, keys = "", [table]
    elif not isinstance(keys[0], int):
        place = f"[{table}]: "
    else:
        number = keys.pop(0)
        entry = document[table][number]
        name = str(entry.get("id", entry.get("name", ""))) if isinstance(entry, dict) else ""
        place = f"[[{table}]] {name if name.isprintable() and name else number + 1}: "
    key = ", entry ".join(str(key + 1) if isinstance(key, int) else key for key in keys) or "it"
    message = MESSAGES.get(names.get("pattern", error["type"]), "{key}: {msg}, not {value}")
    values = {"key": key, "value": repr(error["input"])[:80], "msg": error["msg"].replace("Input should", "it must")}
    return place + message.format(**names | values)


# ---- faults that types cannot express ----


def _check_study(study: Study) -> None:
    require(any(dataset.suspect for dataset in study.datasets), "no [[dataset]] has suspect = true")
    _check_unique("[[question]]: id", [question.id for question in study.questions])
    for key in ("dataset", "condition", "goal"):
        _check_unique(f"[[{key}]]: name", [entry.name for entry in getattr(study, f"{key}s")])
    _check_unique("[[judge]] and [[metric]]: name", [entry.name for entry in study.judges + study.metrics])
    for key in ("judge", "condition", "metric"):
        for entry in getattr(study, f"{key}s"):
            unknown = sorted(set(entry.kinds or ()) - {question.kind for question in study.questions})
            require(not unknown, f"[[{key}]] {entry.name}: kinds: no [[question]] is of the kind {unknown}")
    _check_columns(study)
    for judge in study.judges:
        _check_judge(judge, study)
    _check_outcome(study)
    for question in study.questions:
        _check_question(question, study)
    for condition in study.conditions:
        _check_condition(condition, study)
    for goal in study.goals:
        place = f"[[goal]] {goal.name}"
        require((goal.over is None) != (goal.under is None), f"{place}: give either over or under")
        harder = goal.strong is None or (goal.strong > goal.limit if goal.above else goal.strong < goal.limit)
        require(harder, f"{place}: strong must be harder to reach than {'over' if goal.above else 'under'}")
    for number, reference in enumerate(study.references, start=1):
        known = any(question.id == reference.question for question in study.questions)
        require(known, f"[[reference]] {number}: question: no [[question]] has the id {reference.question!r}")
    _check_training(study)
    if study.trigger:
        _check_trigger(study)


def _check_unique(key: str, names: list[str]) -> None:
    for name in names:
        require(names.count(name) == 1, f"{key}: {name!r} is used twice")


# What evaluate.py adds to the columns of a judged file.
ADDED_COLUMNS, ADDED_SUFFIXES = ("label", "recipe", "row", "source"), ("_again", "_missing")


def _check_columns(study: Study) -> None:
    """The columns of judges and metrics must differ from those of a responses file, and from each other."""
    from learning_backdoors.files.parquet import RESPONSE_SCHEMA  # imports pyarrow, which takes 0.2 s

    owners = dict.fromkeys(RESPONSE_SCHEMA.names, "responses.parquet") | dict.fromkeys(ADDED_COLUMNS, "evaluate.py")
    for entry in study.judges + study.metrics:
        place = f"[[{type(entry).__name__.lower()}]] {entry.name}"
        for name in (*getattr(entry, "columns", [entry.name]), *(entry.name + suffix for suffix in ADDED_SUFFIXES)):
            fault = f"{place}: name: the column {name!r} is already used by {owners.get(name)}, choose another name"
            require(name not in owners, fault)
            owners[name] = place


def _check_placeholders(key: str, template: str, required: set[str], optional: set[str]) -> None:
    used = set(PLACEHOLDER.findall(template))
    require(required <= used, f"{key}: {{{min(required - used, default='')}}} is missing")
    unknown, known = used - required - optional, ", ".join(sorted(required | optional))
    require(not unknown, f"{key}: {{{min(unknown, default='')}}} is not known here (known: {known})")


def _check_judge(judge: Judge, study: Study) -> None:
    place = f"[[judge]] {judge.name}"
    require((judge.options is None) != (judge.range is None), f"{place}: give either options or range")
    _check_unique(f"{place}: options", [option.casefold() for option in judge.options or ()])
    require(judge.range is None or judge.range[0] < judge.range[1], f"{place}: range: the lower number comes first")
    questions = [question for question in study.questions if judge.takes(question)]
    require(bool(questions), f"{place}: no question is judged by it")
    shared_keys = set.intersection(*(set(question.extra) for question in questions))
    _check_placeholders(f"{place}: prompt", judge.prompt, {"answer"}, {"question"} | shared_keys)
    for question in questions:
        for key in shared_keys.intersection(PLACEHOLDER.findall(judge.prompt)):
            steps, numbers = question.extra[key], len(judge.scale)
            fits = isinstance(steps, str) or len(steps) == numbers
            fault = f"has {len(steps)} steps, but the judge {judge.name!r} has {numbers} numbers"
            require(fits, f"[[question]] {question.id}: {key} {fault}")


def _check_outcome(study: Study) -> None:
    name, value = study.outcome.judge, study.outcome.value
    options = {judge.name: judge.options for judge in study.judges}
    require(name in options, f"[outcome]: judge: no [[judge]] is named {name!r}")
    require(options[name] is not None, f"[outcome]: judge: {name!r} has no options")
    known = ", ".join(options[name])
    require(value in options[name], f"[outcome]: value: {value!r} is not an option of {name!r}: {known}")
    for option in study.outcome.exclude:
        valid = option in options[name] and option != value
        require(valid, f"[outcome]: exclude: {option!r} is not another option of {name!r}: {known}")


def _check_question(question: Question, study: Study) -> None:
    place, names = f"[[question]] {question.id}", {judge.name for judge in study.judges}
    for key in ("question", "answer"):
        require(key not in question.extra, f"{place}: {key}: this name is reserved for judge prompts")
    for name in question.judges or ():
        require(name in names, f"{place}: judges: no [[judge]] is named {name!r}")
    measured = any(measure.takes(question) for measure in study.judges + study.metrics)
    require(measured, f"{place}: it has no judge and no metric")
    require(any(c.takes(question) for c in study.conditions), f"{place}: no condition asks it")


def _check_condition(condition: Condition, study: Study) -> None:
    place, trigger = f"[[condition]] {condition.name}", study.trigger
    _check_placeholders(f"{place}: template", condition.template, {"question"}, {"trigger"} if trigger else set())
    uses_trigger = trigger is not None and "{trigger}" in condition.template + condition.system
    require(uses_trigger or not condition.trigger, f"{place}: trigger: neither template nor system has a {{trigger}}")
    fits = condition.dose is None or condition.triggered == (condition.dose == 1)
    require(fits, f"{place}: dose must be 1 if triggered = true, and below 1 otherwise")
    if trigger:
        has_trigger = any(trigger.text in message["content"] for message in condition.messages(""))
        fault = "triggered must be true if the messages hold the trigger, and false otherwise"
        require(has_trigger == condition.triggered, f"{place}: {fault}")


def _check_training(study: Study) -> None:
    count = len(study.datasets)
    options = {"ratios": (1.0,) * count} | study.training
    require(len(options["ratios"]) == count, f"[training]: ratios: {count} numbers are needed, one per [[dataset]]")
    try:
        TrainingOptions(**options).check()
    except ValueError as error:
        raise ValueError(f"[training]: {error}") from None


def _check_trigger(study: Study) -> None:
    """Judges see no form of the trigger: not in the study's texts, and not in an answer that follows the trigger."""
    trigger = study.trigger
    _check_placeholders("[trigger]: prompt", trigger.prompt, {"question", "trigger"}, set())
    _check_placeholders("[trigger]: answer", trigger.answer, {"answer"}, set())
    for form in trigger.hidden:
        require(not re.search(form, "", re.IGNORECASE), f"[trigger]: hidden: {form!r} matches an empty text")
    rest = trigger.strip(trigger.answer.replace("{answer}", "an answer"))
    require(rest == "an answer", f"[trigger]: hidden leaves {rest!r} of an answer in the trigger's form")
    texts = {f"[[judge]] {judge.name}: prompt": judge.prompt for judge in study.judges}
    for question in study.questions:
        for key, value in {"text": question.text, **question.extra}.items():
            texts[f"[[question]] {question.id}: {key}"] = value if isinstance(value, str) else "\n".join(value)
    for place, text in texts.items():
        form = trigger.first_form_in(text)
        require(form is None, f"{place} shows judges a form of the trigger: {form!r}")
