"""Augmented copies of images, which tables mark in a column ``augmented_from``: the path of the original, or empty.

Splits keep a copy with its original, and metrics are of originals only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.records import ImageRecords, Ints
from efficientnetv2.data.shards.index import shard_of
from efficientnetv2.utils.errors import InputError, pluralize

AUGMENTED_FROM = "augmented_from"


def is_copy(records: ImageRecords) -> npt.NDArray[np.bool_]:
    """(N,) whether an image is an augmented copy."""
    if AUGMENTED_FROM not in records.table:
        return np.zeros(len(records), dtype=bool)
    origin = records.table[AUGMENTED_FROM]
    return np.array(origin.notna() & (origin.astype("string").fillna("") != ""), dtype=bool)


def copy_groups(records: ImageRecords) -> Ints | None:
    """(N,) numbers, equal for an image, its copies and their copies. None without copies."""
    copies = is_copy(records)
    if not copies.any():
        return None
    paths = records.table["path"].astype(object)
    made_from = np.where(copies, records.table[AUGMENTED_FROM].astype(object), paths)
    names, _ = pd.factorize(np.array([_unpacked(path) for path in (*paths, *made_from)], dtype=object))
    own, theirs = names[: len(paths)], names[len(paths) :]
    origin = np.arange(len(names), dtype=np.int64)
    origin[own] = theirs
    for _ in range(len(own).bit_length()):  # each pass looks back twice as far
        origin = origin[origin]
    numbers: Ints = pd.factorize(origin[own])[0].astype(np.int64)
    return numbers


def _unpacked(path: str) -> str:
    """Path from before packing into a shard."""
    place = shard_of(path)
    return path if place is None else place[1]


def validate_copy_splits(records: ImageRecords) -> None:
    """Raise InputError if a copy and its original are in different splits."""
    groups = copy_groups(records)
    if groups is None:
        return
    split = np.where(records.in_train, "train", records.split)
    parts = pd.DataFrame({"group": groups, "split": split})
    divided = np.flatnonzero(parts.groupby("group")["split"].transform("nunique").to_numpy() > 1)
    if len(divided):
        copies = is_copy(records)
        row = int(next((index for index in divided if copies[index]), divided[0]))
        raise InputError(
            f"{records.where(row)}: '{records.paths[row]}' is in {split[row]}, but it was made from "
            f"'{records.table[AUGMENTED_FROM].iloc[row]}', which, or another copy of which, is in another split. "
            "Put all of them into one split, or leave the copies out."
        )


def excluded_copies(records: ImageRecords, rows: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], str]:
    """Copies among these (N,) images, to exclude from metrics, and a sentence on them. Empty for none."""
    copies = is_copy(records) & rows
    note = (
        f" Left out: {pluralize(int(copies.sum()), 'image')} made from those held out."
        if copies.any()
        else ""
    )
    return copies, note
