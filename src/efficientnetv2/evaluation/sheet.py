"""Sheets of pictures: rows of small squares with a line of words above each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from efficientnetv2.evaluation.drawing import called

_SIDE_IN = 1.45  # of a picture on the sheet: legible at the width of a screen
_LETTERS = 7
_CAPTION = (24, 3)  # letters of a line as wide as a picture, and lines at most
# Of letters that matplotlib's own font lacks, as Linux, Windows and macOS have them; those that are installed serve.
_FURTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Thai", "Noto Sans Devanagari", "Noto Sans Arabic",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "Leelawadee UI", "Nirmala UI", "PingFang SC", "Thonburi",
    "Devanagari Sangam MN", "Arial Unicode MS",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Row:
    """Pictures beside each other.

    Args:
        words: on all of them, above.
        images: (S, S, 3) uint8 each.
        captions: on each, below; empty for none.
    """

    words: str
    images: Sequence[npt.NDArray[np.uint8]]
    captions: Sequence[str]


def draw_rows(rows: Sequence[Row]) -> Figure:
    """Rows below each other, every picture as wide as the next, its pixels as they are.

    Args:
        rows: of as many pictures each.
    """
    columns = len(rows[0].images)
    width = max(columns * (_SIDE_IN + 0.08), 3.5)
    figure = Figure(figsize=(width, len(rows) * (_SIDE_IN + 0.5)), layout="constrained")
    fonts = _fonts()
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for row, part in zip(rows, parts, strict=True):
        part.suptitle(row.words, x=0.01, ha="left", fontsize=_LETTERS + 2)
        for place, ax in enumerate(part.subplots(1, columns, squeeze=False)[0]):
            # Unsmoothed: how coarse the picture is belongs to what is to be seen.
            ax.imshow(row.images[place], interpolation="nearest")
            ax.set_xlabel(_caption(row.captions[place]), fontsize=_LETTERS, fontfamily=fonts)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
    return figure


def _caption(text: str) -> str:
    """Operations below each other; a long name in lines as wide as its picture."""
    letters, most = _CAPTION
    first, *others = text.split(" + ")
    return "\n".join(
        called(one, letters=letters, lines=most) for one in (first, *(f"+ {one}" for one in others))
    )


def _fonts() -> list[str]:
    """The ordinary one, then those installed that have further letters."""
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FURTHER_FONTS if name in installed)]
