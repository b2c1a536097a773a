"""Pack the pictures of a dataset into tars as WebDataset lays them out.

A picture is three members of one key: ``000000123.jpg``, the file as it is; ``000000123.cls``, its class id (of
several labels their ids, separated as the labels are); and ``000000123.json``, everything the dataset knows about
it. The key is its row in the dataset.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_resized_image
from efficientnetv2.data.file_probe import MAX_UNREADABLE, probe_bytes
from efficientnetv2.data.image_formats import open_image
from efficientnetv2.data.image_io import UnreadableImageError, open_stored
from efficientnetv2.data.image_metadata import file_bytes
from efficientnetv2.data.readers import Reader, source_reader
from efficientnetv2.data.records import SPLITS, image_extensions, is_image
from efficientnetv2.data.shards.index import CHECKSUM, CONTENT, INDEX, PLACE, SUFFIX, Index, Shard, save
from efficientnetv2.data.shards.reader import mark_of
from efficientnetv2.data.tiff_tags import is_raster, raster_content
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import folder_for, locked
from efficientnetv2.utils.rng import Key
from efficientnetv2.utils.shell import options, typed

# Quality of shrunk JPEGs: what it loses is less than what a smaller copy loses anyway. Ours.
_JPEG_QUALITY = 95
_JPEG = b"\xff\xd8\xff"  # how such a file begins


@dataclass(frozen=True)
class Content:
    """A picture as it goes into a shard.

    Args:
        data: a file's bytes.
        extension: of such a file, without its dot, in lower case.
        mark: a hash of the file it was made from, 63 bits.
        checksum: of ``data``, 32 bits.
    """

    data: bytes
    extension: str
    mark: int
    checksum: int


def content_of(reader: Reader, sample: int, path: str, image_px: int | None) -> Content | str:
    """The content of a picture, or in words why it can't be used.

    Args:
        reader: of the dataset.
        sample: position in it.
        path: of the picture, which tells its extension.
        image_px: shorter side that it is shrunk to if it is larger, None for never.
    """
    try:
        data = file_bytes(reader.source(sample))
        seen = probe_bytes(data)
        if seen.reason:
            return seen.reason
        extension = os.path.splitext(path)[1][1:].lower() if is_image(path) else _format(data)
        small = None if image_px is None else shrunk(data, image_px)
    except UnreadableImageError as error:
        return error.reason
    except OSError as error:
        return f"may not be read ({(error.strerror or str(error)).lower()})"
    mark = mark_of(data)
    stored_data, extension = (data, extension) if small is None else small
    return Content(stored_data, extension, mark, zlib.crc32(stored_data))


def shrunk(data: bytes, image_px: int) -> tuple[bytes, str] | None:
    """A copy whose shorter side is ``image_px``, upright, and its extension; None if it is no larger now.

    A JPEG stays one; anything else becomes a PNG, which loses nothing further.

    Raises:
        UnreadablePicture: the pixels are damaged.
    """
    with open_stored(data) as picture:
        shorter = min(picture.width, picture.height)
        if shorter <= image_px:
            return None
    share = image_px / shorter
    pixels = load_resized_image(data, lambda width, height: (round(share * width), round(share * height)))
    copy = Image.fromarray(pixels)
    small = io.BytesIO()
    if data.startswith(_JPEG):
        copy.save(small, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return small.getvalue(), "jpg"
    copy.save(small, "PNG")
    return small.getvalue(), "png"


def _format(data: bytes) -> str:
    with open_image(data) as image:
        return (image.format or "img").lower()


# Pictures that threads read at a time; a shard's writer waits for them. Ours.
_CHUNK = 256
_THREADS = 8
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Packing:
    """How pictures are packed.

    Args:
        shard_bytes: a shard is closed before it would grow beyond; a larger picture has one to itself.
        shard_pictures: most pictures of a shard, None for any number.
        image_px: shorter side that larger pictures are shrunk to; None leaves every file as it is.
        seed: of the order within each split.
        strict: refuse the first unreadable picture.
    """

    shard_bytes: int
    shard_pictures: int | None = None
    image_px: int | None = None
    seed: int = 0
    strict: bool = False


@dataclass(frozen=True)
class Packed:
    """What came of it.

    Args:
        index: as written.
        skipped: path and reason of each picture that could not be read.
    """

    index: Index
    skipped: tuple[tuple[str, str], ...]


def pack(
    dataset: ImageDataset,
    out: Path,
    packing: Packing,
    *,
    progress: Callable[[int], object] | None = None,
    called: Sequence[str] = (),
) -> Packed:
    """Write the shards of a dataset and their index into a new folder.

    Shards are called by their split (``train-000000.tar``; ``pictures-…`` where there is none) and filled in an
    order drawn from the seed. Everything is written into a hidden folder beside, and renamed when it is whole;
    the same pictures and packing give the same bytes.

    Args:
        dataset: of any kind of pictures.
        out: of the shards; not there yet, or empty.
        packing: how.
        progress: called now and then with the number of pictures done so far.
        called: DATA and how it is read, as one types it, for messages; nothing is the dataset's source.

    Raises:
        InputError: a picture is a raster that Pillow can't open, too much is unreadable (``strict``: anything), or
            ``out`` can't be written to, or is at this moment by another process.
    """
    _refuse_rasters(dataset, called or [dataset.source, *options(label_separator=dataset.separator)])
    partial = out.with_name(f".{out.name}.effnetv2-partial")  # which nobody else calls a folder
    fix = "Give another folder."
    taken = "another process packs into it at this moment. Wait for its end, or give another folder."
    lock = Path(f"{partial}.lock")
    with folder_for(partial.parent, "OUT"), locked(lock, str(out), taken=taken, fix=fix):
        return _packed(dataset, out, partial, packing, progress or (lambda done: None))


def _packed(
    dataset: ImageDataset, out: Path, partial: Path, packing: Packing, progress: Callable[[int], object]
) -> Packed:
    """The shards, whole or not at all."""
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill, it would take the room that is needed
    _refuse_without_room(dataset, out, packing)
    _make(partial, out)
    try:
        packed = _Packer(dataset, partial, packing, progress).run()
        save(packed.index, partial / INDEX)
        if packed.skipped:
            write_table(partial / "skipped.csv", pd.DataFrame(packed.skipped, columns=["path", "reason"]))
        if out.is_dir():
            out.rmdir()  # empty; Windows does not rename onto it
        os.replace(partial, out)
    except OSError as error:
        raise InputError(
            f"{out}: {error.strerror or error} ({partial}). Make room there, or give another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return packed


def _refuse_rasters(dataset: ImageDataset, called: Sequence[str]) -> None:
    """Shards hold ordinary pictures; to leave out all rasters of a set would be no packing of it."""
    if dataset.shards is not None:
        return
    for row in (row for row, path in enumerate(dataset.paths) if is_raster(path)):
        if held := raster_content(dataset.file(row)):
            raise InputError(
                f"{dataset.file(row)} is a raster ({held}), and shards hold ordinary pictures of three channels. "
                "Train on the files themselves, as a folder or a table (--bands says which bands are seen): "
                f"{typed(['effnetv2', 'train', *called])}"
            )


def _refuse_without_room(dataset: ImageDataset, out: Path, packing: Packing) -> None:
    """Packing takes hours, and what a full disk has taken of it is of no use."""
    if packing.image_px is not None:  # nobody knows how many bytes a smaller picture has
        return
    if dataset.shards is None:
        needed = sum(_size(dataset.file(row)) for row in range(len(dataset)))
    else:
        needed = int(dataset.table["shard_bytes"].sum())
    free = shutil.disk_usage(next(place for place in out.absolute().parents if place.is_dir())).free
    if needed > free:
        raise InputError(
            f"{out}: the pictures of {dataset.source} are {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are free "
            "there. Make room, give another folder, or have them smaller with --image-px."
        )


def _size(file: str) -> int:
    """Bytes of a picture's file; 0 where it is no file of its own, or is not there."""
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def _make(partial: Path, out: Path) -> None:
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error} ({partial}). Give another folder.") from error


class _Packer:
    """Walks through the pictures split by split, a chunk at a time, in threads."""

    def __init__(
        self, dataset: ImageDataset, folder: Path, packing: Packing, progress: Callable[[int], object]
    ) -> None:
        self.dataset, self.folder, self.packing, self.progress = dataset, folder, packing, progress
        self.reader = source_reader(dataset)
        self.paths = _within(dataset)
        self.shards: list[Shard] = []
        self.skipped: dict[int, str] = {}
        count = len(dataset)
        self.places = {name: np.full(count, -1, dtype=np.int64) for name in (*PLACE, CONTENT)}
        self.checksums = np.zeros(count, dtype=np.uint32)

    def run(self) -> Packed:
        image_extensions()  # loads Pillow's plugins once, before the threads would
        done = 0
        with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
            warnings.simplefilter("ignore")  # around the threads, since filters belong to the process
            for split, rows in self._orders():
                with _Shards(self, split or "pictures") as shards:
                    for first in range(0, len(rows), _CHUNK):
                        chunk = rows[first : first + _CHUNK]
                        self._add(chunk, shards, pool)
                        done += len(chunk)
                        self.progress(done)
        return self._packed()

    def _orders(self) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        for split in (*SPLITS, ""):
            rows = np.flatnonzero(self.dataset.split == split)
            if len(rows):
                order = Key.of(self.packing.seed).fold("shards", split).generator().permutation(len(rows))
                yield split, rows[order]

    def _add(self, rows: npt.NDArray[np.int64], shards: _Shards, pool: ThreadPoolExecutor) -> None:
        reader = self.reader.ahead(rows.tolist())
        image_px = self.packing.image_px
        contents = pool.map(lambda row: content_of(reader, row, self.paths[row], image_px), rows.tolist())
        known = self.dataset.table.drop(columns=[*PLACE, CONTENT, CHECKSUM], errors="ignore").iloc[rows]
        for row, content, facts in zip(rows.tolist(), contents, known.to_dict("records"), strict=True):
            if isinstance(content, str):
                self._skip(row, content)
            else:
                facts["path"] = self.paths[row]
                shards.add(row, content, facts)

    def _skip(self, row: int, reason: str) -> None:
        self.skipped[row] = reason
        path = self.dataset.paths[row]
        if self.packing.strict:
            raise InputError(
                f"{self.dataset.source}: '{path}' {reason}. Repair or remove it, or pack without --strict."
            )
        if len(self.skipped) > MAX_UNREADABLE * len(self.dataset):
            raise InputError(
                f"{self.dataset.source}: more than {100 * MAX_UNREADABLE:.0f} % of the pictures cannot be used; "
                f"the last: '{path}' {reason}. Repair or remove them."
            )

    def _packed(self) -> Packed:
        kept = np.setdiff1d(np.arange(len(self.dataset)), list(self.skipped))
        written = self.places | {CHECKSUM: self.checksums}
        table = self.dataset.table.assign(path=self.paths, **written).iloc[kept].reset_index(drop=True)
        skipped = tuple((self.dataset.paths[row], reason) for row, reason in sorted(self.skipped.items()))
        return Packed(Index(table, tuple(self.shards), self.dataset.standard), skipped)


class _Shards:
    """The tars of one split, one open at a time.

    Args:
        packer: whose folder they go to, and whose books say what stands where.
        name: that they begin with.
    """

    def __init__(self, packer: _Packer, name: str) -> None:
        self._packer, self._name, self._count = packer, name, 0
        self._tar: tarfile.TarFile | None = None
        self._pictures = 0

    def __enter__(self) -> _Shards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, row: int, content: Content, facts: dict[Hashable, Any]) -> None:
        """Append a picture; ``facts`` are what the dataset knows about it."""
        key, dataset = f"{row:09d}", self._packer.dataset
        label = str(dataset.labels[row])
        if dataset.separator is not None:
            label = dataset.separator.join(str(one) for one in dataset.targets[row] if one >= 0)
        members = {
            content.extension: content.data,
            "cls": label.encode(),
            "json": json.dumps(_known(facts), ensure_ascii=False, default=str).encode(),
        }
        needed = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in members.values())
        tar = self._room_for(needed)
        places = self._packer.places
        places["shard"][row] = len(self._packer.shards)
        places["shard_offset"][row] = tar.offset + _BLOCK  # behind the header
        places["shard_bytes"][row] = len(content.data)
        places[CONTENT][row] = content.mark
        self._packer.checksums[row] = content.checksum
        for extension, data in members.items():
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        self._pictures += 1

    def _room_for(self, needed: int) -> tarfile.TarFile:
        packing = self._packer.packing
        full = self._tar is not None and (
            _closed(self._tar.offset + needed) > packing.shard_bytes
            or self._pictures == packing.shard_pictures
        )
        if full:
            self._close()
        if self._tar is None:
            file = self._packer.folder / f"{self._name}-{self._count:06d}{SUFFIX}"
            self._tar = tarfile.open(file, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by _close
        return self._tar

    def _close(self) -> None:
        if self._tar is None:
            return
        file = Path(str(self._tar.name))
        self._tar.close()
        with open(file, "rb+") as written:
            os.fsync(written.fileno())
        self._packer.shards.append(Shard(file.name, file.stat().st_size, self._pictures))
        self._tar, self._pictures, self._count = None, 0, self._count + 1


def _closed(size: int) -> int:
    """Bytes of a tar once its end is marked and filled up, as tarfile does it."""
    return -(-(size + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _known(facts: dict[Hashable, Any]) -> dict[Hashable, Any]:
    """What is known, as JSON has it: nothing that is missing, no types of numpy's."""
    known = {name: value for name, value in facts.items() if _said(value)}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in known.items()}


def _said(value: Any) -> bool:
    return np.ndim(value) > 0 or not (pd.isna(value) or value == "")


def _within(dataset: ImageDataset) -> list[str]:
    """Paths as they were before they were packed, if they tell the pictures of this dataset apart."""
    if dataset.shards is None:
        return dataset.paths
    inner = [path.partition("#")[2] for path in dataset.paths]
    return inner if len(set(inner)) == len(inner) else dataset.paths
