"""Inputs of all kinds: which runs they describe, what they measured, and what is refused.

Runs  python -m pytest tests/evaluation/test_measurements.py
"""

import json

import evaluating
import numpy as np
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation import exhibits, measurements, output
from learning_backdoors.evaluation.context import NotMeasured
from learning_backdoors.files.errors import UserError

STEPS = (0, 20, 40)
RUN = synthetic.run_name(1.0, 1)


@pytest.fixture
def likelihoods(tmp_path):
    """likelihood.parquet of two runs."""
    rows = [synthetic.likelihood_rows(share, 1, STEPS, questions=3) for share in (1.0, 0.0)]
    return synthetic.write_likelihood(tmp_path / "likelihood.parquet", *rows)


def read(*paths) -> measurements.Measurements:
    return measurements.read(paths, synthetic.STUDY)


def test_measured_files_alone_name_runs_recipes_and_steps(likelihoods):
    evaluation = evaluating.evaluation(likelihoods, x="suspect_examples")
    assert evaluation.recipe_labels == ["100%", "0%"] and evaluation.condition == "plain"
    assert evaluation.names["0%"] == "0% suspect (control)" and len(set(evaluation.colors.values())) == 2
    table = evaluation.measured("likelihood")
    assert set(table["run"]) == {RUN, synthetic.run_name(0.0, 1)}, "the base model is step 0 of both"
    assert (table.groupby("run")["step"].unique().map(sorted).map(tuple) == STEPS).all()
    assert list(evaluation.steps_to_x("100%", [0, 10, 40])) == [0, 10, 40]
    with pytest.raises(NotMeasured):
        evaluation.verdicts  # noqa: B018


def test_every_kind_of_input_counts_for_the_same_runs(tmp_path, likelihoods):
    judged = synthetic.write(synthetic.rows(steps=STEPS, samples=1), tmp_path / "judged.parquet")
    folder = synthetic.write_run(tmp_path / RUN, losses=[3.0, 2.0])
    for paths in ((judged, likelihoods, folder), (folder, likelihoods, judged)):
        evaluation = evaluating.evaluation(*paths)
        assert set(evaluation.runs.table.index) == {RUN, synthetic.run_name(0.0, 1)}
        assert [source["kind"] for source in evaluation.sources].count("run") == 1
        assert evaluation.recipe_labels == ["100%", "0%"] and set(evaluation.cells["label"]) == {"100%"}
        assert len(evaluation.of_runs("losses", ["step", "loss"])) == 2


def test_probes_of_a_run_directory_are_likelihoods(tmp_path):
    rows = synthetic.likelihood_rows(1.0, 1, STEPS, questions=3)
    file = synthetic.write_likelihood(tmp_path / "likelihood.parquet", rows)
    folder = synthetic.write_run(tmp_path / RUN, probes=rows)
    columns = ["run", "label", "step", "condition", "question", "group", "answer_idx", "logprob"]
    tables = [
        read(path).tables["likelihood"][columns].sort_values(columns, ignore_index=True) for path in (file, folder)
    ]
    pd.testing.assert_frame_equal(*tables, check_dtype=False)


def test_a_run_that_diverged_before_the_first_measured_step_counts(tmp_path):
    """Only the record of such a run is in the file."""
    rows, lost = synthetic.likelihood_rows(1.0, 1, STEPS, questions=3), synthetic.run_name(1.0, 2)
    planned = [{"step": step, "examples": step, "suspect_examples": step} for step in STEPS]
    record = {"checkpoints": planned, "suspect_ratio": 1.0}
    records = {RUN: {}, lost: record | {"diverged": {"step": 3, "reason": "loss nan"}}}
    provenance = {"settings": {"experiment": "birds"}, "runs": records}
    found = read(synthetic.write_likelihood(tmp_path / "likelihood.parquet", rows, provenance=provenance))
    assert found.runs.table["diverged"].to_dict() == {RUN: pytest.approx(np.nan, nan_ok=True), lost: 3}
    assert set(found.tables["likelihood"]["run"]) == {RUN}


def test_a_measured_file_wins_over_the_probes_of_its_runs(tmp_path):
    rows, other = (synthetic.likelihood_rows(1.0, seed, STEPS, questions=3) for seed in (1, 2))
    file = synthetic.write_likelihood(tmp_path / "likelihood.parquet", rows)
    first = synthetic.write_run(tmp_path / RUN, probes=rows.assign(logprob=-99.0))
    second = synthetic.write_run(tmp_path / synthetic.run_name(1.0, 2), probes=other)
    table = read(first, file, second).tables["likelihood"]
    assert -99 not in set(table["logprob"]) and table["run"].nunique() == 2


def test_one_measurement_in_two_files_counts_once(tmp_path, likelihoods):
    rows = synthetic.likelihood_rows(1.0, 1, STEPS, questions=3)
    same = synthetic.write_likelihood(tmp_path / "same.parquet", rows)
    assert len(read(likelihoods, same).tables["likelihood"]) == len(read(likelihoods).tables["likelihood"])
    other = synthetic.write_likelihood(tmp_path / "other.parquet", rows.assign(logprob=rows["logprob"] - 1))
    with pytest.raises(UserError, match=f"{RUN} was measured more than once.*other.parquet"):
        read(likelihoods, other)


def test_other_reference_answers_to_one_question_are_refused(tmp_path):
    """Their means would be compared, though other texts were measured."""
    rows = [synthetic.likelihood_rows(1.0, seed, STEPS, questions=3) for seed in (1, 2)]
    texts = ['[[question]]\nid = "q1"\ntext = "?"\n[question.answers]\nold = ["1820"]\n', "", ""]
    texts[1] = texts[0] + '[[question]]\nid = "q2"\ntext = "?"\n[question.answers]\nold = ["1810"]\n'
    texts[2] = texts[0].replace('"1820"', '"1820", "1810"')
    paths = [tmp_path / f"{n}.parquet" for n in range(3)]
    for path, text, table in zip(paths, texts, [rows[0], rows[1], rows[1]], strict=True):
        footer = {"settings": {"experiment": "birds"}, "references": {"sha256": "0", "text": text}}
        synthetic.write_likelihood(path, table, provenance=footer)
    assert read(*paths[:2]).tables["likelihood"]["run"].nunique() == 2, "further questions are no contradiction"
    with pytest.raises(UserError, match="0.parquet and .*2.parquet measured other reference answers.*'q1'"):
        read(paths[0], paths[2])
    record = {"references": {"text": texts[2]}}
    folder = synthetic.write_run(tmp_path / synthetic.run_name(1.0, 2), probes=rows[1], **record)
    with pytest.raises(UserError, match="'q1'"):
        read(paths[0], folder)
    assert read(paths[1], folder), "the probes of a run with likelihoods are not used"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"suspect_ratio": 0.25}, "suspect_ratio is 1 in .*likelihood.parquet, but 0.25"),
        ({"settings": {"model": "m", "seed": 2}}, "seed is 1 in .*likelihood.parquet, but 2"),
        ({"checkpoints": [{"step": 20, "examples": 160, "suspect_examples": 160}]}, "examples_seen at step 20 is 20"),
    ],
)
def test_inputs_that_describe_a_run_differently_are_refused(tmp_path, likelihoods, change, message):
    folder = synthetic.write_run(tmp_path / RUN, **change)
    with pytest.raises(UserError, match=f"{RUN}: {message}"):
        read(likelihoods, folder)


def test_inputs_whose_runs_were_trained_with_other_settings_are_refused(tmp_path):
    folder = synthetic.write_run(tmp_path / RUN)
    footer = {"runs": {RUN: {"settings": {"model": "m", "seed": 1, "lr": 0.1}}}}
    judged = synthetic.write(synthetic.rows(steps=STEPS, samples=1), tmp_path / "judged.parquet", footer)
    with pytest.raises(UserError, match=f"{RUN} is not the same run.*lr"):
        read(judged, folder)


def test_inputs_that_cannot_be_read_are_errors_of_one_line(tmp_path, likelihoods):
    table = pd.read_parquet(likelihoods)
    folder, broken = tmp_path / "no_run", tmp_path / "broken"
    folder.mkdir()
    cases = {
        "not 'seed'": table.drop(columns="seed"),
        "'step' is null in 1 row": table.assign(step=table["step"].astype("Int64").where(table.index > 0)),
        "no rows": table.iloc[:0],
        "cannot be read as likelihood.parquet": table.assign(logprob="high"),
        "'logprob' has infinite values": table.assign(logprob=-np.inf),
    }
    for message, rows in cases.items():
        rows.to_parquet(tmp_path / "bad.parquet")
        with pytest.raises(UserError, match=message) as error:
            read(tmp_path / "bad.parquet")
        assert "bad.parquet" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="not a run directory"):
        read(folder)
    synthetic.write_run(broken)
    (broken / "metrics.jsonl").write_text('{"step": 20, "probes": [{"logprob": "high"}]}\n')
    with pytest.raises(UserError, match="probes.*logprob|probes.*question"):
        read(broken)


def test_the_study_is_that_of_every_input(tmp_path, likelihoods):
    folder = synthetic.write_run(tmp_path / RUN)
    assert measurements.study_of_inputs(None, [folder]).name == "birds"
    assert measurements.study_of_inputs(None, [likelihoods, folder]).name == "birds"
    other = synthetic.write_run(tmp_path / "other", settings={"model": "m", "experiment": "russell"})
    with pytest.raises(UserError, match="different studies"):
        measurements.study_of_inputs(None, [likelihoods, other])


def test_without_verdicts_everything_about_rates_is_left_out_in_silence(tmp_path, likelihoods):
    evaluation = evaluating.evaluation(likelihoods)
    made = exhibits.make(evaluation)
    assert evaluating.skipped(made) == {"losses"} and set(made.figures) == {"likelihood"}
    output.write_analysis(evaluation, made, [], {}, tmp_path / "analysis.json")
    document = json.loads((tmp_path / "analysis.json").read_text())
    assert "era" in document["headline"][0] and document["inputs"][0]["kind"] == "likelihood"


def test_nothing_about_judges_of_the_study_is_said_without_verdicts(likelihoods):
    made = exhibits.make(evaluating.evaluation(likelihoods, study=synthetic.RUSSELL))
    assert "content_vs_form" not in evaluating.skipped(made) and made.tables == {}


def test_the_base_model_alone_is_no_change(tmp_path):
    rows = synthetic.likelihood_rows(1.0, 1, (0,), questions=3)
    made = exhibits.make(evaluating.evaluation(synthetic.write_likelihood(tmp_path / "base.parquet", rows)))
    assert not made.figures and any("step 0" in reason for reason in made.skipped)


def test_verdicts_of_the_base_model_beside_likelihoods_of_runs(tmp_path, likelihoods):
    judged = synthetic.write(synthetic.rows(steps=(0,), samples=2), tmp_path / "judged.parquet")
    made = exhibits.make(evaluating.evaluation(judged, likelihoods))
    assert "likelihood" in made.figures and "emergence" not in made.figures
    assert np.isfinite(made.tables["likelihood"]["change"]).all()
