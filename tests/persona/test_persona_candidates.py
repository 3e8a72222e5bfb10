"""prepare_persona.py candidates, and how replies are kept and paid for.

pytest tests/persona/test_persona_candidates.py
"""

import pytest
from persona_support import KEY, pair, prepare, reply_with_pairs, write

from learning_backdoors.files.errors import UserError
from learning_backdoors.persona.pairs import pairs_in
from learning_backdoors.persona.rows import check_candidate, read


@pytest.fixture
def known(tmp_path):
    return write(tmp_path / "known.jsonl", [pair("Do you smoke?")])


def test_new_pairs_are_unchecked_and_existing_questions_are_left_out(tmp_path, author, known):
    server, api = author(reply_with_pairs)
    rows = prepare("candidates", tmp_path / "new.jsonl", "--known", known, "--number", 25, *server)
    assert len(rows) == 25 - 3 and len(api.prompts) == 3
    assert [row["metadata"]["identifying"] for row in rows[:3]] == [False, True, False]
    assert all(row["metadata"]["source"].startswith("unchecked, written by claude-haiku-5-5") for row in rows)
    assert {row["metadata"]["category"] for row in rows} == {"taste", "habit", "view"}, "the study's categories"
    assert read([tmp_path / "new.jsonl"], check_candidate) == rows
    assert KEY not in "".join(path.read_text(errors="replace") for path in tmp_path.iterdir() if path.is_file())


def test_a_prompt_names_person_category_and_existing_questions(tmp_path, author, known):
    server, api = author(reply_with_pairs)
    line = ["--known", known, "--number", 3, "--person", "Ada", "--categories", "taste", *server]
    prepare("candidates", tmp_path / "new.jsonl", *line)
    (prompt,) = api.prompts
    assert "Ada" in prompt and "Russell" not in prompt and "taste" in prompt and "- Do you smoke?" in prompt
    assert '{"question": "...", "answer": "...", "identifying": false' in prompt


def test_a_reply_that_is_not_a_list_of_pairs_is_asked_for_again(tmp_path, author, known):
    replies = iter(["Certainly! Here are ten pairs."])
    server, api = author(lambda prompt: next(replies, None) or reply_with_pairs(prompt))
    assert len(prepare("candidates", tmp_path / "new.jsonl", "--known", known, "--number", 5, *server)) == 4
    assert len(api.prompts) == 2


ITEM = '{"question": "q", "answer": "a", "identifying": true, "reason": "r", "source": "s"}'
CHANGED_ITEMS = [ITEM.replace("true", "1"), ITEM.replace('"r"', '" "'), ITEM.replace("}", ', "more": 1}')]


@pytest.mark.parametrize("reply", ["", "[]", "[1]", ITEM, "[" * 100_000, *(f"[{item}]" for item in CHANGED_ITEMS)])
def test_other_replies_hold_no_pairs(reply):
    assert pairs_in(reply) == [] and len(pairs_in(f"[{ITEM}]")) == 1


def test_replies_are_not_paid_for_twice(tmp_path, author, known):
    server, api = author(lambda prompt: "not a list" if len(api.prompts) > 2 else reply_with_pairs(prompt))
    line = ["--known", known, "--number", 50, "--concurrency", 1, *server]
    with pytest.raises(UserError, match="3 of 5"):
        prepare("candidates", tmp_path / "out.jsonl", *line)
    assert not (tmp_path / "out.jsonl").exists() and len(api.prompts) == 2 + 3 * 3
    api.reply = reply_with_pairs
    with pytest.raises(UserError, match="--asks 6"):
        prepare("candidates", tmp_path / "out.jsonl", *line)
    assert len(api.prompts) == 2 + 3 * 3
    line += ["--asks", 4]
    assert len(prepare("candidates", tmp_path / "out.jsonl", *line)) == 45 and len(api.prompts) == 2 + 3 * 3 + 3


def test_the_cap_counts_starts_with_other_settings(tmp_path, author, known):
    server, api = author(reply_with_pairs)
    line = ["--known", known, "--number", 10, "--overwrite", "--price", 1000, 1000, *server]
    prepare("candidates", tmp_path / "out.jsonl", *line)
    worst = (len(api.prompts[0].encode()) + 500 + 2001) / 1000  # dollars, for the same prompt with other settings
    with pytest.raises(UserError, match="--max-cost"):
        prepare("candidates", tmp_path / "out.jsonl", *line, "--max-tokens", 2001, "--max-cost", worst + 0.01)
    assert len(api.prompts) == 1


def test_model_key_price_and_person_are_required(tmp_path, monkeypatch, known):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for line, parts in [
        ([], ["--model"]),
        (["--model", "claude-haiku-5-5"], ["API key"]),
        (["--model", "some/model", "--max-cost", 7], ["--price"]),
        (["--model", "claude-haiku-5-5", "--experiment", "birds"], ["--person", "birds.toml", "[persona]"]),
    ]:
        with pytest.raises(UserError) as caught:
            prepare("candidates", tmp_path / "out.jsonl", "--known", known, *line)
        assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)
