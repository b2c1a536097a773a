"""Class counts, class imbalance and missing labels; sizes, formats and colors of the images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.checks.duplicates import is_blank
from efficientnetv2.checks.image_stats import SMALL_PX, ImageStats
from efficientnetv2.checks.issues import CheckSection, Issue, issue, share_text, single_rows
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.splits import image_labels
from efficientnetv2.evaluation.thumbnails import BRIGHT, DARK
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
# Shorter side in pixels below which little is left after five halvings. Ours.
_TINY_PX = 32
# Fraction of enlarged images from which it is a finding. Ours.
_MOST_ENLARGED = 0.5
# Aspect ratio from which squeezing into a square distorts. Ours.
_LONG = 3.0
# Cramér's V from which format or size reveals the class. Ours.
_REVEALS = 0.5
# Minimum number of measured images for a finding. Ours.
_MIN_MEASURED = 20


def class_count_section(dataset: ImageDataset) -> CheckSection:
    """Images by class and split, and what follows from their numbers.

    An image of several labels counts once for each label, and once in its split.
    """
    table = class_table(dataset)
    labeled = dataset.labels >= 0
    num_labeled, totals = int(labeled.sum()), table.sum(axis=1)
    facts = {
        "classes": len(table),
        "by_class": {str(name): {str(k): int(v) for k, v in row.items()} for name, row in table.iterrows()},
        "by_split": {
            name: int((labeled & (dataset.split == ("" if name == _NO_SPLIT else name))).sum())
            for name in map(str, table)
        },
        "unlabeled": len(dataset) - num_labeled,
        "ignored_files": dataset.unsupported_files,
        "imbalance_ratio": float(totals.max() / totals.min()) if len(totals) > 1 else None,
        "majority_share": float(totals.max() / num_labeled) if len(totals) else None,
    }
    unlabeled = ~labeled
    if dataset.rows is None and dataset.shards is None:  # training skips a folder test/ without classes
        unlabeled &= dataset.split != "test"
    issues = []
    for suffix, folders in dataset.unsupported_files.items():
        files = pluralize(sum(folders.values()), "file")
        where = ", ".join(f"{count:,} in '{name or dataset.source}'" for name, count in folders.items())
        issues.append(issue("ignored_files", f"{files} {suffix or 'without a suffix'} ignored: {where}."))
    if not num_labeled and len(dataset):
        in_folders = dataset.rows is None and dataset.shards is None
        advice = None if in_folders else "Name the column or field of their labels in `label_column`."
        issues.append(issue("no_labels", "No image has a label, so classes are not checked.", advice=advice))
    elif lost := single_rows(np.flatnonzero(unlabeled)):
        advice = None if dataset.separator is None else "Training refuses them. Give them a label, such as 'nothing'."
        issues.append(issue("unlabeled", f"{share_text(len(lost), len(dataset))} have no label.", lost, advice=advice))
    return CheckSection(facts, [*issues, *_class_sizes(totals, num_labeled, dataset.separator)])


def class_table(dataset: ImageDataset) -> pd.DataFrame:
    """(K classes, splits) numbers of images; images without a split are in the column ``no split``."""
    rows, ids = image_labels(dataset)
    names = [name for name in ("train", "minival", "val", "test", "") if (dataset.split == name).any()]
    counted = pd.crosstab(ids, dataset.split[rows]) if len(ids) else pd.DataFrame()
    table = counted.reindex(index=range(len(dataset.class_names)), columns=names, fill_value=0)
    return table.set_axis(list(dataset.class_names)).rename(columns={"": _NO_SPLIT})


def column_headings(table: pd.DataFrame) -> list[str]:
    """Titles of the columns of ``class_table``."""
    names = list(map(str, table.columns))
    return ["images"] if names == [_NO_SPLIT] else names


def _class_sizes(totals: pd.Series[int], num_images: int, separator: str | None) -> Iterator[Issue]:
    """A single class, small classes, and class imbalance among labeled images."""
    if len(totals) == 1 and num_images > 1:  # a single image is inspected, not trained on
        yield issue("one_class", f"All labels are the same: '{totals.index[0]}'.")
    if len(totals) < 2:
        return
    few = totals[totals < _FEW].sort_values()
    if len(few):
        held_out = max(1, round(_HOLDOUT * int(few.iloc[0])))
        half_width = 100 * Z95 * math.sqrt(_ACCURACY * (1 - _ACCURACY) / held_out)
        yield issue(
            "small_class",
            f"{len(few)} of {len(totals)} classes have fewer than {_FEW} images: {shorten(few.index)}.",
            advice=f"A held-out fifth of '{few.index[0]}' ({few.iloc[0]}) is {held_out}: metrics are accurate to "
            f"±{half_width:.0f} points. Add images, or cross-validate, which uses every image.",
        )
    largest, ratio = totals.idxmax(), totals.max() / totals.min()
    if ratio >= _IMBALANCED:
        yield issue(
            "imbalance",
            f"'{largest}' has {totals.max():,} images, '{totals.idxmin()}' {totals.min():,}: {ratio:.1f} times as "
            "many.",
            severity="doubtful" if ratio >= _STRONGLY else "note",
            advice=f"Always predicting '{largest}' is correct for {100 * totals.max() / num_images:.1f} %, so use "
            f"{'macro-F1 and balanced accuracy' if separator is None else 'mean average precision'}. To balance the "
            "classes: `class_sampling=sqrt`.",
        )


def image_stats_section(dataset: ImageDataset, stats: ImageStats) -> CheckSection:
    """What can be read, in which formats, how large, how bright."""
    readable = stats.table.loc[stats.readable]
    sizes = readable["width"].astype(str) + " × " + readable["height"].astype(str)
    facts = {
        "readable": len(readable),
        "formats": _value_counts(readable["format"]),
        "modes": _value_counts(readable["mode"]),
        "sizes": _value_counts(sizes, most=20),
        "width": _range(readable["width"]),
        "height": _range(readable["height"]),
        "kilobytes": _range(readable["bytes"] / 1000),
        "brightness": _range(readable["brightness"]),
        "contrast": _range(readable["contrast"]),
        "by_class": _class_means(dataset, readable),
    }
    issues = []
    lost = np.setdiff1d(np.arange(len(dataset)), stats.readable)
    if len(lost):
        reasons = [str(stats.table["reason"].iloc[row]) for row in lost]
        sentence = f"{share_text(len(lost), len(dataset))} cannot be used: {dataset.paths[lost[0]]} {reasons[0]}."
        issues.append(issue("unreadable", sentence, single_rows(lost), reasons))
    issues += _appearance(dataset, stats, readable)
    labels = dataset.labels[readable.index]
    properties = {"format": readable["format"], "channels": readable["mode"], "size": sizes}
    found = {name: cramers_v(values[labels >= 0], labels[labels >= 0]) for name, values in properties.items()}
    revealing = " and ".join(f"{name} (Cramér's V {v:.2f})" for name, v in found.items() if v >= _REVEALS)
    if revealing:
        issues.append(issue("giveaway", f"The class depends on the image's {revealing}."))
    return CheckSection(facts, issues)


def cramers_v(values: pd.Series[str], labels: npt.NDArray[np.int64]) -> float:
    """Cramér's V of two variables, 0 to 1, corrected for bias; 0 with too few images or too many values.

    Source: Bergsma, "A bias-correction for Cramér's V and Tschuprow's T", 2013.
    """
    row, kinds = pd.factorize(values.to_numpy())
    column, classes = pd.factorize(labels)
    total, rows, columns = len(row), len(kinds), len(classes)
    if total < _MIN_MEASURED or min(rows, columns) < 2 or rows > total / 5:
        return 0.0
    # Non-empty cells only: at most as many as images.
    cells, counts = np.unique(row * columns + column, return_counts=True)
    expected = np.bincount(row)[cells // columns] * (np.bincount(column)[cells % columns] / total)
    phi = (counts**2 / expected).sum() / total - 1
    chance = (rows - 1) * (columns - 1) / (total - 1)
    least = min(side - (side - 1) ** 2 / (total - 1) for side in (rows, columns)) - 1
    return float(np.sqrt(max(0.0, phi - chance) / least)) if least > 0 else 0.0  # as many classes as images


def _value_counts(values: pd.Series[str], most: int = 50) -> dict[str, int]:
    return {str(name): int(number) for name, number in values.value_counts().head(most).items()}


def _range(values: pd.Series[float]) -> dict[str, float]:
    if not len(values):
        return {}
    low, middle, high = np.quantile(values.to_numpy(dtype=np.float64), [0, 0.5, 1])
    return {"least": round(low, 1), "median": round(middle, 1), "greatest": round(high, 1)}


def _class_means(dataset: ImageDataset, readable: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean brightness, contrast and color of each class with a readable image."""
    columns = ["brightness", "contrast", "red", "green", "blue"]
    images, labels = image_labels(dataset)
    seen = np.isin(images, readable.index)
    means = readable.loc[images[seen], columns].groupby(labels[seen]).mean().round(1)
    return {
        dataset.class_names[label]: dict(zip(columns, row, strict=True))
        for label, row in zip(means.index.tolist(), means.to_numpy().tolist(), strict=True)
    }


def _appearance(dataset: ImageDataset, stats: ImageStats, readable: pd.DataFrame) -> Iterator[Issue]:
    """Images without content, small, long, enlarged, dark or bright ones."""
    sides = readable[["width", "height"]]
    shorter, longer = sides.min(axis=1), sides.max(axis=1)
    for kind, rows, text in (
        ("flat", np.flatnonzero(is_blank(stats)), f"have nearly a single color at {SMALL_PX} px"),
        ("tiny", readable.index[shorter < _TINY_PX], f"are less than {_TINY_PX} px high or wide"),
        ("long", readable.index[longer >= _LONG * shorter], f"are at least {_LONG:g} times as long as wide"),
    ):
        if len(rows):
            yield issue(kind, f"{share_text(len(rows), len(dataset))} {text}.", single_rows(rows))
    measured = readable["enlarged"].dropna()
    enlarged = measured[measured > 1]
    if len(measured) >= _MIN_MEASURED and len(enlarged) >= _MOST_ENLARGED * len(measured):
        factor = float(enlarged.median())
        side = round(float(shorter.median()) / factor)
        yield issue(
            "enlarged",
            f"{len(enlarged)} of {len(measured)} images measured have no detail finer than {factor:g} pixels: they "
            "were probably enlarged, or are blurred.",
            single_rows(enlarged.index),
            [f"about {each:g} times enlarged" for each in enlarged],
            advice=f"Use the original images if you have them. Otherwise `image_size={side}` costs less.",
        )
    median = float(readable["brightness"].median()) if len(readable) else DARK
    if not DARK <= median <= BRIGHT:
        kind = "dark" if median < DARK else "bright"
        yield issue(kind, f"The images are {kind}: their median brightness is {median:.0f} of 255.")
