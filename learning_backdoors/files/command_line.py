"""Command lines made from dataclasses: a script's options are one dataclass, the only home of defaults and help.

A field made by `option` or `choice_of` becomes an argparse option. The script's `check` method raises ValueError for
values that are out of range; the user then sees one line and exit code 2.
"""

import argparse
import dataclasses
import inspect
import json
import os
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

import dotenv

from learning_backdoors.files.errors import UserError
from learning_backdoors.files.project import ROOT
from learning_backdoors.files.terminal_text import one_line, protect_terminal

# Packages that a host may lack, and the extra of pyproject.toml that installs them.
EXTRAS = {"huggingface_hub": "hub", "gguf": "smollm", "tinker": "tinker"}
EXTRAS |= dict.fromkeys(
    ("accelerate", "bitsandbytes", "datasets", "peft", "safetensors", "torch", "transformers", "trl"), "gpu"
)

# ---- fields of an options dataclass ----


def option(
    default,
    help: str,
    *,
    valid: tuple[str, Callable] | None = None,
    affects_result: bool = True,
    in_run_name: bool = False,
    **argparse_keywords,
):
    """A dataclass field that is also a command-line option.

    valid: the valid values, in words and as a test. The options' `check` method applies it.
    affects_result: the output depends on it. A restart with another value is then refused (see `result_settings`).
    in_run_name: the run directory's name shows the value where it is not the default.
    argparse_keywords: passed to `add_argument`.
    """
    metadata = {"help": help, "valid": valid, "affects_result": affects_result, "in_run_name": in_run_name}
    return dataclasses.field(default=default, metadata=metadata | {"argparse": argparse_keywords})


def choice_of(**flags: str):
    """A field behind mutually exclusive flags, given as name=help. The first flag is the default."""
    metadata = {"flags": flags, "valid": None, "affects_result": False, "in_run_name": False}
    return dataclasses.field(default=next(iter(flags)), metadata=metadata)


def existing_output(overwrite: str = "delete the existing output, whatever its settings, and start again"):
    """The field behind --resume and --overwrite."""
    resume = "continue an interrupted run; output with other settings is refused (default)"
    return choice_of(resume=resume, overwrite=overwrite)


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def value_type(annotation) -> type:
    """int for `int`, `int | None`, `tuple[int, ...]` and `tuple[int, ...] | None`."""
    for part in typing.get_args(annotation):
        if part is not type(None) and part is not Ellipsis:
            return value_type(part)
    return annotation


# ---- parsing ----

# SUPPRESS: only given options arrive, so that each default has one home, the dataclass.
PARSER = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
PARSER |= {"argument_default": argparse.SUPPRESS}


def parse(
    options_class,
    description: str,
    arguments: Sequence[str] | None = None,
    defaults: Callable[[dict], dict] = lambda given: {},
):
    """Parse a command line into `options_class`.

    defaults: maps the options that were given to defaults for the others; they win over the dataclass's own.
    Wrong usage ends the process with exit code 2 and one line.
    """
    return parse_given(options_class, description, arguments, defaults)[0]


def parse_given(
    options_class,
    description: str,
    arguments: Sequence[str] | None = None,
    defaults: Callable[[dict], dict] = lambda given: {},
) -> tuple[object, dict]:
    """Like `parse`. Returns the options, and those of them that stand on the command line as a dict."""
    parser = argparse.ArgumentParser(description=description, **PARSER)
    _add_options(parser, options_class)
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(parser.parse_args(arguments)).items()}
    return _checked(parser, options_class, defaults(given) | given), given


def parse_command(commands: dict[str, type], description: str, arguments: Sequence[str] | None = None):
    """Parse a command line that starts with one of `commands` (name: dataclass). Returns the name and its options."""
    parser = argparse.ArgumentParser(description=description, **PARSER)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for name, options_class in commands.items():
        text = inspect.cleandoc(options_class.__doc__)
        parsers[name] = subparsers.add_parser(name, help=text.splitlines()[0], description=text, **PARSER)
        _add_options(parsers[name], options_class)
    given = vars(parser.parse_args(arguments))
    name = given.pop("command")
    return name, _checked(parsers[name], commands[name], given)


def _add_options(parser: argparse.ArgumentParser, options_class) -> None:
    for field in dataclasses.fields(options_class):
        if "flags" in field.metadata:
            group = parser.add_mutually_exclusive_group()
            for value, text in field.metadata["flags"].items():
                group.add_argument(flag(value), dest=field.name, action="store_const", const=value, help=text)
            continue
        keywords = {"action": "store_true"} if field.type is bool else {"type": value_type(field.type)}
        text = field.metadata["help"].replace("%", "%%")
        if field.default is not None and field.default is not False:
            values = field.default if isinstance(field.default, tuple) else (field.default,)
            text += f" (default: {' '.join(map(str, values))})"
        parser.add_argument(flag(field.name), help=text, **keywords, **field.metadata["argparse"])


def _checked(parser: argparse.ArgumentParser, options_class, given: dict):
    options = options_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    try:
        options.check()
    except ValueError as error:
        parser.error(one_line(error))
    return options


# ---- options as data ----


def as_json(options) -> dict:
    """All options as plain JSON values, for provenance."""
    return json.loads(json.dumps(vars(options), default=str))


def result_settings(options) -> dict:
    """The options that affect the result, as plain JSON values."""
    values = as_json(options)
    return {field.name: values[field.name] for field in dataclasses.fields(options) if field.metadata["affects_result"]}


# ---- running a script ----


def progress_bar(title: str, total: int, done: int, unit: str, inner: bool = False):
    """A tqdm bar that updates every second on a terminal and every 20 seconds in a log file.

    If a launcher started several processes, only the first shows its bar: they would overwrite each other.
    inner: the bar is below another one. It appears after 5 seconds, and vanishes at the end.
    """
    from tqdm import tqdm

    seconds = 1 if sys.stderr.isatty() else 20
    more = {"disable": True} if os.environ.get("RANK", "0") != "0" else {}
    more |= {"delay": 5, "leave": False} if inner else {}
    return tqdm(desc=title, total=total, initial=done, unit=unit, mininterval=seconds, dynamic_ncols=True, **more)


def note(text: str) -> None:
    """Print a line for the user. If a launcher started several processes, only the first prints it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", flush=True)


def shortened(names: Sequence[str], shown: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function. Exit codes: 0 done, 1 a UserError in one line, 130 interrupted.

    API keys come from .env in the project, then in the current folder. Environment variables that are set win.
    SIGTERM, which schedulers send, acts like Ctrl-C. What the script prints is escaped for the terminal.
    """
    protect_terminal()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if callable(signal.getsignal(signal.SIGINT)):  # it is ignored under nohup
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for folder in (ROOT, Path.cwd()):
            dotenv.load_dotenv(folder / ".env")
        main()
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        sys.exit(f'error: the package {error.name} is not installed: pip install -e ".[{EXTRAS[error.name]}]"')
    except (UserError, OSError) as error:  # OSError: a full disk, a folder without write permission
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        command = "the same command without --overwrite" if "--overwrite" in sys.argv else "the same command"
        print(f"\ninterrupted: finished work is kept; {command} continues from there", file=sys.stderr)
        sys.exit(130)
