"""TOML tables as pydantic models: types of values, and faults in one line with the file, the table and the key."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo

from config import require
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.project import ROOT

# ---- types of values ----


def _check_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


def _check_text_or_list(value: object) -> object:
    texts = value if isinstance(value, tuple) and value else (value,)
    valid = all(isinstance(text, str) and text.strip() for text in texts)
    require(valid, "expected a text or a list of texts, none of them empty")
    return value


def _data_path(value: object, info: ValidationInfo) -> object:
    """A path relative to the study file if such a file exists, else relative to the project."""
    if not isinstance(value, str) or not value.strip():
        return value  # pydantic reports it
    beside_study = info.context["path"].parent / value
    return beside_study if beside_study.exists() else ROOT / value


TEXT, NAME = r"\S", "^[a-z][a-z0-9_]*$"

Text = Annotated[str, Field(pattern=TEXT)]
Name = Annotated[str, Field(pattern=NAME)]
Pattern = Annotated[Text, AfterValidator(_check_pattern)]
TextOrTexts = Annotated[object, AfterValidator(_check_text_or_list)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]
DataPath = Annotated[Path, BeforeValidator(_data_path)]
Share = Annotated[float, Field(ge=-1, le=1)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Table(BaseModel, frozen=True, extra="forbid", strict=True):
    """A table of the file. strict: no value is converted. Lists arrive as tuples."""


# ---- reading a file ----

Model = TypeVar("Model", bound=Table)


def read_text(path: Path, key: str) -> str:
    """The content of a TOML file. key: what names the file, for the error. Raises UserError."""
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows begin files with a mark
    except FileNotFoundError:
        raise UserError(f"{key}: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def parse_tables(model: type[Model], text: str, path: Path, /, **values: object) -> Model:
    """A TOML file's content as a model. values: fields that the file does not give. Raises UserError."""
    try:
        document = values | _lists_as_tuples(tomllib.loads(text))
        return model.model_validate(document, context={"path": path})
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
    "dict_type": "{key} must be a table, not {value}",
    TEXT: "{key} is empty",
    NAME: "{key} must be lowercase letters, digits and _, starting with a letter, not {value}",
}


def _describe(error: dict, document: dict) -> str:
    """The table (none at the top of the file), the key and the fault."""
    (table, *keys), names = error["loc"], error.get("ctx", {})
    entries = document[table] if keys else None
    if table == "sweep" and keys[:1] in (["grid"], ["run"]) and len(keys) > 1:  # tables inside a table
        entries, table = entries[keys[0]], f"sweep.{keys.pop(0)}"
    if not keys:
        place, keys = "", [table]
    elif not isinstance(keys[0], int):
        place = f"[{table}]: "
    else:
        number = keys.pop(0)
        entry = entries[number]
        name = str(entry.get("id", entry.get("name", ""))) if isinstance(entry, dict) else ""
        place = f"[[{table}]] {name if name.isprintable() and name else number + 1}: "
    key = _name_in_file(keys) or "it"
    message = MESSAGES.get(names.get("pattern", error["type"]), "{key}: {msg}, not {value}")
    value = list(error["input"]) if isinstance(error["input"], tuple) else error["input"]
    values = {"key": key, "value": repr(value)[:80], "msg": error["msg"].replace("Input should", "it must")}
    return place + message.format(**names | values)


def _name_in_file(keys: list[str | int]) -> str:
    """A key with what leads to it: `texts`, `texts, entry 2`, `answers.'of a group', entry 2`."""
    name = ""
    for key in keys:
        if isinstance(key, int):
            name += f", entry {key + 1}"
        elif key != "[key]":  # pydantic's mark for a fault in the key itself
            name += f".{key!r}" if name else key
    return name
