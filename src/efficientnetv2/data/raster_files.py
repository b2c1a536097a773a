"""The files of a set of which some are rasters: read by a rule, or refused where there is none for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.preprocessing import RGB, Bands
from efficientnetv2.data import tiffs
from efficientnetv2.data.fitting import deep, elsewhere_deep, in_codes, not_ordinary
from efficientnetv2.data.pictures import Source, UnreadablePicture, is_deep
from efficientnetv2.data.raster import bands_seen, opened
from efficientnetv2.data.rasters import ordinary, picture
from efficientnetv2.data.tiffs import is_raster

if TYPE_CHECKING:
    from efficientnetv2.data.readers import Reader


def ordinary_rule(path: str) -> Bands | None:
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
    if not tiffs.readable():
        if tiffs.lacks_reader(path):
            raise UnreadablePicture(path, tiffs.glance(path)[0])
        return None
    try:
        with opened(path) as dataset:
            if tiffs.is_beside(dataset, path):
                raise UnreadablePicture(path, not_ordinary(dataset))
            if not tiffs.beyond_pillow(path):
                return None
            if fault := in_codes(dataset):
                raise UnreadablePicture(path, fault)
            return Bands(bands_seen(dataset))
    except InputError:  # no raster: whoever reads it will say what is wrong
        return None


@dataclass(frozen=True)
class Rasters:
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
            raise UnreadablePicture(path, ordinary(self.bands))
        source = self.files.source(sample)
        if deep(self.bands) and is_deep(source):
            raise UnreadablePicture(path, elsewhere_deep(self.bands))
        return source

    def name(self, sample: int) -> str:
        """The path."""
        return self.files.name(sample)

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader of the same pictures."""
        return Rasters(self.files.ahead(samples), self.bands, self.packed)

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Each file's, and by which rule it is read."""
        return [f"{stamp} {self.bands!r}" for stamp in self.files.stamps(samples)]


@dataclass(frozen=True)
class Ordinary:
    """A reader of files for a network that learnt ordinary pictures: what is none of them is refused.

    Args:
        files: reads the pictures.
    """

    files: Reader

    def source(self, sample: int) -> Source:
        """What the files' reader gives, or the pixels of a raster that Pillow can't open.

        Raises:
            UnreadablePicture: it is a raster that needs a rule, see ``ordinary_rule``.
        """
        path = self.files.name(sample)
        bands = ordinary_rule(path)
        return self.files.source(sample) if bands is None else picture(path, bands)

    def name(self, sample: int) -> str:
        """The path."""
        return self.files.name(sample)

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader of the same pictures."""
        return Ordinary(self.files.ahead(samples))

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Each file's."""
        return self.files.stamps(samples)
