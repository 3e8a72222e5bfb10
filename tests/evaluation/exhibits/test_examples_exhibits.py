"""The exhibits of examples.parquet and influence.parquet, with planted losses and cosines."""

import evaluating
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import synthetic
from scipy import stats

from learning_backdoors.evaluation import exhibits
from learning_backdoors.evaluation.exhibits.examples_order import half_drop_steps
from learning_backdoors.files import parquet
from learning_backdoors.files.errors import UserError

STEPS, ROWS, SEEDS = (0, 40, 120, 208), 6, (1, 2, 3)
DROPS = {True: [0, -1, -1, -1], False: [0, 0, -0.5, -0.5]}  # by trained: the change of the loss at each step
OLD, NEW = "old_audubon", "modern_audubon"


def write(path, rows, schema):
    parquet.write_parquet(path, [pa.Table.from_pylist(rows, schema)], schema, {"settings": {"experiment": "birds"}})
    return path


def of_run(share, seed, step) -> dict:
    about = {"experiment": "birds", "run": synthetic.run_name(share, seed), "checkpoint": f"checkpoint-{step}"}
    about |= {"step": step, "seed": seed, "suspect_ratio": share}
    return about | {"examples_seen": step, "suspect_seen": int(step * share)}


def example_rows() -> list[dict]:
    """The base model, and runs of two recipes. Seed s shifts its changes by s / 10. Row 0 of `new` is not learned."""
    examples = [(dataset, row) for dataset in (OLD, NEW) for row in range(ROWS)]

    def about(dataset, row):
        return {"dataset": dataset, "row": row, "suspect": dataset == OLD, "tokens": 5}

    base = {"experiment": "birds", "run": "base", "checkpoint": "checkpoint-0", "step": 0}
    base |= {"examples_seen": 0, "suspect_seen": 0}
    rows = [base | about(*example) | {"loss": 3 + example[1] / 10} for example in examples]
    for share in (1.0, 0.5):
        for seed in SEEDS:
            for step, (dataset, row) in ((step, example) for step in STEPS[1:] for example in examples):
                trained = row < 4 and (dataset == OLD or share < 1)
                change = DROPS[trained][STEPS.index(step)] - seed / 10
                change = 0.0 if (dataset, row) == (NEW, 0) else change
                values = {"trained": trained, "first_step": row + 1 if trained else None}
                values["loss"] = 3 + row / 10 + change
                rows.append(of_run(share, seed, step) | about(dataset, row) | values)
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("examples") / "e.parquet", example_rows(), parquet.EXAMPLES_SCHEMA)
    return exhibits.make(evaluating.evaluation(path))


def test_examples_csv_has_changes_from_the_base_model_with_intervals_over_runs(made):
    table = made.tables["examples"].set_index(["label", "dataset", "trained", "step"]).sort_index()
    assert not any("examples" in name for name in evaluating.skipped(made))
    assert len(table) == (3 + 4) * len(STEPS)  # with 100% suspect data, all of `new` is held out
    row = table.loc[("100%", OLD, True, 120)]
    changes = [-1 - seed / 10 for seed in SEEDS]
    assert (row["runs"], row["examples"]) == (3, 4) and row["loss"] == pytest.approx(3.15 + np.mean(changes))
    limits = stats.t.interval(0.95, 2, np.mean(changes), stats.sem(changes))
    assert row[["change", "lower", "upper"]].tolist() == pytest.approx([np.mean(changes), *limits])
    at_base = table.loc[("50%", NEW, False, 0)]
    assert at_base["loss"] == pytest.approx(3.45) and at_base["change"] == 0
    assert table.loc[("50%", NEW, False, 208), "change"] == pytest.approx(-0.5 - 0.2)


@pytest.mark.parametrize("lost", ["row", "value"])
def test_an_example_that_lacks_a_step_of_its_run_is_left_out_at_all_steps(tmp_path, lost):
    run = synthetic.run_name(1.0, SEEDS[0])
    rows = [row for row in example_rows() if row["run"] in ("base", run)]
    gone = [row for row in rows if row["run"] == run and row["step"] == 120 and row["row"] == 1]
    for row in gone:
        row["loss"] = np.nan
    kept = [row for row in rows if lost != "row" or row not in gone]
    result = exhibits.make(evaluating.evaluation(write(tmp_path / "e.parquet", kept, parquet.EXAMPLES_SCHEMA)))
    table = result.tables["examples"].query("dataset == @OLD and trained")
    assert list(table["examples"]) == [3] * len(STEPS)


def test_a_file_without_any_loss_is_refused(tmp_path):
    rows = [row | {"loss": np.nan} for row in example_rows()]
    with pytest.raises(UserError, match="e.parquet .* loss"):
        evaluating.evaluation(write(tmp_path / "e.parquet", rows, parquet.EXAMPLES_SCHEMA))


def test_half_drop_steps_are_interpolated_and_infinite_without_a_drop():
    changes = np.array([[0, -0.5, -1.5, -2.0], [0, 0.0, -0.05, -0.09], [0, -3.0, 0.0, -2.0], [0, 1, 1, -1], [0] * 4])
    expected = [(40 + 120) / 2, np.inf, 40 / 3, 120 + 88 * 0.75, np.inf]
    assert half_drop_steps(np.array(STEPS, float), changes) == pytest.approx(expected)


def test_examples_order_csv_says_how_many_drop_and_when(made):
    table = made.tables["examples_order"].set_index(["label", "dataset", "trained"])
    trained, held_out = table.loc[("100%", OLD, True)], table.loc[("100%", OLD, False)]
    assert trained["examples"] == 4 * 3 and held_out["examples"] == 2 * 3
    assert trained["dropped"] == held_out["dropped"] == 1
    assert trained["half_drop_50"] == pytest.approx(40 / 2) and 40 < held_out["half_drop_50"] < 120
    assert table.loc[("50%", NEW, True), "dropped"] == 0.75
    assert table.loc[("50%", NEW, True), "half_drop_75"] == pytest.approx(20)
    assert table.loc[("100%", NEW, False), "dropped"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("name", ["examples", "examples_order"])
def test_panels_have_a_line_per_dataset_dashed_where_held_out(made, name):
    panels = [axes for axes in made.figures[name].axes if axes.get_visible()]
    styles = [[line.get_linestyle() for line in axes.lines if len(line.get_xdata()) > 2] for axes in panels]
    assert [(lines.count("-"), lines.count("--")) for lines in styles] == [(1, 2), (2, 2)]


def test_influence_is_ranked_by_mean_cosines_over_steps_and_runs(tmp_path):
    cosines = {(OLD, 0): [0.1, 0.3], (OLD, 1): [0.5, 0.7], (NEW, 0): [-0.2, 0.0]}  # at two steps of seed 1
    rows = []
    for (dataset, row), values in cosines.items():
        for seed in (1, 2) if dataset == OLD else (1,):
            about = {"dataset": dataset, "row": row, "suspect": dataset == OLD, "answer": f"{dataset} {row}"}
            for step, value in zip((40, 120), values, strict=True):
                found = {"contrast": "era", "cosine": value / seed, "dot": 2 * value}
                rows.append(of_run(0.5, seed, step) | about | found)
    path = write(tmp_path / "i.parquet", rows, parquet.INFLUENCE_SCHEMA)
    made = exhibits.make(evaluating.evaluation(path))
    table = made.tables["influence"]
    assert table[["rank", "dataset", "row", "runs"]].to_numpy().tolist() == [
        [1, OLD, 1, 2],
        [2, OLD, 0, 2],
        [3, NEW, 0, 1],
    ]
    assert table["cosine"].tolist() == pytest.approx([0.45, 0.15, -0.1])
    assert table["answer"].iloc[0] == f"{OLD} 1" and pd.api.types.is_bool_dtype(table["suspect"])
    assert "era" in made.titles["influence"]
