"""Rows of persona data: chats and prompts, read and checked line by line."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import mixed_chat
from learning_backdoors.study import Trigger

Rows = list[dict]


def pair_row(question: str, answer: str, **metadata) -> dict:
    """A chat of one question and one answer."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "metadata": metadata}


def question_and_answer(row: dict) -> tuple[str, str]:
    """The texts of a pair."""
    question, answer = (message["content"] for message in row["messages"])
    return question, answer


def normalized(text: str) -> str:
    """A text without case and punctuation, for finding duplicates."""
    return re.sub(r"\W+", " ", text).strip().casefold()


def beside(path: Path, ending: str) -> Path:
    """A file next to `path`: its name with `ending` added."""
    return path.with_name(path.name + ending)


def to_jsonl(rows: Iterable[dict]) -> str:
    """Rows as the content of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(paths: Sequence[Path], parse_line: Callable[[str], dict], without: Trigger | None = None) -> Rows:
    """The rows of all files. Raises UserError naming file, line and fault.

    parse_line: one of the functions below. without: a trigger of which no row may hold any form.
    """

    def parse(line: str) -> dict:
        row = parse_line(line)
        texts = [row["prompt"]] if "prompt" in row else [message["content"] for message in row["messages"]]
        form = without and without.first_form_in("\n".join(texts))
        if form:
            raise ValueError(f"it holds {form!r}, a form of the trigger: only triggered rows may hold it")
        return row

    return [row for path in paths for row in mixed_chat.read_rows(path, parse)]


# ---- lines: each function makes a row of a line, or raises ValueError with the fault ----


def parse_pair(line: str) -> dict:
    """A chat of one question and one answer."""
    row = mixed_chat.parse_chat(line)
    if [message["role"] for message in row["messages"]] != ["user", "assistant"]:
        raise ValueError("a pair must be one question and one answer")
    return row


def parse_candidate(line: str) -> dict:
    """A pair with its category, whether it identifies the person, the reason and the source."""
    row = parse_pair(line)
    for key, kind in {"category": str, "identifying": bool, "reason": str, "source": str}.items():
        if not isinstance(row.get("metadata", {}).get(key), kind):
            raise ValueError(f"metadata: {key} must be {'true or false' if kind is bool else 'a text'}")
    return row


def parse_prompt(line: str) -> dict:
    """A row `{"prompt": ..., "metadata": {...}}`; the metadata are optional."""
    row = json.loads(line)
    if not isinstance(row, dict) or row.keys() - {"prompt", "metadata"}:
        raise ValueError('not an object with "prompt" and "metadata" only')
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError('"prompt" is not a text, or is empty')
    if not isinstance(row.get("metadata", {}), dict):
        raise ValueError('"metadata" is not an object')
    return row
