"""The curve over picture sizes by which one for evaluation is chosen: drawn, and what may be concluded from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

from efficientnetv2.evaluation.drawing import COLOURS, INK, WIDTH_IN, plain
from efficientnetv2.inference.sizes import SizePoint, best


@dataclass(frozen=True)
class SizeCurve:
    """Pictures seen at several sizes.

    Args:
        points: at least one, by growing size.
        own_px: of the model file.
        trained_px: of the last training step; None where the model file does not say.
        role: ``chose``: minival's pictures, which have chosen the size of the model file; ``may choose``: pictures
            that trained the network; ``shown``: pictures that give the figure, and so may not choose.
    """

    points: tuple[SizePoint, ...]
    own_px: int
    trained_px: int | None
    role: Literal["chose", "may choose", "shown"]

    @property
    def advice(self) -> str:
        """What may be concluded, in a sentence or two."""
        if self.role == "chose":
            return f"The pictures of minival, which give no figure, have chosen {self.own_px} px among these."
        if self.role == "may choose":
            px = best(self.points).image_px
            return (
                f"Best at {px} px. Evaluate at it: --image-px {px}. The model file of one network keeps it: effnetv2 "
                f"convert MODEL OUT --image-px {px}."
            )
        return (
            "A size chosen by this curve makes the figure of these pictures optimistic: choose it by pictures that "
            "train the model (DATA: manifest.csv of its run, with --split train), then give it with --image-px."
        )

    def to_json(self) -> list[Mapping[str, Any]]:
        """Plain values: of each point its fields."""
        return [asdict(point) for point in self.points]


def draw_sizes(curve: SizeCurve) -> Figure:
    """Top-1 with its interval against the size; the model file's and the last training size are marked.

    Args:
        curve: to draw.
    """
    figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
    ax = figure.subplots()
    points: Sequence[SizePoint] = curve.points
    sizes = [point.image_px for point in points]
    ax.fill_between(
        sizes,
        [100 * point.low for point in points],
        [100 * point.high for point in points],
        color=COLOURS[0],
        alpha=0.2,
        linewidth=0,
    )
    ax.plot(sizes, [100 * point.top1 for point in points], color=COLOURS[0], marker="o", markersize=3)
    marks = {curve.own_px: "model file"}
    if curve.trained_px is not None:
        both = curve.trained_px == curve.own_px
        marks[curve.trained_px] = "model file, training" if both else "training"
    for px, words in marks.items():
        ax.axvline(px, color=INK, linewidth=0.6, linestyle=":")
        ax.annotate(
            words, (px, 0), xycoords=("data", "axes fraction"), xytext=(3, 3), textcoords="offset points",
            fontsize=8, color=INK,
        )  # fmt: skip
    ax.set_xlabel("px at evaluation", color=INK)
    plain(ax, "top-1, %, with its 95 % interval")
    return figure
