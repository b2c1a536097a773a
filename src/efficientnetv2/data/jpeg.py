"""Ordinary JPEG files, read by libjpeg-turbo directly: the same pixels as through Pillow, sooner.

Pillow has the last word on everything unusual: other than 8 bits or 1 or 3 channels, colours that Adobe left
untransformed, markers out of place, pictures so large that they may be an attack, and most of what the decoder
complains about. For those ``header`` or ``decode`` says None, and the caller asks Pillow. Pillow is not asked where the
decoder has lost pixels: it shows gray in their place, without a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image

# What a side can be divided by at less cost than decoding all of it. The decoder has other fractions too, but they
# take longer than the whole picture.
SCALES = (1, 2, 4, 8)

_SOI = b"\xff\xd8\xff"
_BASELINE, _EXTENDED, _PROGRESSIVE, _HUFFMAN = 0xC0, 0xC1, 0xC2, 0xC4
_SCAN, _RESTARTS, _EXIF_OR_XMP, _ADOBE = 0xDA, 0xDD, 0xE1, 0xEE
# Smaller pictures are decoded whole: at a few pixels, two of the decoder's scales (n/8) give the same size, and it
# would not be known which it took.
_LEAST_SCALED_PX = 64
# What the decoder says of what follows a picture's last row, if nothing else was wrong: it tells the first thing only.
_MORE_ROWS = "extraneous bytes before marker 0xd9"
# What its warnings say where pixels are lost. Bytes left over elsewhere, which cameras write, do no harm.
# Source: jerror.h of libjpeg-turbo.
_LOST = re.compile(
    r"premature end of data segment|bad (Huffman|arithmetic) code|instead of RST|before marker 0xd[0-7]"
)
# Scans of a progressive image, each a pass over all pixels; encoders write about ten. A small file of very many takes
# minutes: a core passes over half a billion pixels in a second. Ours.
MOST_SCANS = 64
_MOST_PASSED = 5_000_000_000
# Every marker but those within a scan. Source: ITU-T T.81, table B.1.
_MARKER, _EOI = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]"), b"\xff\xd9"


class DamagedJpegError(Exception):
    """The decoder lost pixels, or would take too long; the reason, to follow the file's name."""


@dataclass(frozen=True)
class Frame:
    """What the frame header says of the rows.

    Args:
        height_at: where in the content the height stands, two bytes.
        block_rows: rows that are coded together; the last may be fewer.
        components: colours.
    """

    height_at: int
    block_rows: int
    components: int


@dataclass(frozen=True)
class Header:
    """What is known before decoding.

    Args:
        width: in pixels, as stored.
        height: likewise.
        orientation: EXIF's, 1 (upright) to 8.
        rows_in_order: the frame, where the first rows can be decoded without those below; else None.
    """

    width: int
    height: int
    orientation: int
    rows_in_order: Frame | None = None


def header(content: bytes) -> Header | None:
    """The header of an ordinary JPEG file; None for every other content.

    Args:
        content: of a file of any kind.
    """
    if not content.startswith(_SOI):
        return None
    size: tuple[int, int] | None = None
    frame: Frame | None = None
    exif: bytes | None = None
    turned_elsewhere = restarts = False
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if marker == _SCAN:
            # Restarts would be taken for what follows the last row, and further scans stand below it.
            in_scan = content[place + 4 : place + 5]
            one_scan = frame is not None and in_scan == bytes([frame.components]) and not restarts
            return _header(size, exif, turned_elsewhere, frame if one_scan else None)
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
        elif not _skippable(marker, length, segment):
            return None
        restarts |= marker == _RESTARTS
        place += 2 + length
    return None


def refuse_many_scans(content: bytes, pixels: int) -> None:
    """Refuse a JPEG file whose decoding would pass over all pixels very many times; other content is let through.

    Args:
        content: of a file of any kind.
        pixels: of the image.

    Raises:
        DamagedJpegError: it has more than ``MOST_SCANS`` scans, or than ``_MOST_PASSED`` pixels in all of them.
    """
    if not content.startswith(_SOI):
        return
    most = max(1, min(MOST_SCANS, _MOST_PASSED // max(1, pixels)))
    scans, place = 0, 2
    while (found := _MARKER.search(content, place)) is not None and found[0] != _EOI:
        scans += content[found.start() + 1] == _SCAN
        if scans > most:
            raise DamagedJpegError(
                f"has more than {most} JPEG scans, which take too long. Save the image again"
            )
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2])


def refuse_lost(content: bytes) -> None:
    """Refuse a JPEG file that Pillow reads if pixels of it are lost; it is decoded once more, at the smallest scale.

    Args:
        content: of a JPEG file.

    Raises:
        DamagedJpegError: pixels are lost within the file.
    """
    try:
        simplejpeg.decode_jpeg(content, min_height=1, min_width=1, fastdct=True, fastupsample=True)
    except ValueError as error:  # what this decoder does not know either is left to Pillow
        _refuse_if_lost(error)


def _refuse_if_lost(warning: ValueError) -> None:
    if _LOST.search(str(warning)):
        raise DamagedJpegError(f"is damaged inside: the JPEG decoder reports '{warning}'") from warning


def decode(
    content: bytes, found: Header, scale: int, *, exact: bool = True, bottom: int | None = None
) -> npt.NDArray[np.uint8] | None:
    """The pixels as stored, in RGB; None where the decoder complains.

    Args:
        content: of the file.
        found: its header.
        scale: one of ``SCALES``: each side is divided by it, rounded up. Small pictures are not scaled; see
            ``scales``.
        exact: False repeats colours that are stored at half the resolution, rather than interpolating them:
            0.2 of a grey level in the mean, and sooner.
        bottom: so many rows of the picture as stored are needed; what lies below may be left out, and damage there
            goes unseen. Not if exact, because interpolated colours look at the rows below. None: all are needed.

    Returns:
        (height, width, 3) uint8; if exact, equal to what Pillow gives at this scale. Fewer rows where ``bottom``
        allows it; those that are there do not depend on it.

    Raises:
        DamagedJpegError: pixels are lost within the file.
    """
    frame = found.rows_in_order
    if frame is not None and bottom is not None and not exact:
        rows = -(-bottom // frame.block_rows) * frame.block_rows
        part = _first_rows(content, frame, rows, found.width, scale) if rows < found.height else None
        if part is not None:
            return part
    height, width = -(-found.height // scale), -(-found.width // scale)
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            content, min_height=height, min_width=width, fastupsample=not exact
        )
    except ValueError as error:  # warnings of the decoder too
        _refuse_if_lost(error)
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _first_rows(
    content: bytes, frame: Frame, rows: int, width: int, scale: int
) -> npt.NDArray[np.uint8] | None:
    """The upper part of a picture, for the time of just that: a decoder that is told of fewer rows stops there.

    Unpacking the bits is most of the work of decoding, and no row can be unpacked without those above it; but
    without those below.

    Returns:
        None where the decoder complains of anything but that there is more.
    """
    shorter = bytearray(content)
    shorter[frame.height_at : frame.height_at + 2] = rows.to_bytes(2)
    pixels = np.empty((-(-rows // scale), -(-width // scale), 3), np.uint8)
    height, width = pixels.shape[:2]
    try:
        simplejpeg.decode_jpeg(shorter, min_height=height, min_width=width, fastupsample=True, buffer=pixels)
    except ValueError as error:
        # It says so when all rows are decoded.
        return pixels if str(error).endswith(_MORE_ROWS) else None
    return pixels


def scales(found: Header) -> tuple[int, ...]:
    """The scales at which a picture can be decoded."""
    return SCALES if min(found.width, found.height) >= _LEAST_SCALED_PX else SCALES[:1]


def _skippable(marker: int, length: int, segment: bytes) -> bool:
    """Whether a segment says nothing about the pixels that the decoder and Pillow might read differently."""
    if length < 2:
        return False
    if marker == _ADOBE and segment.startswith(b"Adobe"):
        return len(segment) > 11 and segment[11] == 1  # the usual colours, YCbCr
    # Tables, comments, applications; not the frames of other processes, nor what stands outside segments.
    return marker == _HUFFMAN or 0xDB <= marker <= 0xDD or 0xE0 <= marker <= 0xEF or marker == 0xFE


def _frame(segment: bytes, place: int) -> Frame | None:
    """From the segment of a sequential frame, which begins at a place in the content."""
    components = segment[5]
    if len(segment) != 6 + 3 * components:
        return None
    tallest = max(segment[7 + 3 * number] & 0x0F for number in range(components))
    return Frame(place + 1, 8 * tallest, components) if 1 <= tallest <= 4 else None


def _header(
    size: tuple[int, int] | None, exif: bytes | None, turned_elsewhere: bool, rows_in_order: Frame | None
) -> Header | None:
    if size is None:
        return None
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        return None
    orientation = None if exif is None else _orientation(exif)
    if orientation is None and turned_elsewhere:
        return None
    upright = orientation if orientation is not None and 1 <= orientation <= 8 else 1
    return Header(*size, upright, rows_in_order)


def _orientation(segment: bytes) -> int | None:
    """What the segment says, in range or not; None if nothing."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        value = exif.get(ExifTags.Base.Orientation)
    except Exception:  # as in ``pictures``: damaged metadata does not spoil the pixels
        return None
    return value if value is None or isinstance(value, int) else 1
