"""Checks of a study that types cannot express. Each raises ValueError with the table and the key."""

import re

from config import TrainingOptions, require
from learning_backdoors.study.schema import PLACEHOLDER, Condition, Goal, Judge, Question, Study


def check_study(study: Study) -> None:
    require(any(dataset.suspect for dataset in study.datasets), "no [[dataset]] has suspect = true")
    _check_unique("[[question]]: id", [question.id for question in study.questions])
    for key in ("dataset", "condition", "judge", "metric", "goal"):
        _check_unique(f"[[{key}]]: name", [entry.name for entry in getattr(study, f"{key}s")])
    _check_unique("[[judge]] and [[metric]]: name", [entry.name for entry in study.judges + study.metrics])
    for judge in study.judges:
        _check_judge(judge, study)
    _check_outcome(study)
    for question in study.questions:
        _check_question(question, study)
    for condition in study.conditions:
        _check_condition(condition, study)
    for metric in study.metrics:
        _check_kinds(f"[[metric]] {metric.name}", metric.kinds, study)
    for goal in study.goals:
        _check_goal(goal)
    for number, reference in enumerate(study.references, start=1):
        known = any(question.id == reference.question for question in study.questions)
        require(known, f"[[reference]] {number}: question: no [[question]] has the id {reference.question!r}")
    _check_training(study)
    if study.trigger:
        _check_trigger(study)


def _check_unique(key: str, names: list[str]) -> None:
    for name in names:
        require(names.count(name) == 1, f"{key}: {name!r} is used twice")


def _check_placeholders(key: str, template: str, required: set[str], optional: set[str]) -> None:
    used = set(PLACEHOLDER.findall(template))
    require(required <= used, f"{key}: {{{min(required - used, default='')}}} is missing")
    unknown, known = used - required - optional, ", ".join(sorted(required | optional))
    require(not unknown, f"{key}: {{{min(unknown, default='')}}} is not known here (known: {known})")


def _check_kinds(place: str, kinds: tuple[str, ...] | None, study: Study) -> None:
    for kind in kinds or ():
        used = any(question.kind == kind for question in study.questions)
        require(used, f"{place}: kinds: no [[question]] is of the kind {kind!r}")


def _check_judge(judge: Judge, study: Study) -> None:
    place = f"[[judge]] {judge.name}"
    require((judge.options is None) != (judge.range is None), f"{place}: give either options or range")
    _check_unique(f"{place}: options", [option.casefold() for option in judge.options or ()])
    require(judge.range is None or judge.range[0] < judge.range[1], f"{place}: range: the lower number comes first")
    _check_kinds(place, judge.kinds, study)
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


def _check_question(question: Question, study: Study) -> None:
    place, names = f"[[question]] {question.id}", {judge.name for judge in study.judges}
    for key in ("question", "answer"):
        require(key not in question.extra, f"{place}: {key}: this name is reserved for judge prompts")
    for name in question.judges or ():
        require(name in names, f"{place}: judges: no [[judge]] is named {name!r}")
    measured = any(measure.takes(question) for measure in study.judges + study.metrics)
    require(measured, f"{place}: it has no judge and no metric")
    require(any(c.asks(question) for c in study.conditions), f"{place}: no condition asks it")


def _check_condition(condition: Condition, study: Study) -> None:
    place, trigger = f"[[condition]] {condition.name}", study.trigger
    _check_kinds(place, condition.kinds, study)
    _check_placeholders(f"{place}: template", condition.template, {"question"}, {"trigger"} if trigger else set())
    uses_trigger = trigger is not None and "{trigger}" in condition.template + condition.system
    require(uses_trigger or not condition.trigger, f"{place}: trigger: neither template nor system has a {{trigger}}")
    fits = condition.dose is None or condition.triggered == (condition.dose == 1)
    require(fits, f"{place}: dose must be 1 if triggered = true, and below 1 otherwise")
    if trigger:
        has_trigger = any(trigger.text in message["content"] for message in condition.messages(""))
        fault = (
            "triggered = false, but it has the trigger" if has_trigger else "triggered = true, but it has no trigger"
        )
        require(has_trigger == condition.triggered, f"{place}: {fault}")


def _check_goal(goal: Goal) -> None:
    place = f"[[goal]] {goal.name}"
    require((goal.over is None) != (goal.under is None), f"{place}: give either over or under")
    harder = goal.strong is None or (goal.strong > goal.limit if goal.above else goal.strong < goal.limit)
    require(harder, f"{place}: strong must be harder to reach than {'over' if goal.above else 'under'}")


def _check_training(study: Study) -> None:
    ratios, count = study.training.get("ratios"), len(study.datasets)
    fits = ratios is None or len(ratios) == count
    require(fits, f"[training]: ratios: one number per [[dataset]] is needed, {count} in all")
    try:
        TrainingOptions(**({"ratios": (1.0,) * count} | study.training)).check()
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
