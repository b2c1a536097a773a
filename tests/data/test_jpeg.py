"""JPEG past Pillow: the same pixels to the bit, and Pillow's own answer for everything unusual."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from efficientnetv2.data import jpeg
from efficientnetv2.data.pictures import UnreadablePicture, stored


def scene(width=203, height=149, mode="RGB"):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (7 + c)) * 80 + np.sign(np.cos(y / 11 - c)) * 40 + 128 for c in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **({"quality": 90} | options))
    return buffer.getvalue()


def by_pillow(content, scale):
    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, (image.width // scale, image.height // scale))
        return np.asarray(image.convert("RGB"))


def with_segment(content, marker, body):
    """A segment directly after the start of the file."""
    return content[:2] + bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body + content[2:]


def oriented(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


PLAIN = encoded(scene())
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>'


@pytest.mark.parametrize("scale", jpeg.SCALES)
@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        encoded(scene(), subsampling="4:4:4"),
        encoded(scene(), subsampling="4:2:2"),
        encoded(scene(), progressive=True),
        encoded(scene(), restart_marker_blocks=3),
        encoded(scene(), optimize=True, comment="a comment", icc_profile=b"no profile"),
        encoded(scene(mode="L")),
        encoded(scene(64, 65)),
    ],
    ids=["420", "444", "422", "progressive", "restarts", "segments", "grey", "smallest"],
)
def test_pixels_are_pillows_to_the_bit_at_every_scale(content, scale):
    found = jpeg.header(content)
    with Image.open(io.BytesIO(content)) as image:
        assert found == (*image.size, 1)
    assert jpeg.scales(found) == (1, 2, 4, 8)
    assert np.array_equal(jpeg.decode(content, found, scale), by_pillow(content, scale))


def test_pictures_of_few_pixels_are_decoded_whole():
    assert jpeg.scales(jpeg.Header(63, 500, 1)) == (1,)


@pytest.mark.parametrize("value", [1, 3, 6, 8, 0, 9, 77])
def test_the_orientation_is_exifs_and_1_where_that_is_nonsense(value):
    assert jpeg.header(encoded(scene(), exif=oriented(value))).orientation == (
        value if 1 <= value <= 8 else 1
    )


def test_damaged_metadata_leaves_a_picture_upright():
    assert jpeg.header(encoded(scene(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).orientation == 1


def test_orientation_in_xmp_counts_as_in_pillow():
    """Where EXIF says nothing, Pillow reads XMP; so the picture is left to it. EXIF goes first."""
    assert jpeg.header(with_segment(PLAIN, 0xE1, XMP)) is None
    with stored(with_segment(PLAIN, 0xE1, XMP)) as picture:
        assert picture.orientation == 6
    both = with_segment(encoded(scene(), exif=oriented(3)), 0xE1, XMP)
    assert jpeg.header(both).orientation == 3


def keep_untransformed():
    """An RGB picture stored without the transform to YCbCr, which Adobe's segment says."""
    return encoded(scene(), keep_rgb=True)


def twelve_bits():
    place = PLAIN.index(b"\xff\xc0") + 4
    return PLAIN[:place] + b"\x0c" + PLAIN[place + 1 :]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8\xff",
        b"GIF89a" + bytes(40),
        encoded(scene(mode="CMYK")),
        keep_untransformed(),
        twelve_bits(),
        PLAIN[:100],
        PLAIN.replace(b"\xff\xc0", b"\xff\xc9", 1),  # arithmetic coding
        PLAIN[:20] + b"\0" + PLAIN[20:],
        with_segment(with_segment(PLAIN, 0xE1, oriented(3)), 0xE1, oriented(6)),
    ],
    ids=["empty", "start", "gif", "cmyk", "rgb", "12 bits", "cut header", "arithmetic", "junk", "two exifs"],
)
def test_everything_unusual_is_left_to_pillow(content):
    assert jpeg.header(content) is None


def test_pictures_that_pillow_warns_of_are_left_to_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 203 * 149 - 1)
    assert jpeg.header(PLAIN) is None
    with stored(PLAIN) as picture, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture.pixels(1, True).shape == (149, 203, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadablePicture, match="too large to be safe"), stored(PLAIN):
        pass


def answer(content, scale):
    """The pixels, or that there are none."""
    try:
        with stored(content) as picture:
            return picture.pixels(scale if scale in picture.scales else 1, True)
    except UnreadablePicture:
        return None


def pillows_answer(content, scale):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return by_pillow(content, scale)
    except Exception:
        return None


@pytest.mark.parametrize("scale", [1, 4])
@given(
    place=st.integers(2, len(PLAIN) - 1),
    what=st.sampled_from(["cut", "flip", "zero", "drop", "end"]),
    value=st.integers(1, 255),
)
def test_damaged_files_are_refused_or_read_as_pillow_does(scale, place, what, value):
    """Whatever byte is changed, the answer is Pillow's: its pixels to the bit, or its refusal."""
    content = {
        "cut": PLAIN[:place],
        "flip": PLAIN[:place] + bytes([PLAIN[place] ^ value]) + PLAIN[place + 1 :],
        "zero": PLAIN[:place] + bytes(value) + PLAIN[place + value :],
        "drop": PLAIN[:place] + PLAIN[place + 1 :],
        "end": PLAIN + bytes(value),
    }[what]
    ours, theirs = answer(content, scale), pillows_answer(content, scale)
    if theirs is None or min(theirs.shape[:2]) * scale < 2:
        assert ours is None
    else:
        assert ours is not None
        assert np.array_equal(ours, theirs)
