"""Where the pictures lie that were answered: two sets of photographs may call other pictures by the same names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from efficientnetv2.base.errors import InputError
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.shards.names import is_url


def root_of(folder: Path, paths: Sequence[str]) -> str | None:
    """What the paths of answered pictures start from.

    Args:
        folder: of a run or of a cross-validation, whose ``manifest.csv`` leads to the pictures.
        paths: of those, as ``predictions.csv`` calls them.

    Returns:
        A folder without links, or a URL; '' where every path is a place by itself; None where nothing says it, as in
        the folder of an evaluation.
    """
    try:
        manifest = Manifest.from_csv(folder / "manifest.csv", root=folder, source=str(folder))
    except InputError:
        return None
    relative = [path for path in paths if not (os.path.isabs(path) or is_url(path))]
    if not relative:
        return ""
    way = way_to(manifest.paths, relative)
    if way is None:
        return None
    return way.rstrip("/") if is_url(way) else os.path.realpath(folder / way)


def way_to(manifest: Sequence[str], paths: Sequence[str]) -> str | None:
    """What stands before pictures' paths where a manifest calls them as seen from its folder.

    Args:
        manifest: all its paths.
        paths: of some of its pictures, one at least, without that way.

    Returns:
        None if they are other pictures.
    """
    there, ways = set(manifest), (one.removesuffix(paths[0]) for one in manifest if one.endswith(paths[0]))
    # To 5.jpg and 7.jpg neither x/2 leads, by x/25.jpg and x/27.jpg, nor x/more/ where x/ does: all begin with theirs.
    folders = sorted(dict.fromkeys(way for way in ways if not way or way.endswith("/")), key=len)
    return next((way for way in folders if all(way + path in there for path in paths)), None)


def files_of(manifest: Manifest) -> list[str]:
    """(N) files of the pictures without links, so that one of two manifests is known in the other."""
    # A folder's links are followed once, not for each of its pictures: a million would take tens of seconds.
    folder_of = lru_cache(maxsize=None)(os.path.realpath)

    def resolved(path: str) -> str:
        folder, name = os.path.split(path)
        place = os.path.join(folder_of(folder), name)
        return os.path.realpath(place) if os.path.islink(place) else place

    return [resolved(manifest.file(row)) for row in range(len(manifest))]


def by_name_alone(one: str | None, other: str | None) -> str:
    """A sentence on pictures of two roots that are compared for having the same names; '' for none.

    Args:
        one: root of the ones, as ``root_of`` gives it.
        other: of the others.
    """
    if not one or not other or one == other:
        return ""
    return f"Compared by name: their pictures lie in {one} and in {other}."
