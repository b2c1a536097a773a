"""What a request may take: bytes, pixels and time; and how the server refuses it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from fastapi import Request
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from starlette.types import Message

from efficientnetv2.data.image_io import fault_of
from efficientnetv2.data.open_image import IGNORED_WARNINGS, ForeignFormatError, open_image
from efficientnetv2.data.raster_checks import is_tiff
from efficientnetv2.preprocessing import RGB
from efficientnetv2.utils.errors import format_bytes

# Limit of the bytes of all requests in memory, as a multiple of the limit of one request. Ours.
_BODIES = 16
# Seconds in which the rest of a refused body is read: a client that still sends does not read the response. Ours.
_DISCARD_S = 1.0
# Tags. Source: TIFF 6.0, sections 8 and 15.
_WIDTH, _HEIGHT, _BITS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 277, 322, 323
# Bytes that a pixel counts as if Pillow decodes it in Python, which stops all other threads meanwhile. Ours.
_SLOW_BYTES = 16 * RGB
_ICO = b"\0\0\1\0"  # first bytes of an icon. Source: Pillow, IcoImagePlugin


class RequestError(Exception):
    """A refused request: HTTP status, reason, seconds until a retry, whether the client may still be sending."""

    def __init__(
        self, status: int, message: str, *, retry_after: int | None = None, is_body_unread: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.retry_after, self.is_body_unread = retry_after, is_body_unread


class LimitedRequest(Request):
    """A request whose bytes, received or fetched for it, count toward the limits of an intake."""

    def __init__(self, request: Request, intake: Intake) -> None:
        super().__init__(request.scope, self._receive_counted)
        self._unlimited, self._intake, self.num_bytes = request, intake, 0
        self.is_received, self.fetched_url = False, ""  # whether the whole body has arrived; the URL that is fetched

    def count(self, num_bytes: int, *, is_body_unread: bool = False) -> None:
        """Count bytes that are in memory for the request. Raises RequestError."""
        self.num_bytes += num_bytes
        self._intake.buffered += num_bytes
        self._intake.check(self.num_bytes, is_body_unread=is_body_unread)

    async def _receive_counted(self) -> Message:
        message = await self._unlimited.receive()
        self.is_received = not message.get("more_body", False)
        self.count(len(message.get("body", b"")), is_body_unread=not self.is_received)
        return message


class Intake:
    """Counts the bytes that are in memory, of each request and of all."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.buffered = 0

    @contextmanager
    def admit(self, request: Request) -> Iterator[LimitedRequest]:
        """The request, whose body can be read within the limits; its bytes count until the context ends."""
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit():
            self.check(int(declared), is_body_unread=True)
        limited = LimitedRequest(request, self)
        try:
            yield limited
        finally:
            self.buffered -= limited.num_bytes

    def check(self, num_bytes: int, *, is_body_unread: bool) -> None:
        """Refuse a request of a number of bytes, or one for which all have too many. Raises RequestError."""
        if num_bytes > self.max_bytes:
            most = format_bytes(self.max_bytes) if self.max_bytes >= 2**20 else f"{self.max_bytes:,} bytes"
            raise RequestError(413, f"the request exceeds {most}. Send a smaller one.", is_body_unread=is_body_unread)
        if self.buffered > _BODIES * self.max_bytes:
            raise RequestError(429, "too many large requests. Try again.", retry_after=1, is_body_unread=is_body_unread)


async def discard_body(request: Request) -> bool:
    """Read the rest of a body for a short time, and keep none of it; returns whether it has ended."""
    if "expect" in request.headers:  # the client waits for permission to send
        return False
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while (message := await request.receive())["type"] == "http.request":
                if not message.get("more_body", False):
                    return True
    return False


def check_header(content: bytes, max_pixels: int) -> None:
    """Refuse an image by its header, before it is decoded. Raises RequestError, whose message follows a name."""
    if content.startswith(_ICO):  # Pillow decodes icons as soon as it opens them, and the image inside has any size
        raise RequestError(415, "is an icon (ICO), whose size is known only after decoding. Send a PNG")
    try:
        width, height, pixel_bytes = _size_of(content)
    except (ForeignFormatError, UnidentifiedImageError) as error:
        status = 415 if content else 422
        raise RequestError(status, fault_of(error) if content else "is empty (0 bytes)") from error
    except Image.DecompressionBombError as error:
        raise RequestError(413, fault_of(error)) from error
    except Exception as error:  # Pillow raises nearly everything on damaged files
        raise RequestError(422, fault_of(error)) from error
    if width * height * max(1, pixel_bytes // RGB) > max_pixels:
        size, most, fix = f"{width:,}×{height:,} pixels", f"{max_pixels:,}", "Send a smaller image"
        if pixel_bytes > RGB:
            size, most = f"{size} that count as {pixel_bytes} bytes each", f"{most} of {RGB} bytes"
            fix += ", or a JPEG or PNG"
        raise RequestError(413, f"has {size}, above {most}. {fix}")


def _size_of(content: bytes) -> tuple[int, int, int]:
    """Width, height and bytes that a pixel counts as, by the header alone; of a tiled TIFF, at least its tile's."""
    with IGNORED_WARNINGS:
        try:
            with open_image(content) as image:
                width, height = image.size
                is_slow = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
            if not is_tiff(content):
                return width, height, _SLOW_BYTES if is_slow else RGB
        except UnidentifiedImageError:
            if not is_tiff(content):  # otherwise a raster that GDAL reads and Pillow does not
                raise
        is_big = content[2:4] in (b"\x00\x2b", b"\x2b\x00")
        directory = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if is_big else 8])
        file = io.BytesIO(content)
        file.seek(directory.next)
        directory.load(file)
        pixel_bits = int(directory.get(_SAMPLES, 1)) * int(np.max(directory.get(_BITS, 1)))
        width = max(int(directory[_WIDTH]), int(directory.get(_TILE_WIDTH, 0)))
        height = max(int(directory[_HEIGHT]), int(directory.get(_TILE_HEIGHT, 0)))
        return width, height, pixel_bits // 8
