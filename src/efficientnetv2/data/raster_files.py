"""The files of a set of which some are rasters: read by a rule, or refused where there is none for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efficientnetv2.base.preprocessing import RGB, Bands
from efficientnetv2.data.pictures import Source, UnreadablePicture
from efficientnetv2.data.rasters import is_raster, ordinary, picture, refuse_others

if TYPE_CHECKING:
    from efficientnetv2.data.readers import Reader


@dataclass(frozen=True)
class Rasters:
    """A reader of files that reads the rasters among them by a rule.

    Args:
        files: reads all others.
        bands: the rule.
    """

    files: Reader
    bands: Bands

    def source(self, sample: int) -> Source:
        """A raster's pixels, or what the files' reader gives.

        Raises:
            UnreadablePicture: see ``picture``; or it is no raster, and other than three channels are needed.
        """
        path = self.files.name(sample)
        if is_raster(path):
            return picture(path, self.bands)
        if self.bands.channels != RGB:
            raise UnreadablePicture(path, ordinary(self.bands))
        return self.files.source(sample)

    def name(self, sample: int) -> str:
        """The path."""
        return self.files.name(sample)

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader of the same pictures."""
        return Rasters(self.files.ahead(samples), self.bands)

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
        """What the files' reader gives.

        Raises:
            UnreadablePicture: it is a raster that needs a rule, see ``rasters.refuse_others``.
        """
        refuse_others(self.files.name(sample))
        return self.files.source(sample)

    def name(self, sample: int) -> str:
        """The path."""
        return self.files.name(sample)

    def ahead(self, samples: Sequence[int]) -> Reader:
        """A reader of the same pictures."""
        return Ordinary(self.files.ahead(samples))

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Each file's."""
        return self.files.stamps(samples)
