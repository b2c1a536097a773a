"""Readers of the images of a dataset: files, shards, and rasters by a rule. Decoding is in ``data.decode``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from efficientnetv2.data import raster_checks
from efficientnetv2.data.bands import load_raster
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.file_probe import map_chunks
from efficientnetv2.data.geotiff import open_raster, visible_bands
from efficientnetv2.data.image_io import Source, UnreadableImageError, is_high_bit_depth
from efficientnetv2.data.raster_checks import is_raster
from efficientnetv2.data.shards.reader import ShardReader
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError

Result = TypeVar("Result")


class Reader(Protocol):
    """Reads the images of one dataset by their index, in several threads. It is pickled for worker processes."""

    def source(self, sample: int) -> Source:
        """The image. Raises UnreadableImageError, or InputError if a remote store does not respond."""

    def name(self, sample: int) -> str:
        """Name of the image for messages, so that it can be found."""

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader for these samples, whose remote content is fetched together. Raises as ``source``."""
        return self  # nothing is remote

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """A short text for each sample that changes with its content, found without reading the content."""


def source_reader(dataset: ImageDataset) -> Reader:
    """Reader of the images as stored, of rasters by ``dataset.bands``."""
    reader = _FileReader(dataset) if dataset.shards is None else ShardReader(dataset.table, dataset.shards)
    return reader if dataset.bands is None else _RasterReader(reader, dataset.bands)


def eval_reader(dataset: ImageDataset) -> Reader:
    """Reader for prediction: without ``dataset.bands``, rasters that need them are refused."""
    reader = source_reader(dataset)
    return _RasterReader(reader, None) if isinstance(reader, _FileReader) else reader


def display_reader(dataset: ImageDataset) -> Reader:
    """Reader of images to display: as ``eval_reader``, but three channels of rasters (``Bands.shown``)."""
    return eval_reader(dataset if dataset.bands is None else replace(dataset, bands=dataset.bands.shown))


@dataclass(frozen=True)
class _FileReader(Reader):
    """Reads files."""

    dataset: ImageDataset

    def source(self, sample: int) -> Source:
        return self.dataset.file(sample)

    def name(self, sample: int) -> str:
        return self.dataset.file(sample)

    def stamps(self, samples: Sequence[int]) -> list[str]:
        return map_chunks(lambda some: [_stamp(self.dataset.file(sample)) for sample in some], samples)


def _stamp(file: str) -> str:
    """Size and modification time of a file."""
    try:
        status = os.stat(file)
    except OSError as error:
        return type(error).__name__
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class _RasterReader:
    """Reads rasters by a rule (None: ``default_bands``), unless they are packed, and other images by another reader."""

    files: Reader
    bands: Bands | None

    def source(self, sample: int) -> Source:
        path = self.files.name(sample)
        bands = default_bands(path) if self.bands is None else self.bands
        if bands is None:
            return self.files.source(sample)
        if is_raster(path) and isinstance(self.files, _FileReader):
            return load_raster(path, bands)
        if bands.channels != RGB:
            raise UnreadableImageError(path, raster_checks.channels_fault(bands))
        source = self.files.source(sample)
        if raster_checks.is_high_bit_depth_rule(bands) and is_high_bit_depth(source):
            raise UnreadableImageError(path, raster_checks.not_geotiff_fault(bands))
        return source

    def name(self, sample: int) -> str:
        return self.files.name(sample)

    def ahead(self, samples: Sequence[int]) -> Reader:
        return replace(self, files=self.files.ahead(samples))

    def stamps(self, samples: Sequence[int]) -> list[str]:
        rule = "" if self.bands is None else f" {self.bands!r}"
        return [f"{stamp}{rule}" for stamp in self.files.stamps(samples)]


class BestEffortReader:
    """Reads optional images without raising. A remote store that does not respond is not tried again."""

    def __init__(self, reader: Reader) -> None:
        self._reader: Reader | None = reader

    def read(self, sample: int, convert: Callable[[Source], Result]) -> Result | None:
        """An image, converted. None if it is unreadable. ``convert`` may raise ``UnreadableImageError``."""
        if self._reader is not None:
            try:
                return convert(self._reader.source(sample))
            except UnreadableImageError:
                pass
            except InputError:
                self._reader = None
        return None


def default_bands(path: str) -> Bands | None:
    """How a model that was trained on ordinary images reads a raster. None where Pillow opens the file.

    Raises UnreadableImageError for those that it would misread; without the extra ``geo`` this is not checked.
    """
    if not is_raster(path):
        return None
    if not raster_checks.has_gdal():
        if raster_checks.needs_gdal(path):
            raise UnreadableImageError(path, raster_checks.probe_raster(path)[0])
        return None
    try:
        with open_raster(path) as raster:
            if raster_checks.needs_bands(raster, path):
                raise UnreadableImageError(path, raster_checks.no_rule_fault(raster))
            if not raster_checks.is_gdal_only(path):
                return None
            if fault := raster_checks.encoding_fault(raster):
                raise UnreadableImageError(path, fault)
            return Bands(visible_bands(raster))
    except InputError:  # not a raster: reading it gives the reason
        return None
