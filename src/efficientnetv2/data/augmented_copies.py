"""Pictures that were made from others: which they are, and what they are kept with.

A table says so in a column ``augmented_from``: the path of the picture that a copy was made from, written as the column
``path`` has it, empty for one that was taken. In shards both are the paths from before they were packed. A copy never
parts from its origin when pictures are dealt out, and no figure is of copies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.records import ImageRecords, Ints
from efficientnetv2.data.shards.index import shard_of
from efficientnetv2.utils.errors import InputError, count_of

AUGMENTED_FROM = "augmented_from"


def is_copy(listing: ImageRecords) -> npt.NDArray[np.bool_]:
    """(N,) whether a picture was made from another."""
    if AUGMENTED_FROM not in listing.table:
        return np.zeros(len(listing), dtype=bool)
    origin = listing.table[AUGMENTED_FROM]
    made: npt.NDArray[np.bool_] = (origin.notna() & (origin.astype("string").fillna("") != "")).to_numpy(
        dtype=bool
    )
    return made


def copy_groups(listing: ImageRecords) -> Ints | None:
    """(N,) numbers, equal for a picture, its copies and theirs; None where there are no copies."""
    made = is_copy(listing)
    if not made.any():
        return None
    paths = listing.table["path"].astype(object)
    made_from = np.where(made, listing.table[AUGMENTED_FROM].astype(object), paths)
    names, _ = pd.factorize(np.array([_unpacked(path) for path in (*paths, *made_from)], dtype=object))
    own, theirs = names[: len(paths)], names[len(paths) :]
    origin = np.arange(len(names), dtype=np.int64)
    origin[own] = theirs
    for _ in range(len(own).bit_length()):  # each turn looks twice as far back
        origin = origin[origin]
    numbers: Ints = pd.factorize(origin[own])[0].astype(np.int64)
    return numbers


def _unpacked(path: str) -> str:
    """What a picture was called before it was packed into a shard."""
    place = shard_of(path)
    return path if place is None else place[1]


def validate_copy_splits(listing: ImageRecords) -> None:
    """Where splits are given, a copy stands in that of its origin.

    Raises:
        InputError: naming the first that does not.
    """
    family = copy_groups(listing)
    if family is None:
        return
    split = np.where(listing.in_train, "train", listing.split)
    parts = pd.DataFrame({"family": family, "split": split})
    apart = np.flatnonzero(parts.groupby("family")["split"].transform("nunique").to_numpy() > 1)
    if len(apart):
        made = is_copy(listing)
        row = int(next((one for one in apart if made[one]), apart[0]))
        raise InputError(
            f"{listing.where(row)}: '{listing.paths[row]}' is in {split[row]}, but it was made from "
            f"'{listing.table[AUGMENTED_FROM].iloc[row]}', which, or another copy of which, is in another split. "
            "A copy says nothing new: put all of them into one split, or leave the copies out."
        )


def excluded_copies(listing: ImageRecords, rows: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], str]:
    """Which of some pictures, that figures will be of, are copies; and a sentence on that, empty for none.

    Args:
        listing: of all pictures.
        rows: (N,) those in question.
    """
    made = is_copy(listing) & rows
    if not made.any():
        return made, ""
    return made, f" Left out: {count_of(int(made.sum()), 'picture')} made from those held out."
