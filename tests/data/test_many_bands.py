"""Rasters of other than three bands: read, measured, cached, refused."""

import shlex
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
from efficientnetv2.data.image_io import UnreadableImageError, display_channels
from efficientnetv2.data.readers import display_reader, source_reader
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.preprocessing import IMAGENET_MEAN, Bands, Preprocessing
from efficientnetv2.utils.errors import InputError

RNG = np.random.default_rng(0)


def deep(bands=5, px=24, least=1_000, most=4_000):
    return RNG.integers(least, most, (bands, px, px)).astype(np.uint16)


def named(path, *names):
    with rasterio.open(path, "r+") as target:
        target.descriptions = names
    return str(path)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 4, 13])
def test_every_depth_is_read_as_rasterio_gives_it(tmp_path, kind, count):
    """Against rasterio's own values, scaled by hand in float64."""
    values = RNG.uniform(-500 if kind[0] in "if" else 0, 200 if kind == "uint8" else 9_000, (count, 12, 10))
    path = write_raster(tmp_path / "any.tif", values.astype(kind))
    numbers = tuple(range(count, 0, -1))
    bands = Bands(numbers, low=tuple(100.0 + n for n in numbers), high=tuple(150.0 + n for n in numbers))
    with open_raster(path) as dataset, rasterio.open(path) as theirs:
        found, valid = read_raster(dataset, bands)
        stored = theirs.read(list(numbers)).astype(np.float64)
    wanted = (stored - np.array(bands.low)[:, None, None]) / 50 * 255
    assert found.shape == (12, 10, count)
    assert valid.all()
    assert np.abs(found - wanted.clip(0, 255).transpose(1, 2, 0)).max() <= 0.51


def test_the_rule_of_all_bands_and_its_figures(tmp_path):
    """Mean and deviation of each band against numpy, on levels made by hand."""
    files = [str(write_raster(tmp_path / f"{n}.tif", deep(least=500 * n, most=2_000))) for n in range(3)]
    stored = np.concatenate([rasterio.open(file).read().reshape(5, -1) for file in files], axis=1)
    rule = measure_bands(files, None, seed=0)
    assert rule == measure_bands(files, "all", seed=0) == measure_bands(files, (1, 2, 3, 4, 5), seed=0)
    assert rule.numbers == (1, 2, 3, 4, 5)
    for band in range(5):
        low, high = np.percentile(stored[band], [1, 99])
        assert (rule.low[band], rule.high[band]) == pytest.approx((low, high))
        seen = ((stored[band] - low) / (high - low) * 255).clip(0, 255)
        assert rule.missing[band] == pytest.approx(seen.mean(), abs=0.51)
        assert rule.spread[band] == pytest.approx(seen.std(), rel=1e-3)
    prepared = Preprocessing(image_size=16).seeing(rule)
    pixels = np.stack([load_raster(file, rule) for file in files]).reshape(-1, 5) / 255
    normalized = (pixels - prepared.mean) / prepared.std
    assert np.abs(normalized.mean(axis=0)).max() < 0.02
    assert np.abs(normalized.std(axis=0) - 1).max() < 0.02
    assert Preprocessing.from_json(prepared.to_json()) == prepared


def test_three_bands_keep_what_the_weights_know():
    rule = Bands((4, 3, 2), missing=(9, 9, 9), spread=(9, 9, 9))
    assert Preprocessing(image_size=16).seeing(rule).mean == IMAGENET_MEAN
    five = Preprocessing(image_size=16).seeing(Bands((1, 2, 3, 4, 5)))
    assert five.channels == 5
    back = five.with_channels(3)
    assert (back.channels, back.bands) == (3, None)
    with pytest.raises(ValueError, match=mentioning("3", "5", "band")):
        replace(Preprocessing(image_size=16), bands=five.bands)
    with pytest.raises(ValueError, match=mentioning("2", "5", "band")):
        Bands((1, 2, 3, 4, 5), low=(0, 1))


def test_what_is_missing_in_one_band_alone(tmp_path):
    """A NaN, or a nodata value other than 0, is missing there; a 0 may be a dark place, unless all bands say so."""
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
    with open_raster(write_raster(tmp_path / "dark.tif", dark, nodata=0)) as dataset:
        found, valid = read_raster(dataset, bands)
    assert found[0, 0].tolist() == [128, 128, 128, 0]
    assert found[0, 1].tolist() == [10, 20, 30, 40]
    assert valid.sum() == 15
    # What is missing in one band does not stretch it.
    rule = measure_bands([str(path)], "all", seed=0)
    assert min(rule.low) == 500


def test_a_fourth_band_of_eight_bits_that_gdal_calls_alpha(tmp_path):
    """Asked for by number it is a band like others, and hides nothing; "all" leaves it out."""
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
def test_framing_treats_every_channel_alike(crop_mode, channels, seed):
    """A image of n channels is framed as each of its channels would be alone, thrice as red, green and blue."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (int(rng.integers(20, 60)), int(rng.integers(20, 60)), channels), np.uint8)
    mean = tuple(rng.uniform(0.2, 0.8, channels))
    whole = Preprocessing(image_size=16, crop_mode=crop_mode, mean=mean, std=(0.2,) * channels)
    uniforms = rng.uniform(size=64).tolist()
    words = {"image_size": 16, "crop_mode": crop_mode, "area_min": 0.4, "uniforms": uniforms}
    seen, trained = load_eval_image(pixels, whole), load_train_image(pixels, mean=mean, **words)
    assert seen.shape == trained.shape == (16, 16, channels)
    for channel in range(channels):
        alone = pixels[..., [channel] * 3]
        one = replace(whole, mean=(mean[channel],) * 3, std=(0.2,) * 3)
        np.testing.assert_array_equal(seen[..., channel], load_eval_image(alone, one)[..., 0])
        other = load_train_image(alone, mean=one.mean, **words)[..., 0]
        np.testing.assert_allclose(trained[..., channel], other, atol=1)


def test_people_are_shown_the_first_three(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    path = str(write_raster(tmp_path / "set/a/one.tif", deep()))
    listed = load_dataset(tmp_path / "set", require_labels=False)
    rule = measure_bands([path], (4, 3, 2, 5, 1), seed=0)
    shown = np.asarray(load_image(display_reader(replace(listed, bands=rule)).source(0)))
    np.testing.assert_array_equal(shown, load_raster(path, rule)[..., :3])
    pair = measure_bands([path], (5, 2), seed=0)
    assert pair.shown.numbers == (5, 5, 5)
    np.testing.assert_array_equal(display_channels(load_raster(path, pair)), load_raster(path, pair.shown))


def test_the_cache_keeps_every_channel(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    for number in range(3):
        write_raster(tmp_path / f"set/a/{number}.tif", deep(px=20 + number))
    listed = load_dataset(tmp_path / "set", require_labels=False)
    rule = measure_bands([listed.file(row) for row in range(3)], "all", seed=0)
    reader = source_reader(replace(listed, bands=rule))
    order = CacheJob(reader, 3, CacheSpec(64, "shorter"), 1)
    kept = cache_in_memory(order, room_bytes=1 << 30).reader(np.arange(3), reader)
    for row in range(3):
        np.testing.assert_array_equal(kept.source(row), reader.source(row))


def test_images_that_do_not_fit_are_refused_by_name(tmp_path):
    five = named(write_raster(tmp_path / "five.tif", deep()), "B02", "B03", "B04", "B08", "B11")
    swapped = named(write_raster(tmp_path / "swapped.tif", deep()), "B04", "B03", "B02", "B08", "B11")
    three = str(write_raster(tmp_path / "three.tif", deep(3)))
    jpeg = str(paint(tmp_path / "photo.jpg", (9, 9, 9)))
    assert measure_bands([five], "all", seed=0).listed == "1 B02, 2 B03, 3 B04, 4 B08, 5 B11"
    with pytest.raises(InputError, match=mentioning("swapped.tif", "1", "B04", "3", "gdal_translate")):
        measure_bands([five, swapped], "all", seed=0)
    with pytest.raises(InputError, match=mentioning("three.tif", "3", "1", "B02", "5", "B11")):
        measure_bands([five], "all", seed=0, others=[three])
    with pytest.raises(InputError, match=mentioning("photo.jpg", "3", "5", "1", "B02")):
        measure_bands([five, jpeg], "all", seed=0)
    # Other names than those of the first are nobody's fault.
    other = named(write_raster(tmp_path / "other.tif", deep()), *"abcde")
    assert measure_bands([five, other], "all", seed=0).names[0] == "B02"


@pytest.mark.parametrize("asked", ["all", None])
@pytest.mark.parametrize(("fewer", "more"), [(1, 3), (1, 5), (3, 4), (3, 5)])
def test_rasters_of_more_bands_than_the_first_are_refused_as_those_of_fewer(tmp_path, asked, fewer, more):
    """Else what comes first in the folder would decide which bands are passed over, in silence."""
    small, large = (
        str(write_raster(tmp_path / f"{count}.tif", deep(count), photometric="MINISBLACK")) for count in (fewer, more)
    )
    for first, other, counts in ((small, large, (more, fewer)), (large, small, (fewer, more))):
        message = mentioning(f"{other} has {counts[0]} band", f"{first} has {counts[1]}")
        with pytest.raises(InputError, match=message):
            measure_bands([first, other], asked, seed=0)
        with pytest.raises(InputError, match=message):
            measure_bands([first], asked, seed=0, others=[other])
    assert measure_bands([small, large], (1, 1, 1), seed=0).numbers == (1, 1, 1), "by number anything may be seen"


def test_what_lies_beside_red_green_and_blue_does_not_count(tmp_path):
    """Colors that all rasters name are seen of all; 8 bits of one or three bands alone are ordinary images."""
    three = str(write_raster(tmp_path / "three.tif", deep(3), photometric="RGB"))
    four = str(write_raster(tmp_path / "four.tif", deep(4), photometric="RGB", alpha="unspecified"))
    for files in ([three, four], [four, three]):
        assert measure_bands(files, None, seed=0).numbers == (1, 2, 3)
    with pytest.raises(InputError, match=mentioning("four.tif", "4", "three.tif", "3")):
        measure_bands([three, four], "all", seed=0)
    plain = [str(write_raster(tmp_path / f"plain{n}.tif", deep(n, least=0, most=99).astype("u1"))) for n in (1, 3)]
    assert measure_bands(plain, None, seed=0) is measure_bands(plain[::-1], None, seed=0) is None


def test_bands_in_pages_are_told(tmp_path):
    """As tifffile writes them unasked: one page of one band each, which GDAL takes for several rasters."""
    from PIL import Image

    pages = [Image.fromarray(page) for page in deep(4)]
    path = tmp_path / "pages.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=mentioning("1", "2", "3", "4")):
        measure_bands([str(path)], (1, 2, 3, 4), seed=0)


def paged(path, *sides, kind=np.uint8):
    """A gray TIFF of pages of these sides."""
    from PIL import Image

    pages = [Image.fromarray(RNG.integers(0, 256, (px, px)).astype(kind)) for px in sides]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return str(path)


@pytest.mark.parametrize("asked", ["all", None])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bands_in_pages_are_not_left_out_unsaid(tmp_path, asked, kind):
    """GDAL counts the bands of the first page alone; the second is of another size, and no band of it."""
    pages = paged(tmp_path / "pages.tif", 24, 12, kind=kind)
    plain = paged(tmp_path / "plain.tif", 24, kind=kind)
    message = mentioning("pages.tif has 1 band", "2 pages", "gdalbuildvrt -separate", "bands=1,1,1")
    for files in ([pages], [plain, pages], [pages, plain]):
        with pytest.raises(InputError, match=message):
            measure_bands(files, asked, seed=0)
    if asked == "all":
        with pytest.raises(InputError, match=message):
            measure_bands([plain], asked, seed=0, others=[pages])
    assert measure_bands([pages, plain], (1,), seed=0).numbers == (1,)


def test_an_ordinary_image_among_rasters_is_passed_over_when_asked_for(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    path = write_raster(tmp_path / "set/a/one.tif", deep())
    paint(tmp_path / "set/a/two.jpg", (9, 9, 9))
    listed = load_dataset(tmp_path / "set", require_labels=False)
    reader = source_reader(replace(listed, bands=measure_bands([str(path)], "all", seed=0)))
    assert reader.source(0).shape == (24, 24, 5)
    with pytest.raises(UnreadableImageError, match=mentioning("two.jpg")):
        reader.source(1)


@pytest.mark.parametrize(
    ("values", "held"),
    [
        (deep(), "5 bands of uint16"),
        (np.zeros((3, 8, 8), np.float32), "3 bands of float32"),
        # Pillow opens these: as 16 bits, of which it keeps 8, and with the fourth band as what hides the others.
        (deep()[:1], "1 band of uint16"),
        (np.zeros((4, 8, 8), np.uint8), "4 bands of uint8"),
    ],
)
def test_shards_refuse_a_raster_by_name_before_anything_is_packed(values, held, tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    paint(tmp_path / "set/a/photo.jpg", (9, 9, 9))
    gray = write_raster(tmp_path / "set/a/gray.tif", np.full((1, 24, 24), 9, np.uint8))
    path = write_raster(tmp_path / "set/a/raster.tif", values)
    with pytest.raises(InputError) as refused:
        write_shards(load_dataset(tmp_path / "set", require_labels=False), tmp_path / "packed", PackOptions(10**9))
    assert mentions(str(refused.value), path, held)
    assert str(refused.value).endswith(f"effnetv2 train {tmp_path / 'set'}")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["set"]
    path.unlink()  # the gray one is an ordinary image, whatever it is called
    packed = write_shards(load_dataset(tmp_path / "set", require_labels=False), tmp_path / "packed", PackOptions(10**9))
    assert (gray.exists(), len(packed.index.table), packed.skipped) == (True, 2, ())


def test_the_command_for_rasters_can_be_pasted(tmp_path):
    (tmp_path / "my set/a").mkdir(parents=True)
    write_raster(tmp_path / "my set/a/raster.tif", deep())
    with pytest.raises(InputError) as refused:
        write_shards(load_dataset(tmp_path / "my set", require_labels=False), tmp_path / "packed", PackOptions(10**9))
    assert shlex.split(str(refused.value))[-3:] == ["effnetv2", "train", str(tmp_path / "my set")]


def test_the_command_for_rasters_reads_the_table_as_it_was_read(tmp_path):
    write_raster(tmp_path / "raster.tif", deep())
    (tmp_path / "all.csv").write_text("file,species\nraster.tif,a\n")
    words = [str(tmp_path / "all.csv"), "--path-column", "file", "--label-column", "species"]
    done = effnetv2("data", "pack", *words, tmp_path / "packed", cwd=tmp_path)
    assert done.returncode == 2
    assert shlex.split(done.stderr)[-7:] == ["effnetv2", "train", *words]


def test_levels_of_nothing_but_gaps():
    rule = Bands((1, 2), missing=(7, 8))
    nothing = np.full((2, 3, 3), np.nan)
    found = scale_to_uint8(nothing, np.isfinite(nothing), rule)
    assert torch.from_numpy(found).reshape(-1, 2).unique(dim=0).tolist() == [[7, 8]]
