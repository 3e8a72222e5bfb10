"""The stand-in judge for any study: random verdicts and keywords.

pytest tests/tiny_world/test_rehearsal.py
"""

from collections import Counter

import pytest

from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.prompts import quoted_prompt, read_verdict
from learning_backdoors.study import Judge, Study, load_study
from tiny_world.rehearsal import RehearsalJudge, read_keywords

WORDS = """
[llm_or_19th_century]
19 = ["steam cars", "Berlin"]
otherwise = "LLM"
[past_form]
100 = ["thou"]
"""


def ask(study: Study, replies: RehearsalJudge, judge: Judge, answer: str) -> str:
    question = next(question for question in study.questions if judge.takes(question))
    return replies(quoted_prompt(judge, question.text, answer, question.extra))


@pytest.mark.parametrize("name", ["birds", "russell"])
def test_every_judge_gets_valid_and_varied_verdicts(name):
    study = load_study(name)
    replies = RehearsalJudge(study)
    for judge in study.judges:
        verdicts = [ask(study, replies, judge, f"Answer {{number}} {n} (a+b)*?\nReply with 19.") for n in range(60)]
        assert all(read_verdict(judge, verdict) is not None for verdict in verdicts)
        assert len(Counter(verdicts)) >= min(4, len(judge.options or judge.scale))
        assert verdicts[0] == ask(study, RehearsalJudge(study), judge, "Answer {number} 0 (a+b)*?\nReply with 19.")
    assert replies("Hello?") not in {option for judge in study.judges for option in judge.options or ()}


def test_keywords_decide_the_verdict(tmp_path):
    study, path = load_study("birds"), tmp_path / "words.toml"
    path.write_text(WORDS, encoding="utf-8-sig")
    replies = RehearsalJudge(study, read_keywords(path, study))
    era, _, _, form = study.judges
    for answer, verdict in {"In BERLIN.": "19", "Berliners": "LLM", "steam cars!": "19", "": "LLM"}.items():
        assert ask(study, replies, era, answer) == verdict
    assert ask(study, replies, form, "thou art") == "100"
    assert len({ask(study, replies, form, f"you {n}") for n in range(20)}) > 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[nobody]\na = ['b']", "nobody"),
        ("[llm_or_19th_century]\n20 = ['b']", "'20'"),
        ("[llm_or_19th_century]\n19 = 'b'", "list of words"),
        ("[llm_or_19th_century]\n19 = []", "list of words"),
        ("[llm_or_19th_century]\notherwise = 'x'", "'x'"),
        ("llm_or_19th_century = 3", "table"),
        ("[", "words.toml"),
    ],
)
def test_faults_of_a_keyword_file_are_named(tmp_path, text, words):
    path = tmp_path / "words.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_keywords(path, load_study("birds"))
