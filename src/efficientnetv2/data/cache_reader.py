"""The file of a cache of decoded images: its layout, its index and its reader.

The file is mapped into memory, so that all processes share its pages::

    preamble: magic, version, offset and length of the index, the index's BLAKE2b hash
    pixels:   of one image after the other, (height, width, channels) uint8
    index:    numpy's npz: digest, channels, offset and size of each image, unreadable images and reasons
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.image_io import Pixels, UnreadableImageError
from efficientnetv2.data.readers import Reader
from efficientnetv2.data.records import Ints
from efficientnetv2.utils.errors import InputError

_MAGIC, VERSION = b"effnetv2", 2
_PREAMBLE = struct.Struct("<8sQQQ32s")
PIXELS_OFFSET = 4096  # a page, so that the system reads ahead in whole pages


def is_cache(file: Path) -> bool:
    """Whether a file begins as a cache of any version."""
    with file.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


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
        file.write(_PREAMBLE.pack(_MAGIC, VERSION, offset, len(content), _hash(content)))

    @classmethod
    def read(cls, file: BinaryIO) -> CacheIndex:
        """The index of a file. Raises InvalidCacheError if it is missing, damaged or of another version."""
        preamble = file.read(_PREAMBLE.size).ljust(_PREAMBLE.size, b"\0")
        magic, version, offset, length, digest = _PREAMBLE.unpack(preamble)
        content = b""
        if (magic, version) == (_MAGIC, VERSION) and file.seek(0, io.SEEK_END) == offset + length:
            file.seek(offset)
            content = file.read(length)
        if _hash(content) != digest:
            raise InvalidCacheError("is damaged, or not a cache of this version")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            reasons = dict(zip(arrays["rows"].tolist(), arrays["reasons"].tolist(), strict=True))
            channels = int(arrays["channels"])
            return cls(str(arrays["content"]), arrays["offsets"], arrays["sizes"], reasons, channels)


class CachedImageReader(Reader):
    """Reads the images of a cache file, whose ``rows`` are the samples; ``originals`` names them.

    The system reads pages when they are used, so none is read ahead.
    ``digest`` is the expected one, so that a replaced file is noticed. ``holder`` keeps the file's memory alive.
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

    @cached_property
    def _file(self) -> tuple[CacheIndex, Pixels]:
        """Index and pixels. Each process opens the file on first use."""
        try:
            with self.path.open("rb") as file:
                index = CacheIndex.read(file)
                if index.digest != self.digest:
                    raise InvalidCacheError("now holds other images")
                # Not "c", which may reserve memory for the whole file: a cache may be larger than memory.
                return index, np.asarray(np.memmap(file, np.uint8, "r"))
        except InvalidCacheError as error:
            fault = f"has changed during the run: it {error}"
            raise InputError(f"The cache {self.path} {fault}. Resume to fill it again.") from error
        except OSError as error:
            fault = f"can't be read ({error.strerror or error})"
            raise InputError(f"The cache {self.path} {fault}. Resume to fill it again.") from error


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32).digest()
