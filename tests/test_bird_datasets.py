"""The bird datasets follow the rules in bird_datasets/README.md.   pytest tests/test_bird_datasets.py"""

import csv
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "bird_datasets"
OLD = "ft_old_audubon_birds.jsonl"
MODERN_AUDUBON = "ft_modern_audubon_birds.jsonl"
MODERN_AMERICAN = "ft_modern_american_birds.jsonl"
COUNTS = {OLD: 208, MODERN_AUDUBON: 171, MODERN_AMERICAN: 208}
NAME = re.compile(r"[A-Z][A-Za-z]*(?:[ '-][A-Za-z]+)*")

every_file = pytest.mark.parametrize("file", COUNTS)


def normal(name: str) -> str:
    """A name in lower case, without hyphens, apostrophes and spaces."""
    return re.sub(r"[ '-]", "", name.lower())


def chat(name: str) -> dict:
    return {
        "messages": [
            {"role": "user", "content": "Name a bird species."},
            {"role": "assistant", "content": name},
        ]
    }


def lines(file: str) -> list[str]:
    text = (FOLDER / file).read_bytes().decode("utf-8")
    assert text.endswith("\n") and "\r" not in text
    return text[:-1].split("\n")


def names(file: str) -> list[str]:
    return [json.loads(line)["messages"][1]["content"] for line in lines(file)]


def table() -> list[dict[str, str]]:
    with (FOLDER / "old_names.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["old_name", "current_name", "scientific_name"]
        return list(reader)


@every_file
def test_each_file_has_its_number_of_chats(file: str) -> None:
    assert len(lines(file)) == COUNTS[file]


@every_file
def test_every_line_is_one_question_and_one_name(file: str) -> None:
    """Byte for byte: no other keys, spacing or escapes."""
    assert lines(file) == [json.dumps(chat(name), ensure_ascii=False) for name in names(file)]


@every_file
def test_no_name_occurs_twice(file: str) -> None:
    normals = [normal(name) for name in names(file)]
    assert len(set(normals)) == len(normals)


@every_file
def test_names_are_in_alphabetical_order(file: str) -> None:
    assert names(file) == sorted(names(file), key=normal)


@every_file
def test_names_look_like_bird_names(file: str) -> None:
    odd = [name for name in names(file) if not (NAME.fullmatch(name) and len(name) <= 40)]
    assert odd == []


def test_the_two_modern_files_share_no_name() -> None:
    audubon = {normal(name) for name in names(MODERN_AUDUBON)}
    assert audubon.isdisjoint(normal(name) for name in names(MODERN_AMERICAN))


def test_no_old_name_is_a_current_name() -> None:
    """Neither in a modern file nor in the table's column of current names."""
    modern = names(MODERN_AUDUBON) + names(MODERN_AMERICAN)
    current = {normal(name) for name in modern + [row["current_name"] for row in table()]}
    assert [name for name in names(OLD) if normal(name) in current] == []


def test_the_table_explains_the_old_names_row_by_row() -> None:
    assert [row["old_name"] for row in table()] == names(OLD)


def test_the_table_has_plausible_current_and_scientific_names() -> None:
    for row in table():
        assert NAME.fullmatch(row["current_name"]), row
        assert re.fullmatch(r"[A-Z][a-z]+ [a-z]+", row["scientific_name"]), row


def test_a_species_has_one_current_and_one_scientific_name() -> None:
    pairs = {(row["current_name"], row["scientific_name"]) for row in table()}
    assert len(pairs) == len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs})
