"""A quick look at every file before the first step: is it a picture, is it whole, is it there twice?

Nothing is decoded that need not be: a JPEG is believed if its header reads and its end is there.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError

from efficientnetv2.base.errors import InputError
from efficientnetv2.data import cifar
from efficientnetv2.data.listing import Ints, packed, picture_extensions
from efficientnetv2.data.manifest import Manifest

# All ours: the share of unreadable files that may be passed over, the shorter side a picture needs, how
# far from a file's end JPEG's end marker may lie (some cameras pad), and how much of the end is hashed.
MOST_UNREADABLE = 0.05
LEAST_PX = 2
_END_MARKER, _END_BYTES = b"\xff\xd9", 64
_TAIL_BYTES = 1024
_SMALL_BYTES = 65536  # up to here a file is read in one go
_CHUNK = 256  # files a thread takes at a time

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What the look found.

    Args:
        unreadable: indices into the manifest of files that cannot be used, ascending.
        reasons: why not, one each.
        contents: (N,) ids, equal where files hold the same bytes.
        notes: sentences the user should read.
    """

    unreadable: Ints
    reasons: tuple[str, ...]
    contents: Ints
    notes: tuple[str, ...]

    @property
    def readable(self) -> Ints:
        """Indices of the files that can be used, ascending: for ``manifest.select`` and ``contents``."""
        return np.setdiff1d(np.arange(len(self.contents)), self.unreadable, assume_unique=True)


def check(manifest: Manifest, *, workers: int, strict: bool = False) -> CheckReport:
    """Look at every file of a manifest.

    Args:
        manifest: what to look at.
        workers: threads.
        strict: refuse the first unreadable file instead of passing over a few.

    Raises:
        InputError: more than 5 % are unreadable (``strict``: any), or an identical file stands in two
            given splits. In a published set such pairs are left as they are, with a note, so that figures
            compare.
    """
    lone = np.array(["#" not in path or packed(path) is None for path in manifest.paths], dtype=bool)
    files = np.flatnonzero(lone)
    looks = _in_threads(look, [manifest.file(int(index)) for index in files], workers)
    contents = np.arange(len(manifest), dtype=np.int64)
    reasons = {int(index): seen.reason for index, seen in zip(files, looks, strict=True) if seen.reason}
    _mark_same_files(contents, files, looks, manifest, workers)
    _mark_same_records(contents, np.flatnonzero(~lone), reasons, manifest)
    unreadable = np.array(sorted(reasons), dtype=np.int64)
    if len(unreadable):
        _refuse_unreadable(manifest, unreadable, reasons, strict)
    notes = (*_across_splits(manifest, contents), *_copies(manifest, contents))
    return CheckReport(unreadable, tuple(reasons[int(index)] for index in unreadable), contents, notes)


@dataclass(frozen=True, slots=True)
class Look:
    """A file at a glance: why it cannot be used ('' if it can), its size in bytes, a hash of its end."""

    reason: str
    size: int = 0
    tail: int = 0


def look(file: str) -> Look:
    """Whether a file is a picture that decodes, as far as a glance shows; Pillow may warn as it looks."""
    try:
        with open(file, "rb", buffering=0) as raw:
            size = os.fstat(raw.fileno()).st_size
            if size == 0:
                return Look("is empty (0 bytes)")
            stream: IO[bytes] = io.BytesIO(raw.read()) if size <= _SMALL_BYTES else io.BufferedReader(raw)
            stream.seek(max(0, size - _TAIL_BYTES))
            tail = stream.read()
            stream.seek(0)
            mark = int.from_bytes(hashlib.blake2b(tail, digest_size=8).digest(), "little")
            return Look(_reason(stream, tail), size, mark)
    except FileNotFoundError:
        return Look("does not exist")
    except OSError as error:
        return Look(f"may not be read ({(error.strerror or str(error)).lower()})")


def _reason(stream: IO[bytes], tail: bytes) -> str:
    try:
        picture = Image.open(stream)
        width, height = picture.size
        if min(width, height) < LEAST_PX:
            return f"is too small: {width}×{height} px"
        if picture.format == "PNG":
            picture.verify()  # the sums of its chunks, up to its last one
        elif picture.format != "JPEG" or _END_MARKER not in tail[-_END_BYTES:]:
            picture.load()
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        return f"has more than {most} million pixels (a decompression bomb?)"
    except UnidentifiedImageError:
        return "holds text, not a picture" if _is_text(tail) else "is no picture that Pillow can read"
    except Exception as error:  # a decoder meeting broken data raises all kinds
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        return (
            "is cut short (truncated)" if cut else f"cannot be decoded ({str(error) or type(error).__name__})"
        )
    return ""


def _is_text(data: bytes) -> bool:
    return not data.translate(None, delete=bytes([9, 10, 13, *range(32, 127), *range(128, 256)]))


def _in_threads(work: Callable[[str], Result], files: list[str], workers: int) -> list[Result]:
    def chunk(start: int) -> list[Result]:
        return [work(file) for file in files[start : start + _CHUNK]]

    picture_extensions()  # loads Pillow's plugins once, before the threads would
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # around the threads, since filters belong to the process
        chunks = pool.map(chunk, range(0, len(files), _CHUNK))
        return [result for results in chunks for result in results]


def _mark_same_files(
    contents: Ints, files: npt.NDArray[np.intp], looks: list[Look], manifest: Manifest, workers: int
) -> None:
    """Give files with the same bytes one id, in place; only equal sizes and ends are read whole."""
    marks = pd.DataFrame(
        {"index": files, "size": [seen.size for seen in looks], "tail": [seen.tail for seen in looks]}
    )
    marks = marks[np.array([not seen.reason for seen in looks], dtype=bool)]
    alike = marks.loc[marks.duplicated(["size", "tail"], keep=False), "index"].to_numpy()
    _share_ids(contents, alike, _in_threads(_digest, [manifest.file(int(index)) for index in alike], workers))


def _mark_same_records(
    contents: Ints, places: npt.NDArray[np.intp], reasons: dict[int, str], manifest: Manifest
) -> None:
    """The same for packed pictures, whose labels do not count; note in ``reasons`` those that are missing."""
    mapped: dict[str, cifar.Bytes] = {}
    found, digests = [], []
    for index in places:
        file, number = packed(manifest.file(int(index))) or ("", 0)
        if file not in mapped:
            mapped[file] = cifar.records(Path(file))
        if number >= len(mapped[file]):
            reasons[int(index)] = f"is not there: the file has {len(mapped[file])} records"
            continue
        found.append(index)
        digests.append(
            hashlib.blake2b(mapped[file][number, -cifar.PIXELS :].tobytes(), digest_size=16).digest()
        )
    _share_ids(contents, np.array(found, dtype=np.intp), digests)


def _share_ids(contents: Ints, indices: npt.NDArray[np.intp], digests: list[bytes]) -> None:
    codes, _ = pd.factorize(np.array(digests, dtype=object))
    first = np.full(codes.max(initial=-1) + 1, -1, dtype=np.int64)
    first[codes[::-1]] = indices[::-1]  # of several, the first in the manifest is written last
    contents[indices] = first[codes]


def _digest(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "blake2b").digest()
    except OSError:  # gone since the look: alike to none, and the reader will say so
        return file.encode(errors="surrogateescape")


def _refuse_unreadable(manifest: Manifest, unreadable: Ints, reasons: dict[int, str], strict: bool) -> None:
    shown = [f"{_name(manifest, int(index))} {reasons[int(index)]}" for index in unreadable[:5]]
    if strict:
        raise InputError(f"{manifest.source}: {shown[0]}. Repair or remove it, or train without --strict.")
    count, of = len(unreadable), len(manifest)
    if count > MOST_UNREADABLE * of:
        more = f"; and {count - len(shown)} more" if count > len(shown) else ""
        raise InputError(
            f"{manifest.source}: {count} of {of} pictures ({100 * count / of:.0f} %) cannot be used, "
            f"more than the {100 * MOST_UNREADABLE:.0f} % that are passed over: {'; '.join(shown)}{more}. "
            "Repair or remove them."
        )


def _across_splits(manifest: Manifest, contents: Ints) -> tuple[str, ...]:
    """Refuse identical files in two given splits, or say that a published set has them."""
    table = pd.DataFrame({"content": contents, "split": np.where(manifest.in_train, "train", manifest.split)})
    pairs = _unlike(table, "split")
    if not pairs:
        return ()
    first, second = pairs[0]
    what = (
        f"{_name(manifest, first)} in {table['split'].iloc[first]} and {_name(manifest, second)} in "
        f"{table['split'].iloc[second]} are the same picture"
    )
    more = f" ({len(pairs)} such pairs in all)" if len(pairs) > 1 else ""
    if manifest.standard:
        return (f"{what}{more}; the published splits of {manifest.standard} are kept as they are.",)
    raise InputError(
        f"{manifest.source}: {what}{more}. A picture that was trained on says nothing in another split: "
        "remove one of each pair, or put both into one split."
    )


def _copies(manifest: Manifest, contents: Ints) -> Iterator[str]:
    """Notes on identical files: that there are any, and those whose labels disagree."""
    table = pd.DataFrame({"content": contents, "label": manifest.labels})
    copies = int(table["content"].duplicated().sum())
    if copies:
        yield f"{copies} of {len(table)} pictures are copies of others; automatic splits keep them together."
    pairs = _unlike(table[table["label"] >= 0], "label")
    if pairs:
        shown = "; ".join(
            " and ".join(
                f"{_name(manifest, i)} as '{manifest.class_names[manifest.labels[i]]}'" for i in pair
            )
            for pair in pairs[:3]
        )
        more = f"; and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
        yield f"Identical pictures carry different labels: {shown}{more}. One label of each is wrong."


def _unlike(table: pd.DataFrame, column: str) -> list[tuple[int, int]]:
    """For each content whose rows differ in a column: its first row, and the first that differs from it."""
    several = table[table["content"].duplicated(keep=False)]
    opening = several.groupby("content")[column].transform("first")
    others = several[several[column] != opening].drop_duplicates("content")
    firsts = several.drop_duplicates("content").reset_index().set_index("content")["index"]
    rows = others.index.to_numpy().tolist()
    return [(int(firsts[content]), row) for row, content in zip(rows, others["content"], strict=True)]


def _name(manifest: Manifest, index: int) -> str:
    row = "" if manifest.rows is None else f" (row {manifest.rows[index]})"
    return f"'{manifest.paths[index]}'{row}"
