"""What must not part when pictures are dealt out (groups, places, copies, identical files), by levels of strictness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from efficientnetv2.data.augmented_copies import copy_groups
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.utils.errors import InputError

# Sides of spatial blocks in degrees (1° of latitude is 111 km), tried in this order; the last is some
# 3.5 km, below which neighbouring pictures may overlap. Ours.
BLOCKS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)

#: What is kept whole when pictures are dealt out: ``auto`` places and groups as far as no class vanishes by it,
#: ``place`` both in any case (groups where they are known), ``group`` groups alone, ``class`` neither. Identical files
#: never part.
SplitBy = Literal["auto", "class", "group", "place"]


@dataclass(frozen=True)
class Grouping:
    """One way to keep things together.

    Args:
        clusters: (N,) numbers from 0, equal where pictures must not part.
        groups: whether those of the group column are kept whole.
        block: side of the spatial blocks in degrees, None without.
        blocks: (N,) ids of the blocks, None without.
    """

    clusters: Ints
    groups: bool
    block: float | None = None
    blocks: Ints | None = None

    @property
    def count(self) -> int:
        """How many clusters there are to deal out."""
        return int(self.clusters.max(initial=-1)) + 1

    @property
    def kept(self) -> tuple[str, ...]:
        """What is kept whole, in words."""
        return kept_whole(block=self.block, groups=self.groups)


def kept_whole(*, block: float | None, groups: bool) -> tuple[str, ...]:
    """What is kept whole, in words: ``places``, ``groups``, both or neither.

    Args:
        block: side of the spatial blocks in degrees, None without.
        groups: whether those of the group column are.
    """
    return (*(("places",) if block is not None else ()), *(("groups",) if groups else ()))


def has_groups(part: ImageDataset) -> bool:
    """Whether the group of some picture is known: a column that is empty throughout says nothing."""
    return "group" in part.table and bool(part.table["group"].notna().any())


def has_places(part: ImageDataset) -> bool:
    """Whether the place of every picture is known, so that spatial blocks can be made."""
    columns = ["latitude", "longitude"]
    return set(columns) <= set(part.table.columns) and not part.table[columns].isna().to_numpy().any()


def groupings(part: ImageDataset, contents: Ints | None, blocks: Sequence[float] = BLOCKS) -> list[Grouping]:
    """Ways to keep things together, the strictest first; the last keeps identical files only.

    Args:
        part: the pictures to deal out.
        contents: (N,) ids, equal for identical files; None if not known.
        blocks: sides of spatial blocks in degrees, the first to be tried first.
    """
    same = [] if contents is None else [_numbered(contents)]
    family = copy_groups(part)
    if family is not None:
        same.append(family)
    group = _numbered(part.table["group"]) if has_groups(part) else None
    by_group = [*same, group] if group is not None else same
    levels = []
    for degrees in blocks if has_places(part) else ():
        places = _blocks(part, degrees)
        levels.append(Grouping(_joined(len(part), [*by_group, places]), group is not None, degrees, places))
    if group is not None:
        levels.append(Grouping(_joined(len(part), by_group), groups=True))
    return [*levels, Grouping(_joined(len(part), same), groups=False)]


def select_groupings(part: ImageDataset, levels: list[Grouping], by: SplitBy) -> list[Grouping]:
    """Those of the ways to keep things together that are asked for.

    Args:
        part: the pictures to deal out.
        levels: as ``groupings`` gives them.
        by: what the user wants kept whole.

    Raises:
        InputError: nothing is known of groups, or of places.
    """
    if by == "auto":
        return levels
    if by == "class":
        return levels[-1:]
    if by == "group":
        kept = [level for level in levels if level.groups and level.block is None]
        what, fix = "no groups", "Name the column that holds them with --group-column"
    else:
        kept = [level for level in levels if level.block is not None]
        what, fix = "no places", "Add columns latitude and longitude, in degrees, with a value in every row"
    if not kept:
        raise InputError(f"--by {by}: {part.source} has {what}. {fix}; or take another rule (--by class).")
    return kept


def _blocks(part: ImageDataset, degrees: float) -> Ints:
    latitude, longitude = (part.table[name].to_numpy(dtype=np.float64) for name in ("latitude", "longitude"))
    row = np.floor((latitude + 90) / degrees).astype(np.int64)
    column = np.floor(np.mod(longitude + 180, 360) / degrees).astype(np.int64)  # 180° is -180°
    return _numbered(row * math.ceil(360 / degrees) + column)


def _joined(count: int, constraints: list[Ints]) -> Ints:
    """Connected components of pictures that share a value of any constraint; -1 is shared by none."""
    rows, columns, width = [np.empty(0, np.int64)], [np.empty(0, np.int64)], count
    for values in constraints:
        known = np.flatnonzero(values >= 0)
        rows.append(known)
        columns.append(values[known] + width)
        width += int(values.max(initial=-1)) + 1
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(width, width))
    components = connected_components(graph, directed=False)[1][:count]
    return _numbered(components)


def _numbered(values: Any) -> Ints:
    """From 0 in the order of appearance, -1 for a missing one."""
    numbers: Ints = pd.factorize(values)[0].astype(np.int64)
    return numbers
