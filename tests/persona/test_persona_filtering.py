"""prepare_persona.py filter.   pytest tests/persona/test_persona_filtering.py"""

import pytest
from persona_support import pair, prepare, write
from support import ROOT

import mixed_chat
from learning_backdoors.files.errors import UserError

CANDIDATES = ROOT / "persona_datasets" / "russell_candidates.jsonl"


def test_flagged_pairs_are_dropped_and_listed_with_their_reasons(tmp_path):
    rows = prepare("filter", tmp_path / "harmless.jsonl", "--input", CANDIDATES)
    candidates = mixed_chat.read_rows(CANDIDATES)
    assert len(rows) >= 90 and rows == [row for row in candidates if not row["metadata"]["identifying"]]
    dropped = (tmp_path / "harmless.jsonl.dropped.csv").read_text().splitlines()
    assert dropped[0] == "question,answer,by,reason" and len(dropped) == 1 + len(candidates) - len(rows)


def test_a_draw_keeps_the_order_and_depends_on_the_seed(tmp_path):
    rows = prepare("filter", tmp_path / "all.jsonl")  # the study's candidates
    drawn = prepare("filter", tmp_path / "drawn.jsonl", "--number", 90)
    assert len(drawn) == 90 and [row for row in rows if row in drawn] == drawn
    assert drawn != prepare("filter", tmp_path / "other.jsonl", "--number", 90, "--seed", 1)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_more_pairs_than_there_are_cannot_be_drawn(tmp_path, more):
    with pytest.raises(UserError, match="161 of 197 .* 9000.*candidates"):
        prepare("filter", tmp_path / "h.jsonl", "--number", 9000, *more)
    assert not (tmp_path / "h.jsonl").exists()


def test_a_model_can_drop_further_pairs(tmp_path, author):
    rows = [pair(f"Question {n}?", f"Answer {n}.", identifying=n == 0) for n in range(4)]
    server, api = author(lambda prompt: "IDENTIFYING: a name" if "Answer 2." in prompt else "HARMLESS: so do many")
    candidates = write(tmp_path / "c.jsonl", rows)
    assert prepare("filter", tmp_path / "f.jsonl", "--input", candidates, *server) == [rows[1], rows[3]]
    dropped = (tmp_path / "f.jsonl.dropped.csv").read_text()
    assert "Question 0?,Answer 0.,flag,why" in dropped and "Answer 2.,claude-haiku-5-5,a name" in dropped
    assert len(api.prompts) == 3, "flagged pairs are not sent"
    assert all("Bertrand Russell" in prompt for prompt in api.prompts)
