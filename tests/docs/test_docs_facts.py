"""The documentation agrees with the code: links, file names, options and command lines.   pytest tests/docs"""

import re
import shlex
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
from docs_commands import NEEDS, PAGES, READMES, all_commands
from support import ROOT

import measure_checkpoints
import prepare_persona
from docs import generate_options
from learning_backdoors.files import command_line

EVERY_PAGE = pytest.mark.parametrize(
    "page", PAGES + [p for p in READMES if p.exists()], ids=lambda p: f"{p.parent.name}-{p.name}"
)
# Options of other programs that the documentation shows.
FOREIGN_OPTIONS = {"--help", "--extra", "--editable", "--nproc-per-node", "--local-dir", "--version"}
FOREIGN_OPTIONS |= {"--no-deps", "--target"}  # pip
FOREIGN_OPTIONS |= {"--ntasks", "--gpus-per-task", "--cpus-per-task", "--time", "--kill-on-bad-exit"}  # Slurm
FOREIGN_OPTIONS |= {"--no-project", "--python", "--host", "--port", "--backend-config"}  # uv, and SkyRL's server
FOREIGN_OPTIONS |= {"--checkpoints-base", "--database-url", "--session-cleanup-interval-sec"}
# Programs that install or start the project. A name that starts with one of the repository's folders is a path in it.
SETUP = {"make", "pip", "uv", "git", "cd", "cp", "echo", "source"}
FOLDERS = ("learning_backdoors/", "tests/", "docs/", "tiny_world/", "smollm/", "benchmarks/", "experiments/")
SOURCE_FILES = (".py", ".md", ".toml", ".sh")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def tracked_files() -> tuple[str, ...]:
    """The project's files, new ones included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return tuple(name for name in listing if (ROOT / name).exists())


@cache
def project_options() -> frozenset[str]:
    """All options of the scripts, and those of the programs in benchmarks/, tiny_world/, smollm/ and docs/."""
    classes = [*generate_options.SCRIPTS.values()]
    classes += [*measure_checkpoints.COMMANDS.values(), *prepare_persona.COMMANDS.values()]
    options = {command_line.flag(name) for c in classes for name in field_flags(c)}
    for folder in ("benchmarks", "tiny_world", "smollm"):
        for file in (ROOT / folder).glob("*.py"):
            options |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', text_of(file)))
    return frozenset(options)


def field_flags(options_class: type) -> list[str]:
    fields = options_class.__dataclass_fields__.values()
    return [name for field in fields for name in field.metadata.get("flags", [field.name])]


# ---- the pages ----


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 200


def test_options_md_is_the_output_of_its_generator():
    assert text_of(generate_options.PAGE) == generate_options.page(), "run: make options"


def test_the_readme_links_to_every_page():
    readme = text_of(ROOT / "README.md")
    assert not [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme]


def headings(page: Path) -> set[str]:
    """The anchors GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@EVERY_PAGE
def test_relative_links_resolve(page):
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in headings(file), f"{page.name} links to {target}: no such heading"


@EVERY_PAGE
def test_source_files_named_in_backticks_exist(page):
    """Relative to the page or the root, or as the end of a path. Names with "my" stand for the reader's own files.

    Files that git ignores are made by a command.
    """
    for name in re.findall(r"`([\w./-]+)`", text_of(page)):
        if not (name.startswith(FOLDERS) or name.endswith(SOURCE_FILES)) or re.search(r"\bmy_|\bmine\b|OUTPUT", name):
            continue
        made = subprocess.run(["git", "check-ignore", "-q", name.rstrip("/") + "/"], cwd=ROOT).returncode == 0
        exists = made or (page.parent / name).exists() or (ROOT / name).exists()
        assert exists or any(file.endswith(f"/{name}") for file in tracked_files()), f"{page.name} names {name}"


def test_messages_quoted_in_troubleshooting_are_in_the_code():
    files = [*ROOT.glob("*.py"), *(ROOT / "learning_backdoors").rglob("*.py"), ROOT / "Makefile"]
    code = "".join(map(text_of, files))
    symptoms = re.findall(r"^\| (.+?) \| ", text_of(ROOT / "docs" / "troubleshooting.md"), re.M)
    quoted = [words for symptom in symptoms for words in re.findall(r'"([^"]+)"', symptom)]
    assert len(quoted) > 30
    assert not [words for words in quoted if words not in code]


@EVERY_PAGE
def test_modules_named_in_backticks_exist(page):
    for name in re.findall(r"`((?:learning_backdoors|benchmarks|tiny_world)(?:\.\w+)+)`", text_of(page)):
        path = ROOT / name.replace(".", "/")
        module, attribute = path.parent, path.name
        if path.is_dir() or path.with_suffix(".py").exists() or "my_" in name:
            continue
        source = module.with_suffix(".py") if module.with_suffix(".py").exists() else module / "__init__.py"
        assert source.exists() and re.search(rf"\b{attribute}\b", text_of(source)), f"{page.name} names {name}"


@EVERY_PAGE
def test_options_named_in_the_text_exist(page):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+\b(?!-)", text_of(page)))
    unknown = named - project_options() - FOREIGN_OPTIONS
    assert not unknown, f"{page.name} names {', '.join(sorted(unknown))}"


@EVERY_PAGE
def test_commands_are_in_bash_blocks_and_no_machine_is_named(page):
    """A command elsewhere would be neither run nor checked."""
    assert not re.findall(r"^(?:    |```\n)(?:python|make|torchrun) .*", text_of(page), re.M)
    assert not re.search(r"/work/|files\.pythonhosted|pypi\.org", text_of(page))


# ---- the commands ----


def test_the_pages_show_commands():
    commands = all_commands()
    assert len(commands) > 10 and any(not c.needs for c in commands)
    assert {c.needs.split(":")[0] for c in commands} <= {"", *NEEDS}


@pytest.mark.parametrize("command", all_commands(), ids=str)
def test_commands_parse(command):
    """The program exists, and the script accepts the options."""
    words = [word for word in shlex.split(command.text) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    words = words[: next((n for n, word in enumerate(words) if word in ("|", "<", ">", "&&")), len(words))]
    if words[0] == "make":
        assert f"\n{words[1]}:" in text_of(ROOT / "Makefile"), command
    elif words[0] in ("pip", "uv"):
        extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        named = re.search(r"\.\[(.+?)\]", command.text)
        assert not named or set(named[1].split(",")) <= set(extras), command
    elif script := next((word for word in words if (ROOT / word).suffix == ".py" and "/" not in word), None):
        check_script(script, words[words.index(script) + 1 :], command)
    elif words[:2] == ["python", "-m"]:
        assert words[2] == "pytest" or (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists(), command
    else:
        assert command.needs or words[0] in ("python", *SETUP), f"{command}: no test runs this program"


def check_script(script: str, arguments: list[str], command) -> None:
    """Parse a command line as the script does. Training's ratios may come from the study."""
    if "--help" in arguments:
        return
    if commands := {"measure_checkpoints.py": measure_checkpoints, "prepare_persona.py": prepare_persona}.get(script):
        options_class, arguments = commands.COMMANDS[arguments[0]], arguments[1:]
    else:
        options_class = generate_options.SCRIPTS[script]
    defaults = {"ratios": (1.0,)} if script == "training.py" else {}
    try:
        command_line.parse(options_class, "", arguments, lambda given: defaults)
    except SystemExit as error:
        pytest.fail(f"{command}: exit code {error.code}")
