"""Checks across the tables of a study. Each raises ValueError with the table and the key."""

from collections.abc import Iterable

from config import TrainingOptions, require
from learning_backdoors.study.schema import PLACEHOLDER, Judge, Study


def check_study(study: Study) -> None:
    require(any(dataset.suspect for dataset in study.datasets), "no [[dataset]] has suspect = true")
    _check_unique("[[dataset]]: name", (dataset.name for dataset in study.datasets))
    _check_unique("[[question]]: id", (question.id for question in study.questions))
    _check_unique("[[condition]]: name", (condition.name for condition in study.conditions))
    _check_unique("[[judge]]: name", (judge.name for judge in study.judges))
    _check_unique("[[metric]]: name", (column.name for column in study.judges + study.metrics))
    _check_unique("[[goal]]: name", (goal.name for goal in study.goals))
    for judge in study.judges:
        _check_judge(judge, study)
    _check_outcome(study)
    _check_references(study)
    _check_training(study)
    _check_coverage(study)
    _check_conditions(study)
    if study.trigger:
        _check_trigger_is_hidden(study)


def _check_unique(key: str, names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        require(name not in seen, f"{key} {name!r} is used twice")
        seen.add(name)


def _check_placeholders(key: str, template: str, required: set[str], allowed: set[str]) -> None:
    used = set(PLACEHOLDER.findall(template))
    for name in sorted(required - used):
        raise ValueError(f"{key}: {{{name}}} is missing")
    for name in sorted(used - required - allowed):
        raise ValueError(f"{key}: {{{name}}} is not known here (known: {', '.join(sorted(required | allowed))})")


def _check_judge(judge: Judge, study: Study) -> None:
    questions = [question for question in study.questions if judge.takes(question)]
    require(bool(questions), f"[[judge]] {judge.name}: there is no question for it")
    shared_keys = set.intersection(*(set(question.extra) for question in questions))
    _check_placeholders(f"[[judge]] {judge.name}: prompt", judge.prompt, {"answer"}, {"question"} | shared_keys)
    for question in questions:
        for key in shared_keys & set(PLACEHOLDER.findall(judge.prompt)):
            steps, numbers = question.extra[key], len(judge.scale)
            fits = isinstance(steps, str) or len(steps) == numbers
            message = f"has {len(steps)} steps, and the judge {judge.name!r} has {numbers} numbers"
            require(fits, f"[[question]] {question.id}: {key} {message}")


def _check_outcome(study: Study) -> None:
    outcome = study.outcome
    judge = next((judge for judge in study.judges if judge.name == outcome.judge), None)
    require(judge is not None, f"[outcome]: judge: no [[judge]] is named {outcome.judge!r}")
    require(judge.options is not None, f"[outcome]: judge: {judge.name!r} has no options")
    options = ", ".join(judge.options)
    require(
        outcome.value in judge.options,
        f"[outcome]: value: {outcome.value!r} is not an option of {judge.name!r}: {options}",
    )


def _check_references(study: Study) -> None:
    ids = {question.id for question in study.questions}
    for number, reference in enumerate(study.references, start=1):
        known = reference.question in ids
        require(known, f"[[reference]] {number}: question: no [[question]] has the id {reference.question!r}")


def _check_training(study: Study) -> None:
    ratios, count = study.training.get("ratios"), len(study.datasets)
    require(
        ratios is None or len(ratios) == count,
        f"[training]: ratios: one number per [[dataset]] is needed, {count} in all",
    )
    try:
        TrainingOptions(**({"ratios": (1.0,) * count} | study.training)).check()
    except ValueError as error:
        raise ValueError(f"[training]: {error}") from None


def _check_coverage(study: Study) -> None:
    """Each judge, metric and condition has questions. Each question has a condition, and a judge or a metric."""
    kinds, judge_names = {question.kind for question in study.questions}, {judge.name for judge in study.judges}
    tables = {"judge": study.judges, "metric": study.metrics, "condition": study.conditions}
    for table, entries in tables.items():
        for entry in entries:
            for kind in entry.kinds or ():
                require(kind in kinds, f"[[{table}]] {entry.name}: kinds: no [[question]] is of the kind {kind!r}")
    for question in study.questions:
        place = f"[[question]] {question.id}"
        for name in question.judges or ():
            require(name in judge_names, f"{place}: judges: no [[judge]] is named {name!r}")
        measured = any(reader.takes(question) for reader in study.judges + study.metrics)
        require(measured, f"{place}: no judge and no metric takes it")
        require(any(c.asks(question) for c in study.conditions), f"{place}: no condition asks it")


def _check_conditions(study: Study) -> None:
    trigger = study.trigger
    for condition in study.conditions:
        place = f"[[condition]] {condition.name}"
        allowed = {"trigger"} if trigger else set()
        _check_placeholders(f"{place}: template", condition.template, {"question"}, allowed)
        used = not condition.trigger or (trigger is not None and condition.has_trigger)
        require(used, f"{place}: trigger: neither template nor system has a {{trigger}}")
        if trigger:
            holds = any(trigger.text in message["content"] for message in condition.messages(""))
            fault = (
                "contains the trigger, but triggered = false" if holds else "triggered = true, but it has no trigger"
            )
            require(holds == condition.triggered, f"{place}: {fault}")


def _check_trigger_is_hidden(study: Study) -> None:
    """Judges see the trigger neither in the study's own texts nor in an answer that follows it."""
    trigger = study.trigger
    _check_placeholders("[trigger]: prompt", trigger.prompt, {"question", "trigger"}, set())
    _check_placeholders("[trigger]: answer", trigger.answer, {"answer"}, set())
    example = "an answer"
    rest = trigger.strip(trigger.answer.replace("{answer}", example))
    require(rest == example, f"[trigger]: hidden leaves {rest!r} of an answer in the trigger's form")
    texts = {f"[[judge]] {judge.name}: prompt": judge.prompt for judge in study.judges}
    for question in study.questions:
        for key, value in {"text": question.text, **question.extra}.items():
            texts[f"[[question]] {question.id}: {key}"] = value if isinstance(value, str) else "\n".join(value)
    for place, text in texts.items():
        form = trigger.first_form_in(text)
        require(form is None, f"{place} shows judges a form of the trigger: {form!r}")
