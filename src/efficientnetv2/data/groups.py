"""Images that a split must keep together (groups, places, copies, identical files), as groupings of decreasing size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints, copy_groups
from efficientnetv2.utils.errors import InputError

# Sides of spatial blocks in degrees, in the order of trying. 1° of latitude is 111 km. The last is about 3.5 km, below
# which neighboring images may overlap. Ours.
BLOCKS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)

#: What a split keeps together, besides identical files and copies. ``auto``: places and groups, as far as no class
#: vanishes. ``place``: both, groups where known. ``group``: groups only. ``class``: neither.
SplitBy = Literal["auto", "class", "group", "place"]


@dataclass(frozen=True)
class Grouping:
    """One way to keep images together, by (N,) ``clusters``. ``block`` is the side of spatial blocks in degrees."""

    clusters: Ints
    groups: bool
    block: float | None = None
    blocks: Ints | None = None

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max(initial=-1)) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """See ``grouping_names``."""
        return grouping_names(block=self.block, groups=self.groups)


def grouping_names(*, block: float | None, groups: bool) -> tuple[str, ...]:
    """Nouns for what stays together: ``places`` (where there is a block size), ``groups``, both or neither."""
    return (*(("places",) if block is not None else ()), *(("groups",) if groups else ()))


def has_groups(part: ImageDataset) -> bool:
    """Whether the group of some image is known."""
    return "group" in part.table and bool(part.table["group"].notna().any())


def has_places(part: ImageDataset) -> bool:
    """Whether latitude and longitude of every image are known."""
    columns = ["latitude", "longitude"]
    return set(columns) <= set(part.table.columns) and not part.table[columns].isna().to_numpy().any()


def groupings(part: ImageDataset, contents: Ints | None, blocks: Sequence[float] = BLOCKS) -> list[Grouping]:
    """All groupings of a dataset, the strictest first. The last keeps only copies and identical files together."""
    same = [] if contents is None else [_codes(contents)]
    copies = copy_groups(part)
    if copies is not None:
        same.append(copies)
    group = _codes(part.table["group"]) if has_groups(part) else None
    by_group = [*same, group] if group is not None else same
    found = []
    for degrees in blocks if has_places(part) else ():
        places = _block_ids(part, degrees)
        found.append(Grouping(_join(len(part), [*by_group, places]), group is not None, degrees, places))
    if group is not None:
        found.append(Grouping(_join(len(part), by_group), groups=True))
    return [*found, Grouping(_join(len(part), same), groups=False)]


def select_groupings(part: ImageDataset, available: list[Grouping], by: SplitBy) -> list[Grouping]:
    """Groupings that a rule allows. Raises InputError if groups or places are unknown."""
    if by == "auto":
        return available
    if by == "class":
        return available[-1:]
    if by == "group":
        found = [grouping for grouping in available if grouping.groups and grouping.block is None]
        what, fix = "no groups", "Name the column that holds them with --group-column"
    else:
        found = [grouping for grouping in available if grouping.block is not None]
        what, fix = "no places", "Add columns latitude and longitude, in degrees, with a value in every row"
    if not found:
        raise InputError(f"--by {by}: {part.source} has {what}. {fix}; or take another rule (--by class).")
    return found


def _block_ids(part: ImageDataset, degrees: float) -> Ints:
    latitude, longitude = (part.table[name].to_numpy(dtype=np.float64) for name in ("latitude", "longitude"))
    row = np.floor((latitude + 90) / degrees).astype(np.int64)
    column = np.floor(np.mod(longitude + 180, 360) / degrees).astype(np.int64)  # 180° is -180°
    return _codes(row * math.ceil(360 / degrees) + column)


def _join(count: int, constraints: list[Ints]) -> Ints:
    """Connected components of images that share a value of any constraint. -1 is shared by none."""
    rows, columns, width = [np.empty(0, np.int64)], [np.empty(0, np.int64)], count
    for values in constraints:
        known = np.flatnonzero(values >= 0)
        rows.append(known)
        columns.append(values[known] + width)
        width += int(values.max(initial=-1)) + 1
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(width, width))
    return _codes(connected_components(graph, directed=False)[1][:count])


def _codes(values: Any) -> Ints:
    """Numbers from 0 in the order of appearance, -1 for missing values."""
    codes: Ints = pd.factorize(values)[0].astype(np.int64)
    return codes
