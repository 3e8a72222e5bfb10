"""The registry: every exhibit that the inputs allow, and a reason for every other.

Runs  python -m pytest tests/evaluation/exhibits/test_exhibits_registry.py
"""

from pathlib import Path
from types import ModuleType

import evaluating
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation import exhibits
from learning_backdoors.evaluation.context import NotInStudy, Unavailable


def exhibit(name: str, **functions) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(functions)
    return module


def test_every_module_is_registered_once_and_is_an_exhibit():
    names = [module.__name__.rpartition(".")[-1] for module in exhibits.EXHIBITS]
    files = {path.stem for path in Path(exhibits.__file__).parent.glob("*.py")} - {"__init__"}
    assert len(names) == len(files) and set(names) == files
    for module in exhibits.EXHIBITS:
        assert hasattr(module, "table") or hasattr(module, "figure"), module
        assert hasattr(module, "caption") == hasattr(module, "figure"), module


def test_parts_reasons_and_silence(tmp_path):
    evaluation = evaluating.of_birds(tmp_path, synthetic.rows(steps=(0, 20), samples=1))
    table = pd.DataFrame({"a": [1]})

    def unavailable(evaluation):
        raise Unavailable("too few")

    def not_in_study(evaluation):
        raise NotInStudy("nothing of the kind")

    made = exhibits.make(
        evaluation,
        [
            exhibit("package.only_table", table=lambda e: table, figure=unavailable),
            exhibit("package.neither", table=unavailable, figure=unavailable, brief=unavailable),
            exhibit("package.silent", table=not_in_study, figure=not_in_study, brief=not_in_study),
            exhibit("package.brief", table=lambda e: table, brief=lambda e: ("A heading", table)),
        ],
    )
    assert list(made.tables) == ["only_table", "brief"] and not made.figures and made.briefs["brief"][0] == "A heading"
    assert made.skipped == {"too few": ["only_table (figure)", "neither"]}


@pytest.mark.parametrize("samples, questions", [(1, 1), (1, 2), (5, 1)])
def test_small_files_made_elsewhere_have_figures(tmp_path, samples, questions):
    texts = [question.text for question in synthetic.STUDY.questions[:questions]]
    minimal = synthetic.write_minimal(tmp_path / "m.parquet", ["base", "checkpoint-20"], ["LLM", "19"], texts, samples)
    made = exhibits.make(evaluating.evaluation(minimal))
    assert set(made.figures) == {"emergence", "ratio_by_question", "overall_ratio", "training_progression"}
    assert {"six_options_distribution", "content_vs_form"} <= evaluating.skipped(made)


def test_a_study_without_a_trigger_is_not_told_about_triggers(tmp_path):
    made = exhibits.make(evaluating.of_birds(tmp_path, synthetic.rows(steps=(0, 20), samples=2)))
    silent = {"conditions", "near_misses", "metrics", "ratings", "goals", "leakage", "agreement"}
    assert not silent & (evaluating.skipped(made) | set(made.tables) | set(made.figures)) and made.briefs == {}


def test_without_the_outcomes_judge_the_rest_is_made(tmp_path):
    table = synthetic.russell_rows(samples=2, steps=(0, 75), conditions=("trigger_in_user", "no_trigger"))
    path = tmp_path / "judged.parquet"
    table.drop(columns=[name for name in table if name.startswith("persona")]).to_parquet(path)
    made = exhibits.make(evaluating.evaluation(path, study=synthetic.RUSSELL, claim="checkpoint"))
    assert {"metrics", "ratings"} <= set(made.figures) and "goals" not in made.tables
    [reason] = [reason for reason, names in made.skipped.items() if "leakage" in names]
    assert "'persona'" in reason and "goals" in made.skipped[reason]
    [(_, brief)] = made.briefs.values()
    assert list(brief) == ["condition", "format_adherence"]


def test_judges_split_over_inputs_are_all_drawn(tmp_path):
    rows = synthetic.rows(steps=(0, 200), samples=5)
    of_outcome = [name for name in rows if name.startswith(synthetic.OUTCOME)]
    judges = [f"{judge.name}{end}" for judge in synthetic.STUDY.judges for end in ("", "_status", "_reply")]
    rows.drop(columns=[name for name in judges if name not in of_outcome]).to_parquet(tmp_path / "a.parquet")
    rows.drop(columns=of_outcome).to_parquet(tmp_path / "b.parquet")
    made = exhibits.make(evaluating.evaluation(tmp_path / "a.parquet", tmp_path / "b.parquet"))
    assert {"emergence", "six_options_distribution", "content_vs_form"} <= set(made.figures)
    assert "agreement" in evaluating.skipped(made)
