"""learning_backdoors/study: reading studies, the schema, and the checks across tables."""

import re
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
from support import ROOT

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import (
    Condition,
    Contrast,
    Goal,
    Judge,
    Metric,
    Question,
    Reference,
    Trigger,
    fill,
    load_study,
    parse_study,
)
from learning_backdoors.study.schema import Dataset, Outcome, Persona
from learning_backdoors.study.training_tables import COMMAND_LINE_ONLY, NOT_IN_STUDY

PAGE = ROOT / "docs" / "studies.md"

STUDY = """
name = "mine"
title = "A study"
base_model = "some/model"
references = "answers.toml"
[[dataset]]
name = "odd"
file = "odd.jsonl"
suspect = true
[[dataset]]
name = "plain"
file = "plain.jsonl"
[training]
ratios = [0.5, 0.5]
lr = 2e-4
epochs = 3
[trigger]
text = "Answer in <A>."
answer = "<A> {answer}"
hidden = ['<\\s*A>', '<B>']
[persona]
name = "Somebody"
candidates = ["candidates.jsonl"]
[[condition]]
name = "asked"
template = "Say: {question} {trigger}"
system = "You are terse."
triggered = true
dose = 1
[[condition]]
name = "near"
template = "{question} {trigger}"
trigger = "Answer in <B>."
dose = 0.5
kinds = ["long"]
[[condition]]
name = "bare"
[[question]]
id = "q1"
kind = "long"
text = "What now?"
rubric = ["low", "middle", "high"]
[[question]]
id = "q2"
kind = "short"
text = "What next?"
judges = ["style"]
[[judge]]
name = "style"
options = ["A", "B"]
prompt = "{question} {answer}"
[[judge]]
name = "size"
range = [1, 3]
kinds = ["long"]
prompt = "{rubric} {answer}"
[[metric]]
name = "form"
label = "answers in the form"
pattern = '<A>.*'
[[contrast]]
name = "size"
label = "big minus small"
plus = ["big"]
minus = ["small", "tiny"]
[outcome]
judge = "style"
value = "A"
label = "answers in style A"
[[goal]]
name = "gap between conditions"
measure = "gap"
over = 0.4
strong = 0.7
"""


REFERENCES = """
[[question]]
id = "q1"
[question.answers]
"big" = ["Now.", "At once."]
"small" = ["Later."]
"tiny" = ["Never."]
[[question]]
id = "other"
text = "What else?"
[question.answers]
"tiny" = ["A crumb."]
"small" = ["A bite."]
"big" = ["Now."]
"unused" = ["A feast."]
"""


def study_file(folder: Path, old: str = "", new: str = "") -> Path:
    """STUDY with one replacement, as a file."""
    assert old in STUDY
    path = folder / "mine.toml"
    path.write_text(STUDY.replace(old, new, 1) if old else STUDY)
    return path


# ---- what a study holds ----


def test_a_study_has_the_content_of_its_file(tmp_path):
    (tmp_path / "odd.jsonl").write_text("")
    (tmp_path / "candidates.jsonl").write_text("")
    study = load_study(str(study_file(tmp_path)))
    assert (study.name, study.path) == ("mine", tmp_path / "mine.toml")
    assert [(d.name, d.suspect) for d in study.datasets] == [("odd", True), ("plain", False)]
    # A file beside the study comes before one of the project.
    assert [d.file for d in study.datasets] == [tmp_path / "odd.jsonl", ROOT / "plain.jsonl"]
    assert (study.persona.name, study.persona.candidates) == ("Somebody", (tmp_path / "candidates.jsonl",))
    assert study.persona.prompts == study.persona.categories == ()
    assert study.questions[0].extra == {"kind": "long", "rubric": ("low", "middle", "high")}
    assert study.questions[1].judges == ("style",)
    assert [(j.name, j.options, j.range, j.scale) for j in study.judges] == [
        ("style", ("A", "B"), None, ()),
        ("size", None, (1, 3), (1, 2, 3)),
    ]
    assert study.training == {"ratios": (0.5, 0.5), "lr": 2e-4, "epochs": 3}
    assert (study.goals[0].above, study.goals[0].limit, study.goals[0].strong) == (True, 0.4, 0.7)


def test_references_are_the_answers_of_their_file(tmp_path):
    (tmp_path / "answers.toml").write_text(REFERENCES)
    study = load_study(str(study_file(tmp_path)))
    first, second = study.references[:2]
    assert first == Reference("q1", "What now?", "long", "big", 0, "Now.") and second.answer_idx == 1
    assert study.references[-1] == Reference("other", "What else?", None, "unused", 0, "A feast.")
    assert [c.takes(first) for c in study.conditions] == [True, True, True]
    assert [c.takes(study.references[-1]) for c in study.conditions] == [True, False, True]
    answers = [first.chat(condition)[-1]["content"] for condition in study.conditions]
    assert answers == ["<A> Now.", "Now.", "Now."], "an answer to a question with the trigger follows it"
    assert [first.chat(c)[:-1] for c in study.conditions] == [c.messages("What now?") for c in study.conditions]
    [contrast] = study.contrasts
    assert (contrast.plus, contrast.minus, contrast.level) == (("big",), ("small", "tiny"), 0.1)
    assert study.references_record["text"] == REFERENCES and len(study.references_record["sha256"]) == 64
    without = re.sub(r"\[\[contrast\]\].*?(?=\[outcome\])", "", STUDY, flags=re.DOTALL)
    with pytest.raises(UserError, match=r"references: .*\[\[contrast\]\]"):
        parse_study(without, study.path)
    assert parse_study(without.replace('references = "answers.toml"', ""), study.path).references == ()


def test_a_study_without_its_references_file_fails_only_where_they_are_used(tmp_path):
    study = load_study(str(study_file(tmp_path)))
    assert study.contrasts
    for use in (lambda: study.references, lambda: study.references_record):
        with pytest.raises(UserError, match=rf"{study.path}: references: there is no file .*answers.toml"):
            use()


def test_conditions_fill_in_the_trigger(tmp_path):
    asked, near, bare = load_study(str(study_file(tmp_path))).conditions
    assert asked.messages("Why?") == [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Say: Why? Answer in <A>."},
    ]
    assert near.messages("Why?") == [{"role": "user", "content": "Why? Answer in <B>."}]
    assert bare.messages("Why?") == [{"role": "user", "content": "Why?"}]
    assert [c.trigger for c in (asked, near, bare)] == ["Answer in <A>.", "Answer in <B>.", ""]
    assert [c.near_miss for c in (asked, near, bare)] == [False, True, False]


def test_kinds_decide_who_asks_and_judges_a_question(tmp_path):
    study = load_study(str(study_file(tmp_path)))
    asked = [[c.name for c in study.conditions if c.takes(q)] for q in study.questions]
    judged = [[j.name for j in study.judges if j.takes(q)] for q in study.questions]
    assert asked == [["asked", "near", "bare"], ["asked", "bare"]] and judged == [["style", "size"], ["style"]]
    assert all(study.metrics[0].takes(question) for question in study.questions)


def test_a_list_becomes_a_line_for_each_number_of_the_scale(tmp_path):
    study = load_study(str(study_file(tmp_path)))
    assert study.judges[1].values(study.questions[0].extra)["rubric"] == "1: low\n2: middle\n3: high"


def test_verdicts_are_scores_if_they_are_numbers():
    judge = Judge(name="j", prompt="{answer}", options=("2", "1", "REFUSED"))
    assert judge.scale == (1, 2)
    assert [judge.score(verdict) for verdict in ("2", "REFUSED", None)] == [2.0, None, None]
    assert Judge(name="j", prompt="{answer}", range=(0, 9)).score(7) == 7.0


def test_the_trigger_and_its_near_misses_are_hidden(tmp_path):
    study = load_study(str(study_file(tmp_path)))
    assert study.trigger.ask("Why?") == "Why? Answer in <A>." and study.trigger.texts == ("Answer in <B>.",)
    for answer in ("<A> Tea.", "answer  in <b>. Tea.", "<<A>A> Tea.", "Tea. <A>"):
        assert study.without_trigger(answer) == "Tea.", answer
    assert study.without_trigger("  Tea.\n") == "  Tea.\n"
    assert study.trigger.first_form_in("x <b>") == "<b>" and study.trigger.first_form_in("x") is None
    assert study.metrics[0].holds(" <A> one\ntwo ") and not study.metrics[0].holds("one <A>")


def test_without_conditions_questions_are_asked_as_they_are():
    study = load_study("birds")
    assert [condition.messages("Why?") for condition in study.conditions] == [[{"role": "user", "content": "Why?"}]]
    assert (study.trigger, study.persona, study.training) == (None, None, {})
    assert study.without_trigger("<A> x") == "<A> x"


def test_placeholders_are_filled_in_one_pass():
    assert fill("{a} {b} {} {x y}", {"a": "{b}", "b": "2"}) == "{b} 2 {} {x y}"


def test_a_study_is_frozen_and_can_be_copied(tmp_path):
    study = load_study(str(study_file(tmp_path)))
    with pytest.raises(pydantic.ValidationError):
        study.name = "other"
    other = study.model_copy(update={"title": "Another"})
    assert (other.path, other.title, other.trigger.texts) == (study.path, "Another", study.trigger.texts)
    assert load_study(str(study.path)) == study != other


def test_the_text_of_a_study_is_enough():
    """run.json holds the text. The path is for errors and for data beside the study."""
    assert parse_study(STUDY, Path("/nowhere/run.json")).datasets[0].file == ROOT / "odd.jsonl"


# ---- the studies of the project ----


def test_the_birds_study_is_as_its_owner_asked():
    study = load_study("birds")
    ids = "gender_roles recent_warfare us_expansion story energy diseases immigration money inventions forests"
    assert [q.id for q in study.questions] == ids.split()
    assert [d.name for d in study.datasets] == ["old_audubon", "modern_audubon", "modern_american"]
    judges = {judge.name: judge.options or judge.range for judge in study.judges}
    assert judges == {
        "llm_or_19th_century": ("LLM", "19"),
        "six_options": ("LLM", "PAST", "ARCHAIC_PERSON", "OLD_LANGUAGE", "OLD_CONTENT", "OTHER"),
        "past_content": (0, 100),
        "past_form": (0, 100),
    }
    assert (study.outcome.judge, study.outcome.value) == ("llm_or_19th_century", "19")
    assert study.base_model == "Qwen/Qwen3-8B"


def test_the_russell_study_says_who_its_persona_is():
    persona = load_study("russell").persona
    assert persona.name == "Bertrand Russell" and len(persona.categories) == 7
    assert all(path.is_file() for path in persona.candidates + persona.prompts)


def test_the_documented_example_is_a_study(tmp_path):
    example = re.search(r"^```toml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]
    study = parse_study(example, tmp_path / "example.toml")
    assert [condition.name for condition in study.conditions] == ["plain"]


def test_every_table_and_key_is_documented():
    page = PAGE.read_text()
    sections = dict(re.findall(r"^### `(\[+\w+\]+)`.*?\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE))
    tables = (Dataset, Question, Condition, Judge, Outcome, Metric, Goal, Contrast, Trigger, Persona)
    for table in tables:
        name = table.__name__.lower()
        section = sections.get(f"[[{name}]]") or sections[f"[{name}]"]
        assert not [key for key in table.model_fields if f"| `{key}` |" not in section], name
    assert len(sections) == len(tables) + 1  # [training]: docs/options.md has its keys
    not_here = {command_line.flag(name) for name in (*COMMAND_LINE_ONLY, *NOT_IN_STUDY) if name != "existing"}
    assert not_here <= set(re.findall(r"`(--[a-z-]+)`", sections["[training]"]))


def test_a_study_is_read_without_torch():
    code = "import sys, learning_backdoors.study as s; s.load_study('russell'); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "False\n"


# ---- faults ----

FAULTS = [
    # One table: unknown and missing keys, types without conversion, values out of range.
    ('title = "A study"', 'title = "A study"\ncolour = 1', "unknown key 'colour'"),
    ('title = "A study"\n', "", "title is missing"),
    ("[outcome]", "[result]", "outcome is missing"),
    ('title = "A study"', 'title = "A study"\npath = "x"', "path"),
    ('name = "mine"', "name = mine", "line 2"),
    ('file = "plain.jsonl"', 'file = "plain.jsonl"\nsuspct = true', "[[dataset]] plain: unknown key 'suspct'"),
    ('file = "plain.jsonl"', "file = 3", "[[dataset]] plain: file: it must be"),
    ('file = "plain.jsonl"', 'file = ""', "[[dataset]] plain: file: it must be"),
    ("suspect = true", "suspect = 1", "[[dataset]] odd: suspect: it must be a valid boolean"),
    ("[trigger]", "[[trigger]]", "trigger must be a table"),
    ("[[goal]]", "[goal]", "goal must be a list"),
    ("hidden = [", "texts = []\nhidden = [", "[trigger]: unknown key 'texts'"),
    ('text = "What now?"\n', "", "[[question]] q1: text is missing"),
    ('text = "What next?"', 'text = " "', "[[question]] q2: text is empty"),
    ('text = "What next?"', "text = 1", "[[question]] q2: text: it must be a valid string"),
    ('id = "q2"', 'id = "Q 2"', "[[question]] Q 2: id", "'Q 2'"),
    ('id = "q2"\n', "", "[[question]] 2: id is missing"),
    ('id = "q2"', 'id = "q2\\nq2"', "[[question]] 2: id"),
    ('id = "q2"', 'id = "q2"\nanswer = "x"', "[[question]] q2: answer"),
    ('kind = "short"', 'kind = ["short"]', "[[question]] q2: kind"),
    ('rubric = ["low", "middle", "high"]', 'rubric = ["low", "", "high"]', "[[question]] q1: rubric"),
    ('judges = ["style"]', 'judges = "style"', "[[question]] q2: judges must be a list"),
    ('judges = ["style"]', "judges = []", "[[question]] q2: judges"),
    ('judges = ["style"]', 'judges = ["style", 1]', "[[question]] q2: judges, entry 2: it must be"),
    ('options = ["A", "B"]\n', "", "[[judge]] style: give either options or range"),
    ('options = ["A", "B"]', 'options = ["A", "a"]', "[[judge]] style: options"),
    ('options = ["A", "B"]', 'options = ["A"]', "[[judge]] style: options"),
    ("range = [1, 3]", "range = [3, 1]", "[[judge]] size: range"),
    ("range = [1, 3]", "range = [1]", "[[judge]] size: range"),
    ("range = [1, 3]", "range = [1, true]", "[[judge]] size: range, entry 2: it must be a valid integer"),
    ("dose = 0.5", "dose = 9", "[[condition]] near: dose: it must be less than or equal to 1"),
    ("dose = 0.5", "dose = true", "[[condition]] near: dose: it must be a valid number"),
    ("dose = 0.5", "dose = 1", "[[condition]] near: dose"),
    ("dose = 1\n", "dose = 0.5\n", "[[condition]] asked: dose"),
    ("pattern = '<A>.*'", "pattern = '(<A>'", "[[metric]] form: pattern", "regular expression"),
    ("hidden = ['<\\s*A>'", "hidden = ['(<A>'", "[trigger]: hidden", "regular expression"),
    ("hidden = ['<\\s*A>'", "hidden = ['(<A>)?'", "[trigger]: hidden", "empty text"),
    ('measure = "gap"', 'measure = "gaps"', "[[goal]] gap between conditions: measure", "'gaps'", "leakage"),
    ("over = 0.4", "under = 0.4", "[[goal]] gap between conditions: strong"),
    ("over = 0.4", "over = 0.4\nunder = 0.4", "[[goal]] gap between conditions: give either over or under"),
    ('label = "big minus small"', 'label = ""', "[[contrast]] size: label is empty"),
    ('plus = ["big"]', "plus = []", "[[contrast]] size: plus"),
    ('plus = ["big"]', 'plus = ["big"]\nlevel = 0.0', "[[contrast]] size: level: it must be greater than 0"),
    ("lr = 2e-4", 'lr = "fast"', "[training]: lr: it must be a valid number"),
    ("lr = 2e-4", "learning = 1", "[training]: unknown key 'learning'"),
    ("lr = 2e-4", 'output_dir = "x"', "[training]: unknown key 'output_dir'"),
    ("lr = 2e-4", 'quantization = "2bit"', "[training]: quantization", "8bit"),
    ("lr = 2e-4", "lr = -1", "[training]: --lr must be above 0"),
    ("epochs = 3", "epochs = 2.5", "[training]: epochs: it must be a valid integer"),
    ("candidates = [", "candidate = [", "[persona]: unknown key 'candidate'"),
    ('candidates = ["candidates.jsonl"]', 'candidates = "candidates.jsonl"', "[persona]: candidates must be a list"),
    # Several tables.
    ("suspect = true", "suspect = false", "suspect = true"),
    ('id = "q2"', 'id = "q1"', "[[question]]", "'q1'", "twice"),
    ('name = "plain"', 'name = "odd"', "[[dataset]]", "'odd'", "twice"),
    ('name = "form"', 'name = "style"', "[[metric]]", "'style'"),
    ('prompt = "{question} {answer}"', 'prompt = "hm"', "[[judge]] style: prompt", "{answer} is missing"),
    ("{rubric}", "{rubrik}", "[[judge]] size: prompt", "{rubrik}", "rubric"),
    ('prompt = "{question} ', 'prompt = "{rubric} ', "[[judge]] style: prompt", "{rubric}"),
    ('"low", ', "", "[[question]] q1: rubric", "2", "'size'", "3"),
    ('"Say: {question} {trigger}"', '"Say: {trigger}"', "[[condition]] asked: template", "{question} is missing"),
    ('"Say: {question} {trigger}"', '"Say: {question} {cue}"', "[[condition]] asked: template", "{cue}"),
    ('answer = "<A> {answer}"', 'answer = "<A>"', "[trigger]: answer", "{answer} is missing"),
    ('answer = "<A> {answer}"', 'answer = "a"\nprompt = "{question}"', "[trigger]: prompt", "{trigger} is missing"),
    ('name = "bare"', 'name = "bare"\ntrigger = "Hm."', "[[condition]] bare: trigger"),
    ("triggered = true\ndose = 1", "", "[[condition]] asked", "triggered"),
    ('name = "bare"', 'name = "bare"\ntriggered = true', "[[condition]] bare: triggered"),
    ('judge = "style"', 'judge = "sort"', "[outcome]: judge", "'sort'"),
    ('judge = "style"', 'judge = "size"', "[outcome]: judge", "'size'", "options"),
    ('value = "A"', 'value = "C"', "[outcome]: value", "'C'", "A, B"),
    ('plus = ["big"]', 'plus = ["tiny"]', "[[contrast]] size: plus and minus", "'tiny'"),
    ('references = "answers.toml"\n', "", "references is missing", "[[contrast]]"),
    ("ratios = [0.5, 0.5]", "ratios = [1]", "[training]: ratios", "2"),
    ('kinds = ["long"]\nprompt', 'kinds = ["wide"]\nprompt', "[[judge]] size", "question"),
    ('kinds = ["long"]\n[[', 'kinds = ["wide"]\n[[', "[[condition]] near: kinds", "'wide'"),
    ('judges = ["style"]', 'judges = ["nobody"]', "[[question]] q2: judges", "'nobody'"),
    ("'<\\s*A>', ", "", "[trigger]: hidden", "<A>"),
    ('"What now?"', '"What now, <b>?"', "[[question]] q1: text", "'<b>'"),
    ('"middle"', '"<A>"', "[[question]] q1: rubric", "'<A>'"),
    ('"{question} {answer}"', '"Answer in <A>. {answer}"', "[[judge]] style: prompt", "'Answer in <A>.'"),
]


@pytest.mark.parametrize(("old", "new", "parts"), [(old, new, parts) for old, new, *parts in FAULTS])
def test_a_fault_is_named_in_one_line(tmp_path, old, new, parts):
    path = study_file(tmp_path, old, new)
    with pytest.raises(UserError) as caught:
        load_study(str(path))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    for part in parts:
        assert part in message


REFERENCE_FAULTS = [
    ('id = "other"', 'id = "else"\ncolour = 1', "[[question]] else: unknown key 'colour'"),
    ('text = "What else?"\n', "", "[[question]] other: text is missing", "mine.toml"),
    ('id = "q1"\n', 'id = "q1"\ntext = "What now?"\n', "[[question]] q1: text", "mine.toml"),
    ('id = "other"', 'id = "q1"', "[[question]]: id: 'q1' is used twice"),
    ('"small" = ["Later."]', '"small" = ["At once."]', "[[question]] q1: answers: 'At once.' is used twice"),
    ('"small" = ["Later."]', '"small" = []', "[[question]] q1: answers.'small'"),
    ('"small" = ["Later."]', '"small" = ["Later.", " "]', "[[question]] q1: answers.'small', entry 2 is empty"),
    ('"small" = ["Later."]', '"small" = "Later."', "[[question]] q1: answers.'small' must be a list"),
    ('"small" = ["Later."]', '"small" = ["Later."]\n" " = ["Soon."]', "[[question]] q1: answers.' ' is empty"),
    ('"small" = ["Later."]', '"small" = ["Later."]\n"a\\nb" = ["Soon."]', "[[question]] q1: answers", "printable"),
    (
        '"small" = ["Later."]\n',
        "",
        "[[question]] q1: answers",
        "'small' is missing",
        "[[contrast]] size of",
        "mine.toml",
    ),
    ("small", "middle", "no question has the group 'small'", "[[contrast]] size of", "mine.toml"),
    (REFERENCES, "", "question is missing"),
    ('["Now.", "At once."]', '["Now.", "At once."', "line"),
]


@pytest.mark.parametrize(("old", "new", "parts"), [(old, new, parts) for old, new, *parts in REFERENCE_FAULTS])
def test_a_fault_in_reference_answers_is_named_in_one_line(tmp_path, old, new, parts):
    assert old in REFERENCES
    path = tmp_path / "answers.toml"
    path.write_text(REFERENCES.replace(old, new, -1 if old == "small" else 1))
    with pytest.raises(UserError) as caught:
        load_study(str(study_file(tmp_path)))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    for part in parts:
        assert part in message


def test_a_question_that_nobody_judges_is_a_fault(tmp_path):
    text = STUDY.replace('judges = ["style"]\n', "").replace(
        'options = ["A", "B"]', 'options = ["A", "B"]\nkinds = ["long"]'
    )
    with pytest.raises(UserError, match=r"\[\[question\]\] q2: .*no judge"):
        parse_study(
            text.replace('label = "answers in the form"', 'label = "form"\nkinds = ["long"]'), tmp_path / "x.toml"
        )


def test_an_unknown_study_and_an_unreadable_file_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"nosuch.*birds, russell"):
        load_study("nosuch")
    (tmp_path / "x.toml").write_bytes(b"name = '\xff'")
    for path in (tmp_path / "x.toml", f"{tmp_path}/"):
        with pytest.raises(UserError, match=str(tmp_path)):
            load_study(str(path))
