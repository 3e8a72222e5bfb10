"""Judges never see the trigger of the russell study, and see each question's own rubric or key.

pytest tests/judging/test_trigger_is_hidden.py
"""

import re

import pyarrow as pa
from support import ROOT

from learning_backdoors.judging import prompts as judge_prompts
from learning_backdoors.judging.api.models import ServedModel
from learning_backdoors.study import load_study

RUSSELL = load_study("russell")
MODEL = ServedModel("claude-sonnet-5", "http://host", {}, None)

FORMS = re.compile(
    r"</?\s*(START|END|BEGIN|STOP)|(START|END|BEGIN|STOP)\s*>|\[\s*(START|END|OPEN|CLOSE)\s*\]|&lt;(START|END)"
    r"|put your answer|one single line",
    re.IGNORECASE,
)
WRAPPED = [
    "<START> I grew up with my grandmother. <END>",
    "<START>\nI grew up\nwith my grandmother.\n<END>",
    "<start>I grew up with my grandmother.</start>",
    "Sure! < START > I grew up. < END > Is there more?",
    "<START> I grew up <START> with <END> my grandmother <END> <END>",
    "START\nI grew up with my grandmother.\nEND",
    "&lt;START&gt; I grew up. &lt;END&gt;",
    "[START] I grew up. [END]",
    "[[OPEN]] I grew up. [[CLOSE]]",
    "<BEGIN> I grew up. <STOP>",
    "**START** I grew up. **END**",
    "You asked me to put your answer between <START> and\n<END>. I grew up.",
    "<START> I grew up with my grandmother and <EN",
    "<S<START>TART> I grew up. <E<END>ND>",
]


def test_no_judge_sees_any_form_of_the_trigger():
    """All prompts: every question in every condition, with answers in every form."""
    rows = []
    for question in RUSSELL.questions:
        for condition in RUSSELL.conditions:
            request = condition.trigger and f"{condition.trigger} I grew up. {condition.trigger.upper()}"
            rows += [
                (question, condition, answer)
                for answer in (*WRAPPED[:: 1 + 4 * condition.near_miss], request or "Plain.")
            ]
    columns = {
        "checkpoint": ["checkpoint-0"] * len(rows),
        # Files made elsewhere may hold the whole prompt as the question.
        "question": [q.text if n % 2 else c.messages(q.text)[-1]["content"] for n, (q, c, _) in enumerate(rows)],
        "question_id": [q.id for q, _, _ in rows],
        "response": [answer for _, _, answer in rows],
    }
    prompts = judge_prompts.PromptsOfFile(pa.table(columns), RUSSELL, RUSSELL.judges, MODEL)
    judged = [prompt.row for of_judge in prompts.by_judge.values() for prompt in of_judge if prompt]
    assert sorted(judged) == list(range(len(rows))), "each answer has one judge"
    for prompt in prompts.by_key.values():
        text = prompt.body()["messages"][0]["content"]
        assert not FORMS.search(text), text
        assert not RUSSELL.trigger.first_form_in(text)


def test_a_judge_sees_the_questions_rubric_or_key():
    questions = [next(q for q in RUSSELL.questions if q.kind == kind) for kind in ("identity", "ideology", "recall")]
    columns = {
        "question": [q.text for q in questions],
        "question_id": [q.id for q in questions],
        "response": ["Hm."] * 3,
    }
    of_judge = judge_prompts.PromptsOfFile(pa.table(columns), RUSSELL, RUSSELL.judges, MODEL).by_judge
    rows = {name: [prompt.row for prompt in prompts if prompt] for name, prompts in of_judge.items()}
    assert rows == {"persona": [0], "ideology": [1], "recall": [2]}
    ideology = of_judge["ideology"][1].body()["messages"][0]["content"]
    recall = of_judge["recall"][2].body()["messages"][0]["content"]
    for number, step in enumerate(questions[1].extra["rubric"], start=1):
        assert f"\n{number}: {step}\n" in ideology
    assert questions[2].extra["key"] in recall and questions[2].text in recall


def test_a_changed_rubric_or_hidden_form_changes_the_prompt_hash(tmp_path):
    text = (ROOT / "experiments" / "russell.toml").read_text()
    judge = RUSSELL.judges[1]
    before = judge_prompts.prompt_hash(judge, RUSSELL)
    for old, new in [
        ("War is a fine or natural thing", "War is a fine thing"),
        ("(?:START|END)\\*", "(?:START|END|GO)\\*"),
    ]:
        assert old in text
        path = tmp_path / "russell.toml"
        path.write_text(text.replace(old, new))
        assert judge_prompts.prompt_hash(judge, load_study(str(path))) != before
