"""How far the pictures evaluated on are from those learnt from: whether a figure is of new places, or new groups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from efficientnetv2.data.levels import has_groups
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.inspect.places import NEAR_KM, Places


@dataclass(frozen=True)
class Apart:
    """What the pictures evaluated on have to do with those learnt from.

    Args:
        by: what is known of them, where they were taken or to which group they belong.
        known: pictures evaluated on of which it is known; of groups all, for one without counts as a group of its own.
        near: how many of these have one that was learnt from within 5 km; or in their group.
        median_km: of their distances to the nearest that was learnt from; None of groups.
        groups: the same by group, where both are known.
    """

    by: Literal["place", "group"]
    known: int
    near: int
    median_km: float | None = None
    groups: Apart | None = None

    @property
    def new(self) -> bool:
        """Whether none of the pictures is near to, or of a group with, one that was learnt from."""
        return not self.near and (self.groups is None or self.groups.new)


def apart(manifest: Manifest, split: str) -> Apart | None:
    """Of a split from the training pictures; None where nothing is known of places or groups.

    Args:
        manifest: of all pictures, with columns ``latitude`` and ``longitude``, or ``group``, or all of them.
        split: whose pictures are evaluated on.
    """
    by_place, by_group = _by_place(manifest, split), _by_group(manifest, split)
    return by_group if by_place is None else replace(by_place, groups=by_group)


def _by_place(manifest: Manifest, split: str) -> Apart | None:
    places = Places.of(manifest)
    if places is None:
        return None
    learnt, asked = manifest.in_train[places.rows], (manifest.split == split)[places.rows]
    if not (learnt.any() and asked.any()):
        return None
    km = places.nearest_km(asked, learnt)[asked]
    return Apart("place", len(km), int((km <= NEAR_KM).sum()), float(np.median(km)))


def _by_group(manifest: Manifest, split: str) -> Apart | None:
    if not has_groups(manifest):
        return None
    groups = manifest.table["group"].fillna("").astype(str)
    known, asked = groups != "", manifest.split == split
    if not (known & asked).any():
        return None
    near = groups[known & asked].isin(set(groups[known & manifest.in_train]))
    return Apart("group", int(asked.sum()), int(near.sum()))
