"""Labels of images: the rules that they must satisfy before training, and several labels of one image.

A rule raises InputError with row or file, rule and fix. Several labels of one image are in one cell (``cat;animal``),
or in a list (Parquet, JSON of shards). Those of the rarest class come first; where an image can count for one class
only (class sampling, splits), its first label counts.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from efficientnetv2.data.records import SPLITS, ImageRecords, Ints
from efficientnetv2.utils.errors import InputError, pluralize, shorten

Spelling = Literal["exact", "casefold"]

_DEFAULT_SEPARATOR = ";"  # for lists where no separator is given
_USUAL_SEPARATORS = (";", "|", ",")  # that ``unseparated_hint`` looks for. Ours.


def validate_labeled(records: ImageRecords) -> None:
    """Every image has a label."""
    empty = np.flatnonzero(records.table["label"].isna())
    if len(empty):
        raise InputError(
            f"{records.where(int(empty[0]))}: the label is empty "
            f"({len(empty)} of {records.count(len(records))} lack one). Fill it in, or remove these "
            f"rows.{further_faults(records.table)}"
        )


def further_faults(table: pd.DataFrame, *, labels: bool = False) -> str:
    """The end of a message on a row: the rows with faults that are looked for later, to correct all of them at once."""
    paths = table["path"].dropna()
    counts = {"an image of another row": int(paths.duplicated().sum())}
    if labels and not table["label"].isna().all():
        counts = {"no label": int(table["label"].isna().sum())} | counts
    found = [f"{pluralize(count, 'row')} with {fault}" for fault, count in counts.items() if count]
    return f" The table also has {' and '.join(found)}." if found else ""


def normalize_label(label: str) -> str:
    """Label without differences of case, surrounding space and Unicode form (NFC, NFD as on macOS)."""
    return unicodedata.normalize("NFC", label.strip()).casefold()


def merge_spellings(records: ImageRecords, spelling: Spelling, *, strict: bool) -> tuple[pd.Series[str], str | None]:
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
            f"{records.where(row)}: label '{label}' differs from '{to}' ({records.count(int(counts[to]))}) only by "
            f"case, surrounding space or Unicode form{more}. Rename one, or merge them with `labels=casefold`."
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
        f"{records.where(first)} and {again}: '{paths.iloc[second]}' is listed twice{how} "
        f"({pluralize(len(repeated), 'such row')}). Keep one row for each image."
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
                f"{records.where(int(empty[0]))}: the {name} is empty, but {len(table) - len(empty)} of "
                f"{pluralize(len(table), 'row')} have it. Fill it in, or remove the columns latitude and longitude."
            )


def validate_train_split(records: ImageRecords, separator_hint: str | None = None) -> None:
    """There are training images, and every label occurs among them."""
    train = records.in_train
    if not train.any():
        given = " and ".join(name for name in SPLITS if name in records.split)
        fix = "Mark rows as train." if records.rows is not None else "Name the training images train."
        notes = [] if records.rows is not None else records.notes  # may name the folder as skipped
        raise InputError(
            " ".join((f"{records.source} has {given} without train: there is nothing to train on.", *notes, fix))
        )
    labels = records.table["label"]
    unseen = np.flatnonzero(~train & ~labels.isin(labels[train].unique()).to_numpy(dtype=bool))
    if len(unseen):
        names, splits = sorted(set(labels.iloc[unseen])), sorted(set(records.split[unseen]))
        places = ", ".join(records.where(int(index)) for index in unseen[:3])
        places += f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        hint = "" if separator_hint is None else f" {separator_hint}"
        raise InputError(
            f"label unseen in training: {shorten(names)} occurs only in {' and '.join(splits)} ({places}). Correct the "
            f"label, move images of it to train, or leave them out.{hint}"
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
        f"{records.source} has one class only, '{names[0]}' ({records.count(len(records))}), but needs two. Add images "
        f"of another class{hint}."
    )


def split_labels(records: ImageRecords, separator: str) -> ImageRecords:
    """One row per label of an image, without space around it, with the columns path, label and split."""
    if not separator:
        raise InputError("`label_separator` is empty, but must be the text between two labels, such as ';'.")
    if records.rows is None and records.shards is None:
        raise InputError(
            f"`label_separator={separator}`: {records.source} gives each image one label. Give a table of labels."
        )
    codes, distinct = pd.factorize(records.table["label"])
    parts = [_parts(cell, separator) for cell in distinct]
    lacking = np.isin(codes, [number for number, labels in enumerate(parts) if not all(labels)])  # not -1: no label
    if lacking.any():
        row = int(lacking.argmax())
        raise InputError(
            f"{records.where(row)}: '{records.table['label'].iloc[row]}' lacks a label next to a '{separator}'. "
            "Correct the row."
        )
    # No rule about labels reads the other columns, which may be many.
    cells = pd.Series([parts[code] if code >= 0 else [np.nan] for code in codes], dtype=object)
    table = records.table[["path", "label", "split"]].assign(label=cells)
    table = table.explode("label")
    table = table.assign(label=table["label"].astype("str").where(table["label"].notna()))
    rows = None if records.rows is None else records.rows[table.index]
    return replace(records, table=table.reset_index(drop=True), rows=rows)


def join_labels(cells: pd.Series[str], spelled: Mapping[str, str], separator: str) -> pd.Series[str]:
    """Cells with each label as ``spelled``, sorted. Repeated labels count once."""
    # Each distinct cell once: among millions of images many have the same.
    labels = {cell: {spelled[part] for part in _parts(cell, separator)} for cell in cells.dropna().unique()}
    images: Counter[str] = Counter()
    for cell, count in cells.value_counts().items():
        images.update(dict.fromkeys(labels[str(cell)], count))
    joined = {
        cell: separator.join(sorted(names, key=lambda label: (images[label], label))) for cell, names in labels.items()
    }
    return cells.map(joined)


def _parts(cell: str, separator: str) -> list[str]:
    return [label.strip() for label in cell.split(separator)]


def unseparated_hint(labels: Iterable[str]) -> str | None:
    """A sentence if distinct labels look like several labels each, without a given separator. Otherwise None.

    A label looks so if each of its parts occurs in another label too, alone or with others, or if most labels contain
    the same separator.
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
    for separator in _USUAL_SEPARATORS:
        count = sum(separator in cell for cell in distinct)
        if 2 * count > len(distinct):
            return (
                f"{count:,} of {pluralize(len(distinct), 'class')} contain '{separator}'. If an image has several "
                f"labels, use `label_separator={separator}`."
            )
    return None


def separator_notes(records: ImageRecords, labels: pd.Series[str], separator: str | None) -> list[str]:
    """Notes on a separator that is missing, or in no label."""
    if separator is not None and any(separator in cell for cell in records.table["label"].dropna().unique()):
        return []
    notes = [] if separator is None else [f"No label contains `label_separator={separator}`: each image has one label."]
    hint = separator_hint(records, labels)
    return [*notes, hint] if hint else notes


def separator_hint(records: ImageRecords, labels: pd.Series[str]) -> str | None:
    """``unseparated_hint``; folders give one label each."""
    has_cells = records.rows is not None or records.shards is not None
    return unseparated_hint(labels.dropna().unique()) if has_cells else None


def separator_between(names: Collection[str], label: str) -> str | None:
    """The usual separator that divides a label into several of the names."""
    for separator in _USUAL_SEPARATORS:
        parts = _parts(label, separator)
        if len(parts) > 1 and all(part in names for part in parts):
            return separator
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
        labels = [str(label) for label in texts[row] if not (pd.api.types.is_scalar(label) and pd.isna(label))]
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
        return cells.map(change, na_action="ignore")
    return cells.map(lambda cell: separator.join(change(label) for label in cell.split(separator)), na_action="ignore")


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
