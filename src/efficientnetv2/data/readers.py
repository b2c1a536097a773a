"""Where the content of a picture comes from: its file, a shard, the cache.

What is done with it (crop, resize, framing) is ``data.decode``'s affair and the same for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from efficientnetv2.data import tiff_tags
from efficientnetv2.data.bands import ordinary, picture
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.geotiff import bands_seen, opened
from efficientnetv2.data.image_io import Source, UnreadableImageError, is_high_bit_depth
from efficientnetv2.data.raster_checks import deep, elsewhere_deep, in_codes, not_ordinary
from efficientnetv2.data.records import packed_record
from efficientnetv2.data.shards.reader import ShardReader
from efficientnetv2.data.tiff_tags import is_raster
from efficientnetv2.preprocessing import RGB, Bands
from efficientnetv2.utils.errors import InputError

Result = TypeVar("Result")


class Reader(Protocol):
    """Gives the pictures of one dataset, by their place in it.

    It is asked from several threads at once, and travels to worker processes as a pickle: what can't travel
    (an open file, a mapping, a connection) is opened by each process on first use.
    """

    def source(self, sample: int) -> Source:
        """What ``decode.train_picture`` and ``decode.eval_picture`` take.

        Args:
            sample: position in the dataset.

        Raises:
            UnreadablePicture: its content can't be had; another of its class will stand in.
            InputError: a store of another machine does not answer.
        """
        ...

    def name(self, sample: int) -> str:
        """How a message names the picture, so that it can be found."""
        ...

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader of the same pictures that will be asked for these: what is far away is fetched together.

        Raises:
            InputError: a store of another machine does not answer.
        """
        ...

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """A short text for each that is another one when its content has changed; found without reading it."""
        ...


@dataclass(frozen=True)
class FileReader:
    """The originals: a file for each picture, or a record of a packed one.

    Args:
        dataset: of the pictures.
    """

    dataset: ImageDataset

    def source(self, sample: int) -> Source:
        """The path; decoding opens it."""
        return self.dataset.file(sample)

    def name(self, sample: int) -> str:
        """The path."""
        return self.dataset.file(sample)

    def ahead(self, samples: Sequence[int]) -> FileReader:
        """Itself: each file is opened when its turn comes."""
        return self

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Each file's size and when it was last written."""
        return [_stamp(self.dataset.file(sample)) for sample in samples]


def source_reader(dataset: ImageDataset) -> Reader:
    """The reader of what a dataset lists, as it is stored; rasters by the dataset's rule, if it has one."""
    if dataset.shards is not None:
        shards = ShardReader(dataset.table, dataset.shards)
        return shards if dataset.bands is None else RasterReader(shards, dataset.bands, packed=True)
    return FileReader(dataset) if dataset.bands is None else RasterReader(FileReader(dataset), dataset.bands)


def eval_reader(dataset: ImageDataset) -> Reader:
    """The reader of what a network answers: the same, but rasters that need a rule are refused where there is none.

    Not so those that train: of these the rule is made, or none of them needs one.
    """
    reader = source_reader(dataset)
    return PillowReader(reader) if isinstance(reader, FileReader) else reader


def display_reader(dataset: ImageDataset) -> Reader:
    """The reader of what people are shown: what was answered, but of rasters three channels (``Bands.shown``)."""
    return eval_reader(dataset if dataset.bands is None else replace(dataset, bands=dataset.bands.shown))


class BestEffortReader:
    """Pictures that can be done without, such as those on a page: they could be read a moment ago.

    Args:
        reader: of them. It is not asked again once its store does not answer, for each picture would wait as long.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader: Reader | None = reader

    def made(self, sample: int, make: Callable[[Source], Result]) -> Result | None:
        """What is made of a picture; None where it can't be had any more.

        Args:
            sample: position in the dataset.
            make: of what the reader gives; it may raise ``UnreadableImageError``.
        """
        try:
            source = self._source(sample)
            return None if source is None else make(source)
        except UnreadableImageError:
            return None

    def _source(self, sample: int) -> Source | None:
        if self._reader is None:
            return None
        try:
            return self._reader.source(sample)
        except InputError:
            self._reader = None
            return None


def _stamp(file: str) -> str:
    record = packed_record(file)
    try:
        status = os.stat(record[0] if record else file)
    except OSError as error:
        return type(error).__name__
    return f"{status.st_size} {status.st_mtime_ns}"


def default_bands(path: str) -> Bands | None:
    """How a network that learnt ordinary pictures reads a raster: by a rule, or None where Pillow opens it.

    Ordinary pictures that Pillow can't open, such as three bands that are not called red, green and blue, keep their
    8-bit values. What the network would see otherwise than it is, such as 16 bits nearly black, is refused. Without the
    extra ``geo`` nobody looks for that: such files trained the network as Pillow opens them, and are answered so.

    Args:
        path: of any file.

    Raises:
        UnreadablePicture: it needs a rule, which such a network lacks; or only the extra opens it.
    """
    if not is_raster(path):
        return None
    if not tiff_tags.readable():
        if tiff_tags.lacks_reader(path):
            raise UnreadableImageError(path, tiff_tags.glance(path)[0])
        return None
    try:
        with opened(path) as raster:
            if tiff_tags.is_beside(raster, path):
                raise UnreadableImageError(path, not_ordinary(raster))
            if not tiff_tags.beyond_pillow(path):
                return None
            if fault := in_codes(raster):
                raise UnreadableImageError(path, fault)
            return Bands(bands_seen(raster))
    except InputError:  # no raster: whoever reads it will say what is wrong
        return None


@dataclass(frozen=True)
class RasterReader:
    """A reader of files that reads the rasters among them by a rule.

    Args:
        files: reads all others.
        bands: the rule.
        packed: none of them is a file of its own, and so none is read by the rule.
    """

    files: Reader
    bands: Bands
    packed: bool = False

    def source(self, sample: int) -> Source:
        """A raster's pixels, or what the files' reader gives.

        Raises:
            UnreadablePicture: see ``picture``; or it is no raster, and other than three channels are needed, or it
                holds values of more than 8 bits, which the rule reads of rasters alone.
        """
        path = self.files.name(sample)
        if is_raster(path) and not self.packed:
            return picture(path, self.bands)
        if self.bands.channels != RGB:
            raise UnreadableImageError(path, ordinary(self.bands))
        source = self.files.source(sample)
        if deep(self.bands) and is_high_bit_depth(source):
            raise UnreadableImageError(path, elsewhere_deep(self.bands))
        return source

    def name(self, sample: int) -> str:
        """The path."""
        return self.files.name(sample)

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader of the same pictures."""
        return RasterReader(self.files.ahead(samples), self.bands, self.packed)

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Each file's, and by which rule it is read."""
        return [f"{stamp} {self.bands!r}" for stamp in self.files.stamps(samples)]


@dataclass(frozen=True)
class PillowReader:
    """A reader of files for a network that learnt ordinary pictures: what is none of them is refused.

    Args:
        files: reads the pictures.
    """

    files: Reader

    def source(self, sample: int) -> Source:
        """What the files' reader gives, or the pixels of a raster that Pillow can't open.

        Raises:
            UnreadablePicture: it is a raster that needs a rule, see ``default_bands``.
        """
        path = self.files.name(sample)
        bands = default_bands(path)
        return self.files.source(sample) if bands is None else picture(path, bands)

    def name(self, sample: int) -> str:
        """The path."""
        return self.files.name(sample)

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader of the same pictures."""
        return PillowReader(self.files.ahead(samples))

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Each file's."""
        return self.files.stamps(samples)
