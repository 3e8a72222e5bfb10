"""learning_backdoors/study/recorded.py: the study of a run or of a Parquet file, without --experiment."""

from pathlib import Path

import pytest
from support import ROOT

from learning_backdoors.files.errors import UserError
from learning_backdoors.study import RecordedStudy, load_study, study_of

BIRDS = (ROOT / "experiments" / "birds.toml").read_text()


def study_file(folder: Path, name: str = "mine", title: str = "A study") -> Path:
    path = folder / "mine.toml"
    path.write_text(BIRDS.replace('name = "birds"', f'name = "{name}"\n# {title}', 1))
    return path


def recorded(study, source: str = "run") -> RecordedStudy:
    """As training.py and generate_responses.py record a study."""
    return RecordedStudy.of({"settings": {"experiment": study.name}} | study.record, source)


def test_the_study_is_the_recorded_one(tmp_path, capsys):
    study = load_study(str(study_file(tmp_path)))
    assert study_of(None, [recorded(study), RecordedStudy("a file made elsewhere")]) == study
    russell = recorded(load_study("russell"))
    assert russell.file == "russell" and study_of(None, [russell]) == load_study("russell")
    # A run of an earlier version records the option only.
    earlier = {"settings": {"experiment": "russell"}, "options": {"experiment": "russell"}}
    assert study_of(None, [RecordedStudy.of(earlier, "run")]).name == "russell"
    assert capsys.readouterr().out == ""


def test_a_study_file_that_is_gone_is_replaced_by_its_record(tmp_path, capsys):
    path = study_file(tmp_path)
    study = load_study(str(path))
    path.unlink()
    assert study_of(None, [recorded(study)]).questions == study.questions
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and str(path) in line and "run" in line
    earlier = RecordedStudy("run", "mine", str(path))  # earlier versions did not record the text
    with pytest.raises(UserError, match=rf"run .*'mine'.*{path}.*--experiment"):
        study_of(None, [earlier])


def test_a_study_file_that_has_changed_is_used_and_a_line_says_so(tmp_path, capsys):
    path = study_file(tmp_path)
    earlier = load_study(str(path))
    study_file(tmp_path, title="Another title")
    assert study_of(None, [recorded(earlier)]) == load_study(str(path)) != earlier
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and str(path) in line and "changed" in line
    study_file(tmp_path, name="other")
    with pytest.raises(UserError, match="'other'.*'mine'.*--experiment"):
        study_of(None, [recorded(earlier)])


def test_a_contradiction_is_refused_unless_any_study_is_allowed(tmp_path):
    birds, russell = recorded(load_study("birds"), "one"), recorded(load_study("russell"), "two")
    with pytest.raises(UserError, match="one .*birds.* two .*russell"):
        study_of(None, [birds, russell])
    with pytest.raises(UserError, match="one .*'birds'.*'russell'"):
        study_of("russell", [birds])
    for records in ([birds], [birds, russell]):
        assert study_of("russell", records, any_study=True).name == "russell"
    # A copy of the study under the same name, with more questions for example.
    assert study_of(str(study_file(tmp_path, "birds")), [birds]).path == tmp_path / "mine.toml"


def test_without_any_study_the_option_is_required():
    unknown = [RecordedStudy.of(record, "final") for record in ({}, {"settings": [], "options": 3, "study": 5})]
    with pytest.raises(UserError, match=r"final .*--experiment.*birds, russell"):
        study_of(None, unknown)
    assert study_of("birds", unknown).name == "birds"


def test_a_byte_order_mark_is_not_part_of_a_study(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(BIRDS, encoding="utf-8-sig")
    assert load_study(str(path)).questions == load_study("birds").questions
