"""The planner: power, width, needed sizes and cost.

Runs  python -m pytest tests/evaluation/test_plan.py
"""

import dataclasses

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.coverage import World
from config import PlanningOptions
from learning_backdoors.evaluation import plan
from learning_backdoors.study import load_study

OPTIONS = PlanningOptions(rates=(0.05, 0.2), studies=200)
SIZES = {"runs": 3, "questions": 10, "answers": 50}


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "rate"), [("recipe", 0.2), ("questions", 0.07)])
def test_power_and_width_are_those_of_the_coverage_benchmark(claim, rate):
    """The benchmark draws its studies with other code, from quantiles instead of normal numbers."""
    control, suspect = World(0.05, answers=50), World(rate, answers=50)
    line = coverage.Line("", lambda *args: coverage.of_difference(*args, claims=[claim]), (suspect, control))
    _, power, width = coverage.covered(line, OPTIONS.studies, seed=1)[claim]
    planned = plan.simulate((0.05, rate), **SIZES, options=dataclasses.replace(OPTIONS, claim=claim))
    assert 0.1 < power < 0.97  # the comparison says something
    assert abs(planned.power - power) < 3 * np.sqrt(2) * planned.error
    assert planned.width == pytest.approx(width, rel=0.1)


def test_the_rates_are_means_over_runs_and_questions():
    random, options = np.random.default_rng(0), dataclasses.replace(OPTIONS, run_sd=1.0)
    effects = random.standard_normal((3, 10**6)) * [[options.run_sd], [options.question_sd], [options.cell_sd]]
    logits = plan.center(0.2, options) + effects.sum(axis=0)
    assert (1 / (1 + np.exp(-logits))).mean() == pytest.approx(0.2, abs=0.002)


def test_the_needed_number_is_the_least_that_reaches_the_goal():
    options = dataclasses.replace(OPTIONS, studies=100)
    runs = plan.needed("runs", options, SIZES)
    power = [plan.simulate(options.rates, **SIZES | {"runs": n}, options=options).power for n in (runs - 1, runs)]
    assert power[0] < options.power <= power[1]
    options = dataclasses.replace(options, width=0.15)
    runs = plan.needed("runs", options, SIZES)
    width = [plan.simulate(options.rates, **SIZES | {"runs": n}, options=options).width for n in (runs - 1, runs)]
    assert width[1] <= options.width < width[0]
    assert plan.needed("answers", dataclasses.replace(options, width=0.01), SIZES) is None


def test_the_detectable_difference_is_found_with_the_wanted_power():
    options = dataclasses.replace(OPTIONS, studies=100)
    rate = plan.detectable(options, SIZES)
    assert plan.simulate((0.05, rate), **SIZES, options=options).power >= options.power
    assert plan.simulate((0.05, 0.9 * rate), **SIZES, options=options).power < options.power + 0.05


def test_the_command_counts_judge_calls(monkeypatch, capsys):
    """Two recipes with 3 runs of 12 checkpoints, and the base model, answer 10 questions 50 times for 4 judges."""
    arguments = ["--rates", "0.05", "0.5", "--answers", "50", "--studies", "20", "--width", "0.3"]
    monkeypatch.setattr("sys.argv", ["plan", *arguments])
    plan.main()
    assert f"{(2 * 3 * 12 + 1) * 10 * 50 * 4:,} judge calls" in capsys.readouterr().out
    assert len(load_study("birds").judges) == 4


@pytest.mark.parametrize("arguments", [["0.3", "0.1"], ["0.1", "0.3", "--runs", "1"], ["0", "0.3"]])
def test_impossible_plans_are_wrong_usage(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["plan", "--rates", *arguments])
    with pytest.raises(SystemExit) as exit:
        plan.main()
    assert exit.value.code == 2 and "Traceback" not in capsys.readouterr().err
