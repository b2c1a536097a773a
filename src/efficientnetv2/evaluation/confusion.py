"""The confusion matrix as a drawing that can be read at 3 and at 1,000 classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SIDE_PX = 900  # of the widest matrix
_CELL_PX = (9.0, 64.0)  # least (its label can just be read) and most
_LABELLED = 120  # classes at most, for their labels to fit
_COUNTED = 20  # classes at most, for counts to fit into the cells
_NAME_LETTERS = 22  # longer names are cut in the drawing


@dataclass(frozen=True)
class Cell:
    """One cell that is not empty.

    Args:
        row, column: true and predicted class.
        count: of pictures.
        share: of the pictures of its row.
    """

    row: int
    column: int
    count: int
    share: float

    @property
    def right(self) -> bool:
        """Whether these pictures were called what they are."""
        return self.row == self.column

    @property
    def opacity(self) -> float:
        """Of its colour; a single mistake among many can still be seen."""
        return round(0.12 + 0.68 * self.share, 3)


@dataclass(frozen=True)
class Matrix:
    """What the page needs to draw it; lengths in CSS pixels.

    Args:
        names: of the classes, whole.
        labels: the names, cut to fit; empty if there are too many to be labelled.
        cells: those that are not empty.
        cell_px: side of a cell.
        margin_px: room for the labels, at the left and on top.
        counted: whether counts are written into the cells.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    cell_px: float
    margin_px: float
    counted: bool

    @property
    def font_px(self) -> float:
        """Of labels and counts."""
        return min(13.0, self.cell_px * 0.9)

    @property
    def side_px(self) -> float:
        """Of the cells alone."""
        return self.cell_px * len(self.names)

    @classmethod
    def of(cls, confusion: npt.NDArray[np.int64], class_names: Sequence[str]) -> Matrix:
        """Lay out a (K, K) matrix of counts: rows true, columns predicted."""
        classes = len(class_names)
        labelled = classes <= _LABELLED
        cell_px = _SIDE_PX / classes
        if labelled:
            cell_px = min(max(cell_px, _CELL_PX[0]), _CELL_PX[1])
        labels = tuple(_cut(name) for name in class_names) if labelled else ()
        font_px = min(13.0, cell_px * 0.9)
        totals = confusion.sum(axis=1)
        cells = tuple(
            Cell(
                int(row),
                int(column),
                int(confusion[row, column]),
                float(confusion[row, column] / totals[row]),
            )
            for row, column in zip(*np.nonzero(confusion), strict=True)
        )
        # 0.62: width of a letter over its height, on the wide side (ours, from looking at the page).
        margin_px = font_px * (2 + 0.62 * max(map(len, labels), default=0))
        return cls(tuple(class_names), labels, cells, cell_px, margin_px, counted=classes <= _COUNTED)


def confusions(
    confusion: npt.NDArray[np.int64], class_names: Sequence[str], *, most: int = 12
) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: true class, predicted class, count, share of the true class's pictures."""
    mistakes = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(confusion)) for place in order]
    return [
        (class_names[row], class_names[column], int(count), float(count / confusion[row].sum()))
        for row, column in pairs
        if (count := mistakes[row, column])
    ]


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_LETTERS else name[: _NAME_LETTERS - 1] + "…"
