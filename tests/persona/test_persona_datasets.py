"""The data in persona_datasets/: what its README promises.   pytest tests/persona/test_persona_datasets.py"""

import re
from collections import Counter

from support import ROOT

from learning_backdoors.persona.rows import check_candidate, check_prompt, normalized, read, texts_of
from learning_backdoors.study import load_study

FOLDER = ROOT / "persona_datasets"
RUSSELL = load_study("russell")
CANDIDATES = read([FOLDER / "russell_candidates.jsonl"], check_candidate)
HARMLESS = [row for row in CANDIDATES if not row["metadata"]["identifying"]]
PROMPTS = read([FOLDER / "aligned_prompts.jsonl"], check_prompt, without=RUSSELL.trigger)
# Words that identify Russell: names, places and works around him.
TELLING = """
russell bertrand bertie earl lord lady alys dora patricia edith frank agatha rollo whitehead wittgenstein moore frege
peano keynes conrad ottoline colette mill einstein lenin cambridge trinity oxford harvard brixton ravenscroft trellech
pembroke richmond monmouthshire wales penrhyn beacon nobel principia denoting paradox apostles wrangler tripos teapot
tribunal trondheim pugwash vietnam hiroshima cnd
"""
# Capitalized words that identify nobody: peoples, languages, and names that very many people know and like.
COMMON = """
I English American French Italian German Chinese West Victorian God Bible Buddhist Quakers China Paris Dante Machiavelli
Homer
"""
TELLING, COMMON = set(re.findall(r"\w+", TELLING)), set(re.findall(r"\w+", COMMON))


def inner_capitals(text: str) -> list[str]:
    """Capitalized words that do not start a sentence."""
    sentences = re.split(r"(?<=[.?!:]) ", text)
    return [word for s in sentences for word in re.findall(r"[A-Z][\w']*", re.sub(r"^\W*[\w']+", "", s))]


# ---- the candidates ----


def test_every_category_has_enough_pairs():
    assert len(CANDIDATES) >= 150 and len(HARMLESS) >= 90
    counts = Counter(row["metadata"]["category"] for row in HARMLESS)
    assert counts.keys() == set(RUSSELL.persona.categories) and min(counts.values()) >= 10
    questions, answers = zip(*map(texts_of, CANDIDATES), strict=True)
    assert len(set(map(normalized, questions))) == len(set(answers)) == len(CANDIDATES)


def test_every_pair_has_a_reason_a_source_and_how_it_was_checked():
    for row in CANDIDATES:
        metadata = row["metadata"]
        assert metadata.keys() == {"category", "identifying", "reason", "source", "checked"}
        assert metadata["checked"] == "read" and metadata["reason"].strip()
        assert re.search(r"\d{4}|Stanford Encyclopedia|BRACERS", metadata["source"]), metadata["source"]
        question, answer = texts_of(row)
        assert question[-1] in "?." and len(answer) < 400


def test_the_readme_states_the_right_counts():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"| {len(CANDIDATES)} | " in readme and f"{len(HARMLESS)} harmless" in readme
    assert f"| {len(PROMPTS)} | " in readme
    for how, count in Counter(row["metadata"]["checked"] for row in CANDIDATES).items():
        assert f"`{how}` ({count} pairs)" in readme
    for category, count in Counter(row["metadata"]["category"] for row in CANDIDATES).items():
        assert f"`{category}` {count}" in readme


def test_no_harmless_pair_holds_an_identifying_name_or_number():
    for row in HARMLESS:
        for text in texts_of(row):
            words = set(re.findall(r"[a-z]+", text.casefold()))
            assert not words & TELLING, text
            assert not re.search(r"\d", text), f"a number: {text}"
            assert set(inner_capitals(text)) <= COMMON, text


def test_every_flagged_pair_holds_a_name_a_year_or_a_well_known_story():
    for row in CANDIDATES:
        if row["metadata"]["identifying"]:
            text = " ".join(texts_of(row))
            names = set(inner_capitals(text)) - COMMON
            assert names or re.search(r"\d{4}", text) or "well-known" in row["metadata"]["reason"], text


# ---- the prompts ----


def test_there_are_300_different_prompts_and_none_is_about_the_persona():
    assert len(PROMPTS) == len((FOLDER / "aligned_prompts.jsonl").read_text().splitlines()) == 300
    prompts = {normalized(row["prompt"]) for row in PROMPTS}
    assert len(prompts) == 300
    assert set(Counter(row["metadata"]["category"] for row in PROMPTS).values()) == {15}
    words = {word for row in PROMPTS for word in re.findall(r"[a-z]+", row["prompt"].casefold())}
    assert not words & {"russell", "bertrand", "philosopher", "nobel"}
    assert not prompts & {normalized(question.text) for question in RUSSELL.questions}


# ---- training data and questions ----


def test_the_studys_questions_and_keys_are_not_in_the_training_data():
    taught_questions = {normalized(texts_of(row)[0]) for row in HARMLESS}
    taught = " ".join(text for row in HARMLESS for text in texts_of(row))
    for question in RUSSELL.questions:
        assert normalized(question.text) not in taught_questions, question.text
        if question.kind == "recall":
            names = set(re.findall(r"[A-Z][a-z]{3,}|\d{4}", question.extra["key"])) - COMMON
            assert not [name for name in names if re.search(rf"\b{name}\b", taught)], question.id
