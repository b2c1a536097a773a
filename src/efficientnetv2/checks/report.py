"""The report of a dataset check, as a page and as JSON, with its plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from efficientnetv2.checks.dataset_check import CheckResult
from efficientnetv2.checks.dataset_statistics import class_table, column_headings
from efficientnetv2.checks.issues import Issue
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import times_of
from efficientnetv2.data.splits import image_labels
from efficientnetv2.evaluation.distribution_shift import Places
from efficientnetv2.evaluation.html import json_text, render
from efficientnetv2.evaluation.plot_style import COLORS, INK, default_style, label_text, single_plot, style_axes
from efficientnetv2.evaluation.thumbnails import CONTRAST_NOTE, encode_thumbnail
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.io import read_object_or_empty, write_text_atomically
from efficientnetv2.utils.random_key import Key

JSON_NAME, PAGE_NAME = "inspection.json", "inspection.html"
# Limits of a page of 2 MB: groups of an issue, images of a group; classes with images, images of each, rows of the
# class table; size and quality of images. Ours.
_GROUPS, _OF_A_GROUP = 12, 4
_CLASSES, _OF_A_CLASS, _ROWS = 30, 4, 1000
_PX, _QUALITY = 128, 75
# Classes with their own color; the others share one.
_COLORED = 4
_PAGE_COLORS = {f"c{place}": color for place, color in enumerate(COLORS)} | {"ink": INK, "gray": "#888888"}
_MOST_BARS = 40
# Points drawn at most: more would be megabytes and a black patch. Ours.
_DOTS = 5_000


@default_style()
def write_check_report(
    folder: str | Path,
    result: CheckResult,
    *,
    image: Callable[[int], Image.Image | None],
    command: str,
    versions: Mapping[str, str],
) -> None:
    """Write ``inspection.json`` and ``inspection.html``; ``image`` gives the image of a row, None if unreadable."""
    write_text_atomically(Path(folder) / JSON_NAME, json_text(result.to_json()))
    page = _page(result, image, command, versions)
    write_text_atomically(Path(folder) / PAGE_NAME, page)


def is_check_json(file: Path) -> bool:
    """Whether a file is an ``inspection.json`` of this package."""
    return {"data", "num_images", "weights", "findings"} <= read_object_or_empty(file).keys()


def _page(
    result: CheckResult, image: Callable[[int], Image.Image | None], command: str, versions: Mapping[str, str]
) -> str:
    dataset, issues = result.dataset, result.issues
    table = class_table(dataset)
    largest = table.index[np.sort(np.argsort(-table.sum(axis=1).to_numpy(), kind="stable")[:_ROWS])]
    stretched = any(each.kind in ("dark", "bright") for each in issues)
    addresses: dict[int, str | None] = {}

    def shown(row: int) -> dict[str, str | None]:
        if row not in addresses:
            addresses[row] = encode_thumbnail(image(row), stretched=stretched, px=_PX, quality=_QUALITY)
        label = "no label" if dataset.labels[row] < 0 else str(dataset.table["label"].iloc[row])
        path, split = dataset.paths[row], dataset.split[row]
        return {"address": addresses[row], "path": path, "label": label, "split": split}

    def groups(found: Issue) -> list[tuple[str, list[dict[str, str | None]], int]]:
        """The first groups of an issue: caption, first images, and how many more there are."""
        return [
            (caption, [shown(row) for row in group[:_OF_A_GROUP]], max(0, len(group) - _OF_A_GROUP))
            for caption, group in zip(found.captions[:_GROUPS], found.groups[:_GROUPS], strict=True)
        ]

    facts = {name: section.facts for name, section in result.sections.items()}
    colors = {name: each for name, each in facts["image_stats"]["by_class"].items() if name in set(largest)}
    return render(
        "inspection.html.j2",
        source=dataset.source,
        num_images=len(dataset),
        classes=dataset.class_names,
        notes=dataset.notes,
        findings=[(each, groups(each)) for each in issues],
        wrong=sum(each.severity == "wrong" for each in issues),
        doubtful=sum(each.severity == "doubtful" for each in issues),
        weights=result.weights,
        stretched=CONTRAST_NOTE if stretched else None,
        splits=column_headings(table),
        by_class=[(str(name), [int(count) for count in row]) for name, row in table.loc[largest].iterrows()],
        total=max(1, int((dataset.labels >= 0).sum())),
        examples={name: [shown(row) for row in rows] for name, rows in _examples(result).items()},
        stats={**facts["image_stats"], "by_class": colors},
        place=facts["place"],
        time=facts["time"],
        group=facts["group"],
        legend=legend(dataset),
        map=draw_places(dataset),
        times=draw_times(dataset, facts["time"].get("column")),
        command=command,
        versions=versions,
    )


def _examples(result: CheckResult) -> dict[str, list[int]]:
    """A few readable images of each of the largest classes, a fixed random choice."""
    dataset = result.dataset
    images, labels = image_labels(dataset)
    seen = np.isin(images, result.stats.readable)
    images, labels = images[seen], labels[seen]
    numbers = np.bincount(labels, minlength=len(dataset.class_names))
    chosen: dict[str, list[int]] = {}
    for label in np.argsort(-numbers, kind="stable")[:_CLASSES]:
        rows = images[labels == label]
        drawn = Key.of(0).fold("examples", int(label)).generator().permutation(len(rows))[:_OF_A_CLASS]
        chosen[dataset.class_names[int(label)]] = sorted(rows[drawn].tolist())
    return chosen


def draw_places(dataset: ImageDataset) -> Figure | None:
    """Longitude and latitude of the images, colored by class; None if fewer than two have a location."""
    places = Places.of(dataset)
    if places is None or len(places.rows) < 2:
        return None
    every = -(-len(places.rows) // _DOTS)
    degrees, rows = np.degrees(places.radians[::every]), places.rows[::every]
    figure, ax = single_plot(3.6)
    for chosen, color in _by_class(dataset, rows):
        ax.scatter(degrees[chosen, 1], degrees[chosen, 0], s=9, color=color, alpha=0.7, linewidths=0)
    middle = float(np.radians(degrees[:, 0].mean()))
    if abs(middle) < np.radians(80):
        ax.set_aspect(1 / np.cos(middle), adjustable="datalim")  # a degree of longitude is shorter
    style_axes(ax, "latitude against longitude, degrees")
    return figure


def draw_times(dataset: ImageDataset, column: str | None) -> Figure | None:
    """Images by year in bars stacked by class; None if no time is known, or only one year."""
    if column is None:
        return None
    times = times_of(dataset, column)
    known = np.flatnonzero(times.notna())
    dated = pd.api.types.is_datetime64_any_dtype(times)
    years = (times.dt.year if dated else times).to_numpy(dtype=np.float64)[known]
    kinds = np.unique(years)
    if not 1 < len(kinds) <= _MOST_BARS:
        return None
    figure, ax = single_plot(2.4)
    below = np.zeros(len(kinds))
    for chosen, color in _by_class(dataset, known.astype(np.int64)):
        heights = np.array([(years[chosen] == kind).sum() for kind in kinds])
        ax.bar(kinds, heights, bottom=below, color=color, width=0.8 * np.diff(kinds).min())
        below += heights
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.ticklabel_format(axis="x", style="plain", useOffset=False)
    style_axes(ax, f"images by {'year' if dated else label_text(column, letters=60, lines=1)}")
    return figure


def _by_class(dataset: ImageDataset, rows: npt.NDArray[np.int64]) -> list[tuple[npt.NDArray[np.bool_], str]]:
    """Mask of the rows, and color, of each class in ``legend``."""
    labels = dataset.labels[rows]
    shown = _largest(dataset)
    masks = {f"c{place}": labels == label for place, label in enumerate(shown)}
    masks |= {"ink": (labels >= 0) & ~np.isin(labels, shown), "gray": labels < 0}
    return [(masks[name], _PAGE_COLORS[name]) for _, name in legend(dataset)]


def legend(dataset: ImageDataset) -> list[tuple[str, str]]:
    """Names, the largest classes first, and the page's names of their colors.

    ``c0`` to ``c3`` are the largest classes, ``ink`` all other classes, ``gray`` images without a label. The page shows
    the legend, since it has fonts for every script.
    """
    shown, classes = _largest(dataset), len(set(dataset.labels[dataset.labels >= 0].tolist()))
    names = [(dataset.class_names[label], f"c{place}") for place, label in enumerate(shown)]
    if classes > len(shown):
        names.append((pluralize(classes - len(shown), "other class"), "ink"))
    if (dataset.labels < 0).any():
        names.append(("no label", "gray"))
    return names


def _largest(dataset: ImageDataset) -> list[int]:
    labels = dataset.labels[dataset.labels >= 0]
    return [int(label) for label in pd.Series(labels).value_counts().index[:_COLORED]]
