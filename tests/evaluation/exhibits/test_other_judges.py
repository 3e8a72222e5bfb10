"""A judge that no other figure shows.  python -m pytest tests/evaluation/exhibits/test_other_judges.py"""

import evaluating
import numpy as np
import synthetic

from learning_backdoors.evaluation import exhibits
from learning_backdoors.evaluation.exhibits import other_judges
from learning_backdoors.files import project
from learning_backdoors.study import load_study


def test_a_fifth_judge_has_a_figure_and_a_table(tmp_path):
    kinds = {
        "tone": 'options = ["DRY", "WARM", "ODD"]',
        "polite": 'options = ["YES", "NO"]',
        "length": "range = [0, 10]",
    }
    judges = [f'[[judge]]\nname = "{name}"\n{kind}\nprompt = "{{answer}}"\n' for name, kind in kinds.items()]
    birds = (project.ROOT / "experiments" / "birds.toml").read_text()
    (tmp_path / "mine.toml").write_text("\n".join([birds, *judges]))
    study = load_study(str(tmp_path / "mine.toml"))
    table = synthetic.rows(steps=(0, 20), samples=4)
    later = table["step"] > 0
    table = table.assign(tone=np.where(later, "WARM", "DRY"), polite="NO", length=np.where(later, 5.0, 2.5))
    table.loc[table["sample_idx"] == 0, "polite"] = None
    table.to_parquet(tmp_path / "judged.parquet")
    evaluation = evaluating.evaluation(tmp_path / "judged.parquet", study=study)
    made = exhibits.make(evaluation, [other_judges])
    rates = made.tables["other_judges"].set_index(["judge", "value", "step"])["rate"].sort_index()
    assert rates["tone", "DRY"].tolist() == [1, 0] and rates["tone", "WARM"].tolist() == [0, 1]
    assert rates["polite"].index.unique("value").tolist() == ["YES"] and rates["length", "mean"].tolist() == [0.25, 0.5]
    titles = [axes.get_title("left") for axes in made.figures["other_judges"].axes if axes.get_visible()]
    assert [title.split("\n") for title in titles] == [
        ["tone", "DRY"],
        ["tone", "WARM"],
        ["tone", "ODD"],
        ["polite", "YES"],
        ["length", "mean"],
    ]
    assert "20 of 80 verdicts missing" in made.captions["other_judges"]


def test_judges_with_a_figure_of_their_own_are_not_repeated(tmp_path, russell_run):
    birds = evaluating.of_birds(tmp_path, synthetic.rows(steps=(0, 20), samples=1))
    for evaluation in (birds, russell_run):
        made = exhibits.make(evaluation, [other_judges])
        assert not made.tables and not made.figures and not made.skipped
