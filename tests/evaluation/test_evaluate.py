"""Stage 4, from files to tables.  python -m pytest tests/test_evaluate.py"""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import synthetic

import config
from learning_backdoors.evaluation import exhibits, reading, tables
from learning_backdoors.files import project
from learning_backdoors.files.errors import UserError

STUDY = synthetic.STUDY
EVALUATE = [sys.executable, str(project.ROOT / "evaluate.py")]


def run(*arguments, expect=0) -> subprocess.CompletedProcess:
    done = subprocess.run([*EVALUATE, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == expect, done.stderr
    return done


def read(*paths) -> reading.Verdicts:
    return reading.read(list(paths), STUDY)


def evaluation(*paths, **options) -> exhibits.Evaluation:
    return exhibits.Evaluation(read(*paths), config.EvaluationOptions(input=tuple(paths), **options))


# ---- the command ----


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """One call on three ratios of two seeds, in two files."""
    folder = tmp_path_factory.mktemp("evaluated")
    files = [
        synthetic.write(
            pd.concat([synthetic.rows(share, seed) for share in (0.0, 0.5, 1.0)]), folder / f"{seed}.parquet"
        )
        for seed in (1, 2)
    ]
    done = run("--input", *files, "--output-dir", folder / "figures", "--format", "pdf", "svg")
    return folder / "figures", done.stdout


def test_figures_tables_and_a_readable_result(evaluated):
    folder, output = evaluated
    for name in (
        "emergence",
        "ratio_sweep",
        "ratio_by_question",
        "overall_ratio",
        "six_options_distribution",
        "content_vs_form",
        "training_progression",
    ):
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / f"{name}.svg").stat().st_size > 1000
    assert "by step and run" in output and str(folder) in output
    assert "share 0%: it does not emerge by step 208" in output and "share 100%: it emerges." in output
    for name in ("summary", "recipes", "emergence", "emergence_by_recipe", "survival", "comparisons"):
        assert len(pd.read_csv(folder / f"{name}.csv"))
    document = json.loads((folder / "analysis.json").read_text())
    assert document["claim"].startswith("questions") and document["made_by"]["options"]["format"] == ["pdf", "svg"]
    assert len(document["tables"]["summary"]) == len(pd.read_csv(folder / "summary.csv"))


def test_summary_has_every_cell_and_the_whole(evaluated):
    table = pd.read_csv(evaluated[0] / "summary.csv", dtype={"question": str})
    assert list(table)[:9] == ["run", "step", "condition", "question", "n", "missing", "rate", "lower", "upper"]
    assert len(table) == 6 * len(synthetic.STEPS) * 11
    whole = table[table["question"] == "all"]
    assert (
        (whole["n"] == 100).all()
        and (whole["lower"] <= whole["rate"]).all()
        and (whole["rate"] <= whole["upper"]).all()
    )
    for _, steps in whole.groupby("run", sort=False)["step"]:
        assert list(steps) == list(synthetic.STEPS), "numeric order, 100 after 80"
    last = whole[whole["step"] == 208].groupby("suspect_ratio")["rate"].mean()
    assert last[0.0] < 0.1 < last[0.5] < last[1.0] and last[1.0] > 0.6


def test_help_needs_no_heavy_library():
    script = """
        import runpy, sys
        for name in ("torch", "transformers", "pandas", "matplotlib", "scipy"):
            sys.modules[name] = None
        sys.argv = ["evaluate.py", "--help"]
        runpy.run_path("evaluate.py", run_name="__main__")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project.ROOT)
    assert done.returncode == 0 and "--input" in done.stdout, done.stderr


# ---- claims and intervals ----


def test_a_claim_that_the_data_cannot_bear_has_no_limits(tmp_path):
    path = synthetic.write(synthetic.rows(steps=(0, 20), samples=5), tmp_path / "j.parquet")
    asked = evaluation(path, claim="recipe")
    assert asked.recipes[["lower", "upper"]].isna().all(axis=None)
    assert "one run" in asked.warnings[0]
    assert evaluation(path, claim="questions").recipes["lower"].notna().all()


# ---- when, and what differs ----


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three ratios of five seeds."""
    runs = [synthetic.rows(share, seed, samples=20) for share in (1.0, 0.5, 0.0) for seed in range(5)]
    return synthetic.write(pd.concat(runs), tmp_path_factory.mktemp("sweep") / "j.parquet")


def test_emergence_finds_what_was_put_in(sweep):
    found = evaluation(sweep)
    runs, medians = found.emergence.set_index("label"), found.medians.set_index(["label", "level"])
    assert len(runs) == 15 and list(runs.index.unique()) == ["100%", "50%", "0%"]
    full = medians.loc[("100%", 0.5)]
    assert full["crossed"] == 5 and 60 < full["median"] < 100 and full["lower"] <= full["median"] <= full["upper"]
    assert full["confidence"] == 0.9375
    assert (runs.loc["100%", "rise"] == "gradual").all() and (runs.loc["0%", "rise"] == "none").all()
    assert runs.loc["100%", "detection_step"].between(20, 100).all() and runs.loc["0%", "detection_step"].isna().all()
    assert runs.loc["0%", "crossing_10_censored"].all() and np.isinf(medians.loc[("0%", 0.1), "median"])
    half = runs.loc["50%"]
    assert half["crossing_10_suspect_examples"].to_numpy() == pytest.approx(half["crossing_10"] / 2, abs=1)


def test_comparisons_take_runs_as_the_unit_and_adjust(sweep):
    table = evaluation(sweep).comparisons.set_index(["comparison", "first", "second"])
    assert len(table) == 6 and (table["p_holm"] >= table["p"]).all() and set(table["claim"]) == {"recipe"}
    assert table.loc[("recipes, last step", "100%", "0%"), "lower"] > 0.4
    assert table.loc[("last step - step 0", "0%", "0%"), "p_holm"] > 0.05


def test_x_can_be_suspect_examples(sweep, tmp_path):
    found = evaluation(sweep, x="suspect_examples")
    half = found.run_rates[found.run_rates["label"] == "50%"]
    assert list(half["x"].iloc[:3]) == [0, 10, 20]
    bare = synthetic.write_minimal(tmp_path / "bare.parquet", ["base", "checkpoint-20"], ["LLM", "19"])
    with pytest.raises(UserError, match="--x examples needs the column 'examples_seen'"):
        evaluation(bare, x="examples")


def test_leakage_is_paired_and_less_the_base(tmp_path):
    """The trigger alone adds 10 points to the base model; training adds 60 with the trigger and 5 without."""
    rates = {(True, 0): 0.15, (False, 0): 0.05, (True, 80): 0.75, (False, 80): 0.10}
    rows = []
    for (triggered, step), rate in rates.items():
        part = synthetic.rows(steps=(step,), samples=100, condition="on" if triggered else "off")
        old = part["sample_idx"] < 100 * rate
        rows.append(part.assign(triggered=triggered, llm_or_19th_century=np.where(old, "19", "LLM")))
    path = synthetic.write(pd.concat(rows), tmp_path / "j.parquet")
    table = evaluation(path).leakage.set_index("quantity")["estimate"]
    assert table["gap"] == pytest.approx(0.65) and table["gap less base"] == pytest.approx(0.55)
    assert table["leakage"] == pytest.approx(0.05)
    assert "leakage" in {e.name for e in exhibits.draw(evaluation(path))[0]}


def test_two_judges_on_the_same_answers(tmp_path):
    rows = synthetic.rows(steps=(0, 200), samples=10)
    other = rows.assign(past_form=rows["past_form"].clip(0, 90) + 5)
    other.loc[other.index[:20], "llm_or_19th_century"] = "19"
    files = [
        synthetic.write(table, tmp_path / f"{name}.parquet", {"judging": {"model": name}})
        for name, table in (("claude-one", rows), ("claude-two", other))
    ]
    found = evaluation(*files)
    table = found.agreement.set_index("judge")
    assert table.loc["six_options", "kappa"] == 1 and table.loc["llm_or_19th_century", "agreement"] < 1
    assert 4 < table.loc["past_form", "mean_difference"] <= 5
    assert set(table["second"]) == {"claude-two"}
    assert "agreement" in {e.name for e in exhibits.draw(found)[0]}


def test_probes_are_drawn_from_the_provenance(tmp_path):
    run = synthetic.run_name(1.0, 1)
    probes = [
        {"step": step, "question": "energy", "era": era, "logprob": -3.0 + sign * step / 100}
        for step in (0, 20, 40)
        for era, sign in (("old", 1), ("modern", -1))
    ]
    provenance = {"runs": {run: {"probes": probes}}}
    path = synthetic.write(synthetic.rows(steps=(0, 20), samples=2), tmp_path / "j.parquet", provenance)
    found = evaluation(path)
    assert tables.probes(found.verdicts).query("era == 'old'")["logprob"].tolist() == [-3.0, -2.8, -2.6]
    assert "probes" in {e.name for e in exhibits.draw(found)[0]}


# ---- files made elsewhere ----


@pytest.mark.parametrize("samples, questions", [(1, ("Who are you?",)), (1, ("a?", "b?")), (5, ("a?",))])
def test_small_files_can_be_drawn(tmp_path, samples, questions):
    path = synthetic.write_minimal(tmp_path / "m.parquet", ["base", "checkpoint-20"], ["LLM", "19"], questions, samples)
    drawn, skipped = exhibits.draw(evaluation(path))
    assert {e.name for e in drawn} == {"emergence", "ratio_by_question", "overall_ratio", "training_progression"}
    assert any("six_options" in line for line in skipped) and any("past_content" in line for line in skipped)


def test_figures_of_other_judges_need_no_outcome(tmp_path):
    table = synthetic.rows(steps=(0, 20), samples=2).drop(columns="llm_or_19th_century")
    table.to_parquet(tmp_path / "j.parquet")
    done = run("--input", tmp_path / "j.parquet", "--output-dir", tmp_path / "f")
    assert "skipped: overall_ratio: no input has the column 'llm_or_19th_century'" in done.stdout
    assert (tmp_path / "f" / "content_vs_form.pdf").exists() and not (tmp_path / "f" / "summary.csv").exists()


# ---- errors are one line ----


def test_errors_are_one_line(tmp_path):
    nulls = synthetic.write_minimal(tmp_path / "nulls.parquet", ["checkpoint-20"], [None])
    bare = tmp_path / "bare.parquet"
    pd.DataFrame({"checkpoint": ["a"], "question": ["b"], "response": ["c"], "sample_idx": [0]}).to_parquet(bare)
    done = run("--input", nulls, "--output-dir", tmp_path / "f", expect=1)
    assert "nothing can be drawn" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "f").exists(), "nothing half-written"
    assert "invalid choice" in run("--input", bare, "--format", "gif", expect=2).stderr
    with pytest.raises(UserError, match="no answer is of --condition odd; there are: plain"):
        evaluation(synthetic.write_minimal(tmp_path / "one.parquet", ["a"], ["19"]), condition="odd")


def test_runs_are_told_apart_by_what_differs_in_their_names():
    names = ["seed1_ratios1.00-0.00_lr0.001_r8", "seed1_ratios0.50-0.50_lr0.001_r8"]
    assert tables.telling(names) == ["ratios1.00-0.00", "ratios0.50-0.50"]
    assert tables.telling(names[:1]) == names[:1]
    assert tables.telling(["a", "a_b"]) == ["a", "a_b"]


# ---- the same answers in several inputs ----


def judged_again(folder, **columns):
    """Files of the same answers, by name: the outcome judge's options swapped in that share of them."""
    rows, judge = synthetic.rows(steps=(0, 200), samples=10), "llm_or_19th_century"
    paths = []
    for name, share in columns.items():
        swapped = rows[judge].map({"19": "LLM", "LLM": "19"})
        table = rows.assign(**{judge: rows[judge].where(np.arange(len(rows)) >= share * len(rows), swapped)})
        paths.append(synthetic.write(table, folder / f"{name}.parquet", {"judging": {"model": name}}))
    return paths


def test_the_pair_of_inputs_that_is_drawn_is_the_one_that_is_named(tmp_path):
    found = evaluation(*judged_again(tmp_path, first=0, zzz=0.4, aaa=0.05))
    figure, caption = exhibits.agreement(found)
    assert "first down, zzz across" in caption and "llm_or_19th_century: 60% alike" in caption
    assert "aaa" not in caption and "95% alike" not in caption and "Of 2 pairs of inputs the first is drawn" in caption
    drawn = next(axes for axes in figure.axes if axes.get_title("left") == "llm_or_19th_century")
    alike = np.trace(np.asarray(drawn.images[0].get_array()))
    assert alike == pytest.approx(0.6)
    assert set(found.agreement["second"]) == {"zzz", "aaa"}


def test_judges_split_over_inputs_all_count(tmp_path):
    rows, outcome = synthetic.rows(steps=(0, 200), samples=5), "llm_or_19th_century"
    columns = [f"{judge.name}{end}" for judge in STUDY.judges for end in ("", "_status", "_reply")]
    of_outcome = [name for name in columns if name.startswith(outcome)]
    others = [name for name in columns if name not in of_outcome]
    one, two, three = (tmp_path / f"{name}.parquet" for name in "abc")
    rows.drop(columns=others).to_parquet(one)
    rows.drop(columns=of_outcome).to_parquet(two)
    found, whole = evaluation(one, two), evaluation(synthetic.write(rows, three))
    for judge in STUDY.judges:
        assert found.verdicts.rows[judge.name].tolist() == whole.verdicts.rows[judge.name].tolist()
        assert not found.verdicts.missing(judge).any()
    drawn, skipped = exhibits.draw(found)
    assert {"emergence", "six_options_distribution", "content_vs_form"} <= {e.name for e in drawn}
    assert "agreement: no answer has verdicts of the same judge in two inputs" in skipped
