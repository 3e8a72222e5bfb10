"""report.html: what it contains, and what it does in a browser.

Runs  python -m pytest tests/evaluation/report/test_report.py
"""

import base64
import gzip
import json
import re

import chromium
import evaluating
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation import exhibits, notes
from learning_backdoors.evaluation.report import report

pytestmark = pytest.mark.slow
HOSTILE = (
    '<script>document.title = "broken in"</script></script><img src=x onerror="document.title = 1"> & "quoted" '
    "\u2028 ]]>"
)
NEEDS_CHROMIUM = pytest.mark.skipif(
    not chromium.BINARY, reason="no chromium on this machine (apt-get install chromium)"
)


def write_report(folder, table, limit=20000, of=evaluating.of_birds, **options):
    """The report of one table."""
    evaluation = of(folder, table, report_responses=limit, **options)
    made = exhibits.make(evaluation)
    about = {"created": "now", "script": HOSTILE}
    report.write(evaluation, made, notes.notes(evaluation), about, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two runs of four steps, one hostile response, and one search word that occurs once."""
    table = pd.concat([synthetic.rows(share, samples=3, steps=(0, 20, 80, 200)) for share in (1.0, 0.0)])
    table = synthetic.lose(table.reset_index(drop=True), 0.03)
    table.loc[5, "response"] = HOSTILE
    table.loc[100, "response"] = "A zeppelin came by." + " And so on." * 200
    footer = {
        "judging": {"model": "claude-sonnet-5", "dollars": 1.25, "calls": 960},
        "note": "</pre><script>alert(1)</script>",
        "precision": {"generation": "none", "training": {synthetic.run_name(1.0, 1): "8bit"}},
    }
    return write_report(tmp_path_factory.mktemp("report"), table, provenance=[footer])


def unpacked(page) -> dict:
    data = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', page.read_text())[1]
    return json.loads(gzip.decompress(base64.b64decode(data)))


def test_it_is_one_file_that_loads_nothing(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r'(src|href)="(?!#)', text), "no other file"
    assert text.count("<script") == 2 and "<img" not in text and "alert(1)</script>" not in text
    ids = re.findall(r'\bid=["\']([^"\']+)', text)
    assert len(set(ids)) == len(ids), "figures do not share ids"


def test_it_states_result_judge_cost_precision_and_missing_verdicts(page):
    text = page.read_text()
    assert "100%: it emerges" in text and "<li>Suspect share 0%: " in text
    assert "claude-sonnet-5" in text and "1.25" in text and "Missing verdicts: " in text
    assert re.search("class='warn'>[^<]*base model precision none[^<]*8bit", text)
    for name in ("emergence", "ratio_sweep", "six_options_distribution"):
        assert f"<figure id='{name}'" in text
    for name in ("summary", "emergence", "comparisons"):
        assert f"<summary>{name}.csv" in text


def test_every_response_is_in_it_with_its_verdicts(page):
    data = unpacked(page)
    assert len(data["response"]) == 240 and HOSTILE in data["response"]
    at = data["response"].index(HOSTILE)
    assert data["runs"][data["run"][at]] == synthetic.run_name(1.0, 1) and data["step"][at] == 0
    assert data["steps"] == [0, 20, 80, 200]


def test_too_many_responses_are_sampled_evenly(tmp_path):
    table = synthetic.rows(samples=6, steps=(0, 20, 80))
    page = write_report(tmp_path, table, limit=100)
    data = unpacked(page)
    assert len(data["response"]) == 90 and "90 of 180 responses: 3 " in page.read_text()
    assert pd.Series(zip(data["step"], data["question"], strict=True)).value_counts().eq(3).all()
    rows = evaluating.of_birds(tmp_path, table).verdicts.rows
    few, rule = report.sample(rows, 7)
    assert len(few) == 7 and rule.startswith("7 of 180 responses") and "seed 0" in rule
    assert report.sample(rows, 0)[0].empty and len(report.sample(rows, 180)[0]) == 180


def test_verdicts_that_were_lost_and_those_never_requested_are_told_apart(tmp_path):
    table = synthetic.russell_rows(samples=5, steps=(0, 75), conditions=("trigger_in_user", "no_trigger"))
    asked = table.index[table["persona_status"].notna()]
    table.loc[asked[:7], ["persona", "persona_status"]] = [None, "truncated"]
    page = write_report(tmp_path, table, of=evaluating.of_russell, claim="checkpoint")
    assert "persona: Missing verdicts: 7 of 280 (2.5%)" in page.read_text()
    assert "recall: Missing" not in page.read_text()
    verdicts = unpacked(page)["verdicts"]["persona"]
    assert sum(v is None for v in verdicts) == 7 and sum(v is False for v in verdicts) == len(table) - 280


@NEEDS_CHROMIUM
def test_the_browser_of_responses(page):
    with chromium.Chromium() as browser:
        browser.open(page)

        def count(n=0) -> str:
            return browser.run(f"document.getElementById('count-{n}').textContent")

        detail = "document.getElementById('detail').textContent"
        assert count() == "240 of 240 responses, all steps"
        assert browser.run("document.querySelectorAll('.row').length") < 20, "rows outside the view are not in the page"
        browser.choose("search", "zeppelin")
        assert count().startswith("1 of 240") and "A zeppelin came by." in browser.run(detail)
        assert browser.run("document.querySelector('#detail .hit').textContent") == "zeppelin"
        assert browser.run("location.hash") == "#view?search=zeppelin"

        browser.open(page, "#view?run=0&question=1&step=0&beside=200")
        assert (count(0), count(1)) == ("3 of 240 responses, step 0", "3 of 240 responses, step 200")
        assert browser.run("document.querySelectorAll('#list-1 .row').length") == 3
        browser.press("]")
        assert count(0) == "3 of 240 responses, step 20"
        first = browser.run(detail)
        browser.press("j")
        assert browser.run(detail) != first and browser.run("location.hash").endswith("at=1")

        browser.open(page, "#view?judge=llm_or_19th_century&verdict=missing")
        shown = int(count().split()[0])
        assert shown == sum(v is None for v in unpacked(page)["verdicts"]["llm_or_19th_century"]) > 0
        browser.choose("judge", "past_content")
        browser.choose("verdict", "4")
        assert int(count().split()[0]) == sum((v or 0) >= 80 for v in unpacked(page)["verdicts"]["past_content"])
        assert browser.errors == []


@NEEDS_CHROMIUM
def test_no_script_in_a_response_runs(page):
    with chromium.Chromium() as browser:
        browser.open(page)
        browser.choose("search", "document.title")
        assert browser.run("document.getElementById('detail').textContent").count("<script>") == 1
        assert browser.run("document.title") == synthetic.STUDY.title
        browser.run("document.getElementById('detail').innerHTML = '<img src=x onerror=\"document.title = 2\">'")
        browser.run("new Promise((done) => setTimeout(done, 200))")
        assert browser.run("document.title") == synthetic.STUDY.title, "the policy holds even without escaping"
