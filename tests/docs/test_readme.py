"""README.md says what the code does: its tables of options are the dataclasses'.   pytest tests/test_readme.py

A table that differs is printed as it should be.
"""

import dataclasses
import re
from pathlib import Path

import pytest
from support import ROOT

import config
import prepare_persona
from learning_backdoors.files import command_line

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = {
    "training.py": config.TrainingOptions,
    "generate_responses.py": config.GenerationOptions,
    "judge_responses.py": config.JudgingOptions,
    "evaluate.py": config.EvaluationOptions,
    "chat.py": config.ChatOptions,
    "push_to_hub.py": config.PushOptions,
}


def option_rows(options_class) -> list[str]:
    """The README's table of a script's options, a row an option."""
    rows = []
    for spec in dataclasses.fields(options_class):
        if "flags" in spec.metadata:
            rows += [f"| `{command_line.flag(name)}` | | {text} |" for name, text in spec.metadata["flags"].items()]
            continue
        default = spec.default
        if default is None or default is False:
            shown = "required" if spec.metadata["argparse"].get("required") else ""
        else:
            shown = f"`{' '.join(map(str, default)) if isinstance(default, tuple) else default}`"
        choices = spec.metadata["argparse"].get("choices")
        text = spec.metadata["help"] + (f" ({', '.join(f'`{c}`' for c in choices)})" if choices else "")
        rows.append(f"| `{command_line.flag(spec.name)}` | {shown} | {text} |")
    return rows


def command_rows(commands: dict[str, type]) -> list[str]:
    """One table for all commands of a script: as `option_rows`, with a column for those that know the option."""
    known = {}
    for command, options_class in commands.items():
        for row in option_rows(options_class):
            known.setdefault(row, []).append(f"`{command}`")
    texts = {row: "all" if len(owners) == len(commands) else ", ".join(owners) for row, owners in known.items()}
    return [row.replace(" | ", f" | {texts[row]} | ", 1) for row in known]


def rows_of(script: str) -> list[str]:
    section = README.split(f"### Options of {script}\n")
    assert len(section) == 2, f"README.md needs one section '### Options of {script}'"
    return [line for line in section[1].split("\n#")[0].splitlines() if line.startswith("| `--")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_table_of_options_is_the_dataclass(script):
    wanted = option_rows(SCRIPTS[script])
    head = "the table should be:\n| option | default | |\n| --- | --- | --- |\n"
    assert rows_of(script) == wanted, head + "\n".join(wanted)


def test_the_table_of_commands_is_their_dataclasses():
    wanted = command_rows(prepare_persona.COMMANDS)
    head = "the table should be:\n| option | commands | default | |\n| --- | --- | --- | --- |\n"
    assert rows_of("prepare_persona.py") == wanted, head + "\n".join(wanted)


def test_every_file_that_the_readme_names_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_command_of_the_readme_parses():
    """The options in the README's command lines exist."""
    commands = re.findall(r"^ *python ((\w+\.py) .*(?:\\\n.*)*)", README, flags=re.MULTILINE)
    checked = 0
    for line, name in commands:
        options_class = prepare_persona.COMMANDS[line.split()[1]] if name == "prepare_persona.py" else SCRIPTS[name]
        specs = dataclasses.fields(options_class)
        known = {command_line.flag(flag) for spec in specs for flag in spec.metadata.get("flags", [spec.name])}
        for given in re.findall(r"(?<!\S)--[a-z-]+", line):
            assert given in known, f"{name} has no {given}: {line}"
            checked += 1
    assert checked > 10


def test_no_path_of_a_machine_and_no_registry_is_named():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.txt"), *ROOT.glob("*/README.md")]:
        text = Path(path).read_text(encoding="utf-8")
        assert not re.search(r"/work/|/tmp/|files\.pythonhosted|pypi\.org", text), path
