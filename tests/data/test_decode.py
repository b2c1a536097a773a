"""Decoding a crop to a square image."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageOps

import efficientnetv2.data.jpeg
from efficientnetv2.data.decode import CROP_UNIFORMS, draw_crop, load_eval_image, load_train_image
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.random_key import Key

ASPECT = (3 / 4, 4 / 3)
ROWS = Key.of(0).uniform_rows(range(4000), CROP_UNIFORMS)


def scene(width=500, height=375):
    """An image as smooth and detailed as a photo, without noise, on which resize methods differ."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.sin(x / 37 + c) + np.cos(y / 23 - c) + 0.5 * np.sin((x + y) / 6) + np.sign(np.sin(x / 60 + y / 50))
        for c in range(3)
    ]
    return Image.fromarray((np.stack(waves, -1) * 36 + 128).clip(0, 255).astype(np.uint8))


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def decode_fully(content):
    return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")


def difference(actual, expected):
    """Mean over all values, in gray levels."""
    return float(np.abs(actual.astype(int) - np.asarray(expected).astype(int)).mean())


def snap_box(box, px):
    """The box at full pixels of the smallest sufficient decode: 1/8, 1/4, 1/2 or all of each side."""
    scale = max(s for s in (1, 2, 4, 8) if s == 1 or s * px <= min(box.width, box.height))
    return tuple(scale * round(edge / scale) for edge in box)


SCENE = jpeg(scene())


def test_training_image_is_the_drawn_crop_resized_once():
    """At a size that needs the full decode it is Pillow's resize of the crop, except for rounding."""
    content = jpeg(scene(), subsampling="4:4:4")
    for row in ROWS[:5]:
        actual = load_train_image(content, image_size=300, crop_mode="center", area_min=0.5, uniforms=row)
        crop = decode_fully(content).crop(snap_box(draw_crop(500, 375, 0.5, ASPECT, row), 300))
        expected = crop.resize((300, 300), Image.Resampling.BICUBIC)
        assert difference(actual, expected) < 0.2
        assert np.abs(actual.astype(int) - np.asarray(expected)).max() <= 2
    assert actual.dtype == np.uint8
    assert actual.flags.writeable


def test_squash_without_a_crop_resizes_the_full_image():
    content = jpeg(scene(), subsampling="4:4:4")
    actual = load_train_image(
        content, image_size=320, crop_mode="squash", area_min=1, uniforms=ROWS[0], interpolation="bilinear"
    )
    assert difference(actual, decode_fully(content).resize((320, 320), Image.Resampling.BILINEAR)) < 0.1


def test_chroma_is_repeated_in_training_and_interpolated_in_evaluation():
    actual = load_train_image(SCENE, image_size=320, crop_mode="squash", area_min=1, uniforms=ROWS[0])
    exact = load_eval_image(SCENE, Preprocessing(320))
    assert difference(exact, decode_fully(SCENE).resize((320, 320), Image.Resampling.BICUBIC)) < 0.1
    assert 0 < difference(actual, exact) < 0.4


def test_squash_draws_crops_relative_to_the_aspect_ratio():
    """In an image 8 times as wide as high, crops of 80 % are possible. A crop of fixed aspect ratio loses most."""
    ramp = np.tile(np.linspace(0, 255, 800).astype(np.uint8)[None, :, None], (100, 1, 3))
    ramp = Image.fromarray(ramp)
    for row in ROWS[:20]:
        pixels = load_train_image(ramp, image_size=50, crop_mode="squash", area_min=0.8, uniforms=row)
        assert int(pixels.max()) - int(pixels.min()) > 0.75 * 255
    center_crop = load_train_image(ramp, image_size=50, crop_mode="center", area_min=0.8, uniforms=ROWS[0])
    assert int(center_crop.max()) - int(center_crop.min()) < 0.25 * 255


def test_border_keeps_the_aspect_ratio_and_fills_with_the_mean():
    red = Image.new("RGB", (40, 20), (255, 0, 0))
    training = load_train_image(red, image_size=32, crop_mode="border", area_min=1, uniforms=ROWS[0], mean=(0, 1, 0.5))
    evaluation = load_eval_image(red, Preprocessing(32, crop_mode="border", mean=(0, 1, 0.5)))
    for actual in (training, evaluation):
        assert (actual[8:24] == (255, 0, 0)).all()
        assert (actual[:8] == (0, 255, 128)).all()
        assert (actual[24:] == (0, 255, 128)).all()


@pytest.mark.parametrize("px", [32, 64, 100, 128, 180, 224])
@pytest.mark.parametrize("crop_mode", ["squash", "center"])
def test_scaled_decode_equals_a_full_decode(px, crop_mode):
    box = None if crop_mode == "squash" else (62.5, 0, 437.5, 375)
    for interpolation in ("bilinear", "bicubic"):
        full = decode_fully(SCENE).resize((px, px), getattr(Image.Resampling, interpolation.upper()), box=box)
        evaluated = load_eval_image(SCENE, Preprocessing(px, crop_mode=crop_mode, interpolation=interpolation))
        assert difference(evaluated, full) < 1.0
    if crop_mode == "squash":
        trained = load_train_image(SCENE, image_size=px, crop_mode="squash", area_min=1, uniforms=ROWS[0])
        assert difference(trained, full) < 3.0


def test_small_training_images_are_decoded_at_a_smaller_scale(monkeypatch):
    """From 500 x 375 px, 128 px need 1/2 (188 rows), 40 px 1/8 (47); evaluation needs twice as many."""
    sizes = []

    def spy(content, found, scale, *, exact, bottom):
        pixels = decode(content, found, scale, exact=exact, bottom=bottom)
        sizes.append(pixels.shape[1::-1])
        return pixels

    decode = efficientnetv2.data.jpeg.decode
    monkeypatch.setattr(efficientnetv2.data.jpeg, "decode", spy)
    for px in (300, 128, 64, 40):
        load_train_image(SCENE, image_size=px, crop_mode="squash", area_min=1, uniforms=ROWS[0])
        load_eval_image(SCENE, Preprocessing(px))
    assert sizes == [
        (500, 375), (500, 375), (250, 188), (500, 375), (125, 94), (250, 188), (63, 47), (125, 94),
    ]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("px", [32, 128])
def test_rows_below_a_crop_are_not_decoded(orientation, px, monkeypatch):
    """For any crop and orientation the result has the same bits, often from fewer rows."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    decode_fully(SCENE).save(buffer, "JPEG", quality=90, exif=exif.tobytes())
    decode, rows = efficientnetv2.data.jpeg.decode, []

    def spy(content, found, scale, *, exact, bottom):
        pixels = decode(content, found, scale, exact=exact, bottom=bottom)
        rows.append(len(pixels) / -(-found.height // scale))
        return pixels

    def decode_all(content, found, scale, *, exact, bottom):
        return decode(content, found, scale, exact=exact)

    for row in ROWS[:12]:
        crop = partial(
            load_train_image, buffer.getvalue(), image_size=px, crop_mode="center", area_min=0.08, uniforms=row
        )
        monkeypatch.setattr(efficientnetv2.data.jpeg, "decode", spy)
        actual = crop()
        monkeypatch.setattr(efficientnetv2.data.jpeg, "decode", decode_all)
        assert np.array_equal(actual, crop())
    assert min(rows) < 0.8


def test_squash_supports_a_crop_fraction():
    """Resized to 240 x 240, then the central 216, as some timm weights require."""
    expected = decode_fully(SCENE).resize((240, 240), Image.Resampling.BICUBIC).crop((12, 12, 228, 228))
    actual = load_eval_image(SCENE, Preprocessing(216, crop_mode="squash", crop_pct=0.9))
    assert difference(actual, expected) < 1
    assert difference(load_eval_image(SCENE, Preprocessing(216, crop_mode="squash")), expected) > 4


def test_center_crop_is_a_fraction_of_the_shorter_side():
    """7/8 of 375 px at the center."""
    side = 375 * 0.875
    box = (250 - side / 2, 187.5 - side / 2, 250 + side / 2, 187.5 + side / 2)
    actual = load_eval_image(SCENE, Preprocessing(224, crop_mode="center", crop_pct=0.875))
    assert np.array_equal(actual, decode_fully(SCENE).resize((224, 224), Image.Resampling.BICUBIC, box=box))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("px", [60, 200])
def test_crops_are_of_the_image_after_exif_orientation(orientation, px):
    """Drawn from the header and cut from the stored image, with the result of rotating first."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(scene(496, 376), exif=exif)  # divisible at all scales, so mirrored boxes are integers
    upright = decode_fully(content)
    for row in ROWS[:6]:
        box = draw_crop(*upright.size, 0.2, ASPECT, row)
        expected = upright.crop(snap_box(box, px)).resize((px, px), Image.Resampling.BICUBIC)
        actual = load_train_image(content, image_size=px, crop_mode="center", area_min=0.2, uniforms=row)
        assert difference(actual, expected) < 3.0
    center = load_eval_image(content, Preprocessing(px, crop_mode="center", crop_pct=0.8))
    plain = load_eval_image(upright, Preprocessing(px, crop_mode="center", crop_pct=0.8))
    assert difference(center, plain) < 1.5
    padded = load_eval_image(content, Preprocessing(px, crop_mode="border"))
    assert difference(padded, load_eval_image(upright, Preprocessing(px, crop_mode="border"))) < 1.5


@pytest.mark.parametrize("size", [(2, 2), (2, 9), (3, 400)])
@pytest.mark.parametrize("crop_mode", ["squash", "center", "border"])
def test_tiny_and_narrow_images_are_resized(size, crop_mode):
    image = Image.new("RGB", size, (9, 8, 7))
    for row in ROWS[:20]:
        actual = load_train_image(
            image, image_size=24, crop_mode=crop_mode, area_min=0.05, uniforms=row, mean=(0, 0, 0)
        )
        assert actual.shape == (24, 24, 3)
        assert (actual == (9, 8, 7)).all(-1).any()
    assert load_eval_image(image, Preprocessing(24, crop_mode=crop_mode)).shape == (24, 24, 3)


def test_damaged_image_is_an_error_in_training_and_evaluation():
    for content in (b"", SCENE[: len(SCENE) // 2]):
        with pytest.raises(UnreadableImageError):
            load_train_image(content, image_size=32, crop_mode="center", area_min=0.1, uniforms=ROWS[0])
        with pytest.raises(UnreadableImageError):
            load_eval_image(content, Preprocessing(32))


def test_decoded_pixels_are_a_source():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    options = {"image_size": 24, "crop_mode": "center", "area_min": 0.3, "uniforms": np.full(CROP_UNIFORMS, 0.4)}
    assert (load_train_image(pixels, **options) == load_train_image(Image.fromarray(pixels), **options)).all()


@pytest.mark.parametrize("exact", [True, False])
def test_crop_of_the_requested_size_has_the_pixels_of_the_image(exact):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    pixels.flags.writeable = False
    if exact:
        crop = load_eval_image(pixels, Preprocessing(image_size=56, crop_mode="center", crop_pct=0.875))
        expected = pixels[4:60, 12:68]
    else:
        uniforms = np.full(CROP_UNIFORMS, 0.5)
        crop = load_train_image(pixels[:, :64], image_size=64, crop_mode="squash", area_min=1.0, uniforms=uniforms)
        expected = pixels[:, :64]
    np.testing.assert_array_equal(crop, expected)
    assert crop.flags.writeable
    assert not np.shares_memory(crop, pixels)
