"""Rules that labeled images must satisfy before training. Each raises InputError with row or file, rule and fix."""

from __future__ import annotations

import unicodedata
from typing import Literal

import numpy as np
import pandas as pd

from efficientnetv2.data.records import SPLITS, ImageRecords
from efficientnetv2.utils.errors import InputError, pluralize, shorten

Spelling = Literal["exact", "casefold"]


def validate_labeled(records: ImageRecords) -> None:
    """Every image has a label."""
    empty = np.flatnonzero(records.table["label"].isna())
    if len(empty):
        raise InputError(
            f"{records.where(int(empty[0]))}: the label is empty "
            f"({len(empty)} of {len(records)} {records.unit} have none). Fill it in, or leave these out."
        )


def normalize_label(label: str) -> str:
    """Label without differences of case, surrounding space and Unicode form (NFC, NFD as on macOS)."""
    return unicodedata.normalize("NFC", label.strip()).casefold()


def merge_spellings(
    records: ImageRecords, spelling: Spelling, *, strict: bool
) -> tuple[pd.Series[str], str | None]:
    """Labels without surrounding space, and a note on merged labels.

    ``casefold`` merges labels that ``normalize_label`` maps to one text into the commonest spelling. ``exact`` keeps
    them, and refuses them if strict.
    """
    labels = records.table["label"]
    counts = {str(label): int(count) for label, count in labels.value_counts().items()}
    total = pd.Series(counts, dtype=np.int64).groupby(str.strip).sum().to_dict()
    # The commonest spelling first; of equal ones that without surrounding space.
    commonest = sorted(counts, key=lambda label: (-total[label.strip()], label.strip(), len(label)))
    first: dict[str, str] = {}
    for label in commonest:
        first.setdefault(normalize_label(label), label)
    merged = {label: to for label in commonest if (to := first[normalize_label(label)]) != label}
    if merged and spelling == "exact" and strict:
        row = int(np.flatnonzero(labels.isin(list(merged)))[0])
        label, to = labels.iloc[row], merged[labels.iloc[row]]
        others = [name for name in merged if name != label]
        more = f", as {pluralize(len(others), 'more label')} ({shorten(others)})" if others else ""
        raise InputError(
            f"{records.where(row)}: label '{label}' differs from '{to}' ({counts[to]} {records.unit}) only by case, "
            f"surrounding space or Unicode form{more}. Rename one, or merge them with `labels=casefold`."
        )
    if all(label == label.strip() for label in counts) and (not merged or spelling == "exact"):
        return labels, None  # mapping millions of labels takes time and memory
    if not merged or spelling == "exact":
        return labels.str.strip(), None
    note = "Merged labels: " + ", ".join(f"'{label}' into '{to}'" for label, to in merged.items()) + "."
    return labels.map({label: merged.get(label, label).strip() for label in commonest}), note


def validate_unique_paths(records: ImageRecords) -> None:
    """Every path occurs once."""
    paths = records.table["path"]
    repeated = np.flatnonzero(paths.duplicated())
    if not len(repeated):
        return
    second = int(repeated[0])
    first = int(np.flatnonzero(paths == paths.iloc[second])[0])
    labels = records.table["label"].iloc[[first, second]].tolist()
    differ = pd.notna(labels[0]) and labels[0] != labels[1]
    how = f" with different labels, '{labels[0]}' and '{labels[1]}'" if differ else ""
    again = records.paths[second] if records.rows is None else f"row {records.rows[second]}"
    raise InputError(
        f"{records.where(first)} and {again}: '{paths.iloc[second]}' is listed twice{how} ({len(repeated)} such rows). "
        "Keep one row for each image."
    )


def validate_places(records: ImageRecords) -> None:
    """Latitude and longitude are known for all images or for none."""
    table, axes = records.table, ["latitude", "longitude"]
    have = [name for name in axes if name in table and table[name].notna().any()]
    if len(have) == 1:
        raise InputError(
            f"{records.source} has a {have[0]} but no {({*axes} - {*have}).pop()}. Add it, or remove the column "
            f"{have[0]}."
        )
    for name in have:
        empty = np.flatnonzero(table[name].isna())
        if len(empty):
            raise InputError(
                f"{records.where(int(empty[0]))}: the {name} is empty, but {len(table) - len(empty)} of {len(table)} "
                "rows have it. Fill it in, or remove the columns latitude and longitude."
            )


def validate_train_split(records: ImageRecords) -> None:
    """There are training images, and every label occurs among them."""
    train = records.in_train
    if not train.any():
        given = " and ".join(name for name in SPLITS if name in records.split)
        fix = "Mark rows as train." if records.rows is not None else "Name the training images train."
        notes = [] if records.rows is not None else records.notes  # may name the folder as skipped
        raise InputError(
            " ".join(
                (f"{records.source} has {given} without train: there is nothing to train on.", *notes, fix)
            )
        )
    labels = records.table["label"]
    unseen = np.flatnonzero(~train & ~labels.isin(labels[train].unique()).to_numpy(dtype=bool))
    if len(unseen):
        names, splits = sorted(set(labels.iloc[unseen])), sorted(set(records.split[unseen]))
        places = ", ".join(records.where(int(index)) for index in unseen[:3])
        places += f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        raise InputError(
            f"label unseen in training: {shorten(names)} occurs only in {' and '.join(splits)} ({places}). Correct the "
            "label, move images of it to train, or leave them out."
        )


def validate_classes(records: ImageRecords) -> None:
    """There are at least two classes, and no name is blank: tables of runs read a blank cell as no label."""
    labels = records.table["label"]
    blank = np.flatnonzero(labels.str.strip() == "")
    if len(blank):
        raise InputError(f"{records.where(int(blank[0]))}: the name of the class is blank. Rename the class.")
    names = labels.dropna().unique()
    if len(names) >= 2:
        return
    nested = records.rows is None and any(f"{names[0]}/" in path.rpartition("/")[0] for path in records.paths)
    hint = f", or give {records.source}/{names[0]}" if nested else ""
    raise InputError(
        f"{records.source} has one class only, '{names[0]}' ({len(records)} {records.unit}), but needs two. Add images "
        f"of another class{hint}."
    )
