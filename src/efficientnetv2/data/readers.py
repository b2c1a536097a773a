"""Readers of the images of a dataset: files, shards, and rasters by a rule. Decoding is in ``data.decode``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

from efficientnetv2.data import tiff_tags
from efficientnetv2.data.bands import channels_fault, load_raster
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.geotiff import open_raster, visible_bands
from efficientnetv2.data.image_io import Source, UnreadableImageError, is_high_bit_depth
from efficientnetv2.data.raster_checks import (
    is_high_bit_depth_rule,
    no_rule_fault,
    not_geotiff_fault,
    palette_fault,
)
from efficientnetv2.data.records import packed_record
from efficientnetv2.data.shards.reader import ShardReader
from efficientnetv2.data.tiff_tags import is_raster
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError

Result = TypeVar("Result")


class Reader(Protocol):
    """Reads the images of one dataset by their index.

    Several threads call it at once, and it is pickled for worker processes, which open files on first use.
    """

    def source(self, sample: int) -> Source:
        """The image. Raises UnreadableImageError, or InputError if a remote store does not answer."""
        ...

    def name(self, sample: int) -> str:
        """Name of the image for messages, so that it can be found."""
        ...

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader for these samples, whose remote content is fetched together. Raises as ``source``."""
        ...

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """A short text for each sample that changes with its content, found without reading the content."""
        ...


@dataclass(frozen=True)
class FileReader:
    """Files, and records of packed files."""

    dataset: ImageDataset

    def source(self, sample: int) -> Source:
        """The path."""
        return self.dataset.file(sample)

    def name(self, sample: int) -> str:
        """The path."""
        return self.dataset.file(sample)

    def ahead(self, samples: Sequence[int]) -> FileReader:
        """The same reader."""
        return self

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Size and modification time of each file."""
        return [_stamp(self.dataset.file(sample)) for sample in samples]


def _stamp(file: str) -> str:
    record = packed_record(file)
    try:
        status = os.stat(record[0] if record else file)
    except OSError as error:
        return type(error).__name__
    return f"{status.st_size} {status.st_mtime_ns}"


def source_reader(dataset: ImageDataset) -> Reader:
    """Reader of the images as stored, of rasters by ``dataset.bands``."""
    if dataset.shards is not None:
        shards = ShardReader(dataset.table, dataset.shards)
        return shards if dataset.bands is None else RasterReader(shards, dataset.bands, packed=True)
    files = FileReader(dataset)
    return files if dataset.bands is None else RasterReader(files, dataset.bands)


def eval_reader(dataset: ImageDataset) -> Reader:
    """Reader for prediction: without ``dataset.bands``, rasters that need them are refused."""
    reader = source_reader(dataset)
    return PillowReader(reader) if isinstance(reader, FileReader) else reader


def display_reader(dataset: ImageDataset) -> Reader:
    """Reader of images to display: as ``eval_reader``, but three channels of rasters (``Bands.shown``)."""
    return eval_reader(dataset if dataset.bands is None else replace(dataset, bands=dataset.bands.shown))


class BestEffortReader:
    """Reads optional images without raising. A remote store that does not answer is not asked again."""

    def __init__(self, reader: Reader) -> None:
        self._reader: Reader | None = reader

    def read(self, sample: int, convert: Callable[[Source], Result]) -> Result | None:
        """An image, converted. None if it is unreadable. ``convert`` may raise ``UnreadableImageError``."""
        if self._reader is None:
            return None
        try:
            return convert(self._reader.source(sample))
        except UnreadableImageError:
            return None
        except InputError:
            self._reader = None
            return None


def default_bands(path: str) -> Bands | None:
    """How a model that was trained on ordinary images reads a raster. None where Pillow opens the file.

    Images that Pillow cannot open keep their 8-bit values. Those that the model would misread raise
    UnreadableImageError. Without the extra ``geo`` this is not checked: such models were trained on files as Pillow
    opens them.
    """
    if not is_raster(path):
        return None
    if not tiff_tags.has_gdal():
        if tiff_tags.needs_gdal(path):
            raise UnreadableImageError(path, tiff_tags.probe_raster(path)[0])
        return None
    try:
        with open_raster(path) as raster:
            if tiff_tags.needs_bands(raster, path):
                raise UnreadableImageError(path, no_rule_fault(raster))
            if not tiff_tags.gdal_only_content(path):
                return None
            if fault := palette_fault(raster):
                raise UnreadableImageError(path, fault)
            return Bands(visible_bands(raster))
    except InputError:  # not a raster: reading it gives the reason
        return None


@dataclass(frozen=True)
class _FilteredReader:
    """Reads images by another reader; subclasses change some of them."""

    files: Reader

    def name(self, sample: int) -> str:
        """The path."""
        return self.files.name(sample)

    def ahead(self, samples: Sequence[int]) -> Self:
        """See ``Reader``."""
        return replace(self, files=self.files.ahead(samples))

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Stamp of each file."""
        return self.files.stamps(samples)


@dataclass(frozen=True)
class RasterReader(_FilteredReader):
    """Reads rasters by a rule, and other images by another reader. ``packed``: no image is a file of its own."""

    bands: Bands
    packed: bool = False

    def source(self, sample: int) -> Source:
        """Pixels of a raster by the rule. Raises UnreadableImageError if an image does not fit the rule."""
        path = self.files.name(sample)
        if is_raster(path) and not self.packed:
            return load_raster(path, self.bands)
        if self.bands.channels != RGB:
            raise UnreadableImageError(path, channels_fault(self.bands))
        source = self.files.source(sample)
        if is_high_bit_depth_rule(self.bands) and is_high_bit_depth(source):
            raise UnreadableImageError(path, not_geotiff_fault(self.bands))
        return source

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Stamp of each file, and the rule."""
        return [f"{stamp} {self.bands!r}" for stamp in self.files.stamps(samples)]


@dataclass(frozen=True)
class PillowReader(_FilteredReader):
    """Reads files for a model that was trained on ordinary images, and refuses rasters that need a rule."""

    def source(self, sample: int) -> Source:
        """What the other reader gives, or pixels of a raster that Pillow cannot open; see ``default_bands``."""
        path = self.files.name(sample)
        bands = default_bands(path)
        return self.files.source(sample) if bands is None else load_raster(path, bands)
