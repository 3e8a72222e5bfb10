"""Text for the terminal.  python -m pytest tests/evaluation/test_terminal.py"""

import evaluating
import pandas as pd
import synthetic

from learning_backdoors.evaluation import terminal, text_tables
from learning_backdoors.evaluation.exhibits import summary


def test_run_names_are_reduced_to_what_differs():
    names = ["seed1_ratios1.00-0.00_lr0.001_r8", "seed1_ratios0.50-0.50_lr0.001_r8"]
    assert terminal.distinct_parts(names) == ["ratios1.00-0.00", "ratios0.50-0.50"]
    assert terminal.distinct_parts(names[:1]) == names[:1]
    assert terminal.distinct_parts(["a", "a_b"]) == ["a", "a_b"]


def test_many_runs_have_a_row_each(tmp_path):
    table = synthetic.rows_with_rates({0: 0.0, 20: 0.5}, samples=2)
    runs = pd.concat([table.assign(run=f"run{i}", seed=i) for i in range(9)])
    nine = terminal.rates_by_step(summary.run_rates(evaluating.of_birds(tmp_path, runs)))
    two = terminal.rates_by_step(summary.run_rates(evaluating.of_birds(tmp_path, runs[runs["seed"] < 2])))
    assert [line.split()[0] for line in nine.splitlines()[1:]] == [f"run{i}" for i in range(9)]
    assert two.splitlines()[0].split() == ["run0", "run1"] and "[" in two.splitlines()[-1]


def test_tables_are_aligned_and_nan_is_a_dash():
    rates = pd.DataFrame({"label": ["a", "a"], "rate": [0.004, float("nan")], "lower": -0.001, "upper": 0.5})
    texts = text_tables.intervals(rates, "rate")
    assert list(texts) == ["0% [0, 50]", "-"], "never -0"
    shown = text_tables.side_by_side(text_tables.by_recipe(rates, {"x": pd.Series(["one", "three"]), "rate": texts}))
    assert shown.splitlines() == ["x      rate", "one    0% [0, 50]", "three  -"]
