"""What goes into a shard for one picture: its file as it is, or a smaller copy."""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import dataclass

from PIL import Image

from efficientnetv2.data.contents import file_bytes
from efficientnetv2.data.decode import shrunk_picture
from efficientnetv2.data.formats import opened_image
from efficientnetv2.data.listing import is_picture
from efficientnetv2.data.look import look_at
from efficientnetv2.data.pictures import UnreadablePicture, stored
from efficientnetv2.data.readers import Reader
from efficientnetv2.data.shards.checking import mark_of

# Quality of shrunk JPEGs: what it loses is less than what a smaller copy loses anyway. Ours.
_JPEG_QUALITY = 95
_JPEG = b"\xff\xd8\xff"  # how such a file begins


@dataclass(frozen=True)
class Content:
    """A picture as it goes into a shard.

    Args:
        data: a file's bytes.
        extension: of such a file, without its dot, in lower case.
        mark: a hash of the file it was made from, 63 bits.
        checksum: of ``data``, 32 bits.
    """

    data: bytes
    extension: str
    mark: int
    checksum: int


def content_of(reader: Reader, sample: int, path: str, image_px: int | None) -> Content | str:
    """The content of a picture, or in words why it can't be used.

    Args:
        reader: of the manifest.
        sample: position in it.
        path: of the picture, which tells its extension.
        image_px: shorter side that it is shrunk to if it is larger, None for never.
    """
    try:
        data = file_bytes(reader.source(sample))
        seen = look_at(data)
        if seen.reason:
            return seen.reason
        extension = os.path.splitext(path)[1][1:].lower() if is_picture(path) else _format(data)
        small = None if image_px is None else shrunk(data, image_px)
    except UnreadablePicture as error:
        return error.reason
    except OSError as error:
        return f"may not be read ({(error.strerror or str(error)).lower()})"
    mark = mark_of(data)
    stored_data, extension = (data, extension) if small is None else small
    return Content(stored_data, extension, mark, zlib.crc32(stored_data))


def shrunk(data: bytes, image_px: int) -> tuple[bytes, str] | None:
    """A copy whose shorter side is ``image_px``, upright, and its extension; None if it is no larger now.

    A JPEG stays one; anything else becomes a PNG, which loses nothing further.

    Raises:
        UnreadablePicture: the pixels are damaged.
    """
    with stored(data) as picture:
        shorter = min(picture.width, picture.height)
        if shorter <= image_px:
            return None
    share = image_px / shorter
    pixels = shrunk_picture(data, lambda width, height: (round(share * width), round(share * height)))
    copy = Image.fromarray(pixels)
    small = io.BytesIO()
    if data.startswith(_JPEG):
        copy.save(small, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return small.getvalue(), "jpg"
    copy.save(small, "PNG")
    return small.getvalue(), "png"


def _format(data: bytes) -> str:
    with opened_image(data) as image:
        return (image.format or "img").lower()
