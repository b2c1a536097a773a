"""Pack a dataset into tars in the layout of WebDataset.

An image has three members of one key, its row in the dataset: ``000000123.jpg``, the file; ``000000123.cls``, its class
id, or separated ids of several labels; and ``000000123.json``, all other columns.
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
from efficientnetv2.data.shards.index import (
    CHECKSUM,
    CONTENT,
    INDEX_NAME,
    PLACE,
    SUFFIX,
    Shard,
    ShardIndex,
    save_index,
)
from efficientnetv2.data.shards.reader import content_hash
from efficientnetv2.data.tiff_tags import is_raster, raster_content
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import locked, output_dir
from efficientnetv2.utils.rng import Key
from efficientnetv2.utils.shell import option_args, shell_join

# Quality of shrunk JPEGs. It loses less than the shrinking. Ours.
_JPEG_QUALITY = 95
_JPEG = b"\xff\xd8\xff"  # first bytes of a file


@dataclass(frozen=True)
class PackedImage:
    """An image in a shard: its file, extension in lower case without dot, 63-bit hash of the source, and CRC-32."""

    data: bytes
    extension: str
    mark: int
    checksum: int


def pack_image(reader: Reader, sample: int, path: str, image_px: int | None) -> PackedImage | str:
    """An image to pack, shrunk if its shorter side is longer than ``image_px``; or why it is unusable."""
    try:
        data = file_bytes(reader.source(sample))
        if reason := probe_bytes(data).reason:
            return reason
        extension = os.path.splitext(path)[1][1:].lower() if is_image(path) else _format(data)
        small = None if image_px is None else shrink(data, image_px)
    except UnreadableImageError as error:
        return error.reason
    except OSError as error:
        return f"may not be read ({(error.strerror or str(error)).lower()})"
    mark = content_hash(data)
    stored_data, extension = (data, extension) if small is None else small
    return PackedImage(stored_data, extension, mark, zlib.crc32(stored_data))


def shrink(data: bytes, image_px: int) -> tuple[bytes, str] | None:
    """An upright copy with a shorter side of ``image_px``, and its extension. None if the image is not larger.

    A JPEG stays one. Other formats become PNG, without further loss. Raises UnreadableImageError.
    """
    with open_stored(data) as stored:
        shorter = min(stored.width, stored.height)
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


# Images that threads read at a time, before they are written. Ours.
_CHUNK = 256
_THREADS = 8
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class PackOptions:
    """How images are packed.

    Args:
        shard_bytes: Maximum size of a shard. A larger image gets its own shard.
        shard_pictures: Maximum number of images of a shard. None for any.
        image_px: Shorter side that larger images are shrunk to. None keeps every file.
        seed: Seed of the order within each split.
        strict: Refuse the first unreadable image.
    """

    shard_bytes: int
    shard_pictures: int | None = None
    image_px: int | None = None
    seed: int = 0
    strict: bool = False


@dataclass(frozen=True)
class PackResult:
    """The written index, and path and reason of each unreadable image."""

    index: ShardIndex
    skipped: tuple[tuple[str, str], ...]


def write_shards(
    dataset: ImageDataset,
    out: Path,
    packing: PackOptions,
    *,
    progress: Callable[[int], object] | None = None,
    called: Sequence[str] = (),
) -> PackResult:
    """Write the shards of a dataset and their index into a new folder.

    Shards are named after their split (``train-000000.tar``, ``pictures-…`` without one), in an order drawn from the
    seed. A hidden folder next to ``out`` is renamed when it is complete. The same images and options give the same
    bytes.

    Args:
        dataset: Images to pack.
        out: New or empty folder.
        packing: Options.
        progress: Called with the number of finished images.
        called: Data and options as typed by the user, for messages. Empty for the dataset's source.

    Raises:
        InputError: An image is a raster that Pillow cannot open, too many images are unreadable (``strict``: any), or
            ``out`` is not writable or in use by another process.
    """
    _validate_no_rasters(dataset, called or [dataset.source, *option_args(label_separator=dataset.separator)])
    partial = out.with_name(f".{out.name}.effnetv2-partial")
    fix = "Give another folder."
    taken = "another process packs into it at this moment. Wait for its end, or give another folder."
    lock = Path(f"{partial}.lock")
    with output_dir(partial.parent, "OUT"), locked(lock, str(out), taken=taken, fix=fix):
        return _write_packed(dataset, out, partial, packing, progress or (lambda done: None))


def _write_packed(
    dataset: ImageDataset, out: Path, partial: Path, packing: PackOptions, progress: Callable[[int], object]
) -> PackResult:
    """Write all shards, or none."""
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    _require_room(dataset, out, packing)
    _make_folder(partial, out)
    try:
        packed = _Packer(dataset, partial, packing, progress).run()
        save_index(packed.index, partial / INDEX_NAME)
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


def _validate_no_rasters(dataset: ImageDataset, called: Sequence[str]) -> None:
    """Refuse rasters: shards hold ordinary images."""
    if dataset.shards is not None:
        return
    for row in (row for row, path in enumerate(dataset.paths) if is_raster(path)):
        if content := raster_content(dataset.file(row)):
            raise InputError(
                f"{dataset.file(row)} is a raster ({content}), and shards hold ordinary images of three channels. "
                "Train on the files themselves, as a folder or a table (--bands says which bands are seen): "
                f"{shell_join(['effnetv2', 'train', *called])}"
            )


def _require_room(dataset: ImageDataset, out: Path, packing: PackOptions) -> None:
    """Refuse a disk that is too small before hours of packing."""
    if packing.image_px is not None:  # the size of smaller images is unknown
        return
    if dataset.shards is None:
        needed = sum(_size(dataset.file(row)) for row in range(len(dataset)))
    else:
        needed = int(dataset.table["shard_bytes"].sum())
    free = shutil.disk_usage(next(place for place in out.absolute().parents if place.is_dir())).free
    if needed > free:
        raise InputError(
            f"{out}: the images of {dataset.source} are {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are free "
            "there. Make room, give another folder, or have them smaller with --image-px."
        )


def _size(file: str) -> int:
    """Bytes of an image's file, 0 for records and missing files."""
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def _make_folder(partial: Path, out: Path) -> None:
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error} ({partial}). Give another folder.") from error


class _Packer:
    """Packs the images split by split, in chunks that threads read."""

    def __init__(
        self, dataset: ImageDataset, folder: Path, packing: PackOptions, progress: Callable[[int], object]
    ) -> None:
        self.dataset, self.folder, self.packing, self.progress = dataset, folder, packing, progress
        self.reader = source_reader(dataset)
        self.paths = _original_paths(dataset)
        self.shards: list[Shard] = []
        self.skipped: dict[int, str] = {}
        count = len(dataset)
        self.places = {name: np.full(count, -1, dtype=np.int64) for name in (*PLACE, CONTENT)}
        self.checksums = np.zeros(count, dtype=np.uint32)

    def run(self) -> PackResult:
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
        return self._result()

    def _orders(self) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        for split in (*SPLITS, ""):
            rows = np.flatnonzero(self.dataset.split == split)
            if len(rows):
                order = Key.of(self.packing.seed).fold("shards", split).generator().permutation(len(rows))
                yield split, rows[order]

    def _add(self, rows: npt.NDArray[np.int64], shards: _Shards, pool: ThreadPoolExecutor) -> None:
        reader = self.reader.ahead(rows.tolist())
        image_px = self.packing.image_px
        contents = pool.map(lambda row: pack_image(reader, row, self.paths[row], image_px), rows.tolist())
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
                f"{self.dataset.source}: more than {100 * MAX_UNREADABLE:.0f} % of the images cannot be used; "
                f"the last: '{path}' {reason}. Repair or remove them."
            )

    def _result(self) -> PackResult:
        kept = np.setdiff1d(np.arange(len(self.dataset)), list(self.skipped))
        written = self.places | {CHECKSUM: self.checksums}
        table = self.dataset.table.assign(path=self.paths, **written).iloc[kept].reset_index(drop=True)
        skipped = tuple((self.dataset.paths[row], reason) for row, reason in sorted(self.skipped.items()))
        return PackResult(ShardIndex(table, tuple(self.shards), self.dataset.published), skipped)


class _Shards:
    """The tars of one split, one open at a time, whose names start with ``name``. The packer keeps the places."""

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

    def add(self, row: int, content: PackedImage, facts: dict[Hashable, Any]) -> None:
        """Append an image. ``facts`` are its columns."""
        key, dataset = f"{row:09d}", self._packer.dataset
        label = str(dataset.labels[row])
        if dataset.separator is not None:
            label = dataset.separator.join(str(one) for one in dataset.targets[row] if one >= 0)
        members = {
            content.extension: content.data,
            "cls": label.encode(),
            "json": json.dumps(_json_facts(facts), ensure_ascii=False, default=str).encode(),
        }
        needed = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in members.values())
        tar = self._room_for(needed)
        places = self._packer.places
        places["shard"][row] = len(self._packer.shards)
        places["shard_offset"][row] = tar.offset + _BLOCK  # after the header
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
            _tar_size(self._tar.offset + needed) > packing.shard_bytes
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


def _tar_size(size: int) -> int:
    """Size of a tar with its end mark and padding."""
    return -(-(size + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _json_facts(facts: dict[Hashable, Any]) -> dict[Hashable, Any]:
    """Facts for JSON: without missing values and numpy types."""
    known = {name: value for name, value in facts.items() if _has_value(value)}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in known.items()}


def _has_value(value: Any) -> bool:
    return np.ndim(value) > 0 or not (pd.isna(value) or value == "")


def _original_paths(dataset: ImageDataset) -> list[str]:
    """Paths from before packing, if they are unique in this dataset."""
    if dataset.shards is None:
        return dataset.paths
    inner = [path.partition("#")[2] for path in dataset.paths]
    return inner if len(set(inner)) == len(inner) else dataset.paths
