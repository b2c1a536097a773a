"""Plots of where and when images were taken."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import times_of
from efficientnetv2.evaluation.locations import Places
from efficientnetv2.evaluation.plot_style import COLORS, INK, WIDTH_IN, label_text, style_axes
from efficientnetv2.utils.errors import pluralize

# Classes with their own color; the others share one.
_COLORED = 4
_REST = {"ink": INK, "gray": "#888888"}
_MOST_BARS = 40
# Points drawn at most: more would be megabytes and a black patch. Ours.
_DOTS = 5_000


def draw_places(dataset: ImageDataset) -> Figure | None:
    """Longitude and latitude of the images, colored by class; None if fewer than two have a location."""
    places = Places.of(dataset)
    if places is None or len(places.rows) < 2:
        return None
    every = -(-len(places.rows) // _DOTS)
    degrees, rows = np.degrees(places.radians[::every]), places.rows[::every]
    figure, ax = _panel(3.6)
    for _, chosen, color in _by_class(dataset, rows):
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
    figure, ax = _panel(2.4)
    below = np.zeros(len(kinds))
    for _, chosen, color in _by_class(dataset, known.astype(np.int64)):
        heights = np.array([(years[chosen] == kind).sum() for kind in kinds])
        ax.bar(kinds, heights, bottom=below, color=color, width=0.8 * np.diff(kinds).min())
        below += heights
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(ax, f"images by {'year' if dated else label_text(column, letters=60, lines=1)}")
    return figure


def _panel(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _by_class(
    dataset: ImageDataset, rows: np.typing.NDArray[np.int64]
) -> list[tuple[str, np.typing.NDArray[np.bool_], str]]:
    """Name, mask of the rows, and color of each class in ``legend``."""
    labels = dataset.labels[rows]
    shown = _largest(dataset)
    masks = {f"c{place}": labels == label for place, label in enumerate(shown)}
    masks |= {"ink": (labels >= 0) & ~np.isin(labels, shown), "gray": labels < 0}
    colors = {**{f"c{place}": color for place, color in enumerate(COLORS)}, **_REST}
    return [(name, masks[color], colors[color]) for name, color in legend(dataset)]


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
