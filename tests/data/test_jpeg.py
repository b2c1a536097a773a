"""JPEG decoding without Pillow: the same pixels to the bit, and Pillow for unusual files."""

import io
import warnings
from functools import partial

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from tests.messages import mentioning, mentions

from efficientnetv2.data import image_io, jpeg
from efficientnetv2.data.image_io import UnreadableImageError, open_stored


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
    ids=["420", "444", "422", "progressive", "restarts", "segments", "gray", "smallest"],
)
def test_pixels_equal_those_of_pillow_at_every_scale(content, scale):
    found = jpeg.header(content)
    with Image.open(io.BytesIO(content)) as image:
        assert (found.width, found.height, found.orientation) == (*image.size, 1)
    assert jpeg.scales(found) == (1, 2, 4, 8)
    assert np.array_equal(jpeg.decode(content, found, scale), by_pillow(content, scale))


SAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def encode_with(sampling):
    if sampling == "Gray":
        return encoded(scene(mode="L"))
    return simplejpeg.encode_jpeg(np.array(scene()), 90, colorsubsampling=sampling)


@pytest.mark.parametrize("scale", jpeg.SCALES)
@pytest.mark.parametrize("bottom", [1, 16, 17, 77, 128])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_partial_decode_equals_the_full_image(sampling, bottom, scale):
    """To the bit, up to the end of the row of blocks (8 or 16 rows), for every chroma subsampling."""
    content = encode_with(sampling)
    found = jpeg.header(content)
    full = jpeg.decode(content, found, scale, exact=False)
    blocks = 16 if sampling in ("420", "440") else 8
    part = jpeg.decode(content, found, scale, exact=False, bottom=bottom)
    assert part.shape == (-(-bottom // blocks) * blocks // scale, full.shape[1], 3)
    assert np.array_equal(part, full[: len(part)])
    assert np.array_equal(jpeg.decode(content, found, scale, bottom=bottom), jpeg.decode(content, found, scale))


@pytest.mark.parametrize(
    "content",
    [
        encoded(scene(), progressive=True),
        encoded(scene(), restart_marker_blocks=3),
        encoded(scene(), restart_marker_rows=1),
    ],
    ids=["progressive", "restarts", "restarts at rows"],
)
def test_restarts_and_progressive_files_are_decoded_in_full(content, monkeypatch):
    found = jpeg.header(content)
    full = jpeg.decode(content, found, 1, exact=False)
    monkeypatch.setattr(jpeg, "_first_rows", None)
    assert np.array_equal(jpeg.decode(content, found, 1, exact=False, bottom=20), full)


def test_scan_of_one_component_is_not_in_row_order():
    """The header of the scan has its length in two bytes, then its number of components."""
    at = PLAIN.index(b"\xff\xda") + 4
    assert jpeg.header(PLAIN).rows_in_order is not None
    assert jpeg.header(PLAIN[:at] + b"\x01" + PLAIN[at + 1 :]).rows_in_order is None
    assert jpeg.header(PLAIN[:at]).rows_in_order is None  # truncated there


def test_damage_below_the_needed_rows_is_ignored():
    found = jpeg.header(PLAIN)
    read = partial(jpeg.decode, found=found, scale=1, exact=False)
    full, at = read(PLAIN), len(PLAIN) * 4 // 5
    damaged = PLAIN[:at] + b"\xff\x00" * 4 + PLAIN[at + 8 :]  # 32 bits set: longer than any code
    assert np.array_equal(read(damaged, bottom=30), full[:32])
    for bottom in (None, 140):
        with pytest.raises(jpeg.DamagedJpegError, match="damaged inside"):
            read(damaged, bottom=bottom)
    # A truncated file or the start of another image is always found, because the end marker is required.
    assert read(PLAIN[:at] + b"\xff\xd8" + PLAIN[at + 2 :], bottom=30) is None
    for length in (at, len(PLAIN) - 2):
        assert read(PLAIN[:length], bottom=30) is None


def decode_or_none(content, found, bottom):
    try:
        return jpeg.decode(content, found, 1, exact=False, bottom=bottom)
    except jpeg.DamagedJpegError:
        return None


@given(place=st.integers(2, len(PLAIN) - 1), value=st.integers(1, 255), bottom=st.integers(1, 149))
def test_damage_changes_partial_and_full_decode_equally(place, value, bottom):
    content = PLAIN[:place] + bytes([PLAIN[place] ^ value]) + PLAIN[place + 1 :]
    if (found := jpeg.header(content)) is None:
        return
    part, full = decode_or_none(content, found, bottom), decode_or_none(content, found, None)
    if full is not None:
        assert part is not None
    elif part is not None:  # the damage is below; a lenient decoder continues
        full = simplejpeg.decode_jpeg(content, fastupsample=True, strict=False)
    if part is not None:
        assert np.array_equal(part, full[: len(part)])


def test_small_images_are_decoded_at_full_scale():
    assert jpeg.scales(jpeg.Header(63, 500, 1)) == (1,)


@pytest.mark.parametrize("value", [1, 3, 6, 8, 0, 9, 77])
def test_orientation_is_that_of_exif_or_1_if_invalid(value):
    assert jpeg.header(encoded(scene(), exif=oriented(value))).orientation == (value if 1 <= value <= 8 else 1)


def test_damaged_metadata_gives_orientation_1():
    assert jpeg.header(encoded(scene(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).orientation == 1


def test_xmp_orientation_is_left_to_pillow():
    """Without EXIF, Pillow reads XMP. EXIF has priority."""
    assert jpeg.header(with_segment(PLAIN, 0xE1, XMP)) is None
    with open_stored(with_segment(PLAIN, 0xE1, XMP)) as image:
        assert image.orientation == 6
    both = with_segment(encoded(scene(), exif=oriented(3)), 0xE1, XMP)
    assert jpeg.header(both).orientation == 3


def rgb_jpeg():
    """An RGB image stored without the transform to YCbCr, as its Adobe segment states."""
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
        rgb_jpeg(),
        twelve_bits(),
        PLAIN[:100],
        PLAIN.replace(b"\xff\xc0", b"\xff\xc9", 1),  # arithmetic coding
        PLAIN[:20] + b"\0" + PLAIN[20:],
        with_segment(with_segment(PLAIN, 0xE1, oriented(3)), 0xE1, oriented(6)),
    ],
    ids=["empty", "start", "gif", "cmyk", "rgb", "12 bits", "cut header", "arithmetic", "junk", "two exifs"],
)
def test_unusual_files_are_left_to_pillow(content):
    assert jpeg.header(content) is None


def test_files_with_a_pillow_warning_are_left_to_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 203 * 149 - 1)
    assert jpeg.header(PLAIN) is None
    with open_stored(PLAIN) as image, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image.pixels(1, True, 149).shape == (149, 203, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match=mentioning("too large")), open_stored(PLAIN):
        pass


def decode(content, scale):
    """The pixels or the reason of the error."""
    try:
        with open_stored(content) as image:
            return image.pixels(scale if scale in image.scales else 1, True, image.height)
    except UnreadableImageError as error:
        return error.reason


def pillow_decode(content, scale):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return by_pillow(content, scale)
    except Exception:
        return None


@pytest.mark.parametrize("scale", [1, 4])
@given(
    place=st.integers(2, len(PLAIN) - 1),
    damage=st.sampled_from(["cut", "flip", "zero", "drop", "end"]),
    value=st.integers(1, 255),
)
@example(place=PLAIN.index(b"\xff\xc0") + 6, damage="flip", value=128)  # 21 rows
def test_damaged_files_give_the_pixels_or_the_error_of_pillow(scale, place, damage, value):
    """Except for lost pixels, which are an error here."""
    content = {
        "cut": PLAIN[:place],
        "flip": PLAIN[:place] + bytes([PLAIN[place] ^ value]) + PLAIN[place + 1 :],
        "zero": PLAIN[:place] + bytes(value) + PLAIN[place + value :],
        "drop": PLAIN[:place] + PLAIN[place + 1 :],
        "end": PLAIN + bytes(value),
    }[damage]
    found = jpeg.header(content)
    if found is not None and scale not in jpeg.scales(found):
        scale = 1  # the damage changed the size
    actual, expected = decode(content, scale), pillow_decode(content, scale)
    if expected is None or min(expected.shape[:2]) * scale < 2:
        assert isinstance(actual, str)
    elif isinstance(actual, str):
        assert "damaged inside" in actual
        with pytest.raises(ValueError, match="Corrupt JPEG"):
            simplejpeg.decode_jpeg(content)
    else:
        assert np.array_equal(actual, expected)


def with_scans(count, **options):
    """A progressive image whose last scan is repeated."""
    content = encoded(scene(mode="L"), progressive=True, **options)
    start, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:start] + content[start:end] * count + content[end:]


def test_too_many_scans_are_rejected_before_decoding(monkeypatch):
    """Each scan is a pass over all pixels: 1,500 in a small file take a minute."""
    content = with_scans(100)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(image_io, "to_rgb", None)
    # With an orientation in XMP, Pillow reads the image.
    for variant in (content, with_segment(content, 0xE1, XMP)):
        assert "scans" in decode(variant, 1)


def test_scan_limit_ignores_usual_scans_trailing_data_and_thumbnails():
    trailing = b"\xff\xda\0\x02" * 500  # for example a video of a phone
    thumbnail = with_segment(PLAIN, 0xE1, b"Exif\0\0" + b"\xff\xda" * 500)
    for content in (with_scans(20), encoded(scene(), progressive=True) + trailing, thumbnail):
        assert decode(content, 1).shape == (149, 203, 3)


def test_large_image_may_have_fewer_scans(monkeypatch):
    monkeypatch.setattr(jpeg, "_MAX_SCANNED", 12 * 203 * 149)
    assert mentions(decode(with_scans(20), 1), "12", "JPEG")
    assert decode(encoded(scene(), progressive=True), 1).shape == (149, 203, 3)


def without_second_half(content):
    """A file that lost its second half, except for the end marker."""
    return content[: len(content) // 2] + b"\xff\xd9"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        encoded(scene(), progressive=True),
        encoded(scene(), restart_marker_blocks=3),
        encoded(scene(mode="L")),
        encoded(scene(mode="CMYK")),
        encoded(scene(), keep_rgb=True),
        with_segment(PLAIN, 0xE1, XMP),
    ],
    ids=["ordinary", "progressive", "restarts", "gray", "cmyk", "rgb", "rotated in XMP"],
)
@pytest.mark.parametrize("scale", [1, 8])
def test_image_with_lost_pixels_is_rejected(content, scale):
    """Decoders show gray pixels instead and give at most a warning."""
    assert decode(content, scale).shape[2] == 3
    assert "damaged inside" in decode(without_second_half(content), scale)


def test_unused_bytes_before_the_end_marker_are_accepted():
    """Some cameras write them."""
    content = PLAIN[:-2] + b"abc" * 10 + PLAIN[-2:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(content)
    assert np.array_equal(decode(content, 1), decode(PLAIN, 1))
