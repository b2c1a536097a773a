"""JPEG past Pillow: the same pixels to the bit, and Pillow's own answer for everything unusual."""

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
def test_pixels_are_pillows_to_the_bit_at_every_scale(content, scale):
    found = jpeg.header(content)
    with Image.open(io.BytesIO(content)) as image:
        assert (found.width, found.height, found.orientation) == (*image.size, 1)
    assert jpeg.scales(found) == (1, 2, 4, 8)
    assert np.array_equal(jpeg.decode(content, found, scale), by_pillow(content, scale))


SAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def sampled(sampling):
    if sampling == "Gray":
        return encoded(scene(mode="L"))
    return simplejpeg.encode_jpeg(np.array(scene()), 90, colorsubsampling=sampling)


@pytest.mark.parametrize("scale", jpeg.SCALES)
@pytest.mark.parametrize("bottom", [1, 16, 17, 77, 128])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rows_that_are_needed_are_those_of_the_whole_image(sampling, bottom, scale):
    """To the bit, up to the end of the row of blocks (8 or 16 rows): however colors are stored."""
    content = sampled(sampling)
    found = jpeg.header(content)
    whole = jpeg.decode(content, found, scale, exact=False)
    blocks = 16 if sampling in ("420", "440") else 8
    part = jpeg.decode(content, found, scale, exact=False, bottom=bottom)
    assert part.shape == (-(-bottom // blocks) * blocks // scale, whole.shape[1], 3)
    assert np.array_equal(part, whole[: len(part)])
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
def test_where_the_first_rows_do_not_stand_alone_all_are_decoded_at_once(content, monkeypatch):
    found = jpeg.header(content)
    whole = jpeg.decode(content, found, 1, exact=False)
    monkeypatch.setattr(jpeg, "_first_rows", None)
    assert np.array_equal(jpeg.decode(content, found, 1, exact=False, bottom=20), whole)


def test_a_scan_of_one_color_has_others_below_it():
    """The scan's header: its length, two bytes, then how many colors it holds."""
    place = PLAIN.index(b"\xff\xda") + 4
    assert jpeg.header(PLAIN).rows_in_order is not None
    assert jpeg.header(PLAIN[:place] + b"\x01" + PLAIN[place + 1 :]).rows_in_order is None
    assert jpeg.header(PLAIN[:place]).rows_in_order is None  # cut off there


def test_what_lies_above_is_as_sure_as_before_and_what_lies_below_goes_unseen():
    found = jpeg.header(PLAIN)
    read = partial(jpeg.decode, found=found, scale=1, exact=False)
    whole, low = read(PLAIN), len(PLAIN) * 4 // 5
    harmed = PLAIN[:low] + b"\xff\x00" * 4 + PLAIN[low + 8 :]  # 32 bits set: no code is so long
    assert np.array_equal(read(harmed, bottom=30), whole[:32])
    for bottom in (None, 140):
        with pytest.raises(jpeg.DamagedJpegError, match="damaged inside"):
            read(harmed, bottom=bottom)
    # Cut off or another image's beginning, wherever: it is seen, because the end is looked for.
    assert read(PLAIN[:low] + b"\xff\xd8" + PLAIN[low + 2 :], bottom=30) is None
    for length in (low, len(PLAIN) - 2):
        assert read(PLAIN[:length], bottom=30) is None


def unless_lost(content, found, bottom):
    try:
        return jpeg.decode(content, found, 1, exact=False, bottom=bottom)
    except jpeg.DamagedJpegError:
        return None


@given(place=st.integers(2, len(PLAIN) - 1), value=st.integers(1, 255), bottom=st.integers(1, 149))
def test_damage_changes_the_needed_rows_as_it_changes_the_whole_image(place, value, bottom):
    content = PLAIN[:place] + bytes([PLAIN[place] ^ value]) + PLAIN[place + 1 :]
    if (found := jpeg.header(content)) is None:
        return
    part, whole = unless_lost(content, found, bottom), unless_lost(content, found, None)
    if whole is not None:
        assert part is not None
    elif part is not None:  # the damage is below, and the decoder goes on where it is not to stop at it
        whole = simplejpeg.decode_jpeg(content, fastupsample=True, strict=False)
    if part is not None:
        assert np.array_equal(part, whole[: len(part)])


def test_images_of_few_pixels_are_decoded_whole():
    assert jpeg.scales(jpeg.Header(63, 500, 1)) == (1,)


@pytest.mark.parametrize("value", [1, 3, 6, 8, 0, 9, 77])
def test_the_orientation_is_exifs_and_1_where_that_is_nonsense(value):
    assert jpeg.header(encoded(scene(), exif=oriented(value))).orientation == (value if 1 <= value <= 8 else 1)


def test_damaged_metadata_leaves_a_image_upright():
    assert jpeg.header(encoded(scene(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).orientation == 1


def test_orientation_in_xmp_counts_as_in_pillow():
    """Where EXIF says nothing, Pillow reads XMP; so the image is left to it. EXIF goes first."""
    assert jpeg.header(with_segment(PLAIN, 0xE1, XMP)) is None
    with open_stored(with_segment(PLAIN, 0xE1, XMP)) as picture:
        assert picture.orientation == 6
    both = with_segment(encoded(scene(), exif=oriented(3)), 0xE1, XMP)
    assert jpeg.header(both).orientation == 3


def keep_untransformed():
    """An RGB image stored without the transform to YCbCr, which Adobe's segment says."""
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


def test_images_that_pillow_warns_of_are_left_to_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 203 * 149 - 1)
    assert jpeg.header(PLAIN) is None
    with open_stored(PLAIN) as picture, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture.pixels(1, True, 149).shape == (149, 203, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match=mentioning("too large")), open_stored(PLAIN):
        pass


def answer(content, scale):
    """The pixels, or why there are none."""
    try:
        with open_stored(content) as picture:
            return picture.pixels(scale if scale in picture.scales else 1, True, picture.height)
    except UnreadableImageError as error:
        return error.reason


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
@example(place=PLAIN.index(b"\xff\xc0") + 6, what="flip", value=128)  # 21 rows
def test_damaged_files_are_refused_or_read_as_pillow_does(scale, place, what, value):
    """Whatever byte is changed, the answer is Pillow's, but for pixels that were lost: to the bit, or its refusal."""
    content = {
        "cut": PLAIN[:place],
        "flip": PLAIN[:place] + bytes([PLAIN[place] ^ value]) + PLAIN[place + 1 :],
        "zero": PLAIN[:place] + bytes(value) + PLAIN[place + value :],
        "drop": PLAIN[:place] + PLAIN[place + 1 :],
        "end": PLAIN + bytes(value),
    }[what]
    found = jpeg.header(content)
    if found is not None and scale not in jpeg.scales(found):
        scale = 1  # the damage made it a small image
    ours, theirs = answer(content, scale), pillows_answer(content, scale)
    if theirs is None or min(theirs.shape[:2]) * scale < 2:
        assert isinstance(ours, str)
    elif isinstance(ours, str):
        assert "damaged inside" in ours
        with pytest.raises(ValueError, match="Corrupt JPEG"):
            simplejpeg.decode_jpeg(content)
    else:
        assert np.array_equal(ours, theirs)


def with_scans(count, **options):
    """A progressive image whose last scan is there many times."""
    content = encoded(scene(mode="L"), progressive=True, **options)
    start, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:start] + content[start:end] * count + content[end:]


def test_very_many_scans_are_refused_before_decoding(monkeypatch):
    """Each is a pass over all pixels: 1,500 in a small file take a minute."""
    content = with_scans(100)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(image_io, "to_rgb", None)
    # With an orientation in XMP it is Pillow that reads the image.
    for one in (content, with_segment(content, 0xE1, XMP)):
        assert "scans" in answer(one, 1)


def test_what_encoders_write_and_what_stands_behind_an_image_is_no_scan():
    behind = b"\xff\xda\0\x02" * 500  # such as a film that a phone adds
    thumbnail = with_segment(PLAIN, 0xE1, b"Exif\0\0" + b"\xff\xda" * 500)
    for content in (with_scans(20), encoded(scene(), progressive=True) + behind, thumbnail):
        assert answer(content, 1).shape == (149, 203, 3)


def test_scans_of_a_large_image_are_fewer(monkeypatch):
    monkeypatch.setattr(jpeg, "_MAX_SCANNED", 12 * 203 * 149)
    assert mentions(answer(with_scans(20), 1), "12", "JPEG")
    assert answer(encoded(scene(), progressive=True), 1).shape == (149, 203, 3)


def half_of(content):
    """What a disk leaves that lost the middle: the end's marker is there."""
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
    ids=["ordinary", "progressive", "restarts", "gray", "cmyk", "rgb", "turned in XMP"],
)
@pytest.mark.parametrize("scale", [1, 8])
def test_an_image_that_lost_pixels_is_not_whole(content, scale):
    """Decoders show gray in their place, and warn at most."""
    assert answer(content, scale).shape[2] == 3
    assert "damaged inside" in answer(half_of(content), scale)


def test_bytes_left_over_are_no_damage():
    """Cameras write some before the end's marker."""
    content = PLAIN[:-2] + b"abc" * 10 + PLAIN[-2:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(content)
    assert np.array_equal(answer(content, 1), answer(PLAIN, 1))
