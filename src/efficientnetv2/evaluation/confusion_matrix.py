"""Layout of the confusion matrix, readable at 3 and at 1,000 classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array

from efficientnetv2.evaluation.text_wrap import text_width, wrap_name

# Ours, from looking at pages: lengths in CSS pixels.
_SIDE_PX = 900  # largest matrix
_CELL_PX = (9.0, 64.0)  # smallest cell with a readable label, and largest cell
_LABELED = 120  # classes whose labels fit
_LISTED = 12  # confusions listed
_COUNTED = 20  # classes whose counts fit into the cells
_NAME_LETTERS = 22  # letters of a line of a label
_LINE = 1.15  # line height in letters
_LINES = 3  # lines of a label
_LEAST_FONT_PX = 10.0  # readable font
_FULL = 0.75  # share of a row from which text on a cell needs another color
_AXIS_FONT_PX = 13.0  # axis titles
_CELLS = 50_000  # cells drawn, 2 MB of the page; the ImageNet validation set fills no more


@dataclass(frozen=True)
class Cell:
    """A non-empty cell; ``share`` is of the images of its row."""

    row: int
    column: int
    count: int
    share: float

    @property
    def right(self) -> bool:
        """Whether it is on the diagonal."""
        return self.row == self.column

    @property
    def opacity(self) -> float:
        """Opacity of the color; a single error among many is still visible."""
        return round(0.12 + 0.68 * self.share, 3)

    @property
    def full(self) -> bool:
        """Whether the color is so strong that text needs another color."""
        return self.share > _FULL

    @property
    def shade(self) -> tuple[bool, float]:
        """What cells that are written together share: on the diagonal or not, and rounded opacity."""
        return self.right, round(self.opacity, 2)


@dataclass(frozen=True)
class Matrix:
    """The layout; lengths in CSS pixels.

    Attributes:
        labels: Class names in lines, cut to fit. Empty if there are too many classes.
        cells: Non-empty cells; of very many the largest.
        left_out: Number of cells that are not drawn.
        margin_px: Room for labels and axis titles at the left and the top.
        counted: Whether cells have counts.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    cells: tuple[Cell, ...]
    cell_px: float
    margin_px: float
    counted: bool
    left_out: int = 0

    @property
    def dot(self) -> float:
        """Side of a cell without labels, in cells: at least a pixel with thousands of classes."""
        return max(1.0, 1 / self.cell_px)

    @property
    def font_px(self) -> float:
        """Font size of labels and counts."""
        return _font_px(self.cell_px)

    @property
    def axis_font_px(self) -> float:
        """Font size of axis titles."""
        return _AXIS_FONT_PX

    @property
    def axis_px(self) -> float:
        """From the edge of the drawing to the baseline of an axis title."""
        return 1.1 * _AXIS_FONT_PX

    @property
    def whole_px(self) -> float:
        """Side of the drawing with labels."""
        return self.margin_px + self.side_px + 2

    @property
    def least_px(self) -> float:
        """Width down to which the drawing may shrink and stay readable."""
        return self.whole_px * min(1.0, _LEAST_FONT_PX / self.font_px)

    @property
    def side_px(self) -> float:
        """Side of the cells alone."""
        return self.cell_px * len(self.names)

    @classmethod
    def of(cls, confusion: coo_array, class_names: Sequence[str]) -> Matrix:
        """Lay out a (K, K) matrix of counts, rows true, columns predicted."""
        classes = len(class_names)
        labeled = classes <= _LABELED
        cell_px = _SIDE_PX / classes
        if labeled:
            cell_px = min(max(cell_px, _CELL_PX[0]), _CELL_PX[1])
        font_px = _font_px(cell_px)
        lines = min(_LINES, max(1, int(cell_px / (font_px * _LINE))))
        labels = tuple(wrap_name(name, _NAME_LETTERS, lines) for name in class_names) if labeled else ()
        totals = confusion.sum(axis=1)
        rows, columns, counts = confusion.row, confusion.col, confusion.data
        drawn = np.sort(np.argsort(-counts, kind="stable")[:_CELLS])
        cells = tuple(
            Cell(int(rows[at]), int(columns[at]), int(counts[at]), float(counts[at] / totals[rows[at]]))
            for at in drawn
        )
        # 0.62: width of a letter over its height. Ours.
        widest = max((text_width(line) for label in labels for line in label), default=0.0)
        margin_px = 1.6 * _AXIS_FONT_PX + font_px * (2 + 0.62 * widest)
        counted, left_out = classes <= _COUNTED, len(rows) - len(drawn)
        return cls(tuple(class_names), labels, cells, cell_px, margin_px, counted, left_out)


def confusions(confusion: coo_array, class_names: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """The most frequent confusions: true class, predicted class, count, share of the true class."""
    wrong = confusion.row != confusion.col
    rows, columns, counts = confusion.row[wrong], confusion.col[wrong], confusion.data[wrong]
    most_first = np.argsort(-counts, kind="stable")[:_LISTED]
    shares = counts / confusion.sum(axis=1)[rows]
    return [
        (class_names[int(rows[at])], class_names[int(columns[at])], int(counts[at]), float(shares[at]))
        for at in most_first
    ]


def _font_px(cell_px: float) -> float:
    return min(13.0, cell_px * 0.9)
