"""Would more labels help: the label curve drawn, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from matplotlib.figure import Figure

from efficientnetv2.evaluation.html import percent
from efficientnetv2.evaluation.plot_style import COLORS, INK, WIDTH_IN, style_axes
from efficientnetv2.evaluation.sections import TemplateSection
from efficientnetv2.inference.learning_curve import LabelCurve, LabelPoint

# Points of macro-F1 that labels have to bring at least to be worth a yes, and below which they bring little. Ours.
_WORTH, _LITTLE = 0.005, 0.02
# Of the drawing's width, what a letter of a number below it takes, with some air. Ours.
_LETTER = 0.016


def label_efficiency_verdict(curve: LabelCurve, *, note: str = "") -> tuple[str, str]:
    """A word or two, and the sentences behind them.

    Args:
        curve: measured.
        note: a sentence that says of which pictures, where that is not plain.
    """
    behind = f" {note}" if note else ""
    word = "Perhaps."
    if curve.gain_low > _WORTH:
        word = "Probably."
    elif curve.gain_high < _LITTLE:
        word = "Little."
    half, last = curve.points[-2:]
    measured = (
        f"A linear probe on the weights as they came reaches macro-F1 {percent(half.macro_f1)} with {half.pictures:,} "
        f"labelled pictures and {percent(last.macro_f1)} with {last.pictures:,}"
    )
    if word == "Perhaps." and curve.gain <= 0:
        # Carried on, it would promise that labels do harm.
        return "Not told.", f"{measured}. It does not rise, so what more would bring is not told.{behind}"
    gain = f"{100 * curve.gain:+.1f} points"
    if curve.carried is None:
        return word, f"{measured}. If that goes on, {_foretold(curve.forecast)}, {gain}.{behind}"
    there = curve.carried.pictures
    return word, (
        f"{measured}, a sample of the {there:,} training pictures. What more would bring is not measured: carried on, "
        f"{_foretold(curve.carried)}, and {_foretold(curve.forecast)}. Twice as many labels as there are would then "
        f"bring {gain} ({100 * curve.gain_low:+.1f} to {100 * curve.gain_high:+.1f}).{behind}"
    )


def _foretold(point: LabelPoint) -> str:
    reach = f"{100 * point.low:.1f} to {percent(point.high)}"
    return f"{point.pictures:,} bring it to {percent(point.macro_f1)} ({reach})"


def learning_curve_section(curve: LabelCurve, *, note: str = "") -> TemplateSection:
    """The section of a report; arguments as of ``label_efficiency_verdict``."""
    return TemplateSection(
        "more_labels.html.j2",
        {
            "words": " ".join(label_efficiency_verdict(curve, note=note)),
            "how": _how(curve),
            "curve": draw_label_curve(curve),
        },
        {"label_curve": asdict(curve)},
    )


def _how(curve: LabelCurve) -> str:
    """The caption: what was measured, and what is foretold."""
    last, dotted = "of all training pictures", "a power law, carried on"
    if curve.carried is not None:
        last = f"of the whole sample of {curve.points[-1].pictures:,}"
        dotted = (
            "a power law, carried on to all training pictures and to twice as many, in three ways, for beyond a sample "
            "nobody knows where it flattens: falling on as before, half as fast, and no further; bars hold all three"
        )
    return (
        f"Each point is the mean of {curve.points[0].draws} draws, the last {last}; bands are 95 % intervals over "
        f"pictures and draws. Dotted: {dotted}. It is the probe that is measured, not the trained network, which "
        "reaches more and may use more labels better."
    )


def draw_label_curve(curve: LabelCurve) -> Figure:
    """Macro-F1 against the number of labels, each doubling as wide as the next; what is foretold apart.

    Args:
        curve: to draw.
    """
    figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
    ax = figure.subplots()
    points, foretold = curve.points, [one for one in (curve.carried, curve.forecast) if one is not None]
    sizes = [one.pictures for one in points]
    colour = COLORS[0]
    ax.fill_between(
        sizes, [100 * one.low for one in points], [100 * one.high for one in points], color=colour, alpha=0.2,
        linewidth=0,
    )  # fmt: skip
    ax.plot(sizes, [100 * one.macro_f1 for one in points], color=colour, marker="o", markersize=4)
    dotted = [points[-1], *foretold]
    ax.plot(
        [one.pictures for one in dotted], [100 * one.macro_f1 for one in dotted], color=colour, linestyle=":"
    )
    for one in foretold:
        ax.errorbar(
            [one.pictures], [100 * one.macro_f1],
            yerr=[[max(0.0, 100 * (one.macro_f1 - one.low))], [max(0.0, 100 * (one.high - one.macro_f1))]],
            color=colour, marker="o", markerfacecolor="none", markersize=5, capsize=3, linewidth=1,
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ticks = _ticks([*sizes, *(one.pictures for one in foretold)])
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("labeled images", color=INK)
    style_axes(ax, "macro-F1 of the linear probe, %")
    return figure


def _ticks(sizes: Sequence[int]) -> list[int]:
    """Of growing sizes those whose numbers have room, on an axis of doublings; the last has."""
    width, kept = math.log2(sizes[-1] / sizes[0]), [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if math.log2(kept[0] / size) >= _LETTER * len(f"{kept[0]:,}") * width:
            kept.insert(0, size)
    return kept
