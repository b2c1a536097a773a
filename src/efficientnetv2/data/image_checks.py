"""Check every image of a dataset before training: readable, complete, and not duplicated across splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.file_probe import AHEAD, MAX_UNREADABLE, FileProbe, map_chunks, probe, probe_bytes
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.imagenet_check import recognized
from efficientnetv2.data.open_image import regular_file
from efficientnetv2.data.records import Ints
from efficientnetv2.data.shards.index import CONTENT, ShardSet
from efficientnetv2.data.shards.reader import ShardDamage, ShardReader, content_hash, find_damage
from efficientnetv2.utils.errors import InputError, escape_controls, pluralize

# Maximum level of images of more than 8 bits that use a small part of their range: at most 14 of 16 bits. Ours.
_DARK_LEVEL = 63


@dataclass(frozen=True, eq=False)
class ImageValidation:
    """Reasons of unusable images by ascending row, and (N,) ``contents``: ids that are equal for identical files.

    ``label_conflicts`` is the number of pairs of identical files with different labels.
    """

    unreadable: dict[int, str]
    contents: Ints
    notes: tuple[str, ...]
    label_conflicts: int = 0

    @property
    def readable(self) -> Ints:
        """Ascending rows of usable images."""
        return np.setdiff1d(np.arange(len(self.contents)), list(self.unreadable), assume_unique=True)


def validate_images(
    dataset: ImageDataset, *, strict: bool = False, progress: Callable[[int], object] | None = None
) -> ImageValidation:
    """Check every file of a dataset. Of shards, check the tars, and the images that packing has not checked.

    ``progress`` gets the number of checked images.
    Raises InputError where more than 5 % of the files are unreadable (``strict``: any file or shard), a shard was
    replaced, or identical files are in two splits. In a published dataset they stay, so that metrics compare.
    """
    damage = find_damage(dataset, strict=strict)
    if dataset.shards is None:
        rows, probes, digests = _check_files(dataset, progress)
    else:
        rows, probes, digests = _check_packed(dataset, dataset.shards, damage, progress)
    reasons = {row: found.reason for row, found in zip(rows, probes, strict=True) if found.reason}
    refuse_unreadable(dataset, reasons, strict)
    reasons |= damage.reasons
    contents = np.arange(len(dataset), dtype=np.int64)
    alike = digests.index.to_numpy()
    contents[alike] = pd.Series(alike).groupby(digests.to_numpy(), sort=False).transform("first").to_numpy()
    labels = pd.Series(pd.factorize(dataset.table["label"])[0])
    conflicts = _differing_pairs(contents, labels[labels >= 0])
    notes = (
        *damage.notes,
        *_check_splits(dataset, contents),
        *_notes(dataset, contents, conflicts),
        *_conversion_notes(probes),
    )
    return ImageValidation(dict(sorted(reasons.items())), contents, notes, len(conflicts))


def _check_files(
    dataset: ImageDataset, progress: Callable[[int], object] | None
) -> tuple[Sequence[int], list[FileProbe], pd.Series[Any]]:
    """Rows, their checks, and by row the digests of usable files that may be identical: only those are read whole."""
    files = [dataset.file(row) for row in range(len(dataset))]
    probes = map_chunks(lambda chunk: [probe(file) for file in chunk], files, progress)
    marks = pd.DataFrame([(found.size, found.tail) for found in probes])
    marks = marks.drop(index=[row for row, found in enumerate(probes) if found.reason])

    def digest(file: str) -> bytes:
        try:
            with regular_file(file) as stream:
                return hashlib.file_digest(stream, "blake2b").digest()
        except OSError:  # removed since the check; reading it reports that
            return file.encode(errors="surrogateescape")

    alike = marks.index[marks.duplicated(keep=False)]
    digests = map_chunks(lambda chunk: [digest(files[row]) for row in chunk], alike.tolist())
    return range(len(files)), probes, pd.Series(digests, index=alike, dtype=object)


def _check_packed(
    dataset: ImageDataset, shards: ShardSet, damage: ShardDamage, progress: Callable[[int], object] | None
) -> tuple[Sequence[int], list[FileProbe], pd.Series[Any]]:
    """As ``_check_files``, of images that are not lost. They are read whole, unless packing has checked them."""
    if CONTENT in dataset.table:
        packed = dataset.table[CONTENT].astype(np.int64)
        return [], [], packed[packed >= 0]
    rows = np.setdiff1d(np.arange(len(dataset)), list(damage.reasons)).tolist()
    hashes = np.zeros(len(dataset), dtype=np.int64)
    reader = ShardReader(dataset.table, shards)

    def probe_chunk(chunk: Sequence[int]) -> list[FileProbe]:
        ahead, found = reader.ahead(chunk), []
        for row in chunk:
            try:
                data = ahead.source(row)
                found.append(probe_bytes(data))
                hashes[row] = content_hash(data)
            except UnreadableImageError as error:
                found.append(FileProbe(error.reason))
        return found

    probes = map_chunks(probe_chunk, rows, progress, size=AHEAD)
    usable = [row for row, found in zip(rows, probes, strict=True) if not found.reason]
    return rows, probes, pd.Series(hashes).iloc[usable]


def refuse_unreadable(dataset: ImageDataset, reasons: dict[int, str], strict: bool) -> None:
    """Raise InputError if more than 5 % of the images cannot be read, or with ``strict`` any."""
    count, total = len(reasons), len(dataset)
    shown = "; ".join(f"{_location(dataset, row)} {reasons[row]}" for row in sorted(reasons)[:5])
    if (strict and reasons) or count > MAX_UNREADABLE * total:
        limit = "0" if strict else f"{100 * MAX_UNREADABLE:.0f}"
        fix = ", or leave `strict` out" if strict else ""
        raise InputError(
            f"{dataset.source}: {count} of {total} images ({100 * count / total:.0f} %, more than {limit} %) cannot be "
            f"read: {shown}{'; and more' if count > 5 else ''}. Repair or remove them{fix}."
        )


def _check_splits(dataset: ImageDataset, contents: Ints) -> tuple[str, ...]:
    splits = pd.Series(np.where(dataset.in_train, "train", dataset.split))
    pairs = _differing_pairs(contents, splits)
    if not pairs:
        return ()
    each = " and ".join(f"{_location(dataset, row)} in {splits[row]}" for row in pairs[0])
    what = f"{each} are the same image ({pluralize(len(pairs), 'such pair')})"
    if published := dataset.published or recognized(dataset):
        return (f"{what}; the published splits of {published} are kept as they are.",)
    raise InputError(f"{dataset.source}: {what}. Remove one of each pair, or put both into one split.")


def _notes(dataset: ImageDataset, contents: Ints, conflicts: list[tuple[int, int]]) -> Iterator[str]:
    copies = int(pd.Series(contents).duplicated().sum())
    if copies:
        yield f"Copies among {len(contents)} images: {copies}. Automatic splits keep them with their originals."
    if conflicts:
        labels = dataset.table["label"]
        shown = "; ".join(
            " and ".join(f"{_location(dataset, row)} as '{labels.iloc[row]}'" for row in pair) for pair in conflicts[:3]
        )
        more = f"; and {len(conflicts) - 3} more pairs" if len(conflicts) > 3 else ""
        yield f"Identical images have different labels: {shown}{more}. One label of each is wrong."


def _conversion_notes(probes: Sequence[FileProbe]) -> Iterator[str]:
    """Notes on images that are converted to RGB, and on those that use few levels, such as 12 bits stored as 16."""
    if colors := Counter(found.colors for found in probes if found.colors):
        each = ", ".join(f"{count:,} {kind}" for kind, count in colors.most_common())
        yield f"Not stored as 8-bit RGB: {each}."
    brightest = [found.brightest for found in probes if found.brightest is not None and not found.reason]
    if brightest and max(brightest) <= _DARK_LEVEL:
        yield (
            f"The {pluralize(len(brightest), 'image')} of more than 8 bits use {max(brightest) + 1} of 256 levels. "
            "Scale all of them by one factor, or store them as TIFFs and install the extra 'geo'."
        )


def _differing_pairs(contents: Ints, values: pd.Series[Any]) -> list[tuple[int, int]]:
    """For each content with different values: its first row, and the first row that differs."""
    table = pd.DataFrame({"content": contents[values.index], "value": values, "row": values.index})
    table = table[table["content"].duplicated(keep=False)]
    first = table.groupby("content")[["value", "row"]].transform("first")
    others = table[table["value"] != first["value"]].drop_duplicates("content")
    return list(zip(first["row"][others.index].tolist(), others["row"].tolist(), strict=True))


def _location(dataset: ImageDataset, index: int) -> str:
    row = "" if dataset.rows is None else f" (row {dataset.rows[index]})"
    return f"'{escape_controls(dataset.paths[index])}'{row}"
