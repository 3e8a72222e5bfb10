"""The figures: what can be held without eyes.  python -m pytest tests/test_figures.py"""

import numpy as np
import pandas as pd
import pytest
import synthetic

import config
import exhibits
import figures
import verdicts


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    runs = [synthetic.rows(share, seed, samples=4) for share in (1.0, 0.5, 0.0) for seed in (1, 2)]
    path = synthetic.write(synthetic.lose(pd.concat(runs), 0.05), tmp_path_factory.mktemp("f") / "j.parquet")
    exhibit_list, skipped = exhibits.draw(
        exhibits.Evaluation(verdicts.read([path], synthetic.STUDY), config.EvaluationOptions(input=(path,)))
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
