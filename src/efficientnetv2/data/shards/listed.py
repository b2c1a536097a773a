"""From a table whose paths point into shards, as a run's ``manifest.csv`` does, to their places there.

::

    ../shards/train-000000.tar#its/own/path.jpg
    https://example.org/shards/train-000000.tar#its/own/path.jpg
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.base.errors import InputError, some
from efficientnetv2.data.listing import Listing
from efficientnetv2.data.shards.index import CHECKSUM, CONTENT, PLACE
from efficientnetv2.data.shards.names import is_url, parted, shard_of
from efficientnetv2.data.shards.opening import read_named

# What an index adds to the columns of a manifest.
_WRITTEN = (*PLACE, CONTENT, CHECKSUM)


def lists_shards(table: pd.DataFrame) -> bool:
    """Whether the paths of a table point into shards: its first one does."""
    return len(table) > 0 and shard_of(table["path"].iloc[0]) is not None


def read_listed(listing: Listing) -> Listing:
    """The pictures of a table whose paths point into shards, with their places there.

    Where they stand is what the shards' own index says, or their headers; labels, splits and all else are the
    table's.

    Args:
        listing: of a table; its paths start from its root, or are URLs.

    Raises:
        InputError: a path points elsewhere than the others, or to nothing; or what ``read_shards`` refuses.
    """
    parts = _parts(listing)
    # Per shard, since they are few: where it lies, and what it is called there.
    tars = {tar: parted(_absolute(tar, listing.root)) for tar in {tar for tar, _ in parts}}
    bases = sorted({base for base, _ in tars.values()})
    if len(bases) > 1:
        raise InputError(
            f"{listing.source} points into shards of {len(bases)} folders ({some(bases, 2)}). Give those of one folder "
            "in one table."
        )
    there = read_named(bases[0], sorted({name for _, name in tars.values()}), listing.source, "label", None)
    wanted = [f"{tars[tar][1]}#{inner}" for tar, inner in parts]
    places = _places(listing, there, wanted)
    found = there.table.iloc[places].reset_index(drop=True)
    stands = {name: found[name] for name in _WRITTEN if name in found}
    own = listing.table.drop(columns=[*_WRITTEN], errors="ignore")
    return replace(
        listing,
        root=there.root,
        table=own.assign(path=found["path"], **stands),
        notes=(*listing.notes, *there.notes),
        shards=there.shards,
    )


def _parts(listing: Listing) -> list[tuple[str, str]]:
    """Shard and name within it of every row.

    Raises:
        InputError: a path is another.
    """
    parts = []
    for row, path in enumerate(listing.paths):
        part = shard_of(path)
        if part is None:
            raise InputError(
                f"{listing.where(row)}: '{path}' is a file, but '{listing.paths[0]}' ({listing.where(0)}) stands in a "
                "shard. Give files and shards in tables of their own."
            )
        parts.append(part)
    return parts


def _absolute(tar: str, root: Path | str) -> str:
    if is_url(tar):
        return tar
    folder, name = os.path.split(os.path.join(root, tar))
    short, real = os.path.normpath(folder), os.path.realpath(folder)
    # From a folder that a link leads to, the way up is another than its name says.
    return os.path.join(short if os.path.realpath(short) == real else real, name)


def _places(listing: Listing, there: Listing, wanted: list[str]) -> npt.NDArray[np.intp]:
    """The row of each wanted picture among those that are there.

    Raises:
        InputError: there is none, or there are two.
    """
    index = pd.Index(there.table["path"])
    if not index.is_unique:
        twice = index[index.duplicated()][0]
        raise InputError(
            f"{listing.source}: the shards of {there.root} hold two pictures called '{twice}', so a table can't tell "
            "them apart. Give the shards themselves."
        )
    places: npt.NDArray[np.intp] = index.get_indexer(pd.Index(wanted))
    strange = np.flatnonzero(places < 0)
    if len(strange):
        row = int(strange[0])
        shards = there.shards.shards if there.shards is not None else ()
        damage = next(
            (f"; it {one.damage}" for one in shards if wanted[row].startswith(f"{one.name}#") and one.damage),
            "",
        )
        raise InputError(
            f"{listing.where(row)}: '{wanted[row]}' is not in the shards of {there.root}{damage}. So it is with "
            f"{len(strange)} of {len(listing)} rows. Bring back the shards that the table is of, or leave those rows "
            "out."
        )
    return places
