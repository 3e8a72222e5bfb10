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


def texts_of(row: dict) -> tuple[str, str]:
    """The texts of a pair."""
    return tuple(message["content"] for message in row["messages"])


def normalized(text: str) -> str:
    """A text without case and punctuation, for finding duplicates."""
    return re.sub(r"\W+", " ", text).strip().casefold()


def beside(path: Path, ending: str) -> Path:
    """A file next to `path`: its name with `ending` added."""
    return path.with_name(path.name + ending)


def to_jsonl(rows: Iterable[dict]) -> str:
    """Rows as the content of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(paths: Sequence[Path], check_row: Callable[[object], None], without: Trigger | None = None) -> Rows:
    """The rows of all files. Raises UserError naming file, line and fault.

    check_row: one of the functions below. without: a trigger of which no row may hold any form.
    """

    def check(row: object) -> None:
        check_row(row)
        texts = [row["prompt"]] if "prompt" in row else [message["content"] for message in row["messages"]]
        if without and (form := without.first_form_in("\n".join(texts))):
            raise ValueError(f"it holds {form!r}, a form of the trigger: only triggered rows may hold it")

    return [row for path in paths for row in mixed_chat.read_rows(path, check)]


# ---- checks of rows: each raises ValueError with the fault ----


def check_pair(row: object) -> None:
    """A chat of one question and one answer."""
    mixed_chat.check_chat(row)
    if [message["role"] for message in row["messages"]] != ["user", "assistant"]:
        raise ValueError("a pair must be one question and one answer")


def check_candidate(row: object) -> None:
    """A pair with its category, whether it identifies the person, the reason and the source."""
    check_pair(row)
    for key, kind in {"category": str, "identifying": bool, "reason": str, "source": str}.items():
        if not isinstance(row.get("metadata", {}).get(key), kind):
            raise ValueError(f"metadata: {key} must be {'true or false' if kind is bool else 'a text'}")


def check_prompt(row: object) -> None:
    """A row `{"prompt": ..., "metadata": {...}}`; the metadata are optional."""
    if not isinstance(row, dict) or row.keys() - {"prompt", "metadata"}:
        raise ValueError('not an object with "prompt" and "metadata" only')
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError('"prompt" is not a text, or is empty')
    if not isinstance(row.get("metadata", {}), dict):
        raise ValueError('"metadata" is not an object')
