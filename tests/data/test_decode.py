"""The square of pixels that comes of a crop."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageOps

import efficientnetv2.data.jpeg
from efficientnetv2.data.crop import CROP_UNIFORMS, draw_crop
from efficientnetv2.data.decode import load_eval_image, load_train_image
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.random_key import Key

ASPECT = (3 / 4, 4 / 3)
ROWS = Key.of(0).uniform_rows(range(4000), CROP_UNIFORMS)


def scene(width=500, height=375):
    """A image as smooth and as detailed as a photograph, without noise that no two scalings agree on."""
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


def decoded(content):
    return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")


def difference(ours, theirs):
    """Mean over all values, in gray levels."""
    return float(np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).mean())


def snapped(box, px):
    """To whole pixels of the smallest decode that suffices: 1/8, 1/4, 1/2 or all of each side."""
    scale = max(one for one in (1, 2, 4, 8) if one == 1 or one * px <= min(box.width, box.height))
    return tuple(scale * round(edge / scale) for edge in box)


SCENE = jpeg(scene())


def test_a_training_image_is_the_drawn_crop_resized_once():
    """At a size that needs the full decode it is Pillow's own resize of the crop, but for rounding."""
    content = jpeg(scene(), subsampling="4:4:4")
    for row in ROWS[:5]:
        ours = load_train_image(content, image_size=300, crop_mode="center", area_min=0.5, uniforms=row)
        crop = decoded(content).crop(snapped(draw_crop(500, 375, 0.5, ASPECT, row), 300))
        theirs = crop.resize((300, 300), Image.Resampling.BICUBIC)
        assert difference(ours, theirs) < 0.2
        assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 2
    assert ours.dtype == np.uint8
    assert ours.flags.writeable


def test_whole_without_a_crop_is_the_whole_image_squeezed():
    content = jpeg(scene(), subsampling="4:4:4")
    ours = load_train_image(
        content, image_size=320, crop_mode="squash", area_min=1, uniforms=ROWS[0], interpolation="bilinear"
    )
    assert difference(ours, decoded(content).resize((320, 320), Image.Resampling.BILINEAR)) < 0.1


def test_colors_stored_at_half_the_resolution_are_repeated_in_training_and_interpolated_in_evaluation():
    ours = load_train_image(SCENE, image_size=320, crop_mode="squash", area_min=1, uniforms=ROWS[0])
    exact = load_eval_image(SCENE, Preprocessing(320))
    assert difference(exact, decoded(SCENE).resize((320, 320), Image.Resampling.BICUBIC)) < 0.1
    assert 0 < difference(ours, exact) < 0.4


def test_whole_draws_crops_relative_to_the_images_own_shape():
    """Of a ribbon 8 times as wide as high, 80 % can be drawn: a crop in pixels would lose most of it."""
    ramp = np.tile(np.linspace(0, 255, 800).astype(np.uint8)[None, :, None], (100, 1, 3))
    ramp = Image.fromarray(ramp)
    for row in ROWS[:20]:
        seen = load_train_image(ramp, image_size=50, crop_mode="squash", area_min=0.8, uniforms=row)
        assert int(seen.max()) - int(seen.min()) > 0.75 * 255
    strict = load_train_image(ramp, image_size=50, crop_mode="center", area_min=0.8, uniforms=ROWS[0])
    assert int(strict.max()) - int(strict.min()) < 0.25 * 255


def test_pad_keeps_the_shape_and_fills_with_the_mean():
    red = Image.new("RGB", (40, 20), (255, 0, 0))
    training = load_train_image(red, image_size=32, crop_mode="border", area_min=1, uniforms=ROWS[0], mean=(0, 1, 0.5))
    evaluation = load_eval_image(red, Preprocessing(32, crop_mode="border", mean=(0, 1, 0.5)))
    for ours in (training, evaluation):
        assert (ours[8:24] == (255, 0, 0)).all()
        assert (ours[:8] == (0, 255, 128)).all()
        assert (ours[24:] == (0, 255, 128)).all()


@pytest.mark.parametrize("px", [32, 64, 100, 128, 180, 224])
@pytest.mark.parametrize("crop_mode", ["squash", "center"])
def test_a_scaled_decode_shows_what_a_full_one_does(px, crop_mode):
    box = None if crop_mode == "squash" else (62.5, 0, 437.5, 375)
    for kind in ("bilinear", "bicubic"):
        full = decoded(SCENE).resize((px, px), getattr(Image.Resampling, kind.upper()), box=box)
        evaluated = load_eval_image(SCENE, Preprocessing(px, crop_mode=crop_mode, interpolation=kind))
        assert difference(evaluated, full) < 1.0
    if crop_mode == "squash":
        trained = load_train_image(SCENE, image_size=px, crop_mode="squash", area_min=1, uniforms=ROWS[0])
        assert difference(trained, full) < 3.0


def test_small_training_images_are_decoded_at_a_smaller_scale(monkeypatch):
    """Of 500 x 375 px whole, 128 px need 1/2 (188 lines), 40 px 1/8 (47); evaluation twice as many."""
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
def test_rows_below_a_crop_are_not_decoded_and_not_missed(orientation, px, monkeypatch):
    """Wherever the crop lies and however the image is turned: to the bit as with all rows; often with fewer."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    decoded(SCENE).save(buffer, "JPEG", quality=90, exif=exif.tobytes())
    decode, rows = efficientnetv2.data.jpeg.decode, []

    def spy(content, found, scale, *, exact, bottom):
        part = decode(content, found, scale, exact=exact, bottom=bottom)
        rows.append(len(part) / -(-found.height // scale))
        return part

    def whole(content, found, scale, *, exact, bottom):
        return decode(content, found, scale, exact=exact)

    for row in ROWS[:12]:
        crop = partial(
            load_train_image, buffer.getvalue(), image_size=px, crop_mode="center", area_min=0.08, uniforms=row
        )
        monkeypatch.setattr(efficientnetv2.data.jpeg, "decode", spy)
        ours = crop()
        monkeypatch.setattr(efficientnetv2.data.jpeg, "decode", whole)
        assert np.array_equal(ours, crop())
    assert min(rows) < 0.8


def test_whole_may_leave_a_margin_out_as_some_of_timms_weights_want():
    """Squeezed to 240 x 240, then the center 216: nine tenths of each side."""
    theirs = decoded(SCENE).resize((240, 240), Image.Resampling.BICUBIC).crop((12, 12, 228, 228))
    ours = load_eval_image(SCENE, Preprocessing(216, crop_mode="squash", crop_pct=0.9))
    assert difference(ours, theirs) < 1
    assert difference(load_eval_image(SCENE, Preprocessing(216, crop_mode="squash")), theirs) > 4


def test_center_crop_is_the_fraction_of_the_shorter_side():
    """7/8 of 375 px about the center."""
    side = 375 * 0.875
    box = (250 - side / 2, 187.5 - side / 2, 250 + side / 2, 187.5 + side / 2)
    ours = load_eval_image(SCENE, Preprocessing(224, crop_mode="center", crop_pct=0.875))
    assert np.array_equal(ours, decoded(SCENE).resize((224, 224), Image.Resampling.BICUBIC, box=box))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("px", [60, 200])
def test_crops_are_those_of_the_upright_image(orientation, px):
    """Drawn from the header and cut from the image as stored, yet the same as turning it first."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(scene(496, 376), exif=exif)  # whole at all scales, so that mirrors of whole pixels are such
    upright = decoded(content)
    for row in ROWS[:6]:
        box = draw_crop(*upright.size, 0.2, ASPECT, row)
        expected = upright.crop(snapped(box, px)).resize((px, px), Image.Resampling.BICUBIC)
        ours = load_train_image(content, image_size=px, crop_mode="center", area_min=0.2, uniforms=row)
        assert difference(ours, expected) < 3.0
    center = load_eval_image(content, Preprocessing(px, crop_mode="center", crop_pct=0.8))
    plain = load_eval_image(upright, Preprocessing(px, crop_mode="center", crop_pct=0.8))
    assert difference(center, plain) < 1.5
    padded = load_eval_image(content, Preprocessing(px, crop_mode="border"))
    assert difference(padded, load_eval_image(upright, Preprocessing(px, crop_mode="border"))) < 1.5


@pytest.mark.parametrize("size", [(2, 2), (2, 9), (3, 400)])
@pytest.mark.parametrize("crop_mode", ["squash", "center", "border"])
def test_tiny_and_thin_images_are_framed_too(size, crop_mode):
    image = Image.new("RGB", size, (9, 8, 7))
    for row in ROWS[:20]:
        ours = load_train_image(image, image_size=24, crop_mode=crop_mode, area_min=0.05, uniforms=row, mean=(0, 0, 0))
        assert ours.shape == (24, 24, 3)
        assert (ours == (9, 8, 7)).all(-1).any()
    assert load_eval_image(image, Preprocessing(24, crop_mode=crop_mode)).shape == (24, 24, 3)


def test_damage_is_said_by_training_and_evaluation_alike():
    for content in (b"", SCENE[: len(SCENE) // 2]):
        with pytest.raises(UnreadableImageError):
            load_train_image(content, image_size=32, crop_mode="center", area_min=0.1, uniforms=ROWS[0])
        with pytest.raises(UnreadableImageError):
            load_eval_image(content, Preprocessing(32))


def test_decoded_pixels_are_a_source_too():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    words = {"image_size": 24, "crop_mode": "center", "area_min": 0.3, "uniforms": np.full(CROP_UNIFORMS, 0.4)}
    assert (load_train_image(pixels, **words) == load_train_image(Image.fromarray(pixels), **words)).all()
