"""Drawing: what can be checked without eyes.  python -m pytest tests/evaluation/test_drawing.py"""

import re

import evaluating
import numpy as np
import pandas as pd
import pytest
import synthetic

from learning_backdoors.evaluation import drawing, exhibits, notes, rendering

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    runs = [synthetic.rows(share, seed, samples=4) for share in (1.0, 0.5, 0.0) for seed in (1, 2)]
    table = synthetic.lose(pd.concat(runs), 0.05)
    return exhibits.make(evaluating.of_birds(tmp_path_factory.mktemp("drawn"), table))


@pytest.fixture(scope="module")
def russell_made(tmp_path_factory):
    """With the claim checkpoint, whose intervals are fast."""
    runs = [synthetic.russell_rows(seed, samples=4, steps=(0, 300, 1125)) for seed in (1, 2, 3)]
    folder = tmp_path_factory.mktemp("russell_drawn")
    return exhibits.make(evaluating.of_russell(folder, pd.concat(runs), claim="checkpoint"))


def assert_inside_the_page(made):
    for name, figure in made.figures.items():
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, name


def test_every_figure_lies_inside_its_page(made, russell_made):
    assert_inside_the_page(made)
    assert {"conditions", "near_misses", "metrics", "ratings", "leakage"} <= set(russell_made.figures)
    assert_inside_the_page(russell_made)


def test_titles_say_what_is_seen_and_captions_are_short(made, russell_made):
    for exhibits_made in (made, russell_made):
        for name in exhibits_made.figures:
            assert exhibits_made.titles[name], name
            assert len(exhibits_made.captions[name].split()) <= 25, name
    assert "trigger_in_user" in russell_made.titles["overall_ratio"]


def test_rate_axes_are_in_percent(made):
    assert made.figures["overall_ratio"].axes[0].get_xlim() == (0, 1)
    assert all(axes.get_ylim() == (0, 1) for axes in made.figures["training_progression"].axes)
    for name in ("overall_ratio", "ratio_by_question", "training_progression", "six_options_distribution"):
        axes = made.figures[name].axes[0]
        texts = {text.get_text() for text in axes.get_xticklabels() + axes.get_yticklabels()}
        assert {"0%", "20%", "100%"} <= texts, name


def test_steps_are_in_numeric_order(made):
    for axes in made.figures["training_progression"].axes:
        for line in axes.lines:
            assert (np.diff(line.get_xdata()) > 0).all()


def test_saving_twice_gives_the_same_bytes(made, tmp_path):
    for suffix in ("pdf", "svg"):
        paths = [tmp_path / f"{n}.{suffix}" for n in (1, 2)]
        for path in paths:
            rendering.save(made.figures["overall_ratio"], path)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_fonts_are_embedded_as_editable_outlines(made, tmp_path):
    rendering.save(made.figures["overall_ratio"], tmp_path / "o.pdf")
    data = (tmp_path / "o.pdf").read_bytes()
    assert b"/FontFile2" in data and b"/Type3" not in data


def test_labels_are_moved_apart():
    positions = drawing.spread([0.5, 0.5, 0.51, 0.99, 1.0], 0.05, 0, 1)
    assert (np.diff(positions) > 0.049).all() and positions.min() >= 0 and positions.max() <= 1


def test_marked_points_lie_where_the_svg_draws_them():
    figure, [[axes]] = drawing.canvas(drawing.ONE_COLUMN, 2)
    axes.set(xlim=(0, 10), ylim=(0, 1))
    for x, y in ((0, 0), (5, 0.5), (np.nan, 0.5)):
        axes.plot(x, y, "o", gid="dot")
        drawing.mark(axes, x, y, "dots", f"at {x}", "seen", step=x)
    svg, points = rendering.inline_svg(figure, "dots")
    assert [(point["text"], point["where"]) for point in points] == [
        ("dots, at 0: seen", {"step": 0}),
        ("dots, at 5: seen", {"step": 5}),
    ]
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())
    drawn = re.findall(r'id="dots-dot".*?<use [^>]*x="(\S+)" y="(\S+)"', svg, flags=re.DOTALL)
    for point, (x, y) in zip(points, drawn, strict=True):
        assert (point["x"] * width, point["y"] * height) == pytest.approx((float(x), float(y)), abs=0.1)


def test_dollars_tabs_and_foreign_letters_are_drawn_as_they_are(tmp_path, recwarn):
    table = synthetic.rows(steps=(0, 20), samples=2, questions=8).assign(suspect_ratio=np.nan)
    names = ["costs $5 and $10", "$\\frac{1}{0$", "tab\tnew\nline", "日本語"]
    foreign = table["question_id"].map(dict(zip(table["question_id"].unique(), names, strict=False)))
    table["question_id"], table["question"] = (foreign.fillna(table[column]) for column in ("question_id", "question"))
    runs = pd.concat([table.assign(run=name) for name in ("a_$\\frac$", "cost $5_b")])
    evaluation = evaluating.of_birds(tmp_path, runs)
    made = exhibits.make(evaluation)
    for name, figure in made.figures.items():
        rendering.save(figure, tmp_path / f"{name}.svg")
        rendering.inline_svg(figure, name)
    shown = [text.get_text() for text in made.figures["ratio_by_question"].axes[0].get_yticklabels()]
    assert {"$\\frac{1}{0$", "costs $5 and $10", "tab new line", "日本語"} <= set(shown)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert any("日本語" in note for note in notes.notes(evaluation))


def test_long_labels_lose_their_middle_and_leave_room_for_the_figure(tmp_path):
    name, table = "a-very-long-model-name-for-an-organism-8B", synthetic.rows(steps=(0, 20), samples=2)
    runs = [table.assign(run=f"{name}-{end}", suspect_ratio=np.nan) for end in ("Instruct", "Base")]
    made = exhibits.make(evaluating.of_birds(tmp_path, pd.concat(runs)))
    for exhibit, figure in made.figures.items():
        figure.draw_without_rendering()
        width = figure.get_size_inches()[0]
        assert figure.get_tightbbox().x1 <= width, exhibit
        assert figure.axes[0].get_position().width * width > 1.2, exhibit
    assert drawing.short_label("a" * 30 + "-one") != drawing.short_label("a" * 30 + "-two")
