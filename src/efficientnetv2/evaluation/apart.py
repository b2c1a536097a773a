"""How far the pictures evaluated on are from those learnt from: whether a figure is of new places, or new groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from efficientnetv2.data.levels import has_groups
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.inspect.places import NEAR_KM, Bools, Places


@dataclass(frozen=True)
class Apart:
    """What the pictures evaluated on have to do with those learnt from.

    Args:
        by: what is known of them, where they were taken or to which group they belong.
        known: pictures evaluated on of which it is known; of groups all, for one without counts as a group of its own.
        near: how many of these have one that was learnt from within ``NEAR_KM``; or in their group.
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
    return _apart(manifest, [(manifest.in_train, manifest.split == split)])


def apart_by_folds(manifest: Manifest, parts: Sequence[tuple[Ints, Ints]]) -> Apart | None:
    """Likewise of a cross-validation: each picture from those that the network learnt from which answers it.

    Args:
        manifest: of all pictures.
        parts: of each fold the rows that teach, and those that are answered.
    """
    everyone = np.arange(len(manifest))
    return _apart(manifest, [(np.isin(everyone, one), np.isin(everyone, other)) for one, other in parts])


def _apart(manifest: Manifest, pairs: Sequence[tuple[Bools, Bools]]) -> Apart | None:
    """Over pairs of (N,) pictures learnt from and asked about."""
    by_place, by_group = _by_place(manifest, pairs), _by_group(manifest, pairs)
    return by_group if by_place is None else replace(by_place, groups=by_group)


def _by_place(manifest: Manifest, pairs: Sequence[tuple[Bools, Bools]]) -> Apart | None:
    places = Places.of(manifest)
    if places is None:
        return None
    placed = [(learnt[places.rows], asked[places.rows]) for learnt, asked in pairs]
    found = [
        places.nearest_km(asked, learnt)[asked] for learnt, asked in placed if learnt.any() and asked.any()
    ]
    if not found:
        return None
    km = np.concatenate(found)
    return Apart("place", len(km), int((km <= NEAR_KM).sum()), float(np.median(km)))


def _by_group(manifest: Manifest, pairs: Sequence[tuple[Bools, Bools]]) -> Apart | None:
    if not has_groups(manifest):
        return None
    named = manifest.table["group"].astype(object).fillna("").astype(str)
    known = (named != "").to_numpy(dtype=bool)
    # As numbers: text numpy would compare all with all, which takes an hour of a million pictures.
    groups = pd.factorize(named)[0]
    if not any((known & asked).any() for _, asked in pairs):
        return None
    near = sum(int(np.isin(groups[known & asked], groups[known & learnt]).sum()) for learnt, asked in pairs)
    return Apart("group", sum(int(asked.sum()) for _, asked in pairs), near)
