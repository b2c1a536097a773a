"""The curve over sizes, drawn; and what it may be used for."""

from __future__ import annotations

import pytest
from tests.messages import mentions

from efficientnetv2.evaluation.plots import SizeCurve, draw_sizes
from efficientnetv2.inference.predict import SizeMetrics, best_size

POINTS = tuple(
    SizeMetrics(px, top1, top1 - 0.1, top1 + 0.1, top1, 100.0) for px, top1 in ((96, 0.6), (128, 0.8), (160, 0.8))
)


def _curve(**changes):
    given = {"points": POINTS, "own_px": 128, "trained_px": 128, "role": "may select"}
    return SizeCurve(**(given | changes))


def test_of_equal_ones_the_smallest_is_best():
    assert best_size(POINTS).image_size == 128
    assert mentions(_curve().advice, "128")


def test_pictures_that_give_the_figure_name_no_best_size():
    advice = _curve(role="shown").advice
    assert "128" not in advice
    assert "optimistic" in advice


def test_minival_says_what_it_has_chosen():
    assert mentions(_curve(role="selected", own_px=160).advice, "160")


@pytest.mark.parametrize(
    ("trained_px", "marks"), [(128, ["model file, training"]), (96, ["model file", "training"]), (None, ["model file"])]
)
def test_the_sizes_that_count_are_marked(trained_px, marks):
    (ax,) = draw_sizes(_curve(trained_px=trained_px)).axes
    assert [text.get_text() for text in ax.texts] == marks
    assert ax.lines[0].get_xydata().tolist() == [[96, 60], [128, 80], [160, 80]]
