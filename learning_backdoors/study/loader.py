"""Read and check a study file. Every error names the file, the table and the key in one line."""

import tomllib
from pathlib import Path

from pydantic import ValidationError

from config import TrainingOptions
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.project import ROOT
from learning_backdoors.study.checks import check_study
from learning_backdoors.study.schema import Study


def load_study(name: str) -> Study:
    """Read a study: the name of a file in experiments/, or the path of a TOML file. Raises UserError."""
    path = Path(name) if name.endswith(".toml") or "/" in name else ROOT / "experiments" / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = ", ".join(sorted(p.stem for p in (ROOT / "experiments").glob("*.toml")))
        raise UserError(f"{path}: there is no such study; the studies in experiments/ are: {names}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    return parse_study(text, path)


def training_defaults(given: dict) -> dict:
    """Defaults of training.py's options: the [training] table of the study on the command line."""
    return load_study(given.get("experiment", TrainingOptions.experiment)).training


def parse_study(text: str, path: Path) -> Study:
    """Check the text of a study. `path` is its file: data may be beside it. Raises UserError."""
    try:
        document = tomllib.loads(text)
        study = Study.model_validate(_lists_as_tuples(document), context={"path": path})
        check_study(study)
    except ValidationError as error:
        raise UserError(f"{path}: {_describe(error.errors()[0], document)}") from None
    except ValueError as error:  # TOMLDecodeError is one
        raise UserError(f"{path}: {error}") from None
    return study


def _lists_as_tuples(value):
    # A strict model accepts no list for a tuple.
    if isinstance(value, dict):
        return {key: _lists_as_tuples(entry) for key, entry in value.items()}
    return tuple(map(_lists_as_tuples, value)) if isinstance(value, list) else value


# ---- pydantic's errors in the words of the file ----

# By pydantic's error type. {key} is the key, {input} its value; other names come from pydantic.
MESSAGES = {
    "missing": "{key} is missing",
    "extra_forbidden": "unknown key {key!r}",
    "string_pattern_mismatch": "{key} is empty",
    "string_type": "{key} must be a text, not {input}",
    "bool_type": "{key} must be true or false, not {input}",
    "int_type": "{key} must be a whole number, not {input}",
    "float_type": "{key} must be a number, not {input}",
    "is_instance_of": "{key} must be a file, not {input}",
    "tuple_type": "{key} must be a list, not {input}",
    "model_type": "{key} must be a table, not {input}",
    "too_short": "{key} needs at least {min_length} entries",
    "too_long": "{key} needs at most {max_length} entries",
    "literal_error": "{key} must be one of {expected}, not {input}",
    "greater_than_equal": "{key} must be at least {ge:g}, not {input}",
    "less_than_equal": "{key} must be at most {le:g}, not {input}",
}


def _describe(error: dict, document: dict) -> str:
    """One line: table, key and fault."""
    table, keys = _location(error["loc"], document)
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return ": ".join([*table, *keys, str(context["error"])])
    key = ", entry ".join(keys)
    message = MESSAGES.get(error["type"], "{key}: {msg}")
    return ": ".join([*table, message.format(key=key, input=repr(error["input"])[:80], msg=error["msg"], **context)])


def _location(location: tuple, document: dict) -> tuple[list[str], list[str]]:
    """The table as written in the file (none for keys at the top), and the key with the number of an entry."""
    first, *rest = location
    if not rest:
        return [], [first]
    if not isinstance(rest[0], int):
        table = f"[{first}]"
    else:
        number = rest.pop(0)
        entry = document[first][number]
        name = isinstance(entry, dict) and entry.get("id", entry.get("name"))
        table = f"[[{first}]] {name if isinstance(name, str) and name.isprintable() and name else number + 1}"
    return [table], [key if isinstance(key, str) else str(key + 1) for key in rest]
