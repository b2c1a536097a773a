"""Layout of the confusion matrix, readable at 3 and at 1,000 classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
_LETTER = 0.62  # width of a letter over its height
_FULL = 0.75  # share of a row from which text on a cell needs another color
_AXIS_FONT_PX = 13.0  # axis titles
_CELLS = 50_000  # cells drawn, 2 MB of the page; the ImageNet validation set fills no more


def matrix_layout(confusion: coo_array, class_names: Sequence[str]) -> dict[str, Any]:
    """What ``matrix.html.j2`` draws of (K, K) counts, rows true, columns predicted; lengths in CSS pixels.

    With too many classes there are no ``labels``; with too many non-empty cells the largest are drawn.
    """
    classes = len(class_names)
    cell_px = _SIDE_PX / classes
    if classes <= _LABELED:
        cell_px = min(max(cell_px, _CELL_PX[0]), _CELL_PX[1])
    font_px = min(13.0, cell_px * 0.9)
    lines = min(_LINES, max(1, int(cell_px / (font_px * _LINE))))
    labels = [wrap_name(name, _NAME_LETTERS, lines) for name in class_names] if classes <= _LABELED else []
    widest = max((text_width(line) for label in labels for line in label), default=0.0)
    margin_px = 1.6 * _AXIS_FONT_PX + font_px * (2 + _LETTER * widest)
    whole_px = margin_px + cell_px * classes + 2
    drawn = np.sort(np.argsort(-confusion.data, kind="stable")[:_CELLS])
    rows, columns, counts = confusion.row[drawn], confusion.col[drawn], confusion.data[drawn]
    shares = counts / confusion.sum(axis=1)[rows]
    cells = [
        {
            "row": row, "column": column, "count": count, "share": share, "right": row == column,
            "opacity": round(0.12 + 0.68 * share, 3),  # a single error among many is still visible
            "full": share > _FULL,
            "shade": (row == column, round(0.12 + 0.68 * share, 2)),  # cells of one shade are written together
        }
        for row, column, count, share in zip(*(each.tolist() for each in (rows, columns, counts, shares)), strict=True)
    ]  # fmt: skip
    return {
        "names": class_names, "labels": labels, "cells": cells, "counted": classes <= _COUNTED,
        "left_out": confusion.nnz - len(drawn), "cell_px": cell_px, "margin_px": margin_px, "font_px": font_px,
        "dot": max(1.0, 1 / cell_px),  # side of a cell without labels, in cells: at least a pixel
        "side_px": cell_px * classes, "axis_font_px": _AXIS_FONT_PX, "axis_px": 1.1 * _AXIS_FONT_PX,
        "whole_px": whole_px,
        "least_px": whole_px * min(1.0, _LEAST_FONT_PX / font_px),  # width down to which it stays readable
    }  # fmt: skip


def most_frequent_confusions(
    confusion: coo_array, class_names: Sequence[str]
) -> list[tuple[str, str, int, float]]:
    """The most frequent confusions: true class, predicted class, count, share of the true class."""
    wrong = confusion.row != confusion.col
    rows, columns, counts = confusion.row[wrong], confusion.col[wrong], confusion.data[wrong]
    shares = counts / confusion.sum(axis=1)[rows]
    return [
        (class_names[int(rows[at])], class_names[int(columns[at])], int(counts[at]), float(shares[at]))
        for at in np.argsort(-counts, kind="stable")[:_LISTED]
    ]
