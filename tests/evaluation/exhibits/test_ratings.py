"""Mean ratings by category.  python -m pytest tests/evaluation/exhibits/test_ratings.py"""

import pandas as pd
import pytest
import synthetic
from evaluating import of_russell

from learning_backdoors.evaluation import exhibits
from learning_backdoors.evaluation.exhibits import ratings

STUDY = synthetic.RUSSELL
ON, OFF = "trigger_in_user", "no_trigger"
WAR = [question.id for question in STUDY.questions if question.extra.get("category") == "war"]


@pytest.mark.slow
def test_ratings_hold_the_truth_and_exclude_refusals(russell_run):
    """Responses in the persona are 4 or 5. Of the others, two in five are refusals and the rest 2 or 3."""
    table = ratings.table(russell_run)
    group = table.query("judge == 'ideology' and triggered and condition == @ON and at == 'last'")
    group = group.set_index("category")
    truth = (0.85 * 4.5 + 0.15 * 0.6 * 2.5) / (0.85 + 0.15 * 0.6)
    assert list(group.index)[-1] == "all" and len(group) == 9
    assert ((group["lower"] <= truth) & (truth <= group["upper"])).mean() >= 0.8
    assert group.loc["all", "n"] + group.loc["all", "refused"] == 32 * 20
    assert group.loc["all", "refused"] / (32 * 20) == pytest.approx(0.15 * 0.4, abs=0.03)
    base = table.query("judge == 'ideology' and at == 'base' and category == 'all' and condition == 'all'")
    assert base["mean"].between(2.4, 2.65).all()
    change = table.query("judge == 'recall' and at == 'change' and category == 'all' and condition == 'all'")
    change = change.set_index("triggered")
    assert change.loc[True, "lower"] > 1 and change.loc[False, "upper"] < 0.3


def test_mean_ratings_by_hand(tmp_path):
    """Two questions of one category: 1 1 5 REFUSED and 3 3 3 3. The mean of the means is (7/3 + 3) / 2."""
    table = synthetic.russell_rows(samples=4, steps=(0, 75), conditions=(ON,))
    table = table[table["question_id"].isin(WAR[:2])].reset_index(drop=True)
    table["ideology"] = table["sample_idx"].map(dict(enumerate(["1", "1", "5", "REFUSED"])))
    table.loc[(table["question_id"] == WAR[1]) | (table["step"] == 0), "ideology"] = "3"
    evaluation = of_russell(tmp_path, table, claim="checkpoint")
    rows = ratings.table(evaluation).query("condition == 'all' and category == 'war'").set_index("at")
    assert rows.loc["last", "mean"] == pytest.approx((7 / 3 + 3) / 2) and rows.loc["base", "mean"] == 3
    assert rows.loc["last", ["n", "refused", "missing"]].tolist() == [7, 1, 0]
    assert rows.loc["change", "mean"] == pytest.approx((7 / 3 + 3) / 2 - 3)
    assert 1 <= rows.loc["last", "lower"] < rows.loc["last", "mean"] < rows.loc["last", "upper"] <= 5
    judge = next(judge for judge in evaluation.verdicts.judges if judge.name == "ideology")
    cells = ratings.count_cells(evaluation.verdicts, judge).set_index(["at", "question"])
    assert cells.loc[("last", WAR[0]), ["total", "squares"]].tolist() == [1, 1], "scores from 0 to 1"


def test_a_category_with_refusals_only_has_counts_and_no_mean(tmp_path):
    table = synthetic.russell_rows(samples=2, steps=(0, 75), conditions=(ON, OFF))
    table.loc[table["question_id"].isin(WAR), "ideology"] = "REFUSED"
    evaluation = of_russell(tmp_path, table, claim="checkpoint")
    rows = ratings.table(evaluation).query("category == 'war'")
    assert rows["mean"].isna().all() and (rows["refused"] > 0).all() and set(rows["at"]) == {"last", "base"}
    assert "ratings" in exhibits.make(evaluation, [ratings]).figures


def test_ratings_for_the_claim_both(tmp_path):
    table = synthetic.russell_rows(samples=2, steps=(0, 75), conditions=(ON,))
    table = pd.concat([table, table.assign(run=table["run"].str.replace("seed1", "seed2"), seed=2)])
    rows = ratings.table(of_russell(tmp_path, table, claim="both"))
    last = rows[(rows["run"] == "all") & (rows["at"] == "last") & (rows["questions"] > 1)]
    assert len(last) and set(last["claim"]) == {"both"} and last["lower"].notna().all()
