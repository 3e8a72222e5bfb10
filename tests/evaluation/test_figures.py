"""The figures: what can be held without eyes.  python -m pytest tests/test_figures.py"""

import numpy as np
import pandas as pd
import pytest
import synthetic

import config
from learning_backdoors.evaluation import exhibits, figures, reading


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    runs = [synthetic.rows(share, seed, samples=4) for share in (1.0, 0.5, 0.0) for seed in (1, 2)]
    path = synthetic.write(synthetic.lose(pd.concat(runs), 0.05), tmp_path_factory.mktemp("f") / "j.parquet")
    exhibit_list, skipped = exhibits.draw(
        exhibits.Evaluation(reading.read([path], synthetic.STUDY), config.EvaluationOptions(input=(path,)))
    )
    assert len(skipped) == 3, "no conditions, no probes, no second judge"
    return {exhibit.name: exhibit for exhibit in exhibit_list}


def test_every_caption_names_its_numbers_and_each_interval_its_claim(drawn):
    for exhibit in drawn.values():
        assert "Q = 10" in exhibit.caption and "N = 4" in exhibit.caption and "S = 2" in exhibit.caption
        assert "claim: " in exhibit.caption or "No intervals" in exhibit.caption
        written = " ".join(text.get_text() for text in exhibit.figure.texts).replace("\n", " ")
        assert exhibit.caption in written


def test_everything_drawn_lies_inside_the_page(drawn):
    for exhibit in drawn.values():
        exhibit.figure.draw_without_rendering()
        box, (width, height) = exhibit.figure.get_tightbbox(), exhibit.figure.get_size_inches()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, exhibit.name


def test_rate_axes_run_from_0_to_1(drawn):
    assert drawn["overall_ratio"].figure.axes[0].get_xlim() == (0, 1)
    assert drawn["ratio_by_question"].figure.axes[0].get_xlim() == (0, 1)
    assert all(axes.get_ylim() == (0, 1) for axes in drawn["training_progression"].figure.axes)


def test_steps_stand_in_numeric_order(drawn):
    for axes in drawn["training_progression"].figure.axes:
        for line in axes.lines:
            assert (np.diff(line.get_xdata()) > 0).all()


def test_saving_twice_gives_the_same_bytes(drawn, tmp_path):
    for suffix in ("pdf", "svg"):
        paths = [tmp_path / f"{n}.{suffix}" for n in (1, 2)]
        for path in paths:
            figures.save(drawn["overall_ratio"].figure, path)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_fonts_are_embedded_as_outlines_that_editors_keep(drawn, tmp_path):
    figures.save(drawn["overall_ratio"].figure, tmp_path / "o.pdf")
    data = (tmp_path / "o.pdf").read_bytes()
    assert b"/FontFile2" in data and b"/Type3" not in data


def test_labels_are_moved_apart():
    places = figures._spread([0.5, 0.5, 0.51, 0.99, 1.0], 0.05, 0, 1)
    assert (np.diff(places) > 0.049).all() and places.min() >= 0 and places.max() <= 1


# ---- names, shares and runs of any kind ----


def evaluated(path, study=synthetic.STUDY, **options):
    return exhibits.Evaluation(reading.read([path], study), config.EvaluationOptions(input=(path,), **options))


def test_dollars_tabs_and_foreign_letters_are_drawn_as_they_are(tmp_path, recwarn):
    table = synthetic.rows(steps=(0, 20), samples=2).assign(suspect_ratio=np.nan)
    names = ["costs $5 and $10", "$\\frac{1}{0$", "tab\tnew\nline", "日本語"]
    table = table[table["question_id"].isin(sorted(set(table["question_id"]))[:4])]
    table["question_id"] = table["question"] = table["question_id"].map(
        dict(zip(table["question_id"].unique(), names, strict=True))
    )
    runs = pd.concat([table.assign(run=name) for name in ("a_$\\frac$", "cost $5_b")])
    found = evaluated(synthetic.write(runs, tmp_path / "j.parquet"))
    drawn = {exhibit.name: exhibit.figure for exhibit in exhibits.draw(found)[0]}
    for name, figure in drawn.items():
        figures.save(figure, tmp_path / f"{name}.svg")
        figures.inline_svg(figure, name)
    shown = [text.get_text() for text in drawn["ratio_by_question"].axes[0].get_yticklabels()]
    assert sorted(shown) == ["$\\frac{1}{0$", "costs $5 and $10", "tab new line", "日本語"]
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    assert [line for line in found.warnings if "no glyph for 日本語" in line]


def test_long_labels_lose_their_middle_and_leave_room_for_the_figure(tmp_path):
    name, table = "a-very-long-model-name-for-an-organism-8B", synthetic.rows(steps=(0, 20), samples=2)
    runs = [table.assign(run=f"{name}-{end}", suspect_ratio=np.nan) for end in ("Instruct", "Base")]
    found = evaluated(synthetic.write(pd.concat(runs), tmp_path / "j.parquet"))
    for exhibit in exhibits.draw(found)[0]:
        exhibit.figure.draw_without_rendering()
        width = exhibit.figure.get_size_inches()[0]
        assert exhibit.figure.get_tightbbox().x1 <= width, exhibit.name
        assert exhibit.figure.axes[0].get_position().width * width > 1.2, exhibit.name
    assert figures._label("a" * 30 + "-one") != figures._label("a" * 30 + "-two")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Shares 1, 0.5 (two recipes) and 0.1 (shorter); four runs of 1 rise, one does not."""
    rows = [synthetic.rows(1.0, seed, samples=5, steps=(0, 20, 80, 200)) for seed in range(5)]
    rows[4] = rows[4].assign(llm_or_19th_century="LLM")
    half = synthetic.rows(0.5, 1, samples=5, steps=(0, 20, 80, 200))
    rows += [half, half.assign(run=half["run"] + "_other"), synthetic.rows(0.1, 1, samples=5, steps=(0, 20, 80))]
    path = synthetic.write(pd.concat(rows), tmp_path_factory.mktemp("sweep") / "j.parquet")
    return {x: evaluated(path, x=x) for x in ("steps", "suspect_examples")}


def test_captions_say_what_is_drawn_and_no_more(sweep, tmp_path):
    caption = exhibits.training_progression(sweep["steps"])[1]
    assert "Bands in panels of up to 3 runs: 95%" in caption
    for make in (exhibits.emergence, exhibits.ratio_sweep):
        assert "order-statistic intervals of the median, confidence 93.75%" in make(sweep["steps"])[1]
    five = pd.concat([synthetic.rows(seed=seed, steps=(0, 200), samples=2) for seed in range(5)])
    caption = exhibits.training_progression(evaluated(synthetic.write(five, tmp_path / "5.parquet")))[1]
    assert "No bands are drawn" in caption and "95%" not in caption
    one = synthetic.write(synthetic.rows(steps=(0, 200), samples=2), tmp_path / "1.parquet")
    caption = exhibits.emergence(evaluated(one, claim="recipe"))[1]
    assert (
        "No bands are drawn" in caption and "order-statistic" not in caption and "another training run" not in caption
    )


def test_the_sweep_joins_no_recipes_of_one_share_and_draws_no_run_that_never_crosses(sweep):
    left, right = exhibits.ratio_sweep(sweep["steps"])[0].axes[:2]
    for line in [*left.lines, *right.lines]:
        assert line.get_linestyle() == "None" or len(line.get_xdata()) == 0
    runs = np.concatenate([line.get_ydata() for line in right.lines if line.get_marker() == "."])
    found = sweep["steps"].emergence.query("label == '100%'")
    assert found["crossing_50_censored"].sum() == 1 and (runs < 200).all() and len(runs) == 8


def test_crossings_end_where_their_recipe_ends(sweep):
    ends = {"steps": (80, 200), "suspect_examples": (8, 200)}
    for x, found in sweep.items():
        strips = exhibits.emergence(found)[0].axes[1:]
        arrows = [line.get_xdata()[0] for axes in strips for line in axes.lines if line.get_marker() == ">"]
        assert min(arrows) == ends[x][0] and max(arrows) <= ends[x][1]


def test_falls_are_grouped_by_run_and_counted():
    rows = [(f"r{i}", condition, 0.2 + i / 10, 40) for i in range(5) for condition in ("on", "off", "near")]
    fell = pd.DataFrame(rows, columns=["run", "condition", "fall", "peak_step"])
    words = exhibits.falls_shown(fell)
    assert words.startswith(
        "r4 by 60 points after step 40 in on, 60 points after step 40 in off, and 1 more condition;"
    )
    assert words.endswith("and 2 more runs") and words.count("r3 by") == 1
    assert exhibits.falls_shown(fell.query("run == 'r0' and condition == 'on'")) == "r0 by 20 points after step 40"


def test_headings_and_captions_name_the_claim_of_the_rows_they_are_over(tmp_path):
    conditions = ("trigger_in_user", "no_trigger", "near_other_words")
    one, *two = (
        synthetic.russell_rows(seed, 3, (0, 1125), share, conditions) for seed, share in ((1, 0.03), (1, 0.1), (2, 0.1))
    )
    recipe, questions = exhibits.cell_tables.CLAIMS["recipe"], exhibits.cell_tables.CLAIMS["questions"]
    alone = evaluated(synthetic.write_russell(one, tmp_path / "1.parquet"), synthetic.RUSSELL, claim="recipe")
    gap, goals = [heading for heading in alone.results if "claim" in heading]
    captions = [make(alone)[1] for make in (exhibits.leakage, exhibits.near_misses)]
    assert all(questions in words and recipe not in words for words in (gap, goals, *captions))
    path = synthetic.write_russell(pd.concat([one, *two]), tmp_path / "3.parquet")
    mixed = evaluated(path, synthetic.RUSSELL, claim="recipe")
    gap, goals = [heading for heading in mixed.results if "claim" in heading]
    captions = [make(mixed)[1] for make in (exhibits.leakage, exhibits.near_misses)]
    assert all(questions in words and recipe in words for words in (gap, goals, *captions))
