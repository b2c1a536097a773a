"""Class counts, class imbalance, and missing labels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from efficientnetv2.checks.issues import CheckSection, Issue, issue, share_text, single_rows
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.metrics.confidence_intervals import Z95
from efficientnetv2.utils.errors import pluralize, shorten

# Ratio of the largest to the smallest class from which plain training neglects the smallest, and from which the
# imbalance is strong. Ours.
_IMBALANCED, _STRONGLY = 1.5, 4.0
# Images of a class below which its metrics are uncertain: the interval of a held-out fifth is 40 points wide. Ours.
_FEW = 50
# Fraction of an automatic hold-out, and a medium accuracy for the width of an interval.
_HOLDOUT, _ACCURACY = 0.2, 0.75
_NO_SPLIT = "no split"


def class_count_section(dataset: ImageDataset) -> CheckSection:
    """Images by class and split, and what follows from their numbers.

    An image of several labels counts once for each label, and once in its split.
    """
    table = class_table(dataset)
    labeled = dataset.labels >= 0
    totals = table.sum(axis=1)
    facts = {
        "classes": len(table),
        "by_class": {str(name): {str(k): int(v) for k, v in row.items()} for name, row in table.iterrows()},
        "by_split": {
            name: int((labeled & (dataset.split == ("" if name == _NO_SPLIT else name))).sum())
            for name in map(str, table)
        },
        "unlabeled": int((~labeled).sum()),
        "ignored_files": dataset.unsupported_files,
        "imbalance_ratio": float(totals.max() / totals.min()) if len(totals) > 1 else None,
        "majority_share": float(totals.max() / labeled.sum()) if len(totals) else None,
    }
    num_labeled = int(labeled.sum())
    issues = [*_ignored_files(dataset), *_unlabeled(dataset), *_class_sizes(totals, num_labeled)]
    return CheckSection(facts, issues)


def class_table(dataset: ImageDataset) -> pd.DataFrame:
    """(K classes, splits) numbers of images; images without a split are in the column ``no split``."""
    targets = dataset.targets.reshape(len(dataset), -1)
    rows, columns = np.nonzero(targets >= 0)
    ids = targets[rows, columns]
    names = [name for name in ("train", "minival", "val", "test", "") if (dataset.split == name).any()]
    counted = pd.crosstab(ids, dataset.split[rows]) if len(ids) else pd.DataFrame()
    table = counted.reindex(index=range(len(dataset.class_names)), columns=names, fill_value=0)
    return table.set_axis(list(dataset.class_names)).rename(columns={"": _NO_SPLIT})


def column_headings(table: pd.DataFrame) -> list[str]:
    """Titles of the columns of ``class_table``."""
    names = list(map(str, table.columns))
    return ["images"] if names == [_NO_SPLIT] else names


def half_width(images: int) -> float:
    """Half-width of the 95 % interval of a medium accuracy on so many images."""
    return Z95 * math.sqrt(_ACCURACY * (1 - _ACCURACY) / max(1, images))


def _ignored_files(dataset: ImageDataset) -> Iterator[Issue]:
    """Files that are not images by their suffix: how many, and where."""
    for suffix, folders in dataset.unsupported_files.items():
        files = pluralize(sum(folders.values()), "file")
        where = ", ".join(f"{count:,} in '{name or dataset.source}'" for name, count in folders.items())
        yield issue("ignored_files", f"{files} {suffix or 'without a suffix'} ignored: {where}.")


def _unlabeled(dataset: ImageDataset) -> Iterator[Issue]:
    lost = np.flatnonzero(dataset.labels < 0)
    if len(lost) and len(lost) == len(dataset):
        advice = None if dataset.rows is None else "Name the column of their labels with --label-column."
        yield issue("no_labels", "No image has a label, so classes are not checked.", advice=advice)
    elif len(lost):
        yield issue("unlabeled", f"{share_text(len(lost), len(dataset))} have no label.", single_rows(lost))


def _class_sizes(totals: pd.Series[int], num_images: int) -> Iterator[Issue]:
    """A single class, small classes, and class imbalance among labeled images."""
    if len(totals) == 1 and num_images > 1:  # a single image is looked at, not trained on
        yield issue("one_class", f"All labels are the same: '{totals.index[0]}'.")
    if len(totals) < 2:
        return
    few = totals[totals < _FEW].sort_values()
    if len(few):
        number = int(few.iloc[0])
        held_out = max(1, round(_HOLDOUT * number))
        yield issue(
            "small_class",
            f"{len(few)} of {len(totals)} classes have fewer than {_FEW} images: {shorten(few.index)}.",
            advice=f"A held-out fifth of '{few.index[0]}' ({number}) is {held_out}: its metrics are accurate to "
            f"±{100 * half_width(held_out):.0f} points. Cross-validation uses every image; more images help most here.",
        )
    largest, ratio = totals.idxmax(), totals.max() / totals.min()
    if ratio >= _IMBALANCED:
        yield issue(
            "imbalance",
            f"'{largest}' has {totals.max():,} images, '{totals.idxmin()}' {totals.min():,}: {ratio:.1f} times as "
            "many.",
            severity="doubtful" if ratio >= _STRONGLY else "note",
            advice=f"Always predicting '{largest}' would be right for {100 * totals.max() / num_images:.0f} %. So look "
            "at macro-F1 and balanced accuracy, not at accuracy alone. To balance the classes: --set "
            "class_sampling=sqrt.",
        )
