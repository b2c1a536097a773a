"""Decode ordinary JPEG files with libjpeg-turbo directly: the same pixels as Pillow's, faster.

``header`` and ``decode`` return None for anything unusual, which Pillow then reads. Lost pixels are refused: Pillow
would show gray in their place without a warning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image

Pixels = npt.NDArray[np.uint8]
# Divisors of the sides that make decoding cheaper. Other fractions of the decoder take longer than the full size.
SCALES = (1, 2, 4, 8)

_SOI = b"\xff\xd8\xff"
_BASELINE, _EXTENDED, _PROGRESSIVE, _HUFFMAN = 0xC0, 0xC1, 0xC2, 0xC4
_SCAN, _RESTARTS, _EXIF_OR_XMP, _ADOBE = 0xDA, 0xDD, 0xE1, 0xEE
# Smaller images are decoded at full size: at a few pixels, two of the decoder's scales (n/8) give the same size.
_MIN_SCALED_PX = 64
# The decoder's first warning, if the only fault is data after the last row.
_MORE_ROWS = "extraneous bytes before marker 0xd9"
# Warnings that pixels are lost. Extra bytes elsewhere, which cameras write, do no harm.
# Source: jerror.h of libjpeg-turbo.
_LOST = re.compile(r"premature end of data segment|bad (Huffman|arithmetic) code|instead of RST|before marker 0xd[0-7]")
# Maximum number of scans of a progressive image, and of pixels in all of them. Encoders write about ten scans; a small
# file with very many takes minutes, at half a billion pixels per second. Ours.
MAX_SCANS = 64
_MAX_SCANNED = 5_000_000_000
# All markers but those within a scan. Source: ITU-T T.81, table B.1.
_MARKER, _EOI = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]"), b"\xff\xd9"


class DamagedJpegError(Exception):
    """The decoder lost pixels, or would take too long. The message follows the file's name."""


@dataclass(frozen=True)
class Frame:
    """Frame header: offset of the two-byte height, rows that are coded together, color components."""

    height_at: int
    block_rows: int
    components: int


@dataclass(frozen=True)
class Header:
    """Stored size, EXIF orientation, and the frame if the first rows can be decoded without those below."""

    width: int
    height: int
    orientation: int
    rows_in_order: Frame | None = None


def header(content: bytes) -> Header | None:
    """Header of an ordinary JPEG file. None for any other content."""
    if not content.startswith(_SOI):
        return None
    size: tuple[int, int] | None = None
    frame: Frame | None = None
    exif: bytes | None = None
    turned_elsewhere = restarts = False
    place, marker = 2, 0
    while marker != _SCAN:
        if place + 4 > len(content) or content[place] != 0xFF:
            return None
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        segment = content[place + 4 : place + 2 + length]
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            if size is not None or len(segment) < 6 or segment[0] != 8 or segment[5] not in (1, 3):
                return None
            size = int.from_bytes(segment[3:5]), int.from_bytes(segment[1:3])
            frame = None if marker == _PROGRESSIVE else _frame(segment, place + 4)
        elif marker == _EXIF_OR_XMP and segment.startswith(b"Exif\0\0"):
            if exif is not None:
                return None
            exif = segment
        elif marker == _EXIF_OR_XMP:
            turned_elsewhere |= b"tiff:Orientation" in segment
        elif marker != _SCAN and not _skippable(marker, length, segment):
            return None
        restarts |= marker == _RESTARTS
        place += 2 + length
    limit = Image.MAX_IMAGE_PIXELS
    if size is None or (limit is not None and size[0] * size[1] > limit):
        return None
    orientation = None if exif is None else _orientation(exif)
    if orientation is None and turned_elsewhere:
        return None
    # Restart markers look like the end of the last row, and further scans follow it.
    in_order = frame is not None and segment[:1] == bytes([frame.components]) and not restarts
    upright = orientation if orientation and orientation in range(1, 9) else 1
    return Header(*size, upright, frame if in_order else None)


def _orientation(segment: bytes) -> int | None:
    """Orientation in a segment, also out of range. None if missing."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        value = exif.get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata does not spoil the pixels
        return None
    return value if value is None or isinstance(value, int) else 1


def _frame(segment: bytes, place: int) -> Frame | None:
    """From the segment of a sequential frame at this offset."""
    components = segment[5]
    if len(segment) != 6 + 3 * components:
        return None
    tallest = max(segment[7 + 3 * number] & 0x0F for number in range(components))
    return Frame(place + 1, 8 * tallest, components) if 1 <= tallest <= 4 else None


def _skippable(marker: int, length: int, segment: bytes) -> bool:
    """Whether the decoder and Pillow read the pixels alike despite this segment."""
    if length < 2:
        return False
    if marker == _ADOBE and segment.startswith(b"Adobe"):
        return len(segment) > 11 and segment[11] == 1  # YCbCr, as usual
    # Tables, comments, application data; not frames of other processes or markers outside segments.
    return marker == _HUFFMAN or 0xDB <= marker <= 0xDD or 0xE0 <= marker <= 0xEF or marker == 0xFE


def scales(found: Header) -> tuple[int, ...]:
    """Supported divisors of the sides."""
    return SCALES if min(found.width, found.height) >= _MIN_SCALED_PX else SCALES[:1]


def refuse_many_scans(content: bytes, pixels: int) -> None:
    """Raise DamagedJpegError for a JPEG file with more than ``MAX_SCANS`` scans, or with too many pixels in them."""
    if not content.startswith(_SOI):
        return
    most = max(1, min(MAX_SCANS, _MAX_SCANNED // max(1, pixels)))
    scans, place = 0, 2
    while (found := _MARKER.search(content, place)) is not None and found[0] != _EOI:
        scans += content[found.start() + 1] == _SCAN
        if scans > most:
            raise DamagedJpegError(f"has more than {most} JPEG scans, which take too long. Save it again")
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2])


def refuse_lost(content: bytes) -> None:
    """Raise DamagedJpegError if pixels of a JPEG file are lost. Decodes it at the smallest scale."""
    try:
        simplejpeg.decode_jpeg(content, min_height=1, min_width=1, fastdct=True, fastupsample=True)
    except ValueError as error:  # other errors are left to Pillow
        _refuse_if_lost(error)


def _refuse_if_lost(warning: ValueError) -> None:
    if _LOST.search(str(warning)):
        raise DamagedJpegError(f"is damaged inside: the JPEG decoder reports '{warning}'") from warning


def decode(
    content: bytes, found: Header, scale: int, *, exact: bool = True, bottom: int | None = None
) -> Pixels | None:
    """Stored pixels in RGB, (height, width, 3) uint8, None if the decoder warns. Raises DamagedJpegError.

    ``exact`` gives Pillow's pixels at this scale. Otherwise colors stored at half the resolution are repeated (0.2 gray
    levels off on average), and rows below ``bottom`` may be missing.
    """
    frame = found.rows_in_order
    if frame is not None and bottom is not None and not exact:
        rows = -(-bottom // frame.block_rows) * frame.block_rows
        part = _first_rows(content, frame, rows, found.width, scale) if rows < found.height else None
        if part is not None:
            return part
    height, width = -(-found.height // scale), -(-found.width // scale)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(content, min_height=height, min_width=width, fastupsample=not exact)
    except ValueError as error:  # also for warnings
        _refuse_if_lost(error)
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _first_rows(content: bytes, frame: Frame, rows: int, width: int, scale: int) -> Pixels | None:
    """The first rows of an image, by patching the height in the header. None for other warnings than extra data."""
    shorter = bytearray(content)
    shorter[frame.height_at : frame.height_at + 2] = rows.to_bytes(2)
    pixels = np.empty((-(-rows // scale), -(-width // scale), 3), np.uint8)
    height, width = pixels.shape[:2]
    try:
        simplejpeg.decode_jpeg(shorter, min_height=height, min_width=width, fastupsample=True, buffer=pixels)
    except ValueError as error:
        # This warning comes after all rows are decoded.
        return pixels if str(error).endswith(_MORE_ROWS) else None
    return pixels
