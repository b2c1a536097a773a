"""Every color of an SVG plot is set, has contrast in light and dark mode, and changes with the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from tests.evaluation.test_training_plots import HISTORY, _curve

from efficientnetv2.checks.report import draw_places, draw_times
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.calibration_section import draw_coverage, draw_reliability
from efficientnetv2.evaluation.plot_style import COLORS, GRID, INK, ON_DARK, png, svg
from efficientnetv2.evaluation.report_sections import draw_label_curve
from efficientnetv2.evaluation.thumbnails import ImageRow, draw_rows
from efficientnetv2.evaluation.training_plots import (
    draw_costs,
    draw_hyperparameters,
    draw_sizes,
    draw_top1_over_time,
    draw_training_curves,
    stage_costs,
)
from efficientnetv2.inference.learning_curve import LearningCurve, LearningCurvePoint
from efficientnetv2.metrics.calibration import coverage_curve, reliability_bins

SVG = "{http://www.w3.org/2000/svg}"
OTHERS = "#888888"  # color of further classes: equally far from white and black
LIGHT_PAPER, DARK_PAPER = "#ffffff", "#161616"  # of the style sheet of the pages


def places() -> ImageDataset:
    """Seven labels: more than there are colors, one of them missing."""
    count = 70
    labels = np.arange(count) % 7
    table = pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(count)],
            "label": [None if label == 6 else "abcdef"[label] for label in labels],
            "split": "train",
            "group": np.nan,
            "latitude": 50 + np.arange(count) / 100,
            "longitude": 8 + np.arange(count) / 50,
            "year": 2010 + labels,
        }
    )
    return ImageDataset(root=None, source="a", table=table, class_names=tuple("abcdef"))


def sampled_learning_curve(num_images: int, total: int) -> LearningCurve:
    """A learning curve of a sample: five sizes up to num_images, and an estimate for all images."""
    measured = [LearningCurvePoint(num_images // 2**n, 0.6 - n / 20, 0.5, 0.7, 5) for n in range(4, -1, -1)]
    full, twice = (LearningCurvePoint(count, 0.7, 0.6, 0.8, 0) for count in (total, 2 * total))
    return LearningCurve(tuple(measured), twice, 0.0, 0.0, 0.1, full)


def plots():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1], 200)
    point = LearningCurvePoint(num_images=10, macro_f1=0.5, low=0.4, high=0.6, draws=3)
    rows = [row | {"loss": 1e-6 * (1 + row["step"]), "macro_f1": 0.3} for row in HISTORY]
    return {
        "learning": draw_training_curves(rows),
        "stages": draw_costs({"": stage_costs(HISTORY)}),
        "over time": draw_top1_over_time({str(number): HISTORY for number in range(5)}),
        "one over time": draw_top1_over_time({"": HISTORY}),
        "sizes": draw_sizes(_curve(trained_px=96)),
        "labels": draw_label_curve(LearningCurve((point,), point, 0.1, 0.0, 0.2)),
        "labels of a sample": draw_label_curve(sampled_learning_curve(500, 1_000_000)),
        "reliability": draw_reliability(reliability_bins(rng.integers(0, 2, 200), probabilities)),
        "abstention": draw_coverage(coverage_curve(rng.random(200) < 0.7, probabilities.max(axis=1))),
        "places": draw_places(places()),
        "times": draw_times(places(), "year"),
    }


def painted_colors(node, inherited=None):
    """The color of each painted element, from its style or its parents. None is black."""
    if node.tag == f"{SVG}clipPath":
        return
    style = dict(re.findall(r"([a-z-]+): ([^;\"]+)", node.get("style", "")))
    fill = "none" if style.get("fill-opacity") == "0" else style.get("fill", inherited)
    if node.tag == f"{SVG}use" or (node.tag == f"{SVG}path" and not node.get("id")):
        yield from {fill} | ({style["stroke"]} if "stroke" in style else set())
    for child in node:
        yield from painted_colors(child, fill)


@pytest.mark.parametrize("name", plots())
def test_every_painted_element_has_a_known_color(name):
    figure = plots()[name]
    assert figure is not None
    found = set(painted_colors(ElementTree.fromstring(svg(figure))))
    assert found <= {*COLORS, INK, GRID, OTHERS, "none"}
    assert len(found) > 2
    assert any(f'[style*="fill: {INK}"] {{ fill: {ON_DARK[INK]}' in line for line in svg(figure).decode().splitlines())


def luminance(color):
    """Source: WCAG 2.2, relative luminance."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(first, second):
    """Source: WCAG 2.2, contrast ratio."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("color", [INK, OTHERS, *COLORS])
def test_every_color_has_contrast_in_light_and_dark(color):
    """WCAG requires 3 : 1 for graphical objects; the pink of Okabe and Ito is slightly below on white."""
    least = 4.5 if color == INK else 2.8
    assert contrast(color, LIGHT_PAPER) > least
    assert contrast(ON_DARK.get(color, color), DARK_PAPER) > least


def test_colors_are_distinct_in_light_and_dark():
    assert len({*COLORS, INK, GRID}) == len({ON_DARK.get(color, color) for color in (*COLORS, INK, GRID)}) == 7


AWKWARD = ("_first", "$5_ to $10^", "森林", "a_run_of_" + 30 * "many_words_")


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("draw", [draw_top1_over_time, draw_hyperparameters])
def test_legend_shows_every_run_name(draw):
    """Names are not parsed as formulas, and letters without a glyph raise no warning."""
    figure = draw(dict.fromkeys(AWKWARD, HISTORY))
    assert png(figure)
    assert svg(figure)
    first, dollars, forest, long = legend_of(figure)
    assert (first.strip(), dollars, forest) == ("_first", r"\$5_ to \$10^", "森林")
    assert long.count("\n") == 1
    assert long.endswith("…")


@pytest.mark.parametrize("draw", [draw_top1_over_time, draw_hyperparameters])
def test_twelve_runs_have_different_lines(draw):
    figure = draw({f"run {number}": HISTORY for number in range(12)})
    for ax in figure.axes:
        assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == len(ax.lines) == 12


def test_bars_have_room_next_to_long_names():
    """Two runs with the same shortened name have separate bars."""
    runs = {f"{name}{end}": stage_costs(HISTORY) for name in AWKWARD for end in "ab"}
    figure = draw_costs(runs)
    assert png(figure)
    (ax,) = figure.axes
    assert ax.get_position().width > 0.4
    assert len({bar.get_y() for bar in ax.containers[0]}) == len(ax.get_yticklabels()) == 2 * len(runs)


@pytest.mark.parametrize("column", ["年", "$x_$"])
def test_column_of_times_may_have_any_name(column):
    table = places().table.rename(columns={"year": column})
    assert svg(draw_times(replace(places(), table=table), column))


def test_captions_are_as_wide_as_their_images():
    """Captions of mixed images are wrapped, and a name is not a formula."""
    image = np.zeros((8, 8, 3), np.uint8)
    long = "a_class_of_a_rather_long_name"
    figure = draw_rows([ImageRow("mixed", [image] * 2, [f"60% $_{{$^ + 40% {long}", "oak"])])
    assert png(figure)
    caption = figure.subfigs[0].axes[0].get_xlabel()
    assert caption == "60% \\$_{\\$^\n+ 40% a_class_of_a_\nrather_long_name"


@pytest.mark.parametrize(("num_images", "total"), [(5000, 5003), (5000, 40_000), (500, 1_000_000)])
def test_tick_labels_of_a_sampled_learning_curve_do_not_overlap(num_images, total):
    figure = draw_label_curve(sampled_learning_curve(num_images, total))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert figure.axes[0].get_xticklabels()[-1].get_text() == f"{2 * total:,}"
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_large_coverage_curve_is_thinned_to_500_points():
    rng = np.random.default_rng(0)
    curve = coverage_curve(rng.random(100_000) < 0.7, rng.random(100_000))
    panel = draw_coverage(curve).axes[0]
    x = panel.lines[0].get_xdata()
    assert len(x) == 500
    assert (x[0], x[-1]) == (pytest.approx(0.01, rel=0.1), 100)


def test_style_of_a_page_chooses_no_backend_for_the_program():
    code = (
        "import sys\n"
        "from efficientnetv2.evaluation.plot_style import default_style, png, single_plot\n"
        "with default_style():\n"
        "    png(single_plot(1.0)[0])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
