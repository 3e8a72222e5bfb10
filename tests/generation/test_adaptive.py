"""Adaptive sampling: what each round adds, what it reads, and the rounds of a real run."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generation_helpers import generate, row_keys

from learning_backdoors.files import parquet
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation import adaptive, plan
from learning_backdoors.generation.adaptive import Counts
from learning_backdoors.models.checkpoints import Checkpoint
from learning_backdoors.study import load_study

BIRDS = load_study("birds")


def rounds(rates: list[float], full: int = 100) -> list[np.ndarray]:
    """The samples per checkpoint after each round, if each question has exactly these rates."""
    samples = [np.zeros(len(rates), int)]
    while len(samples) < 20:
        n = np.repeat(samples[-1][:, None], 10, axis=1)
        wanted = adaptive.next_samples(samples[-1], np.round(n * np.array(rates)[:, None]), n, full)
        if (wanted == samples[-1]).all():
            return samples[1:]
        samples.append(wanted)
    raise AssertionError("the rounds do not end")


def test_the_first_round_is_log_spaced_and_has_both_ends():
    assert np.flatnonzero(adaptive.first_samples(12, 100)).tolist() == [0, 1, 2, 4, 8, 11]
    assert np.flatnonzero(adaptive.first_samples(42, 100)).tolist() == [0, 1, 2, 4, 8, 16, 32, 41]
    assert [adaptive.first_samples(n, 4).tolist() for n in (1, 2, 3)] == [[4], [4, 4], [4, 4, 4]]


def test_samples_go_where_the_rate_crosses_a_level():
    rates = [0.02] * 15 + [0.03, 0.1, 0.3, 0.5, 0.6] + [0.7] * 20
    first, *_, last = rounds(rates)
    assert set(first) == {0, 10}
    assert last[[16, 18]].tolist() == [100, 100], "at the levels themselves"
    assert (last[13:22] >= 10).all() and (last[17] < 100), "the neighbors have samples, but fewer"
    assert not last[[3, 5, 35, 36, 37, 38]].any() and last.sum() < 0.15 * 100 * len(rates)


def test_rounds_end_within_the_full_design():
    for rates in ([0.1] * 12, [0.5] * 12, [0.02] * 12, [0.02, 0.9] * 6, [0.02], [0.02, 0.1], np.linspace(0, 1, 12)):
        samples = rounds(rates, full=40)
        assert (np.diff(samples, axis=0) >= 0).all() and samples[-1].max() <= 40
    assert len(rounds([0.02] * 12)) == 1, "a run that never crosses is settled at once"


def test_noise_between_checkpoints_ends_the_sampling_sooner():
    smooth, noisy = [0.02] * 6 + [0.45, 0.47, 0.5, 0.5, 0.52, 0.53], [0.02] * 6 + [0.25, 0.7, 0.3, 0.75, 0.35, 0.7]
    assert rounds(noisy)[-1][6:].sum() < 0.5 * rounds(smooth)[-1][6:].sum()


def test_questions_and_checkpoints_without_verdicts_are_left_out():
    judged, n = np.full(4, 10), np.full((4, 10), 10)
    n[1], n[2, :3] = 0, 0  # all verdicts of a checkpoint are missing, and those of three questions at another one
    wanted = adaptive.next_samples(judged, np.round(n * np.array([[0], [0.5], [0.5], [0.9]])), n, 100)
    assert wanted.tolist() == [10, 10, 30, 10]
    assert adaptive.next_samples(judged, 0 * n, 0 * n, 100).tolist() == judged.tolist()


def fake_run(name: str, steps=(0, 8, 16)) -> SimpleNamespace:
    checkpoints = [Checkpoint(step, f"checkpoint-{step}", None) for step in steps]
    return SimpleNamespace(name=name, checkpoints=checkpoints, record={}, seen={}, folder=Path(name))


def counts_of(rates: dict[tuple[str, int], float], samples: int = 10) -> Counter:
    """Verdicts of cells by run and step; two of each cell are missing."""
    counts = Counter()  # gives 0 for other cells, which must be Counts
    counts.__class__ = type("Verdicts", (Counter,), {"__missing__": lambda self, key: Counts()})
    for (run, step), rate in rates.items():
        for question in BIRDS.questions:
            cell = run, f"checkpoint-{step}", "plain", question.id
            counts[cell] = Counts(samples, samples - 2, round(rate * (samples - 2)))
    return counts


def test_a_round_is_a_part_of_the_full_design():
    runs = [fake_run("a"), fake_run("b")]
    design = plan.plan_responses(runs, BIRDS, 40)
    first = adaptive.plan_round(runs, design, counts_of({}), 40)
    assert Counter(response.key[:2] for response in first.responses) == dict.fromkeys(
        [("base", "checkpoint-0"), *((run, f"checkpoint-{step}") for run in "ab" for step in (8, 16))], 100
    )
    assert (first.judged, first.settled) == (0, 0)

    judged = {("base", 0): 0.0, ("a", 8): 0.5, ("a", 16): 0.9, ("b", 8): 0.0, ("b", 16): 0.9}
    second = adaptive.plan_round(runs, design, counts_of(judged), 40)
    assert (second.judged, second.settled) == (500, 1)
    assert {response.key[:2] for response in second.responses} == {("a", "checkpoint-8")}
    assert {response.sample_idx for response in second.responses} == set(range(10, 40)), "30 would be close to 40"
    assert {id(response) for response in second.responses} <= {id(response) for response in design}

    runs.append(fake_run("c"))
    joined = adaptive.plan_round(runs, plan.plan_responses(runs, BIRDS, 40), counts_of(judged), 40)
    new = Counter(response.key[:2] for response in joined.responses if response.key[0] != "a")
    assert joined.settled == 1 and new == dict.fromkeys([("c", "checkpoint-8"), ("c", "checkpoint-16")], 100)

    runs.append(fake_run("diverged before the first of --steps", ()))
    with_empty = adaptive.plan_round(runs, plan.plan_responses(runs, BIRDS, 40), counts_of(judged), 40)
    assert with_empty.responses == joined.responses


def write_judged(responses: Path, judged: Path, rates: dict[int, float]) -> None:
    """Judge a responses file: this share of the answers at each step is positive."""
    table, footer = parquet.read_responses(responses)
    hits = [row["sample_idx"] % 10 < 10 * rates[row["step"]] for row in table.to_pylist()]
    verdicts = pa.array(["19" if hit else "LLM" for hit in hits])
    parquet.write_parquet(judged, [t := table.append_column(BIRDS.outcome.judge, verdicts)], t.schema, footer)


def test_a_judged_file_of_other_responses_is_refused(tmp_path):
    responses, judged = tmp_path / "r.parquet", tmp_path / "j.parquet"
    cell = {"run": "a", "checkpoint": "checkpoint-8", "step": 8, "condition": "plain", "question_id": "q"}
    rows = [cell | {"question": "?", "sample_idx": i, "response": f"Yes {i}."} for i in range(10)]
    table = pa.Table.from_pylist([dict.fromkeys(parquet.RESPONSE_SCHEMA.names) | row for row in rows])
    pq.write_table(table.cast(parquet.RESPONSE_SCHEMA), responses)
    write_judged(responses, judged, {8: 0.3})
    by_key = {tuple(row[name] for name in plan.KEY_COLUMNS): row for row in rows}
    assert adaptive.read_counts(judged, BIRDS, by_key) == {("a", "checkpoint-8", "plain", "q"): (10, 10, 3)}
    assert not adaptive.read_counts(tmp_path / "none.parquet", BIRDS, by_key)
    with pytest.raises(UserError, match="no verdicts of the judge"):
        adaptive.read_counts(responses, BIRDS, by_key)
    by_key["a", "checkpoint-8", "plain", "q", 4] |= {"response": "Other."}
    by_key.pop(("a", "checkpoint-8", "plain", "q", 5))
    with pytest.raises(UserError, match=r"j\.parquet has verdicts on 2 responses"):
        adaptive.read_counts(judged, BIRDS, by_key)


@pytest.mark.slow
def test_rounds_of_a_run(run_dir, tmp_path, capsys):
    output, judged = tmp_path / "r.parquet", tmp_path / "j.parquet"
    line = (run_dir, output, "--samples", 20, "--max-new-tokens", 2, "--adaptive", judged)
    rates = {0: 0.0, 8: 0.5, 16: 0.9}
    first = generate(*line)
    assert Counter(row["step"] for row in first) == dict.fromkeys([0, 8, 16], 100)
    assert generate(*line) == first, "without verdicts, the same round again"
    write_judged(output, judged, rates)
    second = generate(*line)
    assert Counter(row["step"] for row in second) == {0: 100, 8: 200, 16: 100}
    assert all(row in second for row in first[:20]) and len(set(row_keys(second))) == 400
    assert parquet.read_footer(output)["options"]["adaptive"] == str(judged)
    write_judged(output, judged, rates)
    capsys.readouterr()
    assert generate(*line) == second
    printed = capsys.readouterr().out
    assert "400 of the full design's 600" in printed and "1 of 1 runs" in printed and "nothing to add" in printed
