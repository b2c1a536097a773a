"""Rasters with other than three bands: read, measured, cached, rejected."""

import shlex
import tracemalloc
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.command_line import effnetv2
from tests.conftest import paint
from tests.messages import mentioning, mentions
from tests.rasters import rasterio, write_raster

from efficientnetv2.data.bands import load_raster, measure_bands
from efficientnetv2.data.cache_writer import CacheJob, CacheSpec, cache_in_memory
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import load_eval_image, load_image, load_train_image
from efficientnetv2.data.geotiff import open_raster, read_raster, scale_to_uint8
from efficientnetv2.data.image_checks import validate_images
from efficientnetv2.data.image_io import DECODING, UnreadableImageError, display_channels
from efficientnetv2.data.readers import display_reader, source_reader
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.preprocessing import IMAGENET_MEAN, Bands, Preprocessing
from efficientnetv2.utils.errors import InputError

RNG = np.random.default_rng(0)


def random_uint16(bands=5, px=24, low=1_000, high=4_000):
    return RNG.integers(low, high, (bands, px, px)).astype(np.uint16)


def set_descriptions(path, *names):
    with rasterio.open(path, "r+") as target:
        target.descriptions = names
    return str(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 4, 13])
def test_every_type_is_read_as_by_rasterio(tmp_path, dtype, count):
    """Values of rasterio, scaled by hand in float64."""
    values = RNG.uniform(-500 if dtype[0] in "if" else 0, 200 if dtype == "uint8" else 9_000, (count, 12, 10))
    path = write_raster(tmp_path / "any.tif", values.astype(dtype))
    numbers = tuple(range(count, 0, -1))
    bands = Bands(numbers, low=tuple(100.0 + n for n in numbers), high=tuple(150.0 + n for n in numbers))
    with open_raster(path) as dataset, rasterio.open(path) as reference:
        found, valid = read_raster(dataset, bands)
        stored = reference.read(list(numbers)).astype(np.float64)
    expected = (stored - np.array(bands.low)[:, None, None]) / 50 * 255
    assert found.shape == (12, 10, count)
    assert valid.all()
    assert np.abs(found - expected.clip(0, 255).transpose(1, 2, 0)).max() <= 0.51


def test_scaling_of_all_bands_has_the_mean_and_deviation_of_each(tmp_path):
    """Compared with numpy on values scaled by hand."""
    files = [str(write_raster(tmp_path / f"{n}.tif", random_uint16(low=500 * n, high=2_000))) for n in range(3)]
    stored = np.concatenate([rasterio.open(file).read().reshape(5, -1) for file in files], axis=1)
    rule = measure_bands(files, None, seed=0)
    assert rule == measure_bands(files, "all", seed=0) == measure_bands(files, (1, 2, 3, 4, 5), seed=0)
    assert rule.numbers == (1, 2, 3, 4, 5)
    for band in range(5):
        low, high = np.percentile(stored[band], [1, 99])
        assert (rule.low[band], rule.high[band]) == pytest.approx((low, high))
        levels = ((stored[band] - low) / (high - low) * 255).clip(0, 255)
        assert rule.missing[band] == pytest.approx(levels.mean(), abs=0.51)
        assert rule.spread[band] == pytest.approx(levels.std(), rel=1e-3)
    preprocessing = Preprocessing(image_size=16).seeing(rule)
    pixels = np.stack([load_raster(file, rule) for file in files]).reshape(-1, 5) / 255
    normalized = (pixels - preprocessing.mean) / preprocessing.std
    assert np.abs(normalized.mean(axis=0)).max() < 0.02
    assert np.abs(normalized.std(axis=0) - 1).max() < 0.02
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


def test_three_bands_use_the_normalization_of_the_weights():
    rule = Bands((4, 3, 2), missing=(9, 9, 9), spread=(9, 9, 9))
    assert Preprocessing(image_size=16).seeing(rule).mean == IMAGENET_MEAN
    five = Preprocessing(image_size=16).seeing(Bands((1, 2, 3, 4, 5)))
    assert five.channels == 5
    rgb = five.with_channels(3)
    assert (rgb.channels, rgb.bands) == (3, None)
    with pytest.raises(ValueError, match=mentioning("3", "5", "band")):
        replace(Preprocessing(image_size=16), bands=five.bands)
    with pytest.raises(ValueError, match=mentioning("2", "5", "band")):
        Bands((1, 2, 3, 4, 5), low=(0, 1))


def test_missing_values_of_one_band(tmp_path):
    """NaN, or a nodata value other than 0, is missing in this band only. 0 is missing only if it is in all bands."""
    values = np.full((4, 4, 4), 500, np.int16)
    values[1, 0, 0], values[:, 0, 1] = -9999, -9999
    path = write_raster(tmp_path / "int.tif", values, nodata=-9999)
    bands = Bands((1, 2, 3, 4), low=(0,) * 4, high=(1000,) * 4, missing=(10, 20, 30, 40))
    with open_raster(path) as dataset:
        found, valid = read_raster(dataset, bands)
    assert found[0, 0].tolist() == [128, 20, 128, 128]
    assert found[0, 1].tolist() == [10, 20, 30, 40]
    assert valid.sum() == 15
    dark = np.full((4, 4, 4), 500, np.uint16)
    dark[3, 0, 0], dark[:, 0, 1] = 0, 0
    for name, declared, rule in (("dark", 0, bands), ("undeclared", None, replace(bands, nodata=(0.0,)))):
        with open_raster(write_raster(tmp_path / f"{name}.tif", dark, nodata=declared)) as dataset:
            found, valid = read_raster(dataset, rule)
        assert found[0, 0].tolist() == [128, 128, 128, 0], name
        assert found[0, 1].tolist() == [10, 20, 30, 40], name
        assert valid.sum() == 15, name
    # Missing values of a band are not measured.
    rule = measure_bands([str(path)], "all", seed=0)
    assert min(rule.low) == 500


def test_fourth_8_bit_band_that_gdal_calls_alpha(tmp_path):
    """By number it is a band and no mask. With "all" it is skipped."""
    values = np.full((4, 6, 6), 200, np.uint8)
    values[3, :3] = 0  # near infrared over water
    path = str(write_raster(tmp_path / "naip.tif", values, photometric="RGB", alpha="yes"))
    rule = measure_bands([path], (1, 2, 3, 4), seed=0)
    with open_raster(path) as dataset:
        found, valid = read_raster(dataset, rule)
    np.testing.assert_array_equal(found, values.transpose(1, 2, 0))
    assert valid.all()
    assert measure_bands([path], "all", seed=0).numbers == (1, 2, 3)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["squash", "center", "border"]), st.integers(1, 7), st.integers(0, 5))
def test_every_channel_is_resized_equally(crop_mode, channels, seed):
    """Each channel of an image equals the same channel of a three-channel image."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (int(rng.integers(20, 60)), int(rng.integers(20, 60)), channels), np.uint8)
    mean = tuple(rng.uniform(0.2, 0.8, channels))
    all_channels = Preprocessing(image_size=16, crop_mode=crop_mode, mean=mean, std=(0.2,) * channels)
    uniforms = rng.uniform(size=64).tolist()
    options = {"image_size": 16, "crop_mode": crop_mode, "area_min": 0.4, "uniforms": uniforms}
    evaluated, trained = load_eval_image(pixels, all_channels), load_train_image(pixels, mean=mean, **options)
    assert evaluated.shape == trained.shape == (16, 16, channels)
    for channel in range(channels):
        single = pixels[..., [channel] * 3]
        preprocessing = replace(all_channels, mean=(mean[channel],) * 3, std=(0.2,) * 3)
        np.testing.assert_array_equal(evaluated[..., channel], load_eval_image(single, preprocessing)[..., 0])
        expected = load_train_image(single, mean=preprocessing.mean, **options)[..., 0]
        np.testing.assert_allclose(trained[..., channel], expected, atol=1)


def test_three_bands_are_displayed(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    path = str(write_raster(tmp_path / "set/a/one.tif", random_uint16()))
    listed = load_dataset(tmp_path / "set", require_labels=False)
    rule = measure_bands([path], (4, 3, 2, 5, 1), seed=0)
    shown = np.asarray(load_image(display_reader(replace(listed, bands=rule)).source(0)))
    np.testing.assert_array_equal(shown, load_raster(path, rule)[..., :3])
    pair = measure_bands([path], (5, 2), seed=0)
    assert pair.shown.numbers == (5, 5, 5)
    np.testing.assert_array_equal(display_channels(load_raster(path, pair)), load_raster(path, pair.shown))


def test_cache_has_every_channel(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    for number in range(3):
        write_raster(tmp_path / f"set/a/{number}.tif", random_uint16(px=20 + number))
    listed = load_dataset(tmp_path / "set", require_labels=False)
    rule = measure_bands([listed.file(row) for row in range(3)], "all", seed=0)
    reader = source_reader(replace(listed, bands=rule))
    job = CacheJob(reader, 3, CacheSpec(64, "shorter"), 1)
    cached = cache_in_memory(job, room_bytes=1 << 30).reader(np.arange(3), reader)
    for row in range(3):
        np.testing.assert_array_equal(cached.source(row), reader.source(row))


def test_images_with_other_bands_are_rejected_by_file(tmp_path):
    five = set_descriptions(write_raster(tmp_path / "five.tif", random_uint16()), "B02", "B03", "B04", "B08", "B11")
    swapped = set_descriptions(
        write_raster(tmp_path / "swapped.tif", random_uint16()), "B04", "B03", "B02", "B08", "B11"
    )
    three = str(write_raster(tmp_path / "three.tif", random_uint16(3)))
    jpeg = str(paint(tmp_path / "photo.jpg", (9, 9, 9)))
    assert measure_bands([five], "all", seed=0).listed == "1 B02, 2 B03, 3 B04, 4 B08, 5 B11"
    with pytest.raises(InputError, match=mentioning("swapped.tif", "1", "B04", "3", "gdal_translate")):
        measure_bands([five, swapped], "all", seed=0)
    with pytest.raises(InputError, match=mentioning("three.tif", "3", "1", "B02", "5", "B11")):
        measure_bands([five], "all", seed=0, others=[three])
    with pytest.raises(InputError, match=mentioning("photo.jpg", "3", "5", "1", "B02")):
        measure_bands([five, jpeg], "all", seed=0)
    # Unknown names are accepted.
    other = set_descriptions(write_raster(tmp_path / "other.tif", random_uint16()), *"abcde")
    assert measure_bands([five, other], "all", seed=0).names[0] == "B02"


@pytest.mark.parametrize("bands", ["all", None])
@pytest.mark.parametrize(("fewer", "more"), [(1, 3), (1, 5), (3, 4), (3, 5)])
def test_more_bands_than_in_the_first_raster_are_rejected(tmp_path, bands, fewer, more):
    """Otherwise the first file of the folder would decide which bands are skipped."""
    small, large = (
        str(write_raster(tmp_path / f"{count}.tif", random_uint16(count), photometric="MINISBLACK"))
        for count in (fewer, more)
    )
    for first, other, counts in ((small, large, (more, fewer)), (large, small, (fewer, more))):
        message = mentioning(f"{other} has {counts[0]} band", f"{first} has {counts[1]}")
        with pytest.raises(InputError, match=message):
            measure_bands([first, other], bands, seed=0)
        with pytest.raises(InputError, match=message):
            measure_bands([first], bands, seed=0, others=[other])
    assert measure_bands([small, large], (1, 1, 1), seed=0).numbers == (1, 1, 1), "bands by number are always read"


def test_bands_next_to_red_green_and_blue_are_ignored(tmp_path):
    """Colors in all rasters are used. One or three 8-bit bands are ordinary images."""
    three = str(write_raster(tmp_path / "three.tif", random_uint16(3), photometric="RGB"))
    four = str(write_raster(tmp_path / "four.tif", random_uint16(4), photometric="RGB", alpha="unspecified"))
    for files in ([three, four], [four, three]):
        assert measure_bands(files, None, seed=0).numbers == (1, 2, 3)
    with pytest.raises(InputError, match=mentioning("four.tif", "4", "three.tif", "3")):
        measure_bands([three, four], "all", seed=0)
    plain = [
        str(write_raster(tmp_path / f"plain{n}.tif", random_uint16(n, low=0, high=99).astype("u1"))) for n in (1, 3)
    ]
    assert measure_bands(plain, None, seed=0) is measure_bands(plain[::-1], None, seed=0) is None


def test_bands_in_pages_are_reported(tmp_path):
    """tifffile writes one page per band by default, which GDAL reads as several rasters."""
    from PIL import Image

    pages = [Image.fromarray(page) for page in random_uint16(4)]
    path = tmp_path / "pages.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=mentioning("1", "2", "3", "4")):
        measure_bands([str(path)], (1, 2, 3, 4), seed=0)


def write_pages(path, *sides, dtype=np.uint8):
    """A gray TIFF with pages of these sides."""
    from PIL import Image

    pages = [Image.fromarray(RNG.integers(0, 256, (px, px)).astype(dtype)) for px in sides]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return str(path)


@pytest.mark.parametrize("bands", ["all", None])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_are_never_ignored(tmp_path, bands, dtype):
    """GDAL counts only bands of the first page; the second page has another size."""
    pages = write_pages(tmp_path / "pages.tif", 24, 12, dtype=dtype)
    plain = write_pages(tmp_path / "plain.tif", 24, dtype=dtype)
    message = mentioning("pages.tif has 1 band", "2 pages", "gdalbuildvrt -separate", "bands=1,1,1")
    for files in ([pages], [plain, pages], [pages, plain]):
        with pytest.raises(InputError, match=message):
            measure_bands(files, bands, seed=0)
    if bands == "all":
        with pytest.raises(InputError, match=message):
            measure_bands([plain], bands, seed=0, others=[pages])
    assert measure_bands([pages, plain], (1,), seed=0).numbers == (1,)


def test_first_of_pages_with_few_bits_is_not_proposed_as_bands(tmp_path):
    """Its levels are 0 and 1, which would become nearly black."""
    from PIL import Image

    pages = [Image.new("1", (24, 24), value) for value in (0, 1)]
    pages[0].save(tmp_path / "fax.tif", save_all=True, append_images=pages[1:])
    facts = ("2 pages", "The first page holds", "gdal_translate -expand rgb")
    with pytest.raises(InputError, match=mentioning(*facts)) as error:
        measure_bands([str(tmp_path / "fax.tif")], "all", seed=0)
    assert "bands=1,1,1" not in str(error.value)


def test_rgb_image_among_rasters_is_an_error_when_read(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    path = write_raster(tmp_path / "set/a/one.tif", random_uint16())
    paint(tmp_path / "set/a/two.jpg", (9, 9, 9))
    listed = load_dataset(tmp_path / "set", require_labels=False)
    reader = source_reader(replace(listed, bands=measure_bands([str(path)], "all", seed=0)))
    assert reader.source(0).shape == (24, 24, 5)
    with pytest.raises(UnreadableImageError, match=mentioning("two.jpg")):
        reader.source(1)


@pytest.mark.parametrize(
    ("values", "content"),
    [
        (random_uint16(), "5 bands of uint16"),
        (np.zeros((3, 8, 8), np.float32), "3 bands of float32"),
        # Pillow opens these: 16 bits as 8, and the fourth band as alpha.
        (random_uint16()[:1], "1 band of uint16"),
        (np.zeros((4, 8, 8), np.uint8), "4 bands of uint8"),
    ],
)
def test_shards_reject_a_raster_before_writing(values, content, tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    paint(tmp_path / "set/a/photo.jpg", (9, 9, 9))
    gray = write_raster(tmp_path / "set/a/gray.tif", np.full((1, 24, 24), 9, np.uint8))
    path = write_raster(tmp_path / "set/a/raster.tif", values)
    with pytest.raises(InputError) as error:
        write_shards(load_dataset(tmp_path / "set", require_labels=False), tmp_path / "packed", PackOptions(10**9))
    assert mentions(str(error.value), path, content)
    assert str(error.value).endswith(f"effnetv2 train {tmp_path / 'set'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    path.unlink()  # an 8-bit gray TIFF is an ordinary image
    packed = write_shards(load_dataset(tmp_path / "set", require_labels=False), tmp_path / "packed", PackOptions(10**9))
    assert (gray.exists(), len(packed.index.table), packed.skipped) == (True, 2, ())


def test_fourth_band_is_not_called_alpha_before_training(tmp_path):
    """As near infrared; Pillow, which opens the file as RGBA, would lay it over white."""
    for number in range(4):
        write_raster(tmp_path / f"{number}.tif", np.full((4, 24, 24), 9 * number, np.uint8))
    (note,) = validate_images(load_dataset(tmp_path, require_labels=False)).notes
    assert mentions(note, "4", "rasters of 4 x uint8")


def test_command_for_rasters_is_quoted(tmp_path):
    (tmp_path / "my set/a").mkdir(parents=True)
    write_raster(tmp_path / "my set/a/raster.tif", random_uint16())
    with pytest.raises(InputError) as error:
        write_shards(load_dataset(tmp_path / "my set", require_labels=False), tmp_path / "packed", PackOptions(10**9))
    assert shlex.split(str(error.value))[-3:] == ["effnetv2", "train", str(tmp_path / "my set")]


def test_command_for_rasters_has_the_options_of_the_table(tmp_path):
    write_raster(tmp_path / "raster.tif", random_uint16())
    (tmp_path / "all.csv").write_text("file,species\nraster.tif,a\n")
    args = [str(tmp_path / "all.csv"), "--path-column", "file", "--label-column", "species"]
    result = effnetv2("data", "pack", *args, tmp_path / "packed", cwd=tmp_path)
    assert result.returncode == 2
    assert shlex.split(result.stderr)[-7:] == ["effnetv2", "train", *args]


def test_missing_values_only():
    rule = Bands((1, 2), missing=(7, 8))
    values = np.full((2, 3, 3), np.nan)
    found = scale_to_uint8(values, np.isfinite(values), rule)
    assert torch.from_numpy(found).reshape(-1, 2).unique(dim=0).tolist() == [[7, 8]]


@pytest.mark.parametrize(("count", "nodata"), [(1, ()), (3, (1_500.0,)), (13, ())])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float32"])
def test_memory_is_reserved_before_a_raster_is_read(tmp_path, monkeypatch, dtype, count, nodata):
    """At least the peak of numpy's arrays, and at most three times as much."""
    path = str(write_raster(tmp_path / "any.tif", random_uint16(count, px=300).astype(dtype), compress="deflate"))
    numbers = tuple(range(1, count + 1)) if count > 1 else (1, 1, 1)
    high = 255.0 if dtype == "uint8" else 4_000.0
    bands = Bands(numbers, high=(high,) * len(numbers), kinds=(dtype,), nodata=nodata)
    reserved = []
    monkeypatch.setattr(DECODING, "take", lambda needed: reserved.append(needed) or nullcontext())
    load_raster(path, bands)
    tracemalloc.start()
    try:
        load_raster(path, bands)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= reserved[-1] <= 3 * peak


def test_raster_that_needs_more_memory_than_is_free_is_unreadable(tmp_path, monkeypatch):
    path = str(write_raster(tmp_path / "any.tif", random_uint16(13, px=400)))
    monkeypatch.setattr("efficientnetv2.utils.memory.free_bytes", lambda *_, **__: 2**20)
    monkeypatch.setattr(DECODING, "small", 0)
    with pytest.raises(UnreadableImageError, match=mentioning("any.tif", "memory", "free")):
        load_raster(path, Bands(tuple(range(1, 14)), high=(4_000.0,) * 13))
