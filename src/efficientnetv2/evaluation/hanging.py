"""Which pictures of a finished run hang together: of a place or group that its split, or its folds, kept whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from efficientnetv2.base.errors import InputError
from efficientnetv2.data.folds import KEPT_WHOLE
from efficientnetv2.data.levels import levels_of
from efficientnetv2.data.listing import Ints
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.evaluation.roots import way_to


def hanging_together(folder: Path, paths: Sequence[str]) -> pd.Series[int] | None:
    """Numbers that are equal where pictures hang together, by path.

    Of all folds together what they were dealt in, where the cross-validation has written that down
    (``data.folds.KEPT_WHOLE``). Else the largest places or groups, or what folds were dealt in, of which none has
    pictures on two sides: that is what was held out, or dealt into folds, as a whole. What the split has parted says
    nothing of how far its figures reach.

    Args:
        folder: of a run or of a cross-validation.
        paths: of the pictures that it answered, as ``predictions.csv`` calls them.

    Returns:
        None where nothing is known of places or groups, the split did not heed them, or all pictures are of one.
    """
    try:
        manifest = Manifest.from_csv(folder / "manifest.csv", root=folder, source=str(folder))
    except InputError:
        return None
    called = _as_answered(manifest.paths, paths)
    if called is None:
        return None
    asked = pd.Index(called).isin(list(paths))
    # A cross-validation answers neither val nor test: all others are answered by a fold, those too that taught none.
    by_fold = "fold" in manifest.table and not np.isin(manifest.split[asked], ("val", "test")).any()
    sides = manifest.table["fold" if by_fold else "split"].astype(str).replace("minival", "train")
    dealt = np.flatnonzero(asked | ~np.isin(manifest.split, ("", "test")))
    manifest, sides = manifest.select(dealt), sides.iloc[dealt].reset_index(drop=True)
    called = [called[row] for row in dealt]
    for clusters in _ways(manifest, by_fold=by_fold):
        found = pd.Series(clusters, index=pd.Index(called)).loc[list(paths)]
        if found.nunique() > 1 and (sides.groupby(clusters).nunique() == 1).all():
            return found
    return None


def _ways(manifest: Manifest, *, by_fold: bool) -> list[Ints]:
    """(N,) numbers, equal where pictures may hang together: the strictest first, but as folds were dealt before all."""
    ways = [level.clusters for level in levels_of(manifest, None)[:-1]]
    if KEPT_WHOLE not in manifest.table:
        return ways
    dealt = pd.factorize(manifest.table[KEPT_WHOLE])[0].astype(np.int64)  # in blocks of any size
    if by_fold:
        return [dealt, *ways]
    # A run of one fold; or one whose table is a cross-validation's, but whose split is its own.
    return sorted([dealt, *ways], key=lambda clusters: len(np.unique(clusters)))


def _as_answered(manifest: Sequence[str], paths: Sequence[str]) -> list[str] | None:
    """The manifest's paths without the way from the run's folder to the data's; None if they are other pictures."""
    way = way_to(manifest, paths) if len(paths) else None
    return None if way is None else [path.removeprefix(way) for path in manifest]
