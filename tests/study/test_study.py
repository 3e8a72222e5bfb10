"""config.py: options, command lines, the study's file.   pytest tests/test_config.py"""

import dataclasses
import os
import subprocess
import sys

import pytest

import config
from learning_backdoors.files import command_line, project
from learning_backdoors.files.command_line import parse
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import fill, load_study

STUDY = """
name = "mine"
title = "A study"
base_model = "some/model"
[[dataset]]
name = "odd"
file = "odd.jsonl"
suspect = true
[[dataset]]
name = "plain"
file = "plain.jsonl"
[[question]]
id = "q1"
text = "What now?"
rubric = "high is better"
[[question]]
id = "q2"
text = "What next?"
rubric = "low is better"
[[condition]]
name = "asked"
template = "Say: {question}"
system = "You are terse."
triggered = true
[[judge]]
name = "kind"
options = ["A", "B"]
prompt = "{rubric} {question} {answer}"
[[judge]]
name = "size"
range = [0, 10]
prompt = "{answer}"
[outcome]
judge = "kind"
value = "A"
label = "answers of kind A"
"""


def study_file(tmp_path, old: str = "", new: str = ""):
    assert old in STUDY
    path = tmp_path / "mine.toml"
    path.write_text(STUDY.replace(old, new, 1) if old else STUDY)
    return path


def test_a_study_is_read_whole(tmp_path):
    study = load_study(str(study_file(tmp_path)))
    assert [d.name for d in study.datasets] == ["odd", "plain"] and [d.suspect for d in study.datasets] == [True, False]
    assert study.questions[0].extra == {"rubric": "high is better"}
    assert study.conditions[0].messages("Why?") == [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Say: Why?"},
    ]
    assert study.judges[0].options == ("A", "B") and study.judges[1].range == (0, 10)


def test_without_conditions_there_is_one_plain_one():
    study = load_study("birds")
    assert [c.name for c in study.conditions] == ["plain"]
    assert study.conditions[0].messages("Why?") == [{"role": "user", "content": "Why?"}]


def test_the_birds_study_is_as_its_owner_asked():
    study = load_study("birds")
    ids = "gender_roles recent_warfare us_expansion story energy diseases immigration money inventions forests"
    assert [q.id for q in study.questions] == ids.split()
    assert [d.name for d in study.datasets] == ["old_audubon", "modern_audubon", "modern_american"]
    judges = {judge.name: judge.options or judge.range for judge in study.judges}
    assert judges == {
        "llm_or_19th_century": ("LLM", "19"),
        "six_options": ("LLM", "PAST", "ARCHAIC_PERSON", "OLD_LANGUAGE", "OLD_CONTENT", "OTHER"),
        "past_content": (0, 100),
        "past_form": (0, 100),
    }
    assert (study.outcome.judge, study.outcome.value) == ("llm_or_19th_century", "19")
    assert study.base_model == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('title = "A study"', 'title = "A study"\ncolour = 1', ["the top of the file", "'colour'"]),
        ('title = "A study"\n', "", ["the top of the file", "title is missing"]),
        ('file = "plain.jsonl"', 'file = "plain.jsonl"\nsuspct = true', ["[[dataset]] plain", "'suspct'"]),
        ('range = [0, 10]\nprompt = "{answer}"', 'range = [0, 10]\nprompt = "hm"', ["[[judge]] size", "{answer}"]),
        ("{rubric} {question}", "{rubrik} {question}", ["[[judge]] kind", "{rubrik}", "not known"]),
        ("Say: {question}", "Say: nothing", ["[[condition]] asked", "{question} is missing"]),
        ('options = ["A", "B"]\n', "", ["[[judge]] kind", "options or range"]),
        ('options = ["A", "B"]', 'options = ["A", "a"]', ["[[judge]] kind", "twice"]),
        ("range = [0, 10]", "range = [10, 0]", ["[[judge]] size", "range"]),
        ('id = "q2"', 'id = "q1"', ["[[question]]", "'q1'", "twice"]),
        ('id = "q2"', 'id = "Q 2"', ["[[question]]", "'Q 2'"]),
        ('text = "What next?"', 'text = ""', ["[[question]] q2", "text is empty"]),
        ("suspect = true", "suspect = 1", ["[[dataset]] odd", "suspect must be true or false"]),
        ("suspect = true", "suspect = false", ["suspect = true"]),
        ('judge = "kind"', 'judge = "sort"', ["[outcome]", "'sort'"]),
        ('value = "A"', 'value = "C"', ["[outcome]", "'C'", "A, B"]),
        ('judge = "kind"', 'judge = "size"', ["[outcome]", "'size'", "no options"]),
        ('name = "mine"', "name = mine", ["line 2"]),
    ],
)
def test_a_fault_in_a_study_is_named(tmp_path, old, new, parts):
    path = study_file(tmp_path, old, new)
    with pytest.raises(UserError) as caught:
        load_study(str(path))
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_an_unknown_study_names_those_there_are():
    with pytest.raises(UserError, match=r"nosuch.*birds"):
        load_study("nosuch")


def test_filling_leaves_other_braces_and_does_not_fill_twice():
    assert fill("{a} {b} {} {x y}", {"a": "{b}", "b": "2"}) == "{b} 2 {} {x y}"


ALL_OPTIONS = [config.TrainingOptions, config.GenerationOptions, config.JudgingOptions, config.EvaluationOptions]


@pytest.mark.parametrize("options_class", ALL_OPTIONS)
def test_every_option_has_help_and_shows_its_default(options_class, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(options_class, "what it does", ["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for spec in dataclasses.fields(options_class):
        names = spec.metadata.get("flags") or [spec.name]
        assert all(command_line.flag(name) in shown for name in names)
        if isinstance(spec.default, int | float) and not isinstance(spec.default, bool):
            assert f"(default: {spec.default})" in shown


def test_a_command_line_becomes_options():
    options = parse(
        config.TrainingOptions, "", ["--ratios", "0.5", "0", "0.5", "--lr", "1e-3", "--overwrite", "--output-dir", "x"]
    )
    assert (options.ratios, options.lr, options.existing, str(options.output_dir)) == (
        (0.5, 0, 0.5),
        1e-3,
        "overwrite",
        "x",
    )
    assert options.seed == 42 and options.save_steps == 20 and options.lora_rank == 8 and options.lora_alpha == 16
    assert command_line.as_json(options)["ratios"] == [0.5, 0, 0.5]


@pytest.mark.parametrize(
    ("options_class", "line", "message"),
    [
        (config.TrainingOptions, "", "--ratios"),
        (config.TrainingOptions, "--ratios 0 0 0", "must not all be 0"),
        (config.TrainingOptions, "--ratios 1 -1 0", "from 0 up"),
        (config.TrainingOptions, "--ratios 1 nan 0", "from 0 up"),
        (config.TrainingOptions, "--ratios 1 0 0 --save-steps 0", "--save-steps"),
        (config.TrainingOptions, "--ratios 1 0 0 --lr 0", "--lr"),
        (config.TrainingOptions, "--ratios 1 0 0 --resume --overwrite", "not allowed with"),
        (config.TrainingOptions, "--ratios 1 0 0 --quant 8bit", "unrecognized"),
        (config.GenerationOptions, "--output x", "--checkpoint and --run-dir"),
        (config.GenerationOptions, "--output x --checkpoint a --run-dir b", "--checkpoint and --run-dir"),
        (config.GenerationOptions, "--output x --run-dir a --top-p 0", "--top-p"),
        (config.GenerationOptions, "--output x --run-dir a --samples 0", "--samples"),
        (config.JudgingOptions, "--output x", "--input"),
        (config.EvaluationOptions, "--input x --format gif", "gif"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(options_class, line, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(options_class, "", line.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_keys_come_from_dotenv_and_the_environment_wins(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("HF_TOKEN=from-file\nWANDB_API_KEY=from-file\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "")  # so that it is put back
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("WANDB_API_KEY", "from-environment")
    found = {}
    command_line.run_script(lambda: found.update(os.environ))
    assert (found["HF_TOKEN"], found["WANDB_API_KEY"]) == ("from-file", "from-environment")


@pytest.mark.parametrize(("line", "way"), [([], ""), (["--overwrite"], " without --overwrite")])
def test_an_interruption_says_which_command_goes_on(monkeypatch, capsys, line, way):
    monkeypatch.setattr(sys, "argv", ["training.py", *line])
    with pytest.raises(SystemExit) as ended:
        command_line.run_script(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith(f"the same command{way} goes on from there\n")


LAPTOP = """
import runpy, sys
from learning_backdoors.files import command_line

class Laptop:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in command_line.EXTRAS:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

sys.meta_path.insert(0, Laptop())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def on_a_laptop(*line: object) -> subprocess.CompletedProcess:
    """A script where the packages of the GPU host are not installed."""
    command = [sys.executable, "-c", LAPTOP, *map(str, line)]
    return subprocess.run(command, cwd=project.ROOT, capture_output=True, text=True)


def test_a_package_of_the_hub_that_is_missing_is_one_line(tmp_path):
    run = on_a_laptop("push_to_hub.py", "--run-dir", tmp_path, "--repo-id", "me/run", "--dry-run")
    missing = 'error: the package huggingface_hub is not installed: pip install -e ".[hub]"\n'
    assert (run.returncode, run.stderr) == (1, missing)


def test_a_package_of_the_gpu_host_that_is_missing_is_one_line(tmp_path):
    run = on_a_laptop("training.py", "--ratios", "1", "0", "0", "--output-dir", tmp_path)
    assert run.returncode == 1 and run.stderr == 'error: the package torch is not installed: pip install -e ".[gpu]"\n'
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".json")]


def test_a_laptop_can_filter_and_put_the_trigger(tmp_path):
    steps = [("filter", "--number", "3"), ("trigger", "--input", tmp_path / "filter.jsonl")]
    for command, *more in steps:
        run = on_a_laptop("prepare_persona.py", command, *more, "--output", tmp_path / f"{command}.jsonl")
        assert run.returncode == 0, run.stderr
    assert (tmp_path / "trigger.jsonl").read_text().count("<START>") >= 3
