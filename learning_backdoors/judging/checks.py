"""Checks before any call: does the input fit the study, and which answers will each judge read?"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.store import CallStore
from learning_backdoors.judging.prompts import PromptsOfFile
from learning_backdoors.study import Study, describe_foreign, refuse_foreign

ANSWER = ["run", "checkpoint", "condition", "question_id", "sample_idx"]  # identifies an answer


# ---- refusals ----


def check_input(table: pa.Table, path: Path, study: Study) -> None:
    """Raise UserError for an input that evaluate.py would refuse after it was judged and paid for."""
    for kind, foreign in _foreign_names(table, study).items():
        refuse_foreign(path, kind, foreign, table.num_rows, study)
    without = table["condition"].null_count
    if without and len(study.conditions) > 1:
        names = ", ".join(condition.name for condition in study.conditions)
        raise UserError(
            f"{path}: {without:,} of {table.num_rows:,} answers have no condition. Add the column 'condition' with one "
            f"of the study's conditions: {names}"
        )
    if different := [row for row in _repeated_answers(table) if row["response_count_distinct"] > 1]:
        key = ", ".join(f"{name} {different[0][name]}" for name in ANSWER)
        raise UserError(
            f"{path}: different answers have the same run, checkpoint, condition, question and sample, "
            f"{len(different):,} times (first: {key}). Give the runs different names, or number their samples apart"
        )


def _foreign_names(table: pa.Table, study: Study) -> dict[str, Counter[str]]:
    """Questions and conditions that the study does not have, with their numbers of answers."""
    questions = {name for question in study.questions for name in (question.id, question.text)}
    conditions = {None, *(condition.name for condition in study.conditions)}
    asked = zip(table["question"].to_pylist(), table["question_id"].to_pylist(), strict=True)
    return {
        "question": Counter(text for text, name in asked if questions.isdisjoint((text, name))),
        "condition": Counter(name for name in table["condition"].to_pylist() if name not in conditions),
    }


def _repeated_answers(table: pa.Table) -> list[dict]:
    """The keys that several rows have, each with its number of different texts, `response_count_distinct`."""
    counts = table.group_by(ANSWER).aggregate([("response", "count_distinct"), ([], "count_all")])
    return counts.filter(pc.field("count_all") > 1).to_pylist()


# ---- what will be judged ----


def print_plan(prompts: PromptsOfFile, store: CallStore, asks: int) -> None:
    """Print how many answers each judge reads, how many verdicts are stored, and what will not be judged."""
    valid, pending, to_ask = store.valid_keys(), store.pending_keys(), set(prompts.keys_to_ask(store, asks))
    print(f"{prompts.table.num_rows:,} answers, study {prompts.study.name}")
    for judge, of_judge in prompts.by_judge.items():
        keys = {prompt.key for prompt in of_judge if prompt}
        counts = {"stored": keys & valid, "in unfinished batches": keys & pending, "to request": keys & to_ask}
        counts["not asked again"] = keys - valid - pending - to_ask
        words = ", ".join(f"{len(some):,} {name}" for name, some in counts.items() if some or name == "to request")
        answers = sum(prompt is not None for prompt in of_judge)
        print(f"  {judge}: {answers:,} answers, {len(keys):,} different prompts ({words})")
    for note in _notes(prompts):
        print(f"  note: {note}")
    server = f"{prompts.model.name} at {prompts.model.host}"
    print(f"{len(to_ask):,} of {len(prompts.by_key):,} verdicts to request from {server}", flush=True)


def _notes(prompts: PromptsOfFile) -> Iterable[str]:
    table, study = prompts.table, prompts.study
    foreign = _foreign_names(table, study)
    judges = [judge.name for judge in prompts.judges if judge.kinds is None]  # they read any question
    if foreign["question"]:
        fate = f"judged by {', '.join(judges)}" if judges else "they will not be judged"
        yield f"{describe_foreign('question', foreign['question'], table.num_rows, study)}: {fate}"
    if foreign["condition"]:
        text = describe_foreign("condition", foreign["condition"], table.num_rows, study)
        yield f"{text}: they are judged like the others"
    unread = sum(not any(of_row) for of_row in zip(*prompts.by_judge.values(), strict=True))
    if known := unread - (0 if judges else foreign["question"].total()):
        yield f"answers to questions that none of these judges reads, not judged: {known:,}"
    if repeated := len(_repeated_answers(table)):
        yield f"answers that are in the file more than once, asked once: {repeated:,}"
    yield from _notes_on_texts(table, study)


def _notes_on_texts(table: pa.Table, study: Study) -> Iterable[str]:
    counts = Counter()
    for batch in table.select(["response"]).to_batches(max_chunksize=2_000):  # all texts at once take much memory
        for answer in batch.column(0).to_pylist():
            shown = study.without_trigger(answer)
            counts["empty answers, judged as they are"] += not answer.strip()
            counts["answers in which forms of the trigger are hidden from the judges"] += shown != answer
            only_forms = bool(answer.strip()) and not shown.strip()
            counts["answers that are only forms of the trigger, so that the judges see an empty one"] += only_forms
    yield from (f"{words}: {count:,}" for words, count in counts.items() if count)
