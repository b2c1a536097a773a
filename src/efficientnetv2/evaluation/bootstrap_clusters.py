"""Clusters of related evaluated images (location or group) for the cluster bootstrap, and the files behind paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from efficientnetv2.data.dataset import ImageDataset, resolved_files
from efficientnetv2.data.folds import KEPT_WHOLE
from efficientnetv2.data.groups import BLOCKS, groupings, has_groups, has_places
from efficientnetv2.data.records import Ints, copy_groups
from efficientnetv2.data.shards.index import is_url
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import read_object_or_empty


@dataclass(frozen=True, eq=False)
class Clusters:
    """(N,) cluster ids of images, and what they are: "places", "groups", ...; None for identical files alone."""

    clusters: Ints
    unit: str | None

    def by_path(self, paths: Sequence[str]) -> pd.Series[int] | None:
        """The cluster ids indexed by path; None for identical files alone."""
        return None if self.unit is None else pd.Series(self.clusters, index=pd.Index(paths))


def split_clusters(folder: Path, paths: Sequence[str]) -> Clusters | None:
    """What the split or the folds of a run directory kept whole among its evaluated images, ``paths``.

    For images of folds this is what the folds were made of. Otherwise it is the strictest grouping by location or
    group that has no cluster on two sides. None if none is known, the split ignored them, or there is one cluster.
    """
    dataset = _run_dataset(folder)
    if dataset is None or not len(paths):
        return None
    relative = _relative(paths)
    prefix = relative_prefix(dataset.paths, relative) if relative else ""
    if prefix is None:
        return None
    row_of, prefixed = {path: row for row, path in enumerate(dataset.paths)}, set(relative)
    rows = [row_of.get(prefix + path if path in prefixed else path, -1) for path in paths]
    return None if min(rows) < 0 else _unsplit_clusters(dataset, np.array(rows, dtype=np.int64))


def evaluation_clusters(run: Path | None, images: ImageDataset) -> Clusters | None:
    """Clusters of the images that a model, of a run directory or None, is evaluated on.

    Images that its own run held out have the clusters of its report, unless more is known here: other groups, or
    locations.
    For other images no split shows what is related: the clusters are the smallest blocks joined with groups, or groups
    alone if that joins all. Augmented copies stay with their original. None as in ``split_clusters``.
    """
    dataset = None if run is None else _run_dataset(run)
    if dataset is not None:
        row_of = {file: row for row, file in enumerate(resolved_files(dataset))}
        rows = np.array([row_of.get(file, -1) for file in resolved_files(images)], dtype=np.int64)
        if (
            (rows >= 0).all()
            and not any(known(images) and not known(dataset.select(rows)) for known in (has_groups, has_places))
            and _same_groups(images, dataset.select(rows))
        ):
            found = _unsplit_clusters(dataset, rows)
            if found is not None or _from_folds(dataset, rows) or (dataset.split[rows] == "val").all():
                return found
    *levels, copies = groupings(images, None, BLOCKS[-1:])
    candidates = [Clusters(level.clusters, " and ".join(level.names)) for level in levels]
    if copy_groups(images) is not None:
        candidates.append(Clusters(copies.clusters, "images with their copies"))
    return next((each for each in candidates if len(np.unique(each.clusters)) > 1), None)


def _same_groups(first: ImageDataset, second: ImageDataset) -> bool:
    """Whether two tables of the same images name the same groups, or one names none."""
    if not (has_groups(first) and has_groups(second)):
        return True
    one, other = (pd.factorize(images.table["group"])[0] for images in (first, second))
    return np.array_equal(one, other)


def data_root(folder: Path, paths: Sequence[str]) -> str | None:
    """The folder without links, or URL, that paths in a ``predictions.csv`` of this folder are relative to.

    '' if every path is absolute; None if unknown.
    """
    relative = _relative(paths)
    if not relative:
        return ""
    dataset = _run_dataset(folder)
    if dataset is None:  # an evaluation
        found = read_object_or_empty(folder / "report.json").get("data_root")
        return found if isinstance(found, str) else None
    prefix = relative_prefix(dataset.paths, relative)
    if prefix is None:
        return None
    return prefix.rstrip("/") if is_url(prefix) else os.path.realpath(folder / prefix)


def root_of(images: ImageDataset) -> str:
    """``data_root`` of images that are to be predicted."""
    return images.root.rstrip("/") if isinstance(images.root, str) else os.path.realpath(images.root)


def located(table: pd.DataFrame, root: str | None) -> pd.DataFrame:
    """A table of predictions by the files of its images, in folders without links, if their ``data_root`` is known."""
    if root is None:
        return table
    folder_of = lru_cache(maxsize=None)(os.path.realpath)

    def file(path: str) -> str:
        if is_url(path) or (is_url(root) and os.path.isabs(path)):
            return path
        if is_url(root):
            return f"{root}/{path}"
        folder, name = os.path.split(os.path.join(root, path))
        return os.path.join(folder_of(folder), name)

    files = pd.Index([file(path) for path in table.index], name=table.index.name)
    return table.set_axis(files) if files.is_unique else table


def relative_prefix(dataset: Sequence[str], paths: Sequence[str]) -> str | None:
    """The prefix that turns ``paths`` into paths of a dataset; None if they are other images."""
    known = set(dataset)
    prefixes = (path.removesuffix(paths[0]) for path in dataset if path.endswith(paths[0]))
    # The prefix must end a folder (5.jpg is not x/25.jpg) and be the shortest (x/, not x/more/).
    folders = sorted(dict.fromkeys(each for each in prefixes if not each or each.endswith("/")), key=len)
    return next((each for each in folders if all(each + path in known for path in paths)), None)


def different_root_note(first: str | None, second: str | None) -> str:
    """A sentence if images of two ``data_root`` are compared by name; '' otherwise."""
    if not first or not second or first == second:
        return ""
    return f"Compared by name: the images are in {first} and in {second}."


def _relative(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not (os.path.isabs(path) or is_url(path))]


def _run_dataset(folder: Path) -> ImageDataset | None:
    try:
        return ImageDataset.from_csv(folder / "dataset.csv", root=folder.absolute(), source=str(folder))
    except InputError:
        return None


def _unsplit_clusters(dataset: ImageDataset, rows: Ints) -> Clusters | None:
    """``split_clusters`` of the images of these rows."""
    from_folds = _from_folds(dataset, rows)
    sides = dataset.table["fold" if from_folds else "split"].astype(str).replace("minival", "train")
    used = np.union1d(rows, np.flatnonzero(~np.isin(dataset.split, ("", "test"))))
    sides = sides.iloc[used].reset_index(drop=True)
    evaluated = np.searchsorted(used, rows)
    for candidate in _candidates(dataset.select(used), from_folds=from_folds):
        clusters = candidate.clusters[evaluated]
        if len(np.unique(clusters)) > 1 and (sides.groupby(candidate.clusters).nunique() == 1).all():
            return Clusters(clusters, candidate.unit)
    return None


def _from_folds(dataset: ImageDataset, rows: Ints) -> bool:
    """Whether folds predicted the images of these rows: all that are neither val nor test."""
    return "fold" in dataset.table and not np.isin(dataset.split[rows], ("val", "test")).any()


def _candidates(dataset: ImageDataset, *, from_folds: bool) -> list[Clusters]:
    """Possible clusters, the strictest first; for folds what they were made of comes first."""
    levels = groupings(dataset, None)[:-1]
    candidates = [Clusters(level.clusters, " and ".join(level.names)) for level in levels]
    if KEPT_WHOLE not in dataset.table:
        return candidates
    clusters = pd.factorize(dataset.table[KEPT_WHOLE])[0].astype(np.int64)  # in blocks of any size
    if any(level.block is None and np.array_equal(clusters, level.clusters) for level in levels):
        unit: str | None = "groups"
    else:
        unit = candidates[0].unit if candidates else "places or groups"
    fold_clusters = Clusters(clusters, unit)
    if from_folds:
        return [fold_clusters, *candidates]
    # A run of one fold, or a run on the table of a cross-validation with a split of its own.
    return sorted([fold_clusters, *candidates], key=lambda each: len(np.unique(each.clusters)))
