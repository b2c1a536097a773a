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
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_resized_image
from efficientnetv2.data.file_probe import MAX_UNREADABLE, fault_of_source, map_chunks
from efficientnetv2.data.image_io import UnreadableImageError, fault_of, open_stored
from efficientnetv2.data.image_metadata import file_bytes
from efficientnetv2.data.open_image import IGNORED_WARNINGS, image_extensions, is_image, open_image
from efficientnetv2.data.raster_checks import is_raster, raster_content
from efficientnetv2.data.readers import Reader, source_reader
from efficientnetv2.data.records import SPLITS
from efficientnetv2.data.shards import index as shard_index
from efficientnetv2.data.shards.index import CHECKSUM, CONTENT, PLACE, Shard, ShardIndex
from efficientnetv2.data.shards.reader import content_hash
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import entry_names, locked, output_dir, replace
from efficientnetv2.utils.random_key import Key
from efficientnetv2.utils.shell import option_args, shell_join

# Quality of shrunk JPEGs. It loses less than the shrinking. Ours.
_JPEG_QUALITY = 95
# Images that threads read at a time, before they are written. Ours.
_CHUNK, _THREADS = 256, 8
_BLOCK = tarfile.BLOCKSIZE
_EXTRA_BYTES = 6 * _BLOCK  # of an image in a tar: two headers, its .json, and the ends of both blocks, about


@dataclass(frozen=True)
class PackOptions:
    """How images are packed, in an order within each split drawn from ``seed``.

    ``image_size`` is the shorter side that larger images are shrunk to. ``strict`` refuses the first unreadable image.
    """

    shard_bytes: int
    shard_images: int | None = None
    image_size: int | None = None
    seed: int = 0
    strict: bool = False


@dataclass(frozen=True, repr=False)
class PackResult:
    """Shards, as `pack` wrote them.

    Example::

        import efficientnetv2 as ev2

        packed = ev2.pack("photos/", "shards/")
        print(packed.index.table, packed.skipped)

    Attributes:
        index: The index: its ``table`` has a row for each image, ``shards`` has the files.
        skipped: Path and reason of each unreadable image.
    """

    index: ShardIndex
    skipped: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        images, shards = pluralize(len(self.index.table), "image"), pluralize(len(self.index.shards), "shard")
        return f"PackResult({images} in {shards}, {len(self.skipped)} skipped)"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        splits = self.index.table["split"].replace("", "without a split").value_counts()
        return {
            "num_images": len(self.index.table),
            "shards": [shard.name for shard in self.index.shards],
            "bytes": sum(shard.bytes for shard in self.index.shards),
            "splits": {str(split): int(count) for split, count in splits.items()},
            "left_out": [{"path": path, "reason": reason} for path, reason in self.skipped],
        }


def write_shards(
    dataset: ImageDataset,
    out: Path,
    packing: PackOptions,
    *,
    progress: Callable[[int], object] = lambda done: None,
    called: Sequence[str] = (),
) -> PackResult:
    """Write the shards of a dataset and their index into a new or empty folder, atomically.

    Shards are named after their split (``train-000000.tar``, ``images-…`` without one). The same images and options
    give the same bytes. ``called`` is the data and options as typed by the user, for messages.
    """
    _validate_no_rasters(dataset, called or [dataset.source, *option_args(label_separator=dataset.separator)])
    partial = out.with_name(f".{out.name}.effnetv2-partial")
    taken, fix = "another process packs into it at this moment.", "Give another folder."
    lock = Path(f"{partial}.lock")
    if not os.access(out.absolute().parent, os.W_OK):  # the lock would lie there
        _require_replaceable(out)
    with output_dir(partial.parent, "`output`"), locked(lock, str(out), taken=taken, fix=fix):
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process
        _require_replaceable(out)
        _require_room(dataset, out, packing)
        try:
            partial.mkdir(parents=True)
            packed = _Packer(dataset, partial, packing, progress).run()
            shard_index.save_index(packed.index, partial / shard_index.INDEX_NAME)
            if packed.skipped:
                write_table(partial / "skipped.csv", pd.DataFrame(packed.skipped, columns=["path", "reason"]))
            if out.is_dir():
                _remove_empty(out)  # Windows does not rename onto it
            replace(partial, out)
        except OSError as error:
            raise InputError(f"{out}: {error.strerror or error}. Give another folder.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return packed


def _validate_no_rasters(dataset: ImageDataset, called: Sequence[str]) -> None:
    """Refuse rasters: shards hold ordinary images."""
    for row in (row for row, path in enumerate(dataset.paths) if dataset.shards is None and is_raster(path)):
        if content := raster_content(dataset.file(row)):
            raise InputError(
                f"{dataset.file(row)} is a raster ({content}), and shards hold ordinary images of three channels. "
                f"Train on the files themselves: {shell_join(['effnetv2', 'train', *called])}"
            )


def _remove_empty(folder: Path) -> None:
    """Remove a folder that is empty, but for files of Finder and Explorer. Raises OSError."""
    if not entry_names(folder):
        for file in folder.iterdir():
            file.unlink()
    folder.rmdir()


def _require_replaceable(out: Path) -> None:
    """Refuse an empty folder that cannot be replaced at the end, as a mounted one, before hours of packing."""
    if out.is_dir():
        try:
            _remove_empty(out)
            out.mkdir()
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"{out} can't be replaced ({why}). Give a folder in it: {out / 'shards'}") from error


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _require_room(dataset: ImageDataset, out: Path, packing: PackOptions) -> None:
    """Refuse a disk that is too small before hours of packing. The size of shrunk images is unknown."""
    if packing.image_size is not None:
        return
    if dataset.shards is not None:
        needed = int(dataset.table["shard_bytes"].sum())
    else:
        files = [dataset.file(row) for row in range(len(dataset))]
        sizes = map_chunks(lambda some: [os.path.getsize(file) for file in some if os.path.isfile(file)], files)
        needed = sum(sizes) + _EXTRA_BYTES * len(dataset)
    free = shutil.disk_usage(next(place for place in out.absolute().parents if place.is_dir())).free
    if needed > free:
        fault = f"the images are {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are free"
        raise InputError(f"{out}: {fault}. Give another folder, or set `image_size` to shrink them.")


class _Packed(NamedTuple):
    """An image in a shard: its file, extension in lower case without dot, hash of the source, and CRC-32."""

    data: bytes
    extension: str
    content: int
    checksum: int


def _pack_image(reader: Reader, sample: int, path: str, image_size: int | None) -> _Packed | str:
    """An image to pack, shrunk if its shorter side is longer than ``image_size``; or why it is unusable."""
    try:
        source = reader.source(sample)
        data = file_bytes(source)
        if reason := fault_of_source(source, data):
            return reason
        if is_image(path):
            extension = os.path.splitext(path)[1][1:].lower()
        else:
            with open_image(data) as image:
                extension = (image.format or "img").lower()
        small = None if image_size is None else shrink(data, image_size)
    except (OSError, UnreadableImageError) as error:
        return fault_of(error)
    stored, extension = small or (data, extension)
    return _Packed(stored, extension, content_hash(data), zlib.crc32(stored))


def shrink(data: bytes, image_size: int) -> tuple[bytes, str] | None:
    """An upright copy with a shorter side of ``image_size``, as JPEG or PNG, and its extension. None if not larger."""
    with open_stored(data) as stored:
        shorter = min(stored.width, stored.height)
        if shorter <= image_size:
            return None
    share = image_size / shorter
    pixels = load_resized_image(data, lambda width, height: (round(share * width), round(share * height)))
    small = io.BytesIO()
    if data.startswith(b"\xff\xd8\xff"):
        Image.fromarray(pixels).save(small, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return small.getvalue(), "jpg"
    Image.fromarray(pixels).save(small, "PNG")
    return small.getvalue(), "png"


class _Packer:
    """Packs the images split by split, in chunks that threads read, with one tar open at a time."""

    def __init__(
        self, dataset: ImageDataset, folder: Path, packing: PackOptions, progress: Callable[[int], object]
    ) -> None:
        self.dataset, self.folder, self.packing, self.progress = dataset, folder, packing, progress
        self.reader = source_reader(dataset)
        self.paths = dataset.paths
        if dataset.shards is not None:  # paths from before packing, if they are unique in this dataset
            inner = [path.partition("#")[2] for path in dataset.paths]
            self.paths = inner if len(set(inner)) == len(inner) else dataset.paths
        self.known = dataset.table.drop(columns=[*PLACE, CONTENT, CHECKSUM], errors="ignore")
        self.shards: list[Shard] = []
        self.skipped: dict[int, str] = {}
        self.places = {name: np.full(len(dataset), -1, dtype=np.int64) for name in (*PLACE, CONTENT)}
        self.checksums = np.zeros(len(dataset), dtype=np.uint32)
        self.tar: tarfile.TarFile | None = None
        self.images = 0  # in this tar

    def run(self) -> PackResult:
        image_extensions()  # loads Pillow's plugins once, before the threads would
        done = 0
        with IGNORED_WARNINGS, ThreadPoolExecutor(_THREADS) as pool, closing(self):
            for split in (*SPLITS, ""):
                rows = np.flatnonzero(self.dataset.split == split)
                key = Key.of(self.packing.seed).fold("shards", split)
                rows = rows[key.generator().permutation(len(rows))]
                before = len(self.shards)
                for chunk in (rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)):
                    self._add_chunk(chunk.tolist(), pool, split or "images", before)
                    done += len(chunk)
                    self.progress(done)
                self.close()
        kept = np.setdiff1d(np.arange(len(self.dataset)), list(self.skipped))
        written = self.places | {CHECKSUM: self.checksums}
        table = self.dataset.table.assign(path=self.paths, **written).iloc[kept].reset_index(drop=True)
        skipped = tuple((self.dataset.paths[row], reason) for row, reason in sorted(self.skipped.items()))
        return PackResult(ShardIndex(table, tuple(self.shards), self.dataset.published), skipped)

    def _add_chunk(self, rows: list[int], pool: ThreadPoolExecutor, name: str, before: int) -> None:
        """Append these images to tars called ``name``, counted from the number of shards ``before``."""
        reader, image_size = self.reader.ahead(rows), self.packing.image_size
        packed = pool.map(lambda row: _pack_image(reader, row, self.paths[row], image_size), rows)
        columns = self.known.iloc[rows].to_dict("records")
        for row, image, facts in zip(rows, packed, columns, strict=True):
            if isinstance(image, str):
                self._skip(row, image)
                continue
            label = str(self.dataset.labels[row])
            if self.dataset.separator is not None:
                label = self.dataset.separator.join(str(i) for i in self.dataset.targets[row] if i >= 0)
            facts = {k: v for k, v in facts.items() if np.ndim(v) > 0 or not (pd.isna(v) or v == "")}
            text = json.dumps(facts | {"path": self.paths[row]}, ensure_ascii=False, default=_plain)
            members = {image.extension: image.data, "cls": label.encode(), "json": text.encode()}
            needed = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in members.values())
            tar = self._tar_with_room(needed, f"{name}-{{:06d}}{shard_index.SUFFIX}", before)
            place = (len(self.shards), tar.offset + _BLOCK, len(image.data), image.content)  # after the header
            for column, value in zip((*PLACE, CONTENT), place, strict=True):
                self.places[column][row] = value
            self.checksums[row] = image.checksum
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{row:09d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            self.images += 1

    def _skip(self, row: int, reason: str) -> None:
        self.skipped[row] = reason
        what = f"{self.dataset.source}: '{self.dataset.paths[row]}' {reason}"
        if self.packing.strict:
            raise InputError(f"{what}. Repair or remove it, or leave `strict` out.")
        if len(self.skipped) > MAX_UNREADABLE * len(self.dataset):
            share = f"more than {100 * MAX_UNREADABLE:.0f} % of the images cannot be used"
            raise InputError(f"{what}; {share}. Repair or remove them.")

    def _tar_with_room(self, needed: int, pattern: str, before: int) -> tarfile.TarFile:
        if self.tar is not None:
            # With the end mark and padding.
            size = -(-(self.tar.offset + needed + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
            if size > self.packing.shard_bytes or self.images == self.packing.shard_images:
                self.close()
        if self.tar is None:
            file = self.folder / pattern.format(len(self.shards) - before)
            self.tar = tarfile.open(file, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by close
        return self.tar

    def close(self) -> None:
        if self.tar is None:
            return
        file = Path(str(self.tar.name))
        self.tar.close()
        with open(file, "rb+") as written:
            os.fsync(written.fileno())
        self.shards.append(Shard(file.name, file.stat().st_size, self.images))
        self.tar, self.images = None, 0
