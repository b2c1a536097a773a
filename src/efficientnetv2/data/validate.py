"""A quick look at every file before the first step: is it a picture, is it whole, is it there twice?"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from efficientnetv2.data import builtin_datasets
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.file_probe import MAX_UNREADABLE, FileProbe, map_chunks, max_levels, probe
from efficientnetv2.data.image_formats import regular_file
from efficientnetv2.data.image_io import UnreadableImageError, max_level
from efficientnetv2.data.imagenet import recognised
from efficientnetv2.data.readers import Reader, source_reader
from efficientnetv2.data.records import Ints, packed_record
from efficientnetv2.data.shards.reader import ShardDamage, find_damage, probe_images
from efficientnetv2.utils.errors import InputError, count_of, escaped

# Looking at files waits for the disk more than for the processor. Ours.
_THREADS = 8
# Highest level of deep images that use a small part of their range: at most 14 of 16 bits. Ours.
_DARK_LEVEL = 63


@dataclass(frozen=True, eq=False)
class ImageValidation:
    """What the look found.

    Args:
        unreadable: indices into the dataset of files that cannot be used, ascending.
        reasons: why not, one each.
        contents: (N,) ids, equal where files hold the same bytes.
        notes: sentences the user should read.
        label_conflicts: Number of pairs of identical files with different labels.
    """

    unreadable: Ints
    reasons: tuple[str, ...]
    contents: Ints
    notes: tuple[str, ...]
    label_conflicts: int = 0

    @property
    def readable(self) -> Ints:
        """Indices of the files that can be used, ascending: for ``dataset.select`` and ``contents``."""
        return np.setdiff1d(np.arange(len(self.contents)), self.unreadable, assume_unique=True)


def validate_images(
    dataset: ImageDataset,
    *,
    workers: int = _THREADS,
    strict: bool = False,
    progress: Callable[[int], object] | None = None,
) -> ImageValidation:
    """Look at every file of a dataset; of shards, at those and at what their packing left unlooked at.

    Args:
        dataset: what to look at.
        workers: threads.
        strict: refuse the first unreadable file or damaged shard instead of passing over a few.
        progress: called with the number of files looked at so far; not of shards.

    Raises:
        InputError: more than 5 % are unreadable (``strict``: any), not counting what a damaged shard takes
            along; a shard is not the one its index was written for; or an identical file stands in two
            given splits. In a published set such pairs are left as they are, with a note, so that figures
            compare.
    """
    contents = np.arange(len(dataset), dtype=np.int64)
    if dataset.shards is None:
        reasons, colours, brightest = _look_at_files(dataset, contents, workers, progress)
        damage = ShardDamage({}, ())
    else:
        damage = find_damage(dataset.table, dataset.shards)
        refuse_damage(dataset, damage, strict)
        marks, reasons, colours, brightest = probe_images(
            dataset.table, dataset.shards, damage.reasons, workers
        )
        known = np.flatnonzero(marks >= 0)
        _share_ids(contents, known, marks[known])
    if reasons:
        _refuse_unreadable(dataset, reasons, strict)
    reasons |= damage.reasons
    unreadable = np.array(sorted(reasons), dtype=np.int64)
    conflicts = _conflicts(dataset, contents)
    notes = (
        *damage.notes,
        *_across_splits(dataset, contents),
        *_copies(dataset, contents, conflicts),
        *_turned_into_rgb(colours),
        *_little_of_the_range(brightest),
    )
    return ImageValidation(
        unreadable, tuple(reasons[int(index)] for index in unreadable), contents, notes, len(conflicts)
    )


def undecodable(
    dataset: ImageDataset,
    rows: Sequence[int],
    *,
    workers: int = _THREADS,
    strict: bool = False,
    progress: Callable[[int], object] | None = None,
) -> dict[int, str]:
    """Decode images, each once and at its smallest scale; ``validate_images`` believes most JPEGs without that.

    Args:
        dataset: of the images.
        rows: which of them.
        workers: threads.
        strict: refuse the first that fails.
        progress: called with the number of images decoded so far.

    Returns:
        Why an image cannot be decoded, by its row.

    Raises:
        InputError: as many fail as ``validate_images`` refuses, or a store of another machine does not answer.
    """
    reader = source_reader(dataset)

    def of_chunk(chunk: Sequence[int]) -> list[str]:
        ahead = reader.ahead(chunk)
        return [_why_undecodable(ahead, row) for row in chunk]

    found = zip(rows, map_chunks(of_chunk, rows, workers, progress), strict=True)
    reasons = {row: reason for row, reason in found if reason}
    if reasons:
        _refuse_unreadable(dataset, reasons, strict)
    return reasons


def _why_undecodable(reader: Reader, row: int) -> str:
    try:
        max_level(reader.source(row))
    except UnreadableImageError as error:
        return error.reason
    return ""


def refuse_damage(dataset: ImageDataset, damage: ShardDamage, strict: bool) -> None:
    """Refuse the first damaged shard, with ``strict``.

    Raises:
        InputError: naming it.
    """
    if strict and damage.notes:
        raise InputError(
            f"{dataset.source}: {damage.notes[0]} Bring it back whole, or go on without --strict."
        )


def _look_at_files(
    dataset: ImageDataset, contents: Ints, workers: int, progress: Callable[[int], object] | None
) -> tuple[dict[int, str], Counter[str], list[int]]:
    """Why a file can't be used, by row; how many of which colours become RGB; the highest level of each deep image.

    Those with the same bytes get one id in ``contents``.
    """
    lone = np.array(["#" not in path or packed_record(path) is None for path in dataset.paths], dtype=bool)
    files = np.flatnonzero(lone)
    looks = map_chunks(
        lambda chunk: [probe(file) for file in chunk],
        [dataset.file(int(index)) for index in files],
        workers,
        progress,
    )
    reasons = {int(index): seen.reason for index, seen in zip(files, looks, strict=True) if seen.reason}
    _mark_same_files(contents, files, looks, dataset, workers)
    _mark_same_records(contents, np.flatnonzero(~lone), reasons, dataset)
    return reasons, Counter(seen.colours for seen in looks if seen.colours), max_levels(looks)


def _mark_same_files(
    contents: Ints, files: npt.NDArray[np.intp], looks: list[FileProbe], dataset: ImageDataset, workers: int
) -> None:
    """Give files with the same bytes one id, in place; only equal sizes and ends are read whole."""
    marks = pd.DataFrame(
        {"index": files, "size": [seen.size for seen in looks], "tail": [seen.tail for seen in looks]}
    )
    marks = marks[np.array([not seen.reason for seen in looks], dtype=bool)]
    alike = marks.loc[marks.duplicated(["size", "tail"], keep=False), "index"].to_numpy()
    digests = map_chunks(
        lambda chunk: [_digest(file) for file in chunk],
        [dataset.file(int(index)) for index in alike],
        workers,
    )
    _share_ids(contents, alike, np.array(digests, dtype=object))


def _mark_same_records(
    contents: Ints, places: npt.NDArray[np.intp], reasons: dict[int, str], dataset: ImageDataset
) -> None:
    """The same for packed pictures, whose labels do not count; note in ``reasons`` those that are missing."""
    mapped: dict[str, builtin_datasets.Bytes] = {}
    found, digests = [], []
    for index in places:
        file, number = packed_record(dataset.file(int(index))) or ("", 0)
        if file not in mapped:
            mapped[file] = builtin_datasets.cifar_records(Path(file))
        if number >= len(mapped[file]):
            reasons[int(index)] = f"is not there: the file has {len(mapped[file])} records"
            continue
        found.append(index)
        digests.append(
            hashlib.blake2b(
                mapped[file][number, -builtin_datasets.PIXELS :].tobytes(), digest_size=16
            ).digest()
        )
    _share_ids(contents, np.array(found, dtype=np.intp), np.array(digests, dtype=object))


def _share_ids(contents: Ints, indices: npt.NDArray[np.intp], digests: npt.NDArray[Any]) -> None:
    codes, _ = pd.factorize(digests)
    first = np.full(codes.max(initial=-1) + 1, -1, dtype=np.int64)
    first[codes[::-1]] = indices[::-1]  # of several, the first in the dataset is written last
    contents[indices] = first[codes]


def _digest(file: str) -> bytes:
    try:
        with regular_file(file) as stream:
            return hashlib.file_digest(stream, "blake2b").digest()
    except OSError:  # gone since the look: alike to none, and the reader will say so
        return file.encode(errors="surrogateescape")


def _refuse_unreadable(dataset: ImageDataset, reasons: dict[int, str], strict: bool) -> None:
    shown = [f"{_name(dataset, row)} {reasons[row]}" for row in sorted(reasons)[:5]]
    if strict:
        raise InputError(f"{dataset.source}: {shown[0]}. Repair or remove it, or train without --strict.")
    count, of = len(reasons), len(dataset)
    if count > MAX_UNREADABLE * of:
        more = f"; and {count - len(shown)} more" if count > len(shown) else ""
        raise InputError(
            f"{dataset.source}: {count} of {of} pictures ({100 * count / of:.0f} %) cannot be used, "
            f"more than the {100 * MAX_UNREADABLE:.0f} % that are passed over: {'; '.join(shown)}{more}. "
            "Repair or remove them."
        )


def _across_splits(dataset: ImageDataset, contents: Ints) -> tuple[str, ...]:
    """Refuse identical files in two given splits, or say that a published set has them."""
    table = pd.DataFrame({"content": contents, "split": np.where(dataset.in_train, "train", dataset.split)})
    pairs = _unlike(table, "split")
    if not pairs:
        return ()
    first, second = pairs[0]
    what = (
        f"{_name(dataset, first)} in {table['split'].iloc[first]} and {_name(dataset, second)} in "
        f"{table['split'].iloc[second]} are the same picture"
    )
    more = f" ({len(pairs)} such pairs in all)" if len(pairs) > 1 else ""
    if standard := dataset.standard or recognised(dataset):
        return (f"{what}{more}; the published splits of {standard} are kept as they are.",)
    raise InputError(
        f"{dataset.source}: {what}{more}. A picture that was trained on says nothing in another split: "
        "remove one of each pair, or put both into one split."
    )


def _conflicts(dataset: ImageDataset, contents: Ints) -> list[tuple[int, int]]:
    """Rows of identical files whose labels differ, as ``_unlike`` pairs them."""
    table = pd.DataFrame({"content": contents, "label": pd.factorize(dataset.table["label"])[0]})
    return _unlike(table[table["label"] >= 0], "label")


def _copies(dataset: ImageDataset, contents: Ints, pairs: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Notes on identical files: that there are any, and those whose labels disagree, in pairs."""
    copies = int(pd.Series(contents).duplicated().sum())
    if copies:
        are = "is a copy of another" if copies == 1 else "are copies of others"
        yield f"{copies} of {len(contents)} pictures {are}; automatic splits keep them together."
    if pairs:
        shown = "; ".join(
            " and ".join(f"{_name(dataset, i)} as '{dataset.table['label'].iloc[i]}'" for i in pair)
            for pair in pairs[:3]
        )
        more = f"; and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
        yield f"Identical pictures carry different labels: {shown}{more}. One label of each is wrong."


def _turned_into_rgb(colours: Counter[str]) -> Iterator[str]:
    """A note on pictures of other colours: how many of which."""
    if colours:
        each = ", ".join(f"{count:,} {kind}" for kind, count in colours.most_common())
        yield f"Read as RGB, but not stored so: {each}."


def _little_of_the_range(brightest: list[int]) -> Iterator[str]:
    """A note on deep images whose values all lie in a small part of the range, such as 12 bits stored as 16."""
    if brightest and max(brightest) <= _DARK_LEVEL:
        yield (
            f"The {count_of(len(brightest), 'image')} with values of more than 8 bits use a small part of the range: "
            f"{max(brightest) + 1} of 256 levels are left. Scale all of them by one factor to the full range, or "
            "store them as TIFFs and install the extra 'geo', which measures the range."
        )


def _unlike(table: pd.DataFrame, column: str) -> list[tuple[int, int]]:
    """For each content whose rows differ in a column: its first row, and the first that differs from it."""
    several = table[table["content"].duplicated(keep=False)]
    opening = several.groupby("content")[column].transform("first")
    others = several[several[column] != opening].drop_duplicates("content")
    firsts = several.drop_duplicates("content").reset_index().set_index("content")["index"]
    rows = others.index.to_numpy().tolist()
    return [(int(firsts[content]), row) for row, content in zip(rows, others["content"], strict=True)]


def _name(dataset: ImageDataset, index: int) -> str:
    row = "" if dataset.rows is None else f" (row {dataset.rows[index]})"
    return f"'{escaped(dataset.paths[index])}'{row}"
