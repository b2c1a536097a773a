"""Find damaged shards, and damaged images in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from efficientnetv2.data.file_probe import FileProbe, map_chunks, max_levels, probe_bytes
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.records import Ints
from efficientnetv2.data.shards.index import CONTENT, PLACE, ShardSet
from efficientnetv2.data.shards.reader import ShardReader, content_hash
from efficientnetv2.data.shards.storage import store_at
from efficientnetv2.utils.errors import InputError, pluralize


@dataclass(frozen=True)
class ShardDamage:
    """Reason of each lost image, by its row, and a sentence for each damaged shard."""

    reasons: dict[int, str]
    notes: tuple[str, ...]


def find_damage(table: pd.DataFrame, shards: ShardSet) -> ShardDamage:
    """Compare the sizes of shards with their index, without reading images. Raises InputError for a replaced shard."""
    number, offset, size = (table[name].to_numpy(dtype=np.int64) for name in PLACE)
    used = np.flatnonzero(np.bincount(number, minlength=len(shards.shards)))
    stats = store_at(shards.base).stats([shards.shards[shard].name for shard in used])
    reasons: dict[int, str] = {}
    notes = [
        f"Damaged shard: {shard.name} {shard.damage}; none of its images are used."
        for shard in shards.shards
        if shard.damage and not shard.pictures
    ]
    for shard, stat in zip(used.tolist(), stats, strict=True):
        known, damage, size_now = shards.shards[shard], "", 0 if stat is None else stat.bytes
        if stat is None:
            damage = "is missing"
        elif size_now > known.bytes:
            raise InputError(
                f"{shards.base}/{known.name} has {size_now:,} bytes, but {known.bytes:,} in the index. "
                "Restore the shard, or write the index again."
            )
        elif size_now < known.bytes:
            damage = f"is cut short ({size_now:,} of {known.bytes:,} bytes)"
        if damage or known.damage:
            rows = np.flatnonzero(number == shard)
            gone = rows[offset[rows] + size[rows] > size_now]
            reasons |= dict.fromkeys(gone.tolist(), f"is lost: the shard {damage}")
            left = f"{len(rows) - len(gone)} of its {pluralize(len(rows), 'image')} found"
            notes.append(f"Damaged shard: {known.name} {damage or known.damage}; {left} are used.")
    return ShardDamage(reasons, tuple(notes))


def probe_images(
    table: pd.DataFrame, shards: ShardSet, lost: Collection[int]
) -> tuple[Ints, dict[int, str], Counter[str], list[int]]:
    """Check the images of shards, but the ``lost`` rows, unless packing has checked them.

    Returns (N,) hashes, equal for identical files, -1 if unknown; reasons of unusable images by row; counts of
    conversions to RGB; and the maximum level of each image of more than 8 bits.
    """
    if CONTENT in table:
        return table[CONTENT].to_numpy(dtype=np.int64, copy=True), {}, Counter(), []
    contents = np.full(len(table), -1, dtype=np.int64)
    rows = np.setdiff1d(np.arange(len(table)), list(lost)).tolist()
    reader = ShardReader(table, shards)

    def probe_chunk(chunk: Sequence[int]) -> list[FileProbe]:
        fetched, probes = reader.ahead(chunk), []
        for row in chunk:
            try:
                data = fetched.source(row)
                probes.append(probe_bytes(data))
                contents[row] = content_hash(data)
            except UnreadableImageError as error:
                probes.append(FileProbe(error.reason))
        return probes

    probes = map_chunks(probe_chunk, rows)
    reasons = {row: found.reason for row, found in zip(rows, probes, strict=True) if found.reason}
    contents[list(reasons)] = -1
    return contents, reasons, Counter(found.colors for found in probes if found.colors), max_levels(probes)
