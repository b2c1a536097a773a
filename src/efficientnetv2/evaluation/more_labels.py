"""Would more labels help: the label curve drawn, and its verdict."""

from __future__ import annotations

from dataclasses import asdict

from matplotlib.figure import Figure

from efficientnetv2.evaluation.drawing import COLOURS, INK, WIDTH_IN, plain
from efficientnetv2.evaluation.page import percent
from efficientnetv2.evaluation.sections import Part
from efficientnetv2.inference.label_curve import LabelCurve

# Points of macro-F1 that labels have to bring at least to be worth a yes, and below which they bring little. Ours.
_WORTH, _LITTLE = 0.005, 0.02


def verdict(curve: LabelCurve) -> tuple[str, str]:
    """A word or two, and the sentences behind them."""
    whole, twice = curve.points[-1], curve.forecast
    half = curve.points[-2]
    word = "Perhaps."
    if curve.gain_low > _WORTH:
        word = "Probably."
    elif curve.gain_high < _LITTLE:
        word = "Little."
    return word, (
        f"A linear probe on the untrained features reaches macro-F1 {percent(half.macro_f1)} with {half.pictures:,} "
        f"labelled pictures and {percent(whole.macro_f1)} with {whole.pictures:,}. If that goes on, {twice.pictures:,} "
        f"bring it to {percent(twice.macro_f1)} ({100 * twice.low:.1f} to {percent(twice.high)}), "
        f"{100 * curve.gain:+.1f} points."
    )


def more_labels(curve: LabelCurve) -> Part:
    """The section of a report."""
    return Part(
        "more_labels.html.j2",
        {
            "words": " ".join(verdict(curve)),
            "how": (
                f"Each point is the mean of {curve.points[0].draws} draws, the last of all pictures; bands are 95 % "
                "intervals over pictures and draws. Dotted: a power law, carried on. It is the probe that is measured, "
                "not the trained network, which reaches more and may use more labels better."
            ),
            "curve": draw_label_curve(curve),
        },
        {"label_curve": asdict(curve)},
    )


def draw_label_curve(curve: LabelCurve) -> Figure:
    """Macro-F1 against the number of labels, each doubling as wide as the next; the forecast apart.

    Args:
        curve: to draw.
    """
    figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
    ax = figure.subplots()
    points, twice = curve.points, curve.forecast
    sizes = [one.pictures for one in points]
    colour = COLOURS[0]
    ax.fill_between(
        sizes, [100 * one.low for one in points], [100 * one.high for one in points], color=colour, alpha=0.2,
        linewidth=0,
    )  # fmt: skip
    ax.plot(sizes, [100 * one.macro_f1 for one in points], color=colour, marker="o", markersize=4)
    last = points[-1]
    ax.plot(
        [last.pictures, twice.pictures],
        [100 * last.macro_f1, 100 * twice.macro_f1],
        color=colour,
        linestyle=":",
    )
    ax.errorbar(
        [twice.pictures], [100 * twice.macro_f1],
        yerr=[[max(0.0, 100 * (twice.macro_f1 - twice.low))], [max(0.0, 100 * (twice.high - twice.macro_f1))]],
        color=colour, marker="o", markerfacecolor="none", markersize=5, capsize=3, linewidth=1,
    )  # fmt: skip
    ax.set_xscale("log", base=2)
    ticks = [*sizes, twice.pictures]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("labelled pictures", color=INK)
    plain(ax, "macro-F1 of the linear probe, %")
    return figure
