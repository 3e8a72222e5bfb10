"""Read and check a study file. Every error is one line with the file, the table and the key as they are written."""

import tomllib
from pathlib import Path

from pydantic import ValidationError

from config import TrainingOptions
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.project import ROOT
from learning_backdoors.study.checks import check_study
from learning_backdoors.study.schema import ERA, NAME, TEXT, Study


def load_study(name: str) -> Study:
    """Read a study: the name of a file in experiments/, or the path of a TOML file. Raises UserError."""
    path = Path(name) if name.endswith(".toml") or "/" in name else ROOT / "experiments" / f"{name}.toml"
    try:
        return parse_study(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        names = ", ".join(sorted(p.stem for p in (ROOT / "experiments").glob("*.toml")))
        raise UserError(f"{path}: there is no such study; the studies in experiments/ are: {names}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def training_defaults(given: dict) -> dict:
    """Defaults of training.py's options: the [training] table of the study on the command line."""
    return load_study(given.get("experiment", TrainingOptions.experiment)).training


def parse_study(text: str, path: Path) -> Study:
    """Check the text of a study. `path` is its file: data may be beside it. Raises UserError."""
    try:
        document = _lists_as_tuples(tomllib.loads(text))
        study = Study.model_validate(document, context={"path": path})
        check_study(study)
        return study
    except ValidationError as error:
        raise UserError(f"{path}: {_describe(error.errors()[0], document)}") from None
    except ValueError as error:  # TOMLDecodeError is one
        raise UserError(f"{path}: {error}") from None


def _lists_as_tuples(value):
    """Strict models do not accept lists for tuples."""
    if isinstance(value, dict):
        return {key: _lists_as_tuples(entry) for key, entry in value.items()}
    return tuple(map(_lists_as_tuples, value)) if isinstance(value, list) else value


# pydantic's types of errors. {key} and {value} are those of the file, other names are pydantic's.
MESSAGES = {
    "missing": "{key} is missing",
    "extra_forbidden": "unknown key {key!r}",
    "value_error": "{key}: {error}",
    "string_type": "{key} must be a text, not {value}",
    "bool_type": "{key} must be true or false, not {value}",
    "int_type": "{key} must be a whole number, not {value}",
    "float_type": "{key} must be a number, not {value}",
    "is_instance_of": "{key} must be the path of a file, not {value}",
    "tuple_type": "{key} must be a list, not {value}",
    "model_type": "{key} must be a table, not {value}",
    "too_short": "{key} must have at least {min_length} entries",
    "too_long": "{key} must have at most {max_length} entries",
    "literal_error": "{key} must be one of {expected}, not {value}",
    "greater_than_equal": "{key} must be at least {ge:g}, not {value}",
    "less_than_equal": "{key} must be at most {le:g}, not {value}",
    TEXT: "{key} is empty",
    NAME: "{key} must be lowercase letters, digits and _, starting with a letter, not {value}",
    ERA: "{key} must be letters, digits and _, not {value}",
}


def _describe(error: dict, document: dict) -> str:
    """The table (none at the top of the file), the key and the fault."""
    (table, *keys), names = error["loc"], error.get("ctx", {})
    if not keys:
        place, keys = "", [table]
    elif not isinstance(keys[0], int):
        place = f"[{table}]: "
    else:
        number = keys.pop(0)
        entry = document[table][number]
        name = str(entry.get("id", entry.get("name", ""))) if isinstance(entry, dict) else ""
        place = f"[[{table}]] {name if name.isprintable() and name else number + 1}: "
    key = ", entry ".join(str(key + 1) if isinstance(key, int) else key for key in keys) or "it"
    message = MESSAGES.get(names.get("pattern", error["type"]), "{key}: {msg}")
    values = {"key": key, "value": repr(error["input"])[:80], "msg": error["msg"]}
    return place + message.format(**names | values)
