"""Where and when pictures were taken, drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.drawing import COLOURS, INK, WIDTH_IN, plain
from efficientnetv2.evaluation.inspect.leaks import Places, times_of

# Classes that have a colour of their own; the others share one.
_COLOURED = 4
_MOST_BARS = 40
_DOTS = 5_000  # drawn at most: more are a file of megabytes, and one black patch


def draw_places(manifest: Manifest) -> Figure | None:
    """Longitude and latitude of every picture, coloured by class; None where fewer than two have a place."""
    places = Places.of(manifest)
    if places is None or len(places.rows) < 2:
        return None
    every = -(-len(places.rows) // _DOTS)
    degrees, rows = np.degrees(places.radians[::every]), places.rows[::every]
    figure, ax = _panel(3.6)
    for name, chosen, colour in _by_class(manifest, rows):
        ax.scatter(
            degrees[chosen, 1], degrees[chosen, 0], s=9, color=colour, alpha=0.7, linewidths=0, label=name
        )
    middle = float(np.radians(degrees[:, 0].mean()))
    if abs(middle) < np.radians(80):
        ax.set_aspect(1 / np.cos(middle), adjustable="datalim")  # a degree of longitude is shorter
    plain(ax, "latitude over longitude, in degrees")
    _legend(ax)
    return figure


def draw_times(manifest: Manifest, column: str | None) -> Figure | None:
    """Pictures by year, in bars whose parts are classes; None where no time is known, or one year only."""
    if column is None:
        return None
    times = times_of(manifest, column)
    known = np.flatnonzero(times.notna())
    dated = pd.api.types.is_datetime64_any_dtype(times)
    years = (times.dt.year if dated else times).to_numpy(dtype=np.float64)[known]
    kinds = np.unique(years)
    if not 1 < len(kinds) <= _MOST_BARS:
        return None
    figure, ax = _panel(2.4)
    below = np.zeros(len(kinds))
    for name, chosen, colour in _by_class(manifest, known.astype(np.int64)):
        heights = np.array([(years[chosen] == kind).sum() for kind in kinds])
        ax.bar(kinds, heights, bottom=below, color=colour, label=name, width=0.8 * np.diff(kinds).min())
        below += heights
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(ax, f"pictures by {'year' if dated else column}")
    _legend(ax)
    return figure


def _panel(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _by_class(
    manifest: Manifest, rows: np.typing.NDArray[np.int64]
) -> list[tuple[str, np.typing.NDArray[np.bool_], str]]:
    """Name, which of the rows, and colour: the largest classes, then the others as one, then those without a label."""
    labels = manifest.labels[rows]
    largest = pd.Series(labels[labels >= 0]).value_counts().index.tolist()
    shown = largest[:_COLOURED]
    parts = [(manifest.class_names[label], labels == label) for label in shown]
    others = (labels >= 0) & ~np.isin(labels, shown)
    if others.any():
        parts.append((f"{len(largest) - len(shown)} other classes", others))
    if (labels < 0).any():
        parts.append(("no label", labels < 0))
    colours = [*COLOURS[:_COLOURED], INK, INK]
    if not shown:
        colours = [COLOURS[0]]
    elif len(parts) > len(shown):
        colours = [*COLOURS[: len(shown)], INK, "#888888"]
    return [(name, chosen, colour) for (name, chosen), colour in zip(parts, colours, strict=False)]


def _legend(ax: Axes) -> None:
    ax.legend(
        fontsize=8,
        labelcolor=INK,
        frameon=False,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
    )
