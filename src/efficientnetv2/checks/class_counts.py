"""Class counts, class imbalance, and missing labels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.data_issues import CheckSection, Finding, share_text
from efficientnetv2.utils.errors import count_of, some

# Largest class over smallest from which a plain training neglects the small one, and from which a set is called
# strongly imbalanced. Ours.
_IMBALANCED, _STRONGLY = 1.5, 4.0
# Pictures that a class needs for a figure of its own: of a fifth of them, held out, an interval is then some 40 points
# wide. Ours.
_FEW = 50
# Share that an automatic hold-out takes, and a middling share of right answers, for the width of an interval.
_HOLDOUT, _MIDDLING = 0.2, 0.75
_Z95 = 1.96  # of the normal distribution
_NO_SPLIT = "no split"


def class_count_section(dataset: ImageDataset) -> CheckSection:
    """Images by class and split, and what follows from their numbers.

    An image of several labels counts once for each label, and once in its split.
    """
    table = class_table(dataset)
    labelled = dataset.labels >= 0
    findings = [
        *_passed_over(dataset),
        *_unlabelled(dataset),
        *_one_class(table),
        *_small(table),
        *_imbalance(table, int(labelled.sum())),
    ]
    totals = table.sum(axis=1)
    facts = {
        "classes": len(table),
        "by_class": {str(name): {str(k): int(v) for k, v in row.items()} for name, row in table.iterrows()},
        "by_split": {
            name: int((labelled & (dataset.split == ("" if name == _NO_SPLIT else name))).sum())
            for name in map(str, table)
        },
        "unlabelled": int((~labelled).sum()),
        "passed_over": dataset.passed_over,
        "largest_over_smallest": float(totals.max() / totals.min()) if len(totals) > 1 else None,
        "majority_share": float(totals.max() / labelled.sum()) if len(totals) else None,
    }
    return CheckSection(facts, findings)


def class_table(dataset: ImageDataset) -> pd.DataFrame:
    """(K classes, splits) numbers of images; images without a split are in the column ``no split``."""
    rows, columns = np.nonzero(dataset.targets.reshape(len(dataset), -1) >= 0)
    ids = dataset.targets.reshape(len(dataset), -1)[rows, columns]
    names = [name for name in ("train", "minival", "val", "test", "") if (dataset.split == name).any()]
    counted = pd.crosstab(ids, dataset.split[rows]) if len(ids) else pd.DataFrame()
    table = counted.reindex(index=range(len(dataset.class_names)), columns=names, fill_value=0)
    return table.set_axis(list(dataset.class_names)).rename(columns={"": _NO_SPLIT})


def column_headings(table: pd.DataFrame) -> list[str]:
    """Titles of the columns of ``class_table``."""
    names = list(map(str, table.columns))
    return ["pictures"] if names == [_NO_SPLIT] else names


def half_width(pictures: int) -> float:
    """Half-width of the 95 % interval of a middling accuracy on so many images."""
    return _Z95 * math.sqrt(_MIDDLING * (1 - _MIDDLING) / max(1, pictures))


def _passed_over(dataset: ImageDataset) -> Iterator[Finding]:
    """Files that are not images by their suffix: how many, and where."""
    for suffix, folders in dataset.passed_over.items():
        told = count_of(sum(folders.values()), "file")
        where = ", ".join(f"{count:,} in '{name or dataset.source}'" for name, count in folders.items())
        yield Finding(
            "passed_over",
            "doubtful",
            f"{told} {suffix or 'without a suffix'} passed over: {where}.",
            "Such files are not opened here, and counted nowhere below. If they are pictures, convert them to JPEG: "
            "else their classes are learnt from fewer than there are, and from other cameras' alone.",
        )


def _unlabelled(dataset: ImageDataset) -> list[Finding]:
    lost = np.flatnonzero(dataset.labels < 0)
    if not len(lost):
        return []
    if len(lost) == len(dataset):
        return [
            Finding(
                "no_labels",
                "note",
                "No picture has a label, so nothing is said of classes.",
                "Name the column of their labels with --label-column."
                if dataset.rows is not None
                else "Put the images of each class into a sub-folder of its own.",
            )
        ]
    return [
        Finding(
            "unlabelled",
            "wrong",
            f"{share_text(len(lost), len(dataset))} have no label.",
            "Training refuses them: fill the labels in, or move these rows into a table of their own, which "
            "effnetv2 predict MODEL DATA --rank OUT puts in the order in which they are worth labelling.",
            tuple((int(row),) for row in lost),
        )
    ]


def _one_class(table: pd.DataFrame) -> list[Finding]:
    if len(table) != 1 or table.to_numpy().sum() < 2:  # a single picture is looked at, not learnt from
        return []
    return [
        Finding(
            "one_class",
            "wrong",
            f"All labels are the same: '{table.index[0]}'.",
            "Training refuses that, for a classifier tells at least two classes apart. Add pictures of another, or "
            "give the folder above, if it holds the class folders.",
        )
    ]


def _small(table: pd.DataFrame) -> list[Finding]:
    totals = table.sum(axis=1)
    few = totals[totals < _FEW].sort_values()
    if not len(few) or len(totals) < 2:
        return []
    name, number = str(few.index[0]), int(few.iloc[0])
    held = max(1, round(_HOLDOUT * number))
    return [
        Finding(
            "small_class",
            "doubtful",
            f"{len(few)} of {len(totals)} classes have fewer than {_FEW} pictures: {some(few.index)}.",
            f"Of '{name}' ({number}) a fifth held out is {held}: it tells its figure to ±{100 * half_width(held):.0f} "
            "points. Cross-validation asks about every picture; more pictures help most here.",
        )
    ]


def _imbalance(table: pd.DataFrame, pictures: int) -> list[Finding]:
    """Class imbalance among so many labeled images."""
    totals = table.sum(axis=1)
    if len(totals) < 2 or totals.max() < _IMBALANCED * totals.min():
        return []
    ratio, share_of_largest = totals.max() / totals.min(), totals.max() / pictures
    strongly = ratio >= _STRONGLY
    return [
        Finding(
            "imbalance",
            "doubtful" if strongly else "note",
            f"'{totals.idxmax()}' has {totals.max():,} pictures, '{totals.idxmin()}' {totals.min():,}: {ratio:.1f} "
            "times as many.",
            f"Always answering '{totals.idxmax()}' would be right for {100 * share_of_largest:.0f} %, so look at "
            "macro-F1 and balanced accuracy, not at accuracy alone; and draw them more evenly: --set balance=sqrt.",
        )
    ]
