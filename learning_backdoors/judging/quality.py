"""Is the judge any good? Agreement with itself, and with labels made by hand.

Pure functions on lists of verdicts; None is a missing verdict and leaves its pair out.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from learning_backdoors.files.errors import UserError
from learning_backdoors.study import Judge

Verdict = str | float | None
SHEET_COLUMNS = ("id", "question", "response")


def complete(both: Sequence[tuple[Verdict, Verdict]]) -> list[tuple]:
    return [pair for pair in both if None not in pair]


def cohen_kappa(both: Sequence[tuple]) -> float | None:
    """Agreement of pairs beyond chance (Cohen 1960). None where both only ever said one and the same."""
    n = len(both)
    observed = sum(a == b for a, b in both) / n
    first, second = Counter(a for a, _ in both), Counter(b for _, b in both)
    expected = sum(first[option] * second[option] for option in first) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def agreement(judge: Judge, both: Sequence[tuple[Verdict, Verdict]]) -> dict:
    """Choices: share that agree, and Cohen's kappa. Ratings: mean absolute difference."""
    both = complete(both)
    if not both:
        return {"pairs": 0}
    if judge.range:
        return {"pairs": len(both), "mean_absolute_difference": sum(abs(a - b) for a, b in both) / len(both)}
    return {"pairs": len(both), "agree": sum(a == b for a, b in both) / len(both), "kappa": cohen_kappa(both)}


def against_labels(judge: Judge, both: Sequence[tuple[Verdict, Verdict]]) -> dict:
    """Agreement of (verdict, label) pairs, and for each option how often the judge says it where the label does
    (sensitivity), and does not where the label does not (specificity), each as [hits, cases]."""
    both = complete(both)
    found = agreement(judge, both)
    for option in judge.options or ():
        positive = [verdict == option for verdict, label in both if label == option]
        negative = [verdict != option for verdict, label in both if label != option]
        found.setdefault("options", {})[option] = {
            "sensitivity": [sum(positive), len(positive)],
            "specificity": [sum(negative), len(negative)],
        }
    return found


# ---- in words ----


def in_words(found: dict) -> str:
    if not found["pairs"]:
        return "nothing to compare"
    if "mean_absolute_difference" in found:
        return f"mean absolute difference {found['mean_absolute_difference']:.1f} ({found['pairs']} pairs)"
    kappa = "not defined, all the same" if found["kappa"] is None else f"{found['kappa']:.2f}"
    return f"{found['agree']:.1%} agree, Cohen's kappa {kappa} ({found['pairs']} pairs)"


def option_in_words(found: dict) -> str:
    return ", ".join(f"{name} {_share(*counts)}" for name, counts in found.items())


def _share(hits: int, cases: int) -> str:
    if not cases:
        return "unknown (no cases)"
    from learning_backdoors.measures import wilson  # imports numpy, which most starts do not need

    lower, upper = (float(limit) for limit in wilson(hits, cases))
    return f"{hits / cases:.1%} [{lower:.1%}, {upper:.1%}] ({hits} of {cases})"


# ---- sheets for labelling by hand ----


def label_id(question: str, response: str) -> str:
    """Names an answer without saying where it came from."""
    return hashlib.sha256(f"{question}\0{response}".encode()).hexdigest()[:16]


def write_sheet(path: Path, answers: Iterable[tuple[str, str]], judges: Sequence[Judge], size: int) -> int:
    """Write a random sample of distinct (question, response) as CSV, with an empty column for each judge. Returns how
    many there are. The draw and the order are by hash: random, and the same each time."""
    chosen = sorted({label_id(*answer): answer for answer in answers}.items())[:size]
    try:
        with open(path, "x", newline="", encoding="utf-8-sig") as file:  # utf-8-sig: spreadsheets ask for it
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow([*SHEET_COLUMNS, *(judge.name for judge in judges)])
            writer.writerows([identity, *answer, *("" for _ in judges)] for identity, answer in chosen)
    except FileExistsError:
        raise UserError(f"{path} exists already, and may hold labels: choose another name") from None
    return len(chosen)


def read_labels(path: Path, judges: Sequence[Judge]) -> dict[str, dict[str, Verdict]]:
    """Labels by id and judge. An empty cell is no label. Raises UserError that names the line and the column."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or ()
            if "id" not in columns or not any(judge.name in columns for judge in judges):
                raise UserError(f"{path} needs the column id and at least one named like a judge")
            return {row["id"]: _labels(row, judges, f"{path}, line {rows.line_num}") for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}") from None


def _labels(row: dict, judges: Sequence[Judge], place: str) -> dict[str, Verdict]:
    labels = {}
    for judge in judges:
        text = (row.get(judge.name) or "").strip()
        if text:
            labels[judge.name] = _label(judge, text, place)
    return labels


def _label(judge: Judge, text: str, place: str) -> Verdict:
    if judge.options:
        found = [option for option in judge.options if option.casefold() == text.casefold()]
        if not found:
            raise UserError(f"{place}, {judge.name}: {text!r} is none of {', '.join(judge.options)}")
        return found[0]
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not judge.range[0] <= number <= judge.range[1]:
        raise UserError(f"{place}, {judge.name}: {text!r} is not a number from {judge.range[0]} to {judge.range[1]}")
    return number
