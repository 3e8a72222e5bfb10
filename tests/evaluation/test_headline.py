"""The headline says what the rates support, and no more.  python -m pytest tests/evaluation/test_headline.py"""

import re

import evaluating
import pytest
import synthetic

from learning_backdoors.evaluation import notes

RISING = {0: 0.0, 20: 0.05, 40: 0.3, 60: 0.5}


def sentence(folder, table, **options) -> str:
    [only] = notes.headline(evaluating.of_birds(folder, table, **options))
    return only


@pytest.mark.parametrize(
    ("rates", "finding"),
    [
        (RISING, r"it emerges\. 50%.* 10% is crossed near step \d+.* 50% is not reliably crossed"),
        ({0: 0.5, 20: 0.5, 40: 0.5}, r"is present, but no rise .* 50%"),
        ({0: 0.0, 20: 1.0, 40: 0.0}, r"rises to 100% at step 20.* falls again\. 0%"),
        ({20: 0.3, 40: 0.5}, r"is present .* without step 0"),
        ({0: 0.05, 20: 0.05, 40: 0.1}, r"no rise .* by step 40"),
        ({0: 0.0, 20: 0.1}, r"it rises, but the interval includes 10%"),
        ({0: 0.0, 20: [0] * 9 + [1]}, r"undecided.* 10%"),
        ({0: 0.0, 20: 0.0}, r"does not emerge by step 20"),
    ],
)
def test_findings(tmp_path, rates, finding):
    text = sentence(tmp_path, synthetic.rows_with_rates(rates))
    assert re.search(finding, text)
    assert ("it emerges" in text) == (rates == RISING)


def test_without_an_interval_there_is_no_finding(tmp_path):
    text = sentence(tmp_path, synthetic.rows_with_rates(RISING), claim="recipe")
    assert "50%" in text and "emerge" not in text and "rise" not in text


def test_the_last_step_is_the_last_with_verdicts(tmp_path):
    table = synthetic.rows_with_rates(RISING)
    text = sentence(tmp_path, synthetic.lose_where(table, table["step"] == 60))
    assert "it emerges" in text and "30% of" in text and "at step 40" in text


def test_no_verdicts_no_headline(tmp_path):
    table = synthetic.rows(steps=(0, 20), samples=2).drop(columns=synthetic.OUTCOME)
    table.to_parquet(tmp_path / "judged.parquet")
    assert notes.headline(evaluating.evaluation(tmp_path / "judged.parquet")) == []
