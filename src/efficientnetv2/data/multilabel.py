"""Several labels of one image in one cell of a table, such as ``cat;animal``.

Lists of labels (Parquet cells, JSON of shards) are read in the same way. The labels of a cell are sorted, those of the
rarest class first. Where an image can count for one class only (class sampling, splits), its first label counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from efficientnetv2.data.records import ImageRecords, Ints
from efficientnetv2.utils.errors import InputError

_DEFAULT_SEPARATOR = ";"  # for lists where no separator is given
_USUAL_SEPARATORS = (";", "|", ",")  # that ``unseparated_hint`` looks for. Ours.


@dataclass(frozen=True, eq=False)
class SplitLabels:
    """One row per label of an image.

    Args:
        records: (L rows) path, label and split, without space around the labels.
        cells: (N,) which of the C distinct cells each image has.
        first: (C,) index, among the L rows, of the first label of an image with this cell.
        counts: (C,) labels of each distinct cell.
    """

    records: ImageRecords
    cells: Ints
    first: Ints
    counts: Ints


def split_labels(records: ImageRecords, separator: str) -> SplitLabels:
    """Split the labels of each image, all of which have one.

    Raises:
        InputError: The separator is empty, the images are in class folders, or a label between separators is empty.
    """
    if not separator:
        raise InputError("--label-separator is empty, but must be the text between two labels, such as ';'.")
    if records.rows is None and records.shards is None:
        raise InputError(
            f"--label-separator '{separator}': {records.source} gives each image one label. Give a table with a "
            "column of labels, or leave it out."
        )
    codes, cells = pd.factorize(records.table["label"])
    sets = [[label.strip() for label in cell.split(separator)] for cell in cells]
    lacking = [number for number, labels in enumerate(sets) if not all(labels)]
    if lacking:
        row = int(np.flatnonzero(np.isin(codes, lacking))[0])
        raise InputError(
            f"{records.where(row)}: '{records.table['label'].iloc[row]}' lacks a label beside a '{separator}'. Correct "
            "the row."
        )
    counts = np.array([len(labels) for labels in sets], dtype=np.int64)
    each = counts[codes]
    owners, starts = np.repeat(np.arange(len(codes)), each), np.cumsum(each) - each
    # Index of every label among the concatenated labels of the distinct cells.
    within = np.arange(len(owners)) - starts[owners]
    labels = np.array([label for one in sets for label in one], dtype=object)
    labels = labels[(np.cumsum(counts) - counts)[codes[owners]] + within]
    # No rule about labels reads the other columns, which may be many.
    table = records.table[["path", "label", "split"]].iloc[owners].reset_index(drop=True).assign(label=labels)
    rows = None if records.rows is None else records.rows[owners]
    _, first_image = np.unique(codes, return_index=True)
    return SplitLabels(replace(records, table=table, rows=rows), codes, starts[first_image], counts)


def join_labels(labels: pd.Series[str], split: SplitLabels, separator: str) -> pd.Series[str]:
    """(N,) cells of the (L,) labels of ``split``, which may have been respelled. Repeated labels count once."""
    # Each distinct cell once: among millions of images many have the same.
    owners = np.repeat(np.arange(len(split.counts)), split.counts)
    within = np.arange(len(owners)) - (np.cumsum(split.counts) - split.counts)[owners]
    spelled = labels.iloc[split.first[owners] + within].tolist()
    sets: list[set[str]] = [set() for _ in split.counts]
    for owner, label in zip(owners.tolist(), spelled, strict=True):
        sets[owner].add(label)
    images: Counter[str] = Counter()
    for labels_of_cell, count in zip(
        sets, np.bincount(split.cells, minlength=len(sets)).tolist(), strict=True
    ):
        for label in labels_of_cell:
            images[label] += count
    cells = [separator.join(sorted(one, key=lambda label: (images[label], label))) for one in sets]
    return pd.Series(cells, dtype=labels.dtype).iloc[split.cells].reset_index(drop=True)


def unseparated_hint(labels: Iterable[str]) -> str | None:
    """A sentence if distinct labels look like several labels each, without a given separator. Otherwise None.

    A label looks so if each of its parts occurs in another label too, alone or with others.
    """
    distinct = list(labels)
    for separator in _USUAL_SEPARATORS:
        parts = {cell: {part.strip() for part in cell.split(separator)} for cell in distinct}
        counts = Counter(part for one in parts.values() for part in one)
        for cell, one in parts.items():
            if len(one) > 1 and all(part and counts[part] > 1 for part in one):
                named = " and ".join(f"'{part}'" for part in sorted(one)[:2])
                return (
                    f"Label '{cell}' is taken for one class, but looks like several labels: {named} stand in other "
                    f"rows too. If an image may have several, pass --label-separator '{separator}'."
                )
    return None


def join_lists(
    cells: pd.Series[Any], separator: str | None, *, where: Callable[[int], str], checked: bool
) -> pd.Series[Any]:
    """Cells with lists of labels as separated text. Other cells stay; an empty list is no label.

    ``checked`` refuses lists where no separator is given, and labels that contain it. ``where`` names a row.
    """
    lists = np.flatnonzero([isinstance(cell, (list, tuple, np.ndarray)) for cell in cells])
    if not len(lists):
        return cells
    if separator is None and checked:
        first = [str(one) for one in cells.iloc[int(lists[0])]]
        raise InputError(
            f"{where(int(lists[0]))}: the label is a list, {first}, but an image has one label; --label-separator "
            "';' takes several. Pass that, or give each image one label."
        )
    between = separator or _DEFAULT_SEPARATOR
    texts = cells.tolist()
    for row in lists:
        labels = [str(one) for one in texts[row]]
        containing = [label for label in labels if between in label]
        if containing and checked:
            raise InputError(
                f"{where(int(row))}: '{containing[0]}' is one label of a list, and none may hold the separator "
                f"'{between}'. Pass another with --label-separator."
            )
        texts[row] = between.join(labels) if labels else np.nan
    return pd.Series(texts, index=cells.index, dtype=object)


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
