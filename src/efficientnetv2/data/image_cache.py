"""Pictures kept decoded: what is kept of each, the one file that holds them, and the reader of that file.

The file is mapped into memory, so that all processes share its pages. How it is filled: ``data.cache_writer``; where
it lies: ``data.cache_writer``.

::

    preamble: magic, version, place and length of the index, the index's BLAKE2b hash
    pixels:   of one picture after the other, (height, width, channels) uint8 each
    index:    numpy's npz: channels, a place and a size for each picture, which are unreadable and why, whose
              pixels these are
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.decode import ASPECT
from efficientnetv2.data.image_io import MIN_SIDE, Pixels, UnreadableImageError
from efficientnetv2.data.readers import Reader
from efficientnetv2.data.records import Ints
from efficientnetv2.preprocessing import Framing
from efficientnetv2.utils.errors import InputError

_MAGIC, _VERSION = b"effnetv2", 2
_PREAMBLE = struct.Struct("<8sQQQ32s")
# Where the pixels begin: a page, so that the system reads ahead in whole ones.
PIXELS_AT = 4096
# Points each way of the grid on which the shares of crops are counted. Ours.
_GRID = 401


@dataclass(frozen=True)
class CacheSpec:
    """The size at which a picture is kept: its shape unchanged, never enlarged.

    Args:
        px: that the side in question gets at least, if the picture has so many.
        side: which: the ``shorter`` or ``longer`` one, or the square root of the area (``mean``).
    """

    px: int
    side: Literal["shorter", "mean", "longer"]

    @classmethod
    def enough(cls, *, image_px: int, framing: Framing, area_min: float, detail: float) -> CacheSpec:
        """The size from which a share of the random crops has all the pixels that it needs.

        Args:
            image_px: the largest that a crop is resized to.
            framing: how crops are drawn; see ``decode.train_picture``.
            area_min: smallest share of the picture that a crop covers.
            detail: share of the crops that are not made from fewer pixels than the picture itself would give
                them, in (0, 1]; of square pictures framed ``whole``, of others about so many or more. The rest is
                enlarged, the smallest crop most: by the size at detail 1 over this one.
        """
        area = np.linspace(area_min, 1, _GRID)[:, None]
        shape = np.exp(np.linspace(math.log(ASPECT[0]), math.log(ASPECT[1]), _GRID))
        flatter = np.minimum(shape, 1 / shape)
        fits = area <= flatter
        shorter_side = np.sqrt(area * flatter)[fits]  # of the crop, over the picture's
        # Where no shape fits, draw_crop falls back on the whole picture.
        part = float(np.quantile(shorter_side, 1 - detail)) if fits.any() else 1.0
        sides: dict[Framing, Literal["shorter", "mean", "longer"]] = {
            "whole": "shorter", "crop": "mean", "pad": "longer",
        }  # fmt: skip
        return cls(math.ceil(image_px / part - 1e-9), sides[framing])

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height kept of a picture of this width and height."""
        lengths = {"shorter": min(width, height), "longer": max(width, height)}
        scale = min(1.0, self.px / lengths.get(self.side, math.sqrt(width * height)))
        kept = (max(min(MIN_SIDE, side), math.ceil(side * scale - 1e-9)) for side in (width, height))
        return next(kept), next(kept)


def cache_digest(reader: Reader, count: int, kept: CacheSpec) -> str:
    """32 hexadecimal digits of which pictures are kept, and how: other files, other digits.

    Args:
        reader: of the originals.
        count: how many there are.
        kept: at what size.
    """
    digest = hashlib.blake2b(f"{_VERSION} {kept}".encode(), digest_size=16)
    for sample, stamp in enumerate(reader.stamps(range(count))):
        digest.update(f"\0{reader.name(sample)}\0{stamp}".encode(errors="surrogateescape"))
    return digest.hexdigest()


class InvalidCacheError(Exception):
    """A file that is no cache of pictures, or not all of one; the message says what is wrong."""


@dataclass(frozen=True, eq=False)
class CacheIndex:
    """What stands behind the pixels.

    Args:
        content: see ``cache_digest``.
        offsets: (N,) int64, where each picture begins in the file.
        sizes: (N, 2) int32: height and width; 0 where it could not be read.
        reasons: why not, by the picture's number.
        channels: of all pictures.
    """

    content: str
    offsets: Ints
    sizes: npt.NDArray[np.int32]
    reasons: dict[int, str]
    channels: int

    def write(self, file: BinaryIO) -> None:
        """Behind the pixels, and the preamble in front of them last: without it the file is none."""
        packed = io.BytesIO()
        rows, reasons = list(self.reasons), list(self.reasons.values())
        np.savez(
            packed, content=np.array(self.content), offsets=self.offsets, sizes=self.sizes,
            rows=np.array(rows, np.int64), reasons=np.array(reasons, np.str_), channels=np.array(self.channels),
        )  # fmt: skip
        content = packed.getvalue()
        at = file.seek(0, io.SEEK_END)
        file.write(content)
        file.seek(0)
        file.write(_PREAMBLE.pack(_MAGIC, _VERSION, at, len(content), _hash(content)))

    @classmethod
    def read(cls, file: BinaryIO) -> CacheIndex:
        """The index of a file.

        Raises:
            NotWhole: it has none, or another version's, or is cut off or damaged.
        """
        preamble = file.read(_PREAMBLE.size)
        if len(preamble) < _PREAMBLE.size or not preamble.startswith(_MAGIC):
            raise InvalidCacheError("is no cache of pictures")
        _, version, at, length, digest = _PREAMBLE.unpack(preamble)
        if version != _VERSION:
            raise InvalidCacheError(f"was written by another version ({version}, not {_VERSION})")
        if file.seek(0, io.SEEK_END) != at + length:
            raise InvalidCacheError("is cut off")
        file.seek(at)
        content = file.read(length)
        if _hash(content) != digest:
            raise InvalidCacheError("is damaged")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            reasons = dict(zip(arrays["rows"].tolist(), arrays["reasons"].tolist(), strict=True))
            channels = int(arrays["channels"])
            return cls(str(arrays["content"]), arrays["offsets"], arrays["sizes"], reasons, channels)


class CachedImageReader:
    """The reader of a cache: nothing is opened or decoded any more.

    Args:
        path: of the file.
        content: that it has to have; a run never meets another's pictures because the file was replaced.
        rows: (N,) each sample's number in the file.
        originals: reader of what was kept, which knows how messages name the samples.
        holder: kept as long as this reader is, in the process that made it: the memory the file lies in.
    """

    def __init__(
        self, path: Path, content: str, rows: Ints, originals: Reader, holder: object = None
    ) -> None:
        self.path, self.content, self.rows, self.originals = path, content, rows, originals
        self._holder = holder

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"} | {"_holder": None}

    def source(self, sample: int) -> Pixels:
        """The pixels, mapped and not copied.

        Raises:
            UnreadablePicture: it could not be read when the cache was filled.
            InputError: the file is no longer the one that the run began with.
        """
        index, mapped = self._file
        row = int(self.rows[sample])
        height, width = index.sizes[row].tolist()
        if height == 0:
            raise UnreadableImageError(self.name(sample), index.reasons[row])
        first = int(index.offsets[row])
        end = first + height * width * index.channels
        return mapped[first:end].reshape(height, width, index.channels)

    def name(self, sample: int) -> str:
        """The original's."""
        return self.originals.name(sample)

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """The originals'."""
        return self.originals.stamps(samples)

    def ahead(self, samples: Sequence[int]) -> CachedImageReader:
        """Itself: the system reads pages when they are touched."""
        return self

    @cached_property
    def _file(self) -> tuple[CacheIndex, Pixels]:
        """Opened by each process for itself, on first use."""
        try:
            with self.path.open("rb") as file:
                index = CacheIndex.read(file)
                if index.content != self.content:
                    raise InvalidCacheError("holds other pictures by now")
                # Not "c", of which the system may want to have memory for the whole: a cache may be larger than that.
                return index, np.asarray(np.memmap(file, np.uint8, "r"))
        except InvalidCacheError as error:
            raise InputError(
                f"The cache {self.path} has changed during the run: it {error}. Go on with --resume, which fills "
                "it again."
            ) from error
        except OSError as error:
            raise InputError(
                f"The cache {self.path} can't be read ({error.strerror or error}). Once it can, go on with --resume."
            ) from error


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32).digest()
