"""Several labels of one image in one cell of a table, such as ``cat;animal``, or in a list (Parquet, JSON of shards).

The labels of a cell are sorted, those of the rarest class first. Where an image can count for one class only (class
sampling, splits), its first label counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from efficientnetv2.data.records import ImageRecords, Ints
from efficientnetv2.utils.errors import InputError

_DEFAULT_SEPARATOR = ";"  # for lists where no separator is given
_USUAL_SEPARATORS = (";", "|", ",")  # that ``unseparated_hint`` looks for. Ours.


def split_labels(records: ImageRecords, separator: str) -> ImageRecords:
    """One row per label of an image, without space around it, with the columns path, label and split.

    Raises:
        InputError: The separator is empty, the images are in class folders, or a label between separators is empty.
    """
    if not separator:
        raise InputError("`label_separator` is empty, but must be the text between two labels, such as ';'.")
    if records.rows is None and records.shards is None:
        raise InputError(
            f"`label_separator={separator}`: {records.source} gives each image one label. Give a table of labels."
        )
    codes, distinct = pd.factorize(records.table["label"])
    parts = [_parts(cell, separator) for cell in distinct]
    lacking = np.isin(codes, [number for number, labels in enumerate(parts) if not all(labels)])
    if lacking.any():
        row = int(lacking.argmax())
        raise InputError(
            f"{records.where(row)}: '{records.table['label'].iloc[row]}' lacks a label next to a '{separator}'. "
            "Correct the row."
        )
    # No rule about labels reads the other columns, which may be many.
    cells = pd.Series([parts[code] for code in codes], dtype=object)
    table = records.table[["path", "label", "split"]].assign(label=cells)
    table = table.explode("label").astype({"label": "str"})
    rows = None if records.rows is None else records.rows[table.index]
    return replace(records, table=table.reset_index(drop=True), rows=rows)


def join_labels(cells: pd.Series[str], spelled: Mapping[str, str], separator: str) -> pd.Series[str]:
    """Cells with each label as ``spelled``, sorted. Repeated labels count once."""
    # Each distinct cell once: among millions of images many have the same.
    labels = {cell: {spelled[part] for part in _parts(cell, separator)} for cell in cells.unique()}
    images: Counter[str] = Counter()
    for cell, count in cells.value_counts().items():
        images.update(dict.fromkeys(labels[str(cell)], count))
    joined = {
        cell: separator.join(sorted(names, key=lambda label: (images[label], label)))
        for cell, names in labels.items()
    }
    return cells.map(joined)


def _parts(cell: str, separator: str) -> list[str]:
    return [label.strip() for label in cell.split(separator)]


def unseparated_hint(labels: Iterable[str]) -> str | None:
    """A sentence if distinct labels look like several labels each, without a given separator. Otherwise None.

    A label looks so if each of its parts occurs in another label too, alone or with others.
    """
    distinct = list(labels)
    for separator in _USUAL_SEPARATORS:
        parts = {cell: set(_parts(cell, separator)) for cell in distinct}
        counts = Counter(part for labels in parts.values() for part in labels)
        for cell, labels in parts.items():
            if len(labels) > 1 and all(part and counts[part] > 1 for part in labels):
                return (
                    f"Label '{cell}' looks like several labels, which are in other rows too. If an image may have "
                    f"several, use `label_separator={separator}`."
                )
    return None


def join_lists(
    cells: pd.Series[Any], separator: str | None, *, where: Callable[[int], str], checked: bool
) -> pd.Series[Any]:
    """Cells with lists of labels as separated text. Other cells stay; an empty list is no label.

    ``checked`` refuses lists where no separator is given, and labels that contain it. ``where`` names a row.
    """
    texts = cells.tolist()
    lists = [row for row, cell in enumerate(texts) if isinstance(cell, (list, tuple, np.ndarray))]
    if lists and separator is None and checked:
        raise InputError(
            f"{where(lists[0])}: the label is a list, {list(map(str, texts[lists[0]]))}, but an image has one label. "
            "To take several, use `label_separator=;`."
        )
    between = separator or _DEFAULT_SEPARATOR
    for row in lists:
        labels = list(map(str, texts[row]))
        if checked and (containing := [label for label in labels if between in label]):
            raise InputError(
                f"{where(row)}: the label '{containing[0]}' holds the separator '{between}'. Use another "
                "`label_separator`."
            )
        texts[row] = between.join(labels) if labels else np.nan
    return pd.Series(texts, index=cells.index, dtype=object) if lists else cells


def map_labels(cells: pd.Series[str], change: Callable[[str], str], separator: str | None) -> pd.Series[str]:
    """Cells with every label changed."""
    if separator is None:
        return cells.map(change)
    return cells.map(lambda cell: separator.join(change(label) for label in cell.split(separator)))


def class_ids(cells: pd.Series[str], class_names: Sequence[str], separator: str) -> Ints:
    """(N, M) class ids in the order of each cell, then -1. M is the largest number of labels."""
    known = {name: number for number, name in enumerate(class_names)}
    codes, distinct = pd.factorize(cells)
    sets = [[known.get(label, -1) for label in cell.split(separator)] for cell in distinct]
    ids = np.full((len(sets) + 1, max(map(len, sets), default=1)), -1, dtype=np.int64)
    for row, labels in enumerate(sets):
        ids[row, : len(labels)] = labels
    return ids[codes]  # -1, the code of a cell without labels, is the last row


def pad_labels(parts: Sequence[Ints]) -> Ints:
    """Concatenate class ids of several datasets, (n,) or (n, m) each, padding with -1."""
    if all(part.ndim == 1 for part in parts):
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])
    width = max(part.shape[1] for part in parts)
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=-1) for part in parts]
    return np.concatenate(padded)
