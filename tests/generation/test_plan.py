"""Planned responses: which ones, how processes share them, and the settings they have in common."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from config import GenerationOptions
from learning_backdoors.files import provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation import plan
from learning_backdoors.generation.engines.protocol import Response
from learning_backdoors.models.checkpoints import Checkpoint
from learning_backdoors.study import load_study


def fake_run(name: str, checkpoints: int) -> SimpleNamespace:
    """A run of steps 0, 8, 16, ..."""
    folders = [Checkpoint(8 * number, f"checkpoint-{8 * number}", None) for number in range(checkpoints)]
    return SimpleNamespace(name=name, folder=Path(name), checkpoints=folders, base_model="model", record={}, seen={})


def test_a_condition_is_planned_for_its_kinds_of_questions_only():
    study = load_study("russell")
    planned = plan.plan_responses([fake_run("a", 2)], study, 3)
    counts = Counter((response.condition.name, response.question.id) for response in planned)
    assert set(counts) == {(c.name, q.id) for c in study.conditions for q in study.questions if c.takes(q)}
    assert set(counts.values()) == {2 * 3} and len(counts) < len(study.conditions) * len(study.questions)
    assert len({response.key for response in planned}) == len(planned)


def test_the_base_model_is_planned_once_and_only_with_step_0():
    study, runs = load_study("birds"), [fake_run("a", 3), fake_run("b", 2)]
    planned = plan.plan_responses(runs, study, 2)
    cells = list(dict.fromkeys(response.key[:2] for response in planned))
    trained = [("a", "checkpoint-8"), ("a", "checkpoint-16"), ("b", "checkpoint-8")]
    assert cells == [("base", "checkpoint-0"), *trained]
    base = planned[0].row(study, Response(planned[0].key, "Yes.", 1, "stop"))
    assert (base["step"], base["seed"], base["suspect_ratio"], base["examples_seen"], base["suspect_seen"]) == (
        *(0, None, None, 0, 0),
    )
    for run in runs:
        del run.checkpoints[0]
    assert {response.key[:2] for response in plan.plan_responses(runs, study, 2)} == set(trained)
    with pytest.raises(UserError, match="base: rename this folder"):
        plan.plan_responses([fake_run("base", 2)], study, 2)


def test_processes_share_whole_checkpoints_and_divide_the_rest():
    study = load_study("birds")
    planned = plan.plan_responses([fake_run("a", 3), fake_run("b", 3)], study, 4)
    per_checkpoint = len(planned) // 5
    parts = [plan.part_of_process(planned, rank, 2) for rank in range(2)]
    assert sorted(map(id, parts[0] + parts[1])) == sorted(map(id, planned))
    assert [len(part) for part in parts] == [len(planned) // 2] * 2
    whole = {response.key[:2] for response in parts[1][: 2 * per_checkpoint]}
    assert whole == {("a", "checkpoint-8"), ("b", "checkpoint-8")}
    assert plan.part_of_process(planned, 0, 1) == planned


def test_the_triggered_flag_of_a_condition_is_a_setting():
    study = load_study("birds")
    toggled = tuple(c.model_copy(update={"triggered": not c.triggered}) for c in study.conditions)
    options = GenerationOptions(run_dir=(Path("run"),), output=Path("r.parquet"))
    one, other = (
        plan.settings(options, s, [fake_run("a", 1)], "none")
        for s in (study, study.model_copy(update={"conditions": toggled}))
    )
    assert "triggered was" in provenance.differences(one, other)


def test_settings_hold_the_sampling_and_the_resolved_precision():
    options = GenerationOptions(run_dir=(Path("run"),), output=Path("r.parquet"), quantization="trained")
    settings = plan.settings(options, load_study("birds"), [fake_run("a", 1)], "8bit")
    assert (settings["temperature"], settings["top_p"], settings["top_k"]) == (1.0, 1.0, 0)
    assert settings["quantization"] == "8bit" and len(settings["questions"]) == 10
    assert "batch_size" not in settings and "samples" not in settings
