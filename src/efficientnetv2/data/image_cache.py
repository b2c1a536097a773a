"""A cache of decoded images: their size, the file that holds them, and its reader. ``data.cache_writer`` fills it.

The file is mapped into memory, so that all processes share its pages::

    preamble: magic, version, offset and length of the index, the index's BLAKE2b hash
    pixels:   of one image after the other, (height, width, channels) uint8
    index:    numpy's npz: digest, channels, offset and size of each image, unreadable images and reasons
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
from efficientnetv2.preprocessing import CropMode
from efficientnetv2.utils.errors import InputError

_MAGIC, _VERSION = b"effnetv2", 2
_PREAMBLE = struct.Struct("<8sQQQ32s")
# Offset of the pixels: a page, so that the system reads ahead in whole pages.
PIXELS_OFFSET = 4096
# Grid points each way for the quantile of crop sizes. Ours.
_GRID = 401

Side = Literal["shorter", "mean", "longer"]
_SIDES: dict[CropMode, Side] = {"squash": "shorter", "center": "mean", "border": "longer"}


@dataclass(frozen=True)
class CacheSpec:
    """Size of cached images: minimum length ``px`` of their ``side``, as far as they have it.

    ``mean`` is the square root of the area. Images keep their aspect ratio and are never enlarged.
    """

    px: int
    side: Side

    @classmethod
    def enough(cls, *, image_size: int, crop_mode: CropMode, area_min: float, detail: float) -> CacheSpec:
        """The size from which a fraction ``detail``, in (0, 1], of the random crops has all the pixels that it needs.

        Exact for square images framed ``squash``, about so for others. Smaller crops are enlarged, at most by the size
        at detail 1 over this size. ``image_size`` is the largest size that a crop is resized to.
        """
        area = np.linspace(area_min, 1, _GRID)[:, None]
        aspect = np.exp(np.linspace(math.log(ASPECT[0]), math.log(ASPECT[1]), _GRID))
        flat = np.minimum(aspect, 1 / aspect)
        fits = area <= flat
        shorter_side = np.sqrt(area * flat)[fits]  # of the crop, relative to the image
        # Where no shape fits, draw_crop falls back to the whole image.
        part = float(np.quantile(shorter_side, 1 - detail)) if fits.any() else 1.0
        return cls(math.ceil(image_size / part - 1e-9), _SIDES[crop_mode])

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Cached width and height of an image."""
        lengths = {"shorter": min(width, height), "longer": max(width, height)}
        scale = min(1.0, self.px / lengths.get(self.side, math.sqrt(width * height)))
        sides = (max(min(MIN_SIDE, side), math.ceil(side * scale - 1e-9)) for side in (width, height))
        return next(sides), next(sides)


def cache_digest(reader: Reader, count: int, spec: CacheSpec) -> str:
    """32 hexadecimal digits of the images of a reader and their size: other files give other digits."""
    digest = hashlib.blake2b(f"{_VERSION} {spec.px} {spec.side}".encode(), digest_size=16)
    for sample, stamp in enumerate(reader.stamps(range(count))):
        digest.update(f"\0{reader.name(sample)}\0{stamp}".encode(errors="surrogateescape"))
    return digest.hexdigest()


class InvalidCacheError(Exception):
    """A file that is no cache, or an incomplete one. The message follows the name of the file."""


@dataclass(frozen=True, eq=False)
class CacheIndex:
    """The index behind the pixels: (N,) offset in the file; (N, 2) height and width, 0 for unreadable images."""

    digest: str
    offsets: Ints
    sizes: npt.NDArray[np.int32]
    reasons: dict[int, str]
    channels: int

    def write(self, file: BinaryIO) -> None:
        """Append the index, then write the preamble: without it the file is no cache."""
        packed = io.BytesIO()
        rows, reasons = list(self.reasons), list(self.reasons.values())
        np.savez(
            packed, content=np.array(self.digest), offsets=self.offsets, sizes=self.sizes,
            rows=np.array(rows, np.int64), reasons=np.array(reasons, np.str_), channels=np.array(self.channels),
        )  # fmt: skip
        content = packed.getvalue()
        offset = file.seek(0, io.SEEK_END)
        file.write(content)
        file.seek(0)
        file.write(_PREAMBLE.pack(_MAGIC, _VERSION, offset, len(content), _hash(content)))

    @classmethod
    def read(cls, file: BinaryIO) -> CacheIndex:
        """The index of a file. Raises InvalidCacheError if it is missing, damaged or of another version."""
        preamble = file.read(_PREAMBLE.size).ljust(_PREAMBLE.size, b"\0")
        magic, version, offset, length, digest = _PREAMBLE.unpack(preamble)
        content = b""
        if (magic, version) == (_MAGIC, _VERSION) and file.seek(0, io.SEEK_END) == offset + length:
            file.seek(offset)
            content = file.read(length)
        if _hash(content) != digest:
            raise InvalidCacheError("is no cache, damaged, cut short or of another version")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            reasons = dict(zip(arrays["rows"].tolist(), arrays["reasons"].tolist(), strict=True))
            channels = int(arrays["channels"])
            return cls(str(arrays["content"]), arrays["offsets"], arrays["sizes"], reasons, channels)


class CachedImageReader:
    """Reads the images of a cache file. ``rows`` are the rows of the samples in the file.

    ``digest`` is the expected one, so that a replaced file is noticed. ``originals`` names the samples. ``holder``
    keeps the file's memory alive, in the process that made it.
    """

    def __init__(self, path: Path, digest: str, rows: Ints, originals: Reader, holder: object = None) -> None:
        self.path, self.digest, self.rows, self.originals = path, digest, rows, originals
        self._holder = holder

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"} | {"_holder": None}

    def source(self, sample: int) -> Pixels:
        """Pixels, mapped and not copied. Raises UnreadableImageError, and InputError if the file has been replaced."""
        index, mapped = self._file
        row = int(self.rows[sample])
        height, width = index.sizes[row].tolist()
        if height == 0:
            raise UnreadableImageError(self.name(sample), index.reasons[row])
        first = int(index.offsets[row])
        end = first + height * width * index.channels
        return mapped[first:end].reshape(height, width, index.channels)

    def name(self, sample: int) -> str:
        """Name of the original."""
        return self.originals.name(sample)

    def stamps(self, samples: Sequence[int]) -> list[str]:
        """Stamps of the originals."""
        return self.originals.stamps(samples)

    def ahead(self, samples: Sequence[int]) -> CachedImageReader:
        """The same reader: the system reads pages when they are used."""
        return self

    @cached_property
    def _file(self) -> tuple[CacheIndex, Pixels]:
        """Index and pixels. Each process opens the file on first use."""
        try:
            with self.path.open("rb") as file:
                index = CacheIndex.read(file)
                if index.digest != self.digest:
                    raise InvalidCacheError("holds other images by now")
                # Not "c", which may reserve memory for the whole file: a cache may be larger than memory.
                return index, np.asarray(np.memmap(file, np.uint8, "r"))
        except InvalidCacheError as error:
            raise InputError(
                f"The cache {self.path} has changed during the run: it {error}. Resume with --resume, which fills "
                "it again."
            ) from error
        except OSError as error:
            raise InputError(
                f"The cache {self.path} can't be read ({error.strerror or error}). Once it can, resume with --resume."
            ) from error


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32).digest()
