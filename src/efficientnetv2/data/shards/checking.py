"""What is wrong with a set of shards, before the first step; what is found is ``data.check``'s to judge."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.base.errors import InputError, count_of
from efficientnetv2.data.look import Look, brightest_of, chunks_in_threads, look_at
from efficientnetv2.data.pictures import UnreadablePicture
from efficientnetv2.data.shards.index import CONTENT, PLACE, Shard, ShardSet
from efficientnetv2.data.shards.reading import Fetched, ShardReader
from efficientnetv2.data.shards.stores import Stat, store_at

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Damage:
    """What is wrong with the shards of a manifest.

    Args:
        reasons: why a picture is lost, by its row.
        notes: a sentence for each damaged shard.
    """

    reasons: dict[int, str]
    notes: tuple[str, ...]


def damage_of(table: pd.DataFrame, shards: ShardSet) -> Damage:
    """Compare the shards with their index; no picture is read.

    Args:
        table: of a manifest, with the columns that an index adds.
        shards: that they point into.

    Raises:
        InputError: a shard is another than the index was written for, or a store can't be reached.
    """
    number, offset, size = (table[name].to_numpy(dtype=np.int64) for name in PLACE)
    used = np.flatnonzero(np.bincount(number, minlength=len(shards.shards)))
    stats = store_at(shards.base).stats([shards.shards[shard].name for shard in used])
    reasons: dict[int, str] = {}
    empty = [shard for shard in shards.shards if shard.damage and not shard.pictures]
    notes = [f"Damaged shard: {shard.name} {shard.damage}; none of its pictures are used." for shard in empty]
    for shard, stat in zip(used.tolist(), stats, strict=True):
        known = shards.shards[shard]
        damage, whole = _damage(known, stat, shards.base)
        if not damage and not known.damage:
            continue
        rows = np.flatnonzero(number == shard)
        gone = rows[offset[rows] + size[rows] > whole]
        reasons |= dict.fromkeys(gone.tolist(), f"is lost: the shard {damage}")
        found = count_of(len(rows), "picture")
        left = f"{len(rows) - len(gone)} of its {found}" if damage else f"the {found} found in it"
        are = "is" if len(rows) - len(gone) == 1 else "are"
        notes.append(f"Damaged shard: {known.name} {damage or known.damage}; {left} {are} used.")
    return Damage(reasons, tuple(notes))


def look_within(
    table: pd.DataFrame, shards: ShardSet, lost: Collection[int], workers: int
) -> tuple[Ints, dict[int, str], Counter[str], list[int]]:
    """Look at the pictures of shards, where whoever packed them did not.

    Args:
        table: of a manifest, with the columns that an index adds.
        shards: that they point into.
        lost: rows that need no look.
        workers: threads.

    Returns:
        (N,) numbers, equal where the packed files held the same bytes, -1 where unknown; why a picture can't be used,
        by its row; how many of which colours become RGB; and the highest level, 0 to 255, of each image of more than 8
        bits. The last three are empty where no look was needed.
    """
    contents = np.full(len(table), -1, dtype=np.int64)
    if CONTENT in table:
        contents[:] = table[CONTENT]
        return contents, {}, Counter(), []
    rows = np.setdiff1d(np.arange(len(table)), list(lost)).tolist()
    reader = ShardReader(table, shards)

    def of_chunk(chunk: Sequence[int]) -> list[tuple[Look, int]]:
        fetched = reader.ahead(chunk)
        return [_look(fetched, row) for row in chunk]

    reasons: dict[int, str] = {}
    found = chunks_in_threads(of_chunk, rows, workers)
    for row, (seen, content) in zip(rows, found, strict=True):
        if seen.reason:
            reasons[row] = seen.reason
        else:
            contents[row] = content
    looks = [seen for seen, _ in found]
    return contents, reasons, Counter(seen.colours for seen in looks if seen.colours), brightest_of(looks)


def _damage(known: Shard, stat: Stat | None, base: str) -> tuple[str, int]:
    """What is wrong with a shard in words, '' if nothing, and how many bytes of it are there."""
    if stat is None:
        return "is missing", 0
    if stat.bytes > known.bytes:
        raise InputError(
            f"{base}/{known.name} has {stat.bytes:,} bytes, but {known.bytes:,} in the index: it was written anew "
            "since, and the index would cut pictures out of the wrong places. Bring the right shard back, or write the "
            "index anew."
        )
    if stat.bytes < known.bytes:
        return f"is cut short ({stat.bytes:,} of {known.bytes:,} bytes)", stat.bytes
    return "", known.bytes


def _look(reader: Fetched, row: int) -> tuple[Look, int]:
    try:
        data = reader.source(row)
    except UnreadablePicture as error:
        return Look(error.reason), -1
    return look_at(data), mark_of(data)


def mark_of(data: bytes) -> int:
    """A number of 63 bits that tells files apart: equal for equal bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
