"""Sizes, formats, channels, brightness and color: what is unusual, and what reveals the class."""

from __future__ import annotations

import numpy as np
import pandas as pd

from efficientnetv2.checks.duplicates import is_blank
from efficientnetv2.checks.thumbnail_index import ImageStats
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.data_issues import CheckSection, Finding, share_text
from efficientnetv2.evaluation.thumbnails import BRIGHT, DARK

# Shorter side, in pixels, below which a picture is nearly empty for a network that halves it five times. Ours.
_TINY_PX = 32
# Share of the images measured that were enlarged, from which it is said of the dataset. Ours.
_MOST_ENLARGED = 0.5
# Longer over shorter side from which squeezing into a square distorts. Ours.
_LONG = 3.0
# Cramér's V from which format or size gives the class away: 0 knows nothing, 1 everything. Ours.
_TELLS = 0.5
# Pictures that such a judgement needs. Ours.
_ENOUGH = 20


def image_stats_section(dataset: ImageDataset, looked: ImageStats) -> CheckSection:
    """What can be read, in which formats, how large, how bright."""
    table = looked.table
    seen = table.loc[looked.readable]
    findings = [
        *_unreadable(dataset, looked),
        *_flat(dataset, looked),
        *_shapes(seen),
        *_enlarged(seen),
        *_brightness(seen),
        *_giveaways(dataset, seen),
    ]
    facts = {
        "readable": len(seen),
        "formats": _counted(seen["format"]),
        "modes": _counted(seen["mode"]),
        "sizes": _counted(seen["width"].astype(str) + " × " + seen["height"].astype(str), most=20),
        "width": _spread(seen["width"]),
        "height": _spread(seen["height"]),
        "kilobytes": _spread(seen["bytes"] / 1000),
        "brightness": _spread(seen["brightness"]),
        "contrast": _spread(seen["contrast"]),
        "by_class": _by_class(dataset, seen),
    }
    return CheckSection(facts, findings)


def _counted(values: pd.Series[str], most: int = 50) -> dict[str, int]:
    return {str(name): int(number) for name, number in values.value_counts().head(most).items()}


def _spread(values: pd.Series[float]) -> dict[str, float]:
    """Least, middle, greatest; nothing of nothing."""
    if not len(values):
        return {}
    low, middle, high = np.quantile(values.to_numpy(dtype=np.float64), [0, 0.5, 1])
    return {"least": round(low, 1), "median": round(middle, 1), "greatest": round(high, 1)}


def _by_class(dataset: ImageDataset, seen: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean brightness, contrast and colour of each class that has a readable picture."""
    columns = ["brightness", "contrast", "red", "green", "blue"]
    labels = dataset.labels[seen.index]
    means = seen.loc[labels >= 0, columns].groupby(labels[labels >= 0]).mean().round(1)
    return {
        dataset.class_names[label]: dict(zip(columns, row, strict=True))
        for label, row in zip(means.index.tolist(), means.to_numpy().tolist(), strict=True)
    }


def _unreadable(dataset: ImageDataset, looked: ImageStats) -> list[Finding]:
    lost = np.setdiff1d(np.arange(len(dataset)), looked.readable)
    if not len(lost):
        return []
    first = f"{dataset.paths[lost[0]]} {looked.table['reason'].iloc[lost[0]]}"
    return [
        Finding(
            "unreadable",
            "wrong",
            f"{share_text(len(lost), len(dataset))} cannot be used{', the first' if len(lost) > 1 else ''}: {first}.",
            "Repair or remove them. Training passes over a few, up to 5 %.",
            tuple((int(row),) for row in lost),
            tuple(str(looked.table["reason"].iloc[row]) for row in lost),
        )
    ]


def _flat(dataset: ImageDataset, looked: ImageStats) -> list[Finding]:
    empty = np.flatnonzero(is_blank(looked))
    if not len(empty):
        return []
    return [
        Finding(
            "flat",
            "doubtful",
            f"{share_text(len(empty), len(dataset))} show nothing: one colour all over.",
            "A missing tile, a lens cap, a failed download? Remove them, unless that is what the class is.",
            tuple((int(row),) for row in empty),
        )
    ]


def _shapes(seen: pd.DataFrame) -> list[Finding]:
    shorter, longer = seen[["width", "height"]].min(axis=1), seen[["width", "height"]].max(axis=1)
    tiny, long = seen.index[shorter < _TINY_PX], seen.index[longer >= _LONG * shorter]
    findings = []
    if len(tiny):
        findings.append(
            Finding(
                "tiny",
                "doubtful",
                f"{share_text(len(tiny), len(seen))} are less than {_TINY_PX} px high or wide.",
                "There is little to see in them, and enlarging adds nothing. Have they been made smaller on the way?",
                tuple((int(row),) for row in tiny),
            )
        )
    if len(long):
        findings.append(
            Finding(
                "long",
                "note",
                f"{share_text(len(long), len(seen))} are at least {_LONG:g} times as long as wide.",
                "--framing whole squeezes them into a square, crop cuts their ends off; pad keeps them as they are.",
                tuple((int(row),) for row in long),
            )
        )
    return findings


def _enlarged(seen: pd.DataFrame) -> list[Finding]:
    """Images that were made larger than their detail, if most of those measured were."""
    known = seen["enlarged"].dropna()
    blown_up = known[known > 1]
    if len(known) < _ENOUGH or len(blown_up) < _MOST_ENLARGED * len(known):
        return []
    times = float(blown_up.median())
    side = round(float(seen[["width", "height"]].min(axis=1).median()) / times)
    return [
        Finding(
            "enlarged",
            "doubtful",
            f"{len(blown_up)} of {len(known)} images measured have no detail finer than {times:g} pixels: they were "
            "probably enlarged, or are blurred.",
            f"Use the original images if you have them. Else --image-px {side} shows a model as much, and costs less.",
            tuple((int(row),) for row in blown_up.index),
            tuple(f"about {factor:g} times enlarged" for factor in blown_up),
        )
    ]


def _brightness(seen: pd.DataFrame) -> list[Finding]:
    if not len(seen):
        return []
    middle = float(seen["brightness"].median())
    if DARK <= middle <= BRIGHT:
        return []
    how = "dark" if middle < DARK else "bright"
    return [
        Finding(
            how,
            "note",
            f"The pictures are {how}: the brightness of the middle one is {middle:.0f} of 255.",
            "If they were made from other numbers (reflectances, 16 bits), most of the range was left unused: stretch "
            "them all in the same way, say from the 2nd to the 98th percentile, when they are made.",
        )
    ]


def _giveaways(dataset: ImageDataset, seen: pd.DataFrame) -> list[Finding]:
    """What a network could know the class by without looking at what is shown."""
    labels = dataset.labels[seen.index]
    known = seen[labels >= 0]
    labels = labels[labels >= 0]
    ways = {
        "format": known["format"],
        "channels": known["mode"],
        "size": known["width"].astype(str) + " × " + known["height"].astype(str),
    }
    told = {name: cramers_v(values, labels) for name, values in ways.items()}
    giving = [name for name, value in told.items() if value >= _TELLS]
    if not giving:
        return []
    values = " and ".join(f"{name} (Cramér's V {told[name]:.2f})" for name in giving)
    return [
        Finding(
            "giveaway",
            "doubtful",
            f"The class goes with the picture's {values}.",
            "A network may learn that instead of what is shown, and fail where it is otherwise. Bring all pictures "
            "into one form, or find out why they differ.",
        )
    ]


def cramers_v(values: pd.Series[str], labels: np.typing.NDArray[np.int64]) -> float:
    """How far one variable tells another, 0 to 1, corrected for chance; 0 where there is too little to judge by.

    Source: Bergsma, "A bias-correction for Cramér's V and Tschuprow's T", 2013.

    Args:
        values: (n,) of a picture each.
        labels: (n,) class ids.
    """
    row, kinds = pd.factorize(values.to_numpy())
    column, classes = pd.factorize(labels)
    total, rows, columns = len(row), len(kinds), len(classes)
    if total < _ENOUGH or min(rows, columns) < 2 or rows > total / 5:
        return 0.0
    # Only of cells that are not empty: there are as many as pictures at most.
    cells, counts = np.unique(row * columns + column, return_counts=True)
    expected = np.bincount(row)[cells // columns] * (np.bincount(column)[cells % columns] / total)
    phi = (counts**2 / expected).sum() / total - 1
    chance = (rows - 1) * (columns - 1) / (total - 1)
    rows_left = rows - (rows - 1) ** 2 / (total - 1)
    columns_left = columns - (columns - 1) ** 2 / (total - 1)
    least = min(rows_left, columns_left) - 1
    return float(np.sqrt(max(0.0, phi - chance) / least)) if least > 0 else 0.0  # as many classes as pictures
