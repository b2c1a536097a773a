"""Every image mode is converted to RGB, and every damaged file has a reason."""

import io
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.messages import mentioning, mentions

from efficientnetv2.data.decode import load_eval_image, load_image
from efficientnetv2.data.image_io import UnreadableImageError, fault_of, max_level
from efficientnetv2.preprocessing import Preprocessing

SIDE = 8


def encoded(image, format_="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def uniform_image(mode, value, **options):
    return encoded(Image.new(mode, (SIDE, SIDE), value), **options)


def color_of(source):
    image = load_image(source)
    assert image.mode == "RGB"
    colors = {color for _, color in image.getcolors()}
    assert len(colors) == 1
    return colors.pop()


@pytest.mark.parametrize(
    ("mode", "value", "options", "expected"),
    [
        ("RGB", (10, 20, 30), {}, (10, 20, 30)),
        ("L", 77, {}, (77, 77, 77)),
        ("1", 1, {}, (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), {}, (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), {}, (255, 255, 255)),  # transparent pixels become white
        ("RGBA", (0, 100, 200, 51), {}, (204, 224, 244)),  # 255 * 0.8 + 0.2 * value
        ("LA", (0, 51), {}, (204, 204, 204)),
        ("L", 9, {"transparency": 9}, (255, 255, 255)),
        ("RGB", (1, 2, 3), {"transparency": (1, 2, 3)}, (255, 255, 255)),
        ("CMYK", (0, 0, 0, 0), {"format_": "TIFF"}, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), {"format_": "TIFF"}, (255, 0, 0)),
        ("I;16", 0x1234, {}, (0x12, 0x12, 0x12)),  # the upper 8 of 16 bits
        ("I;16", 0xFFFF, {"format_": "TIFF"}, (255, 255, 255)),
        ("I", 0x8000, {"format_": "TIFF"}, (128, 128, 128)),
        ("F", 0.5, {"format_": "TIFF"}, (127, 127, 127)),
        ("F", float("nan"), {"format_": "TIFF"}, (0, 0, 0)),
    ],
)
def test_mode_is_converted_to_rgb(mode, value, options, expected):
    assert color_of(uniform_image(mode, value, **options)) == expected


def tiff(values):
    return encoded(Image.fromarray(values), "TIFF")


def test_float_values_are_not_scaled_by_their_maximum():
    """Otherwise one pixel makes all others of an image darker."""
    values = np.linspace(0.1, 0.9, 64 * 64, dtype=np.float32).reshape(64, 64)
    other = values.copy()
    other[0, 0] = 1.05
    first, second = (np.asarray(load_image(tiff(array))) for array in (values, other))
    assert np.array_equal(first[1:], second[1:])
    assert abs(int(first.max()) - 0.9 * 255) <= 1


@pytest.mark.parametrize(
    "values",
    [
        np.full((8, 8), 130, np.float32),
        np.full((8, 8), -0.5, np.float32),
        np.full((8, 8), 1 << 20, np.int32),
        np.full((8, 8), -9999, np.int32),
    ],
)
def test_float_values_of_an_unknown_range_are_rejected(values):
    with pytest.raises(UnreadableImageError, match=mentioning(f"{values.min():g}", "geo")):
        load_image(tiff(values))


def test_narrow_cmyk_jpeg_is_read_at_its_smallest_scale():
    image = Image.frombytes("CMYK", (7, 20), bytes(range(140)) * 4)
    file = io.BytesIO()
    image.save(file, "JPEG")
    assert 0 < max_level(file.getvalue()) <= 255
    assert load_image(file.getvalue()).size == (7, 20)


def test_cmyk_jpeg_is_not_inverted():
    red, green, blue = color_of(uniform_image("CMYK", (0, 255, 255, 0), format_="JPEG", quality=95))
    assert red > 245
    assert max(green, blue) < 10


def test_lab_is_converted():
    """L* = 100 is white and L* = 0 is black for every profile."""
    white, black = (Image.new("LAB", (SIDE, SIDE), (level, 128, 128)) for level in (255, 0))
    assert min(color_of(encoded(white, "TIFF"))) > 250
    assert max(color_of(encoded(black, "TIFF"))) < 5


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert color_of(encoded(image)) == (200, 100, 50)
    assert color_of(encoded(image, "GIF")) == (200, 100, 50)
    assert color_of(encoded(image, transparency=1)) == (255, 255, 255)
    within = Image.new("RGBA", (SIDE, SIDE), (200, 100, 50, 0)).quantize()
    assert within.palette.mode == "RGBA"
    assert color_of(within) == (255, 255, 255)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "ICO", "AVIF"])
def test_formats_are_recognized_by_content(tmp_path, format_):
    """From a path with the wrong suffix, as Path or str, and from bytes."""
    content = uniform_image("RGB", (250, 250, 250), format_=format_)
    (tmp_path / "image.jpg").write_bytes(content)
    for source in (tmp_path / "image.jpg", str(tmp_path / "image.jpg"), content):
        assert color_of(source) == pytest.approx((250, 250, 250), abs=3)


def slope():
    y, x = np.mgrid[0:24, 0:40]
    return Image.fromarray(np.stack([x * 6, y * 10, 255 - x * 6], -1).astype(np.uint8))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(format_, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(slope(), format_, exif=exif, **({"quality": 95} if format_ == "JPEG" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    actual = load_image(content)
    assert actual.size == ((24, 40) if orientation >= 5 else (40, 24))
    assert np.array_equal(np.asarray(actual), np.asarray(expected))


def test_damaged_metadata_is_ignored():
    content = encoded(slope(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert load_image(content).size == (40, 24)
    exif = Image.Exif()
    exif[0x0112] = 77
    assert load_image(encoded(slope(), "PNG", exif=exif)).size == (40, 24)


def test_pillow_image_is_accepted_and_unchanged():
    image = Image.open(io.BytesIO(encoded(slope(), "JPEG")))
    assert load_eval_image(image, Preprocessing(3)).shape == (3, 3, 3)  # a file is decoded at 1/4
    assert image.size == (40, 24)
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(image))


def truncated_png():
    content = encoded(Image.effect_noise((64, 64), 90))
    return content[: len(content) // 2]


def png_with_damaged_data():
    """The compressed pixels start at byte 41: signature 8, header 25, length and name of the chunk 8."""
    content = encoded(Image.effect_noise((64, 64), 90))
    return content[:41] + b"\xff" * 8 + content[49:]


def truncated_jpeg():
    content = encoded(Image.effect_noise((64, 64), 90), "JPEG")
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<html>404 Not Found</html>", "is not an image"),
        (encoded(slope(), "PNG")[:20], "is cut short"),
        (truncated_png(), "is cut short"),
        (truncated_jpeg(), "is cut short"),
        (png_with_damaged_data(), "cannot be decoded"),
        (encoded(Image.new("RGB", (1, 30))), "is too small: 1×30 px"),
    ],
)
def test_reason_has_the_name_of_the_file(tmp_path, content, reason):
    file = tmp_path / "bad.jpg"
    file.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=f"bad.jpg: {reason}"):
        load_image(file)
    with pytest.raises(UnreadableImageError, match=f"the image: {reason}"):
        load_image(content)


def test_missing_files_and_folders_are_reported(tmp_path):
    with pytest.raises(UnreadableImageError, match=mentioning("gone.png")):
        load_image(tmp_path / "gone.png")
    with pytest.raises(UnreadableImageError, match="is a folder"):
        load_image(tmp_path)


def test_decompression_bombs_are_rejected_and_large_images_do_not_warn(monkeypatch):
    """Pillow warns above its limit and rejects above twice the limit: here 20 and 40 pixels."""
    content = encoded(Image.new("L", (10, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_image(content).size == (10, 3)
    assert caught == []
    with pytest.raises(UnreadableImageError, match=mentioning("too large")):
        load_image(encoded(Image.new("L", (10, 5))))


def test_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.jpg", "the file is empty")))
    assert mentions(str(error), "a.jpg", "empty")
    assert (error.name, error.reason) == ("a.jpg", "the file is empty")


def test_reason_is_not_taken_from_the_name_of_a_folder():
    error = PermissionError(13, "Permission denied", "/data/truncated_set/a.jpg")
    assert fault_of(error) == "may not be read (permission denied)"
    assert "truncated" in fault_of(OSError("image file is truncated"))
