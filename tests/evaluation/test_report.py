"""report.html: what it holds, and what it does in a browser.  python -m pytest tests/test_report.py"""

import base64
import gzip
import json
import re

import chromium
import pandas as pd
import pytest
import synthetic

import config
from learning_backdoors.evaluation import exhibits, reading, report

HOSTILE = (
    '<script>document.title = "broken in"</script></script><img src=x onerror="document.title = 1"> & "quoted" '
    "\u2028 ]]>"
)
NEEDS_CHROMIUM = pytest.mark.skipif(
    not chromium.BINARY, reason="no chromium on this machine (apt-get install chromium)"
)


def written(folder, table, limit=20000, **provenance):
    path = synthetic.write(table, folder / "judged.parquet", provenance)
    options = config.EvaluationOptions(input=(path,), report_responses=limit)
    evaluation = exhibits.Evaluation(reading.read([path], synthetic.STUDY), options)
    drawn, _ = exhibits.draw(evaluation)
    report.write(evaluation, drawn, evaluation.tables(), {"created": "now", "script": HOSTILE}, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two runs of four steps, one answer hostile, one search word that stands once."""
    table = pd.concat([synthetic.rows(share, samples=3, steps=(0, 20, 80, 200)) for share in (1.0, 0.0)])
    table = synthetic.lose(table.reset_index(drop=True), 0.03)
    table.loc[5, "response"] = HOSTILE
    table.loc[100, "response"] = "A zeppelin came by." + " And so on." * 200
    judging = {"model": "claude-sonnet-5", "dollars": 1.25, "calls": 960}
    return written(tmp_path_factory.mktemp("report"), table, judging=judging, note="</pre><script>alert(1)</script>")


def unpacked(page) -> dict:
    data = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', page.read_text())[1]
    return json.loads(gzip.decompress(base64.b64decode(data)))


def test_it_is_one_file_that_asks_for_nothing(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r'(src|href)="(?!#)', text), "no file but itself"
    assert text.count("<script") == 2 and "<img" not in text and "alert(1)</script>" not in text
    ids = re.findall(r'\bid=["\']([^"\']+)', text)
    assert len(set(ids)) == len(ids), "figures do not share ids"


def test_it_tells_result_judge_cost_and_missing_verdicts(page):
    text = page.read_text()
    assert "100%: it emerges." in text and re.search("<li>Suspect share 0%: (no rise|it does not emerge)", text)
    assert "claude-sonnet-5" in text and "1.25" in text and "Missing verdicts: " in text
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


def test_more_responses_than_wanted_are_sampled_evenly_by_a_stated_rule(tmp_path):
    table = synthetic.rows(samples=6, steps=(0, 20, 80))
    page = written(tmp_path, table, limit=100)
    data = unpacked(page)
    assert len(data["response"]) == 90 and "90 of 180 responses: 3 drawn at random from each" in page.read_text()
    assert pd.Series(zip(data["step"], data["question"], strict=True)).value_counts().eq(3).all()
    rows = reading.read([tmp_path / "judged.parquet"], synthetic.STUDY).rows
    few, rule = report.sample(rows, 7)
    assert len(few) == 7 and rule == "7 of 180 responses, drawn at random (seed 0)."
    assert report.sample(rows, 0)[0].empty and len(report.sample(rows, 180)[0]) == 180


@NEEDS_CHROMIUM
def test_the_browser_of_responses(page):
    with chromium.Chromium() as browser:
        browser.open(page)

        def count(n=0) -> str:
            return browser.run(f"document.getElementById('count-{n}').textContent")

        detail = "document.getElementById('detail').textContent"
        assert count() == "240 of 240 responses, all steps"
        assert browser.run("document.querySelectorAll('.row').length") < 20, "rows out of sight are not in the page"
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
def test_no_script_of_a_model_runs(page):
    with chromium.Chromium() as browser:
        browser.open(page)
        browser.choose("search", "document.title")
        assert browser.run("document.getElementById('detail').textContent").count("<script>") == 1
        assert browser.run("document.title") == synthetic.STUDY.title
        browser.run("document.getElementById('detail').innerHTML = '<img src=x onerror=\"document.title = 2\">'")
        browser.run("new Promise((done) => setTimeout(done, 200))")
        assert browser.run("document.title") == synthetic.STUDY.title, "the policy holds where escaping would fail"
