"""The report section on more labels: the learning curve of the linear probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from matplotlib.figure import Figure

from efficientnetv2.evaluation.html import TemplateSection, format_interval, percent
from efficientnetv2.evaluation.plot_style import COLORS, INK, draw_band, single_plot, style_axes
from efficientnetv2.inference.learning_curve import LearningCurve

# Gain of macro-F1 from which labels are worth it, and below which they bring little. Ours.
_WORTH, _LITTLE = 0.005, 0.02
# Width of a letter of a tick label, as a fraction of the plot. Ours.
_LETTER = 0.016


def label_efficiency_verdict(curve: LearningCurve, *, note: str = "") -> tuple[str, str]:
    """A verdict in a word or two, and its sentences, followed by a note on the images."""
    word = "Probably." if curve.gain_low > _WORTH else "Little." if curve.gain_high < _LITTLE else "Perhaps."
    half, last = curve.points[-2:]
    text = (
        f"A linear probe on the pretrained weights reaches macro-F1 {percent(half.macro_f1)} with {half.num_images:,} "
        f"labeled images and {percent(last.macro_f1)} with {last.num_images:,}"
    )
    gain = f"{100 * curve.gain:+.1f} points"
    if word == "Perhaps." and curve.gain <= 0:  # an extrapolation would say that labels do harm
        word, text = "Not known.", f"{text}. It does not rise, so the effect of more labels is not known."
    else:
        if curve.carried is not None:
            text += f", a sample of the {curve.carried.num_images:,} training images"
            gain += f" ({100 * curve.gain_low:+.1f} to {100 * curve.gain_high:+.1f})"
        points = [
            f"{point.num_images:,} give {percent(point.macro_f1)} ({format_interval((point.low, point.high))})"
            for point in (curve.carried, curve.forecast)
            if point is not None
        ]
        text += f". Extrapolated, {' and '.join(points)}, {gain}."
    return word, f"{text} {note}".strip()


def learning_curve_section(curve: LearningCurve, *, note: str = "") -> TemplateSection:
    """The section of a report; arguments as for ``label_efficiency_verdict``."""
    return TemplateSection(
        "more_labels.html.j2",
        {
            "words": " ".join(label_efficiency_verdict(curve, note=note)),
            "curve": draw_label_curve(curve),
            "draws": curve.points[0].draws,
            "sample": None if curve.carried is None else curve.points[-1].num_images,
        },
        {"data_scaling_curve": asdict(curve)},
    )


def draw_label_curve(curve: LearningCurve) -> Figure:
    """Macro-F1 against the number of labels on a log axis; the extrapolation is dotted."""
    figure, ax = single_plot(2.6)
    points, extrapolated = (
        curve.points,
        [each for each in (curve.carried, curve.forecast) if each is not None],
    )
    sizes, color = [each.num_images for each in points], COLORS[0]
    rows = [(each.macro_f1, each.low, each.high) for each in points]
    draw_band(ax, sizes, rows, marker="o", markersize=4)
    dotted = [points[-1], *extrapolated]
    ax.plot(
        [each.num_images for each in dotted],
        [100 * each.macro_f1 for each in dotted],
        color=color,
        linestyle=":",
    )
    for each in extrapolated:
        ax.errorbar(
            [each.num_images], [100 * each.macro_f1],
            yerr=[[max(0.0, 100 * (each.macro_f1 - each.low))], [max(0.0, 100 * (each.high - each.macro_f1))]],
            color=color, marker="o", markerfacecolor="none", markersize=5, capsize=3, linewidth=1,
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ticks = _ticks([*sizes, *(each.num_images for each in extrapolated)])
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("labeled images", color=INK)
    style_axes(ax, "macro-F1 of the linear probe, %")
    return figure


def _ticks(sizes: Sequence[int]) -> list[int]:
    """The increasing sizes whose tick labels have room on a log axis; the last always has."""
    width, kept = math.log2(sizes[-1] / sizes[0]), [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if math.log2(kept[0] / size) >= _LETTER * len(f"{kept[0]:,}") * width:
            kept.insert(0, size)
    return kept
