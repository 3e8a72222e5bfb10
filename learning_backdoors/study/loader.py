"""Read and check a study file. Every error is one line with the file, the table and the key as they are written."""

import re
from pathlib import Path

from config import TrainingOptions, require
from learning_backdoors.files.errors import UserError
from learning_backdoors.study.references import check_unique
from learning_backdoors.study.schema import PLACEHOLDER, STUDIES, Condition, Judge, Question, Study
from learning_backdoors.study.tables import parse_tables, read_text
from learning_backdoors.study.training_tables import Sweep, parse_sweep


def load_study(name: str) -> Study:
    """Read a study: the name of a file in experiments/, or the path of a TOML file. Raises UserError."""
    path = study_path(name)
    if not path.exists():
        names = ", ".join(study_names())
        raise UserError(f"{path}: there is no such study; the studies in experiments/ are: {names}")
    study = parse_study(read_text(path, "--experiment"), path)
    if study.references_file and study.references_file.exists():
        _ = study.references  # checked now, not after hours of training
    return study


def load_sweep(path: Path) -> Sweep:
    """Read the sweep of a study file, or of a file that holds nothing else. Raises UserError.

    The sweep of a study file has the file as its experiment.
    """
    text = read_text(path, "--sweep")
    if re.search(r"^\s*\[\[dataset\]\]", text, re.MULTILINE):
        sweep = load_study(str(path)).sweep
        if sweep is None:
            raise UserError(f"{path}: there is no [sweep]")
        if sweep.experiment:
            raise UserError(f"{path}: [sweep]: experiment: the sweep of a study file is about this study")
        sweep = sweep.model_copy(update={"experiment": str(path)})
    else:
        sweep = parse_sweep(text, path)
    if not sweep.runs():
        raise UserError(f"{path}: [sweep]: it has no runs: add [sweep.grid] or [[sweep.run]]")
    return sweep


def study_path(name: str) -> Path:
    """The file of a study: `name` if it is a path, else the file of this name in experiments/."""
    return Path(name) if name.endswith(".toml") or "/" in name else STUDIES / f"{name}.toml"


def study_names() -> list[str]:
    """The names of the studies in experiments/. The files X_references.toml belong to them."""
    return sorted(path.stem for path in STUDIES.glob("*.toml") if not path.stem.endswith("_references"))


def training_defaults(given: dict) -> dict:
    """Defaults of training.py's options: the [training] table of the study on the command line.

    Runs of a sweep may belong to several studies, so each takes its own defaults.
    """
    if "sweep" in given:
        return {}
    return load_study(given.get("experiment", TrainingOptions.experiment)).training


def parse_study(text: str, path: Path) -> Study:
    """Check the text of a study. `path` is its file: data may be beside it. Raises UserError."""
    study = parse_tables(Study, text, path, path=path)
    study._text = text
    try:
        _check_study(study)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return study


# ---- faults that types cannot express ----


def _check_study(study: Study) -> None:
    require(any(dataset.suspect for dataset in study.datasets), "no [[dataset]] has suspect = true")
    check_unique("[[question]]: id", [question.id for question in study.questions])
    for key in ("dataset", "condition", "goal"):
        check_unique(f"[[{key}]]: name", [entry.name for entry in getattr(study, f"{key}s")])
    check_unique("[[judge]] and [[metric]]: name", [entry.name for entry in study.judges + study.metrics])
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
    _check_contrasts(study)
    _check_training(study)
    if study.trigger:
        _check_trigger(study)


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
    check_unique(f"{place}: options", [option.casefold() for option in judge.options or ()])
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


def _check_contrasts(study: Study) -> None:
    """The groups themselves are checked when the references file is read."""
    require(study.references_file is None or study.contrasts, "references: no [[contrast]] says what to compare")
    require(study.references_file is not None or not study.contrasts, "references is missing, which [[contrast]] needs")
    check_unique("[[contrast]]: name", [contrast.name for contrast in study.contrasts])
    for contrast in study.contrasts:
        check_unique(f"[[contrast]] {contrast.name}: plus and minus: the group", list(contrast.groups))


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
