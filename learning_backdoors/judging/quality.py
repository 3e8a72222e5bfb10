"""How good is the judge? Its agreement with itself (--repeat) and with labels made by hand (--labels)."""

import csv
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from learning_backdoors.files.csv_cells import cell_text, safe_cell
from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.store import CallStore
from learning_backdoors.judging.prompts import PromptsOfFile
from learning_backdoors.study import Judge

Value = str | float | None  # an option or a number; None is a missing verdict, and its pair is left out
SHEET_COLUMNS = ("id", "question", "response")


# ---- agreement ----


def agreement(judge: Judge, pairs: Sequence[tuple[Value, Value]]) -> dict:
    """Options: share that agrees, and Cohen's kappa (None if undefined). Numbers: mean absolute difference."""
    from learning_backdoors import measures

    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        return {"pairs": 0}
    if judge.range:
        return {"pairs": len(pairs), "mean_absolute_difference": sum(abs(a - b) for a, b in pairs) / len(pairs)}
    kappa = measures.cohen_kappa(*zip(*pairs, strict=True))
    share = sum(a == b for a, b in pairs) / len(pairs)
    return {"pairs": len(pairs), "agree": share, "kappa": None if math.isnan(kappa) else kappa}


def agreement_with_labels(judge: Judge, pairs: Sequence[tuple[Value, Value]]) -> dict:
    """Agreement of (verdict, label) pairs. For each option also, as [hits, cases]: sensitivity, how often the judge
    chooses it if the label does; specificity, how often it does not if the label does not."""
    result = agreement(judge, pairs)
    for option in judge.options or ():
        positive = [verdict == option for verdict, label in pairs if verdict is not None and label == option]
        negative = [verdict != option for verdict, label in pairs if verdict is not None and label != option]
        result.setdefault("options", {})[option] = {
            "sensitivity": [sum(positive), len(positive)],
            "specificity": [sum(negative), len(negative)],
        }
    return result


def agreement_of(prompts: PromptsOfFile, store: CallStore, labels: dict[str, dict]) -> dict[str, dict]:
    """By judge: agreement with itself on prompts asked twice (`repeat`), and with hand labels (`labels`)."""
    judges = {judge.name: judge for judge in prompts.judges}
    repeated, labeled = _repeat_pairs(prompts, store), _label_pairs(prompts, store, labels)
    return {
        "repeat": {name: agreement(judges[name], pairs) for name, pairs in repeated.items()},
        "labels": {name: agreement_with_labels(judges[name], list(pairs.values())) for name, pairs in labeled.items()},
    }


def _repeat_pairs(prompts: PromptsOfFile, store: CallStore) -> dict[str, list[tuple[Value, Value]]]:
    pairs = defaultdict(list)
    for repeat in prompts.by_key.values():
        if repeat.is_repeat:
            first = prompts.by_judge[repeat.judge.name][repeat.row]
            pairs[repeat.judge.name].append((first.verdict(store).value, repeat.verdict(store).value))
    return pairs


def _label_pairs(prompts: PromptsOfFile, store: CallStore, labels: dict) -> dict[str, dict[str, tuple[Value, Value]]]:
    """(verdict, label) by judge and label id. Says how many labels belong to answers that are not in the input."""
    pairs: dict[str, dict[str, tuple]] = defaultdict(dict)
    unused = {identity for identity, of_answer in labels.items() if of_answer}
    total = len(unused)
    for row in range(prompts.table.num_rows) if labels else ():
        identity = label_id(prompts.value(row, "question"), prompts.texts_for_judge(row)[1])
        unused.discard(identity)
        for judge, label in labels.get(identity, {}).items():
            if prompt := prompts.by_judge[judge][row]:
                pairs[judge][identity] = (prompt.verdict(store).value, label)
    if unused:
        print(f"labels: {len(unused):,} of {total:,} belong to answers that are not in the input")
    return pairs


def print_agreement(agreement: dict[str, dict]) -> None:
    for judge, result in agreement["repeat"].items():
        print(f"judged twice, {judge}: {_in_words(result)}")
    for judge, result in agreement["labels"].items():
        print(f"against labels, {judge}: {_in_words(result)}")
        for option, counts in result.get("options", {}).items():
            print(f"  {option}: " + ", ".join(f"{name} {_share(*pair)}" for name, pair in counts.items()))


def _in_words(result: dict) -> str:
    if not result["pairs"]:
        return "nothing to compare"
    if "mean_absolute_difference" in result:
        return f"mean absolute difference {result['mean_absolute_difference']:.1f} ({result['pairs']} pairs)"
    kappa = "undefined, only one option occurs" if result["kappa"] is None else f"{result['kappa']:.2f}"
    return f"{result['agree']:.1%} agree, Cohen's kappa {kappa} ({result['pairs']} pairs)"


def _share(hits: int, cases: int) -> str:
    from learning_backdoors import measures

    if not cases:
        return "unknown (no cases)"
    lower, upper = (float(limit) for limit in measures.wilson(hits, cases))
    return f"{hits / cases:.1%} [{lower:.1%}, {upper:.1%}] ({hits} of {cases})"


# ---- sheets of hand labels ----


def label_id(question: str, response: str) -> str:
    """Identifies an answer without saying where it came from."""
    return hashlib.sha256(f"{question}\0{response}".encode()).hexdigest()[:16]


def write_sheet(path: Path, answers: Iterable[tuple[str, str]], judges: Sequence[Judge], size: int) -> int:
    """Write a random sample of distinct (question, response) as CSV, with an empty column per judge.

    Draw and order are by hash, so they are the same each time. Returns the number of answers.
    """
    sample = sorted({label_id(*answer): answer for answer in answers}.items())[:size]
    try:
        with open(path, "x", newline="", encoding="utf-8-sig") as file:  # spreadsheets need utf-8-sig
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow([*SHEET_COLUMNS, *(judge.name for judge in judges)])
            writer.writerows([name, *map(safe_cell, answer), *("" for _ in judges)] for name, answer in sample)
    except FileExistsError:
        raise UserError(f"{path} exists already, and may hold labels: choose another name") from None
    return len(sample)


def read_labels(path: Path, judges: Sequence[Judge]) -> dict[str, dict[str, Value]]:
    """Labels by answer id and judge. An empty cell is no label. Raises UserError naming line and column."""
    labels: dict[str, dict[str, Value]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = set(rows.fieldnames or ())
            if "id" not in columns or not any(judge.name in columns for judge in judges):
                raise UserError(f"{path} needs the column id, and at least one with a judge's name")
            for row in rows:
                cells = {judge: cell_text((row.get(judge.name) or "").strip()) for judge in judges}
                where = f"{path}, line {rows.line_num}"
                labels[row["id"]] = {j.name: _label(j, cell, f"{where}, {j.name}") for j, cell in cells.items() if cell}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}") from None
    return labels


def _label(judge: Judge, text: str, where: str) -> Value:
    label = judge.parse(text)
    if label is None:
        valid = f"one of {', '.join(judge.options)}" if judge.options else "a number from {} to {}".format(*judge.range)
        raise UserError(f"{where}: {text!r} is not {valid}")
    return label
