"""Sheets of pictures: rows of small squares with a line of words above each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

_SIDE_IN = 1.45  # of a picture on the sheet: legible at the width of a screen
_LETTERS = 7


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
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for row, part in zip(rows, parts, strict=True):
        part.suptitle(row.words, x=0.01, ha="left", fontsize=_LETTERS + 2)
        for place, ax in enumerate(part.subplots(1, columns, squeeze=False)[0]):
            # Unsmoothed: how coarse the picture is belongs to what is to be seen.
            ax.imshow(row.images[place], interpolation="nearest")
            ax.set_xlabel(row.captions[place].replace(" + ", "\n+ "), fontsize=_LETTERS)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
    return figure
