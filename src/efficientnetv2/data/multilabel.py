"""Several labels of a picture: cells taken apart into labels, and put together again.

In a table such a cell says ``cat;animal``, with whatever separator ``--label-separator`` names. A list in a cell of a
Parquet file, or in the JSON of a sample in a shard, is read as if it had been written so. The labels of a cell come in
a fixed order, those of the fewest pictures first: where a picture can stand for one class only (balance, hold-outs), it
stands for the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.records import ImageRecords
from efficientnetv2.utils.errors import InputError

Ints = npt.NDArray[np.int64]

_BETWEEN = ";"  # labels of a list where no separator was named
_USUAL = (";", "|", ",")  # separators that are looked for where none was named: ours


@dataclass(frozen=True, eq=False)
class SplitLabels:
    """Each picture once for each of its labels.

    Args:
        listing: (L rows) path, label and split of the pictures of L labels, without space around the labels.
        cells: (N,) which of the different cells each picture has.
        first: (C,) where the labels of a picture with each of these cells begin, among the L.
        counts: (C,) how many labels each cell has.
    """

    listing: ImageRecords
    cells: Ints
    first: Ints
    counts: Ints


def split_labels(listing: ImageRecords, separator: str) -> SplitLabels:
    """Each picture once for each of its labels.

    Args:
        listing: every picture with a label.
        separator: of the labels in a cell.

    Raises:
        InputError: the pictures are neither of a table nor of shards, the separator is empty, or a cell has nothing
            before, between or behind separators.
    """
    if not separator:
        raise InputError("--label-separator is empty, but is what stands between two labels, such as ';'.")
    if listing.rows is None and listing.shards is None:
        raise InputError(
            f"--label-separator '{separator}': {listing.source} gives each picture one label. Give a table with a "
            "column of labels, or leave it out."
        )
    codes, cells = pd.factorize(listing.table["label"])
    sets = [[label.strip() for label in cell.split(separator)] for cell in cells]
    lacking = [number for number, labels in enumerate(sets) if not all(labels)]
    if lacking:
        row = int(np.flatnonzero(np.isin(codes, lacking))[0])
        raise InputError(
            f"{listing.where(row)}: '{listing.table['label'].iloc[row]}' lacks a label beside a '{separator}'. Correct "
            "the row."
        )
    counts = np.array([len(labels) for labels in sets], dtype=np.int64)
    each = counts[codes]
    owners, begins = np.repeat(np.arange(len(codes)), each), np.cumsum(each) - each
    # The place of every label among those of the different cells, one behind another.
    within = np.arange(len(owners)) - begins[owners]
    labels = np.array([label for one in sets for label in one], dtype=object)
    labels = labels[(np.cumsum(counts) - counts)[codes[owners]] + within]
    # Of the other columns, which may be many, no rule about labels asks.
    table = listing.table[["path", "label", "split"]].iloc[owners].reset_index(drop=True).assign(label=labels)
    rows = None if listing.rows is None else listing.rows[owners]
    _, seen_first = np.unique(codes, return_index=True)
    return SplitLabels(replace(listing, table=table, rows=rows), codes, begins[seen_first], counts)


def unseparated_hint(labels: Iterable[str]) -> str | None:
    """A sentence where labels look like several that nobody has said a separator of; None where they do not.

    A cell is taken for several labels if each of its parts stands in another cell too, by itself or beside others.

    Args:
        labels: the different ones.
    """
    distinct = list(labels)
    for separator in _USUAL:
        parts = {cell: {part.strip() for part in cell.split(separator)} for cell in distinct}
        there = Counter(part for mine in parts.values() for part in mine)
        for cell, mine in parts.items():
            if len(mine) > 1 and all(part and there[part] > 1 for part in mine):
                said = " and ".join(f"'{part}'" for part in sorted(mine)[:2])
                return (
                    f"Label '{cell}' is taken for one class, but looks like several labels: {said} stand in other rows "
                    f"too. If a picture may have several, pass --label-separator '{separator}'."
                )
    return None


def join_labels(labels: pd.Series[str], taken: SplitLabels, separator: str) -> pd.Series[str]:
    """Cells of several labels, those of the fewest pictures first; a label said twice counts once.

    Args:
        labels: (L,) those of ``taken``, equal ones maybe spelled otherwise by now, but alike.
        taken: as ``split_labels`` gives it.
        separator: between two.

    Returns:
        (N,) cells.
    """
    # Each different cell once: of millions of pictures many have the same.
    owners = np.repeat(np.arange(len(taken.counts)), taken.counts)
    within = np.arange(len(owners)) - (np.cumsum(taken.counts) - taken.counts)[owners]
    spelled = labels.iloc[taken.first[owners] + within].tolist()
    sets: list[set[str]] = [set() for _ in taken.counts]
    for owner, label in zip(owners.tolist(), spelled, strict=True):
        sets[owner].add(label)
    pictures: Counter[str] = Counter()
    for mine, count in zip(sets, np.bincount(taken.cells, minlength=len(sets)).tolist(), strict=True):
        for label in mine:
            pictures[label] += count
    cells = [separator.join(sorted(mine, key=lambda label: (pictures[label], label))) for mine in sets]
    return pd.Series(cells, dtype=labels.dtype).iloc[taken.cells].reset_index(drop=True)


def join_lists(
    cells: pd.Series[Any], separator: str | None, *, where: Callable[[int], str], checked: bool
) -> pd.Series[Any]:
    """Cells that hold lists of labels as text with the separator between; all others as they are.

    Args:
        cells: of a column of labels; an empty list is no label.
        separator: between two labels; None where a picture has one.
        where: how a message names a row.
        checked: labels have to make sense; else a list is merely a label, whichever.

    Raises:
        InputError: a cell holds a list where a picture has one label, or a label of a list holds the separator.
    """
    listed = np.flatnonzero([isinstance(cell, (list, tuple, np.ndarray)) for cell in cells])
    if not len(listed):
        return cells
    if separator is None and checked:
        first = [str(one) for one in cells.iloc[int(listed[0])]]
        raise InputError(
            f"{where(int(listed[0]))}: the label is a list, {first}, but a picture has one label; --label-separator "
            "';' takes several. Pass that, or give each picture one label."
        )
    between = separator or _BETWEEN
    texts = cells.tolist()
    for row in listed:
        labels = [str(one) for one in texts[row]]
        holding = [label for label in labels if between in label]
        if holding and checked:
            raise InputError(
                f"{where(int(row))}: '{holding[0]}' is one label of a list, and none may hold the separator "
                f"'{between}'. Pass another with --label-separator."
            )
        texts[row] = between.join(labels) if labels else np.nan
    return pd.Series(texts, index=cells.index, dtype=object)


def map_labels(cells: pd.Series[str], change: Callable[[str], str], separator: str | None) -> pd.Series[str]:
    """Cells whose labels are called otherwise; None separates nothing."""
    if separator is None:
        return cells.map(change)
    return cells.map(lambda cell: separator.join(change(label) for label in cell.split(separator)))


def class_ids(cells: pd.Series[str], class_names: Sequence[str], separator: str) -> Ints:
    """(N, M) class ids in the order of the cells, -1 behind the last of a picture; M is the most that one has."""
    known = {name: number for number, name in enumerate(class_names)}
    codes, distinct = pd.factorize(cells)
    sets = [[known.get(label, -1) for label in cell.split(separator)] for cell in distinct]
    ids = np.full((len(sets) + 1, max(map(len, sets), default=1)), -1, dtype=np.int64)
    for row, labels in enumerate(sets):
        ids[row, : len(labels)] = labels
    return ids[codes]  # -1, of a cell without labels, is the last row


def pad_labels(parts: Sequence[Ints]) -> Ints:
    """Class ids of several sets of pictures as those of one: (n,) each, or (n, m) each of its own m."""
    if all(part.ndim == 1 for part in parts):
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])
    most = max(part.shape[1] for part in parts)
    padded = [np.pad(part, ((0, 0), (0, most - part.shape[1])), constant_values=-1) for part in parts]
    return np.concatenate(padded)
