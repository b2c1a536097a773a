"""Which of the pictures that were answered hang together: of a place or group, which chance draws as a whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from efficientnetv2.data.augmented_copies import copy_groups
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.folds import KEPT_WHOLE
from efficientnetv2.data.groups import BLOCKS, Grouping, groupings, has_groups, has_places
from efficientnetv2.data.records import Ints
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.utils.errors import InputError


def data_root(folder: Path, paths: Sequence[str]) -> str | None:
    """What the paths of answered pictures start from.

    Args:
        folder: of a run or of a cross-validation, whose ``manifest.csv`` leads to the pictures.
        paths: of those, as ``predictions.csv`` calls them.

    Returns:
        A folder without links, or a URL; '' where every path is a place by itself; None where nothing says it, as in
        the folder of an evaluation.
    """
    try:
        dataset = ImageDataset.from_csv(folder / "manifest.csv", root=folder, source=str(folder))
    except InputError:
        return None
    relative = [path for path in paths if not (os.path.isabs(path) or is_url(path))]
    if not relative:
        return ""
    way = relative_prefix(dataset.paths, relative)
    if way is None:
        return None
    return way.rstrip("/") if is_url(way) else os.path.realpath(folder / way)


def relative_prefix(dataset: Sequence[str], paths: Sequence[str]) -> str | None:
    """What stands before pictures' paths where a dataset calls them as seen from its folder.

    Args:
        dataset: all its paths.
        paths: of some of its pictures, one at least, without that way.

    Returns:
        None if they are other pictures.
    """
    there, ways = set(dataset), (one.removesuffix(paths[0]) for one in dataset if one.endswith(paths[0]))
    # To 5.jpg and 7.jpg neither x/2 leads, by x/25.jpg and x/27.jpg, nor x/more/ where x/ does: all begin with theirs.
    folders = sorted(dict.fromkeys(way for way in ways if not way or way.endswith("/")), key=len)
    return next((way for way in folders if all(way + path in there for path in paths)), None)


def resolved_files(dataset: ImageDataset) -> list[str]:
    """(N) files of the pictures without links, so that one of two datasets is known in the other."""
    # A folder's links are followed once, not for each of its pictures: a million would take tens of seconds.
    folder_of = lru_cache(maxsize=None)(os.path.realpath)

    def resolved(path: str) -> str:
        folder, name = os.path.split(path)
        place = os.path.join(folder_of(folder), name)
        return os.path.realpath(place) if os.path.islink(place) else place

    return [resolved(dataset.file(row)) for row in range(len(dataset))]


def different_root_note(one: str | None, other: str | None) -> str:
    """A sentence on pictures of two roots that are compared for having the same names; '' for none.

    Args:
        one: root of the ones, as ``data_root`` gives it.
        other: of the others.
    """
    if not one or not other or one == other:
        return ""
    return f"Compared by name: their pictures lie in {one} and in {other}."


@dataclass(frozen=True, eq=False)
class Clusters:
    """What chance draws as a whole among some pictures.

    Args:
        clusters: (N,) numbers, equal where pictures hang together.
        what: these are, in words: "places", "groups", "pictures with their copies"; None of identical files alone.
    """

    clusters: Ints
    what: str | None

    def by_path(self, paths: Sequence[str]) -> pd.Series[int] | None:
        """The clusters by the paths of the N pictures, as comparisons take them; None where they are no places."""
        return None if self.what is None else pd.Series(self.clusters, index=pd.Index(paths))


def split_clusters(folder: Path, paths: Sequence[str]) -> Clusters | None:
    """What a split, or folds, kept together of the pictures that were answered.

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
    dataset = _listed(folder)
    called = None if dataset is None else _as_answered(dataset.paths, paths)
    if dataset is None or called is None:
        return None
    row_of = {path: row for row, path in enumerate(called)}
    return _kept(dataset, np.array([row_of[path] for path in paths], dtype=np.int64))


def evaluation_clusters(run: Path | None, pictures: ImageDataset) -> Clusters | None:
    """What hangs together of the pictures that a model is evaluated on.

    Those that its own run held out hang together as in the report of that, unless more is known of them here: groups,
    or places. Of others no split says how much does. So it is as little as ``data.groups`` ever keeps whole: the
    smallest blocks, and groups, those of one block or one group joined; groups alone where that joins all. Copies that
    augmentation made hang together with what they were made from in any case.

    Args:
        run: the folder of the run, or of the cross-validation, that the model is of; None where there is none.
        pictures: that it is evaluated on.

    Returns:
        None where nothing is known of places, groups or copies, the run's split did not heed them, or all pictures are
        of one.
    """
    dataset = None if run is None else _listed(run)
    if dataset is not None:
        row_of = {file: row for row, file in enumerate(resolved_files(dataset))}
        rows = np.array([row_of.get(file, -1) for file in resolved_files(pictures)], dtype=np.int64)
        if (rows >= 0).all() and not _more_is_known(pictures, dataset.select(rows)):
            found = _kept(dataset, rows)
            if found is not None or _by_fold(dataset, rows) or (dataset.split[rows] == "val").all():
                return found
    *levels, copies = groupings(pictures, None, BLOCKS[-1:])
    ways = [_whole(level) for level in levels]
    if copy_groups(pictures) is not None:
        ways.append(Clusters(copies.clusters, "pictures with their copies"))
    return next((way for way in ways if len(np.unique(way.clusters)) > 1), None)


def _listed(folder: Path) -> ImageDataset | None:
    try:
        return ImageDataset.from_csv(folder / "manifest.csv", root=folder.absolute(), source=str(folder))
    except InputError:
        return None


def _more_is_known(pictures: ImageDataset, there: ImageDataset) -> bool:
    """Whether groups, or all places, of pictures are known that were not known of the same ones elsewhere."""
    return any(known(pictures) and not known(there) for known in (has_groups, has_places))


def _kept(dataset: ImageDataset, rows: Ints) -> Clusters | None:
    """``split_clusters`` of the pictures of these rows."""
    by_fold = _by_fold(dataset, rows)
    sides = dataset.table["fold" if by_fold else "split"].astype(str).replace("minival", "train")
    dealt = np.union1d(rows, np.flatnonzero(~np.isin(dataset.split, ("", "test"))))
    sides = sides.iloc[dealt].reset_index(drop=True)
    asked = np.searchsorted(dealt, rows)
    for way in _ways(dataset.select(dealt), by_fold=by_fold):
        found = way.clusters[asked]
        if len(np.unique(found)) > 1 and (sides.groupby(way.clusters).nunique() == 1).all():
            return Clusters(found, way.what)
    return None


def _by_fold(dataset: ImageDataset, rows: Ints) -> bool:
    """Whether folds answered the pictures of these rows.

    A cross-validation answers neither val nor test: all others are answered by a fold, those too that taught none.
    """
    return "fold" in dataset.table and not np.isin(dataset.split[rows], ("val", "test")).any()


def _ways(dataset: ImageDataset, *, by_fold: bool) -> list[Clusters]:
    """How pictures may hang together: the strictest way first, but as folds were dealt before all."""
    levels = groupings(dataset, None)[:-1]
    ways = [_whole(level) for level in levels]
    if KEPT_WHOLE not in dataset.table:
        return ways
    clusters = pd.factorize(dataset.table[KEPT_WHOLE])[0].astype(np.int64)  # in blocks of any size
    dealt = Clusters(clusters, _dealt_in(clusters, levels))
    if by_fold:
        return [dealt, *ways]
    # A run of one fold; or one whose table is a cross-validation's, but whose split is its own.
    return sorted([dealt, *ways], key=lambda way: len(np.unique(way.clusters)))


def _whole(level: Grouping) -> Clusters:
    return Clusters(level.clusters, " and ".join(level.kept))


def _dealt_in(clusters: Ints, levels: Sequence[Grouping]) -> str:
    """What folds were dealt in, which their numbers alone do not say: what is known, but groups if it is just these."""
    by_group = [level for level in levels if level.block is None]
    if any(np.array_equal(clusters, level.clusters) for level in by_group):
        return "groups"
    return " and ".join(levels[0].kept) if levels else "places or groups"


def _as_answered(dataset: Sequence[str], paths: Sequence[str]) -> list[str] | None:
    """The dataset's paths without the way from the run's folder to the data's; None if they are other pictures."""
    way = relative_prefix(dataset, paths) if len(paths) else None
    return None if way is None else [path.removeprefix(way) for path in dataset]
