"""What must hold of labelled pictures before anything is trained on them.

Each rule takes a listing and raises an ``InputError`` that names the row or file, the rule and the fix.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data.records import SPLITS, ImageRecords
from efficientnetv2.utils.errors import InputError, count_of, some

Spelling = Literal["exact", "casefold"]


def validate_labeled(listing: ImageRecords) -> None:
    """Every picture has a label."""
    empty = np.flatnonzero(listing.table["label"].isna())
    if len(empty):
        raise InputError(
            f"{listing.where(int(empty[0]))}: the label is empty "
            f"({len(empty)} of {len(listing)} {listing.unit} have none). Fill it in, or leave these out."
        )


def normalize_label(label: str) -> str:
    """What labels share that differ by case, by space around them, or by how Unicode encodes their letters.

    An accent may be a part of its letter (NFC, as most write it) or follow it (NFD, as macOS names files).
    """
    return unicodedata.normalize("NFC", label.strip()).casefold()


def merge_spellings(
    listing: ImageRecords, spelling: Spelling, *, strict: bool
) -> tuple[pd.Series[str], str | None]:
    """Labels without surrounding space, those that are ``normalize_label`` alike merged where that was asked for.

    Args:
        listing: its labels may be NaN.
        spelling: ``casefold`` merges into the commonest spelling.
        strict: with ``exact``, refuse labels that are ``normalize_label`` alike.

    Returns:
        The labels, and a sentence about what was merged, or None.
    """
    labels = listing.table["label"]
    counts = labels.value_counts()
    stripped: Counter[str] = Counter()
    for label, count in counts.items():
        stripped[str(label).strip()] += count
    # The commonest spelling first, and of it the one without space around it.
    commonest = sorted(counts.index, key=lambda label: (-stripped[label.strip()], label.strip(), len(label)))
    first: dict[str, str] = {}
    merged: dict[str, str] = {}
    for label in commonest:
        chosen = first.setdefault(normalize_label(label), label)
        if chosen != label:
            merged[label] = chosen
    if merged and spelling == "exact":
        if strict:
            raise InputError(_differs(listing, merged, counts))
        return labels.str.strip() if len(counts) else labels, None
    note = None
    if merged:
        note = "Merged labels: " + ", ".join(f"'{odd}' into '{kept}'" for odd, kept in merged.items()) + "."
    if not merged and all(label == label.strip() for label in counts.index):
        return labels, None  # a map would take its time and memory over many pictures
    return labels.map({label: merged.get(label, label).strip() for label in commonest}), note


def _differs(listing: ImageRecords, merged: dict[str, str], counts: pd.Series[int]) -> str:
    at = int(np.flatnonzero(listing.table["label"].isin(list(merged)))[0])
    odd = listing.table["label"].iloc[at]
    kept = merged[odd]
    one, other = odd.strip(), kept.strip()
    ways = {
        "case": unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other),
        "how its letters are encoded (Unicode NFC and NFD)": one.casefold() != other.casefold(),
        "surrounding space": odd.replace(one, other, 1) != kept,
    }
    how = " and ".join(way for way, differs in ways.items() if differs)
    others = int(counts[odd]) - 1
    more = f" ({others} more {listing.unit} are like it)" if others else ""
    further = [name for name in merged if name != odd]
    if further:
        more += f"; {count_of(len(further), 'more label')} differ from others only so: {some(further)}"
    fix = "Rename the class folder" if listing.rows is None else "Correct the row"
    return (
        f"{listing.where(at)}: label '{odd}' differs from '{kept}' ({counts[kept]} {listing.unit}) "
        f"only by {how}{more}.\n{fix}, or pass --labels casefold to merge them."
    )


def validate_unique_paths(listing: ImageRecords) -> None:
    """A path stands in the list once."""
    paths = listing.table["path"]
    repeated = np.flatnonzero(paths.duplicated())
    if not len(repeated):
        return
    second = int(repeated[0])
    same = paths.iloc[second]
    first = int(np.flatnonzero(paths == same)[0])
    labels = listing.table["label"].iloc[[first, second]].tolist()
    unlike = pd.notna(labels[0]) and labels[0] != labels[1]
    how = f" with different labels, '{labels[0]}' and '{labels[1]}'" if unlike else ""
    more = f" {len(repeated)} rows repeat a path in all." if len(repeated) > 1 else ""
    raise InputError(
        f"{listing.where(first)} and {_row(listing, second)}: '{same}' is listed twice{how}.{more} "
        "Keep one row for each picture."
    )


def validate_places(listing: ImageRecords) -> None:
    """Latitude and longitude are known for all pictures or for none."""
    table = listing.table
    have = [name for name in ("latitude", "longitude") if name in table and table[name].notna().any()]
    if not have:
        return
    if len(have) == 1:
        other = "longitude" if have == ["latitude"] else "latitude"
        raise InputError(
            f"{listing.source} has a {have[0]} but no {other}: a place needs both. Add the {other}, "
            f"or remove the column {have[0]}."
        )
    for name in have:
        empty = np.flatnonzero(table[name].isna())
        if len(empty):
            others = len(table) - len(empty)
            raise InputError(
                f"{listing.where(int(empty[0]))}: the {name} is empty, but {others} of "
                f"{len(table)} rows {'has' if others == 1 else 'have'} one. Fill it in, or remove the columns latitude "
                "and longitude (places are then not kept whole when pictures are held out)."
            )


def validate_train_split(listing: ImageRecords) -> None:
    """What a network is validated or tested on needs something to train on; its labels must occur there."""
    train = listing.in_train
    if not train.any():
        there = " and ".join(name for name in SPLITS if name in listing.split)
        if listing.shards is not None and listing.rows is None:
            fix = "Name shards of training pictures too."
        elif listing.rows is None:
            fix = "Add a folder train/ beside it, or call the one that holds the training pictures so."
            fix = " ".join([fix, *listing.notes])  # what was passed over may be what is missed
        else:
            fix = "Mark rows as train."
        raise InputError(f"{listing.source} has {there} without train: there is nothing to train on. {fix}")
    labels = listing.table["label"]
    unseen = np.flatnonzero(~train & ~labels.isin(labels[train].unique()).to_numpy(dtype=bool))
    if len(unseen):
        names, splits = sorted(set(labels.iloc[unseen])), sorted(set(listing.split[unseen]))
        at = int(unseen[0])
        raise InputError(
            f"label unseen in training: {some(names)} occurs only in {' and '.join(splits)} "
            f"({_places(listing, unseen)}). Correct the label '{labels.iloc[at]}', move pictures of it to "
            "train, or leave them out."
        )


def validate_labels_not_blank(listing: ImageRecords) -> None:
    """A class has a name: runs and folds list their images in tables, where a blank cell is no label."""
    blank = np.flatnonzero(listing.table["label"].str.strip() == "")
    if len(blank):
        what = "folder" if listing.shards is None else "class"
        raise InputError(
            f"{listing.where(int(blank[0]))}: the name of the class is blank. Rename the {what}."
        )


def validate_two_classes(listing: ImageRecords) -> None:
    """A classifier tells at least two classes apart."""
    names = listing.table["label"].dropna().unique()
    if len(names) < 2:
        around = (
            f" If '{names[0]}' is a folder around the class folders, give {listing.source}/{names[0]}."
            if listing.rows is None
            and any(f"{names[0]}/" in path.rpartition("/")[0] for path in listing.paths)
            else ""
        )
        raise InputError(
            f"{listing.source} has one class only, '{names[0]}' ({len(listing)} {listing.unit}): "
            f"a classifier needs at least two. Add pictures of another class.{around}"
        )


def _row(listing: ImageRecords, index: int) -> str:
    return listing.paths[index] if listing.rows is None else f"row {listing.rows[index]}"


def _places(listing: ImageRecords, indices: npt.NDArray[np.intp]) -> str:
    shown = ", ".join(listing.where(int(index)) for index in indices[:3])
    return shown if len(indices) <= 3 else f"{shown} and {len(indices) - 3} more"
