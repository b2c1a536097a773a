"""Multi-band rasters of any depth become 8-bit images by one scaling, measured on the training images."""

import http.server
import subprocess
import sys
import tarfile
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import netcdf_file
from tests.conftest import paint
from tests.log_lines import logged_lines
from tests.messages import mentioning, mentions
from tests.rasters import rasterio, write_raster

from efficientnetv2.checks.image_stats import collect_image_stats
from efficientnetv2.data.bands import load_raster, measure_bands
from efficientnetv2.data.config import DataConfig, parse_nodata, with_bands
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import load_eval_image, load_image
from efficientnetv2.data.file_probe import probe
from efficientnetv2.data.geotiff import all_bands, open_raster, read_raster, scale_to_uint8, visible_bands
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.image_metadata import content_hashes
from efficientnetv2.data.raster_checks import band_mismatch, mismatch
from efficientnetv2.data.readers import default_bands, display_reader, eval_reader, source_reader
from efficientnetv2.data.shards.writer import PackOptions, write_shards
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.predict_map import MapOptions, resolve_bands

RNG = np.random.default_rng(0)


def random_uint16(bands=5, px=24, low=1_000, high=4_000):
    return RNG.integers(low, high, (bands, px, px)).astype(np.uint16)


@given(st.integers(0, 60_000), st.integers(1, 5_000), st.integers(0, 65_535))
def test_values_are_scaled_linearly_and_clipped(low, span, value):
    bands = Bands((1, 1, 1), (low,) * 3, (low + span,) * 3)
    scaled = scale_to_uint8(np.full((3, 1, 1), value, np.uint16), np.ones((3, 1, 1), bool), bands)
    assert abs(int(scaled[0, 0, 0]) - np.clip(255 * (value - low) / span, 0, 255)) <= 0.51


def test_missing_values_get_the_fill_level(tmp_path):
    """A nodata value in all bands, a NaN in all bands, and a NaN in one band."""
    values = np.full((3, 4, 4), 0.5, np.float32)
    values[:, 0, 0], values[:, 0, 1], values[1, 0, 2] = -9999, np.nan, np.nan
    path = write_raster(tmp_path / "float.tif", values, nodata=-9999)
    bands = Bands((1, 2, 3), (0,) * 3, (1,) * 3, missing=(10, 20, 30))
    with open_raster(path) as dataset:
        scaled, valid = read_raster(dataset, bands)
    assert scaled[0, 0].tolist() == scaled[0, 1].tolist() == [10, 20, 30]
    assert scaled[0, 2].tolist() == [128, 20, 128]
    assert scaled[3, 3].tolist() == [128, 128, 128]
    assert (~valid).sum() == 2


def test_alpha_band_marks_missing_data(tmp_path):
    values = np.full((4, 4, 4), 200, np.uint8)
    values[3, 0, 0] = 0
    path = write_raster(tmp_path / "alpha.tif", values, photometric="RGB", alpha="yes")
    with open_raster(path) as dataset:
        assert visible_bands(dataset) == all_bands(dataset) == (1, 2, 3)
        _, valid = read_raster(dataset, Bands((1, 2, 3)))
    assert valid.sum() == 15


def test_window_is_read(tmp_path):
    values = random_uint16(3, 30)
    path = write_raster(tmp_path / "deep.tif", values)
    with open_raster(path) as dataset:
        bands = Bands((3, 2, 1), (0,) * 3, (65535,) * 3)
        found, _ = read_raster(dataset, bands, ((7, 11), (5, 16)))
    expected = np.rint(values[::-1, 7:11, 5:16].transpose(1, 2, 0) / 257)
    assert np.abs(found - expected).max() <= 1


def test_color_interpretation_selects_red_green_and_blue(tmp_path):
    path = write_raster(tmp_path / "planet.tif", random_uint16(4), photometric="MINISBLACK")
    kinds = rasterio.enums.ColorInterp
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [kinds.blue, kinds.green, kinds.red, kinds.undefined]
    with open_raster(path) as dataset:
        assert visible_bands(dataset) == (3, 2, 1)
        assert all_bands(dataset) == (3, 2, 1, 4)


def test_scaling_is_measured_once_on_all_training_images(tmp_path):
    """Band 4 of one image has values 0 to 100, of the other 900 to 1,000: the scaling spans both."""
    files = []
    for name, low in (("a", 0), ("b", 900)):
        values = random_uint16()
        values[3] = np.linspace(low, low + 100, 24 * 24).reshape(24, 24)
        files.append(str(write_raster(tmp_path / f"{name}.tif", values)))
    rule = measure_bands(files, (4, 3, 2), seed=0)
    assert rule.numbers == (4, 3, 2)
    assert rule.low[0] == pytest.approx(2, abs=1)
    assert rule.high[0] == pytest.approx(998, abs=1)
    assert rule.low[1] > 1_000
    assert rule.missing[0] == pytest.approx(127, abs=2)
    assert rule.ground_m == pytest.approx(240)  # 24 px of 10 m
    assert rule == measure_bands(files, (4, 3, 2), seed=0)
    single = measure_bands(files[:1], (4, 3, 2), seed=0)
    assert single.high[0] < 101  # the second image matters


def test_scaling_is_of_the_pixels_and_not_of_overviews(tmp_path):
    """Averages of 16 x 16 pixels of noise have a sixteenth of its deviation."""
    values = np.random.default_rng(0).normal(2000, 400, (1, 512, 512)).clip(0, 4000).astype(np.uint16)
    plain, with_overviews = (
        write_raster(tmp_path / "plain.tif", values),
        write_raster(tmp_path / "overviews.tif", values),
    )
    with rasterio.open(with_overviews, "r+") as target:
        target.build_overviews([2, 4, 8, 16], rasterio.enums.Resampling.average)
    scaling, scaling_with_overviews = (measure_bands([str(file)], "all", seed=0) for file in (plain, with_overviews))
    assert (scaling.low, scaling.high) == (scaling_with_overviews.low, scaling_with_overviews.high)
    assert scaling_with_overviews.high[0] - scaling_with_overviews.low[0] == pytest.approx(2 * 2.326 * 400, rel=0.1)


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.float64])
def test_large_values_keep_their_differences(dtype):
    """The differences are smaller than the resolution of float32 at these values."""
    low = 2_000_000_000
    values = (low + np.arange(256).reshape(1, 16, 16)).astype(dtype)
    rule = Bands((1,), low=(low,), high=(low + 255,), missing=(0,))
    found = scale_to_uint8(values, np.ones_like(values, bool), rule)
    assert found.flatten().tolist() == list(range(256))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("big", [False, True])
def test_tiff_orientation_is_applied(orientation, big, tmp_path):
    """As Pillow applies it without a scaling. GDAL does not."""
    colors = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    file = tmp_path / "scan.tif"
    Image.fromarray(colors).save(file, tiffinfo={274: orientation}, big_tiff=big)
    seen = load_raster(str(file), Bands((1, 2, 3)))
    assert np.array_equal(seen, np.asarray(load_image(str(file))))
    assert seen.shape == ((30, 20, 3) if orientation >= 5 else (20, 30, 3))


def test_8_bit_values_are_unchanged(tmp_path):
    values = RNG.integers(30, 60, (6, 16, 16)).astype(np.uint8)
    path = str(write_raster(tmp_path / "six.tif", values, photometric="MINISBLACK"))
    rule = measure_bands([path], (6, 1, 1), seed=0)
    assert (rule.low, rule.high) == ((0,) * 3, (255,) * 3)
    np.testing.assert_array_equal(load_raster(path, rule), values[[5, 0, 0]].transpose(1, 2, 0))


def test_rgb_images_need_no_scaling(tmp_path):
    plain = write_raster(tmp_path / "plain.tif", RNG.integers(0, 255, (3, 16, 16)).astype(np.uint8))
    jpeg = paint(tmp_path / "a.jpg", (200, 10, 10))
    assert measure_bands([str(plain), str(jpeg)], None, seed=0) is None
    with pytest.raises(InputError, match=mentioning("bands", "1,2,3")):
        measure_bands([str(jpeg)], (1, 2, 3), seed=0)


def test_invalid_bands_are_rejected_by_file(tmp_path):
    path = write_raster(tmp_path / "five.tif", random_uint16())
    with rasterio.open(path, "r+") as target:
        target.set_band_description(4, "B4 red")
    with pytest.raises(InputError, match=mentioning("five.tif", "5", "4", "B4", "7", "bands")):
        measure_bands([str(path)], (7,), seed=0)
    three = str(write_raster(tmp_path / "three.tif", random_uint16(3)))
    with pytest.raises(InputError, match=mentioning("three.tif", "3", "4", "B4", "2")):
        measure_bands([str(path), three], (4, 3, 2), seed=0)
    empty = str(write_raster(tmp_path / "empty.tif", np.zeros((3, 9, 9), np.uint16), nodata=0))
    with pytest.raises(InputError, match=mentioning("empty.tif", "raster")):
        measure_bands([empty], None, seed=0)


def test_images_of_a_dataset_may_differ_in_size_and_type(tmp_path):
    """Two rasters of different size and a JPEG, through the reader of the dataset and the crop mode of a model."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
    write_raster(tmp_path / "set/a/one.tif", random_uint16(px=24))
    write_raster(tmp_path / "set/b/two.tif", random_uint16(px=40))
    paint(tmp_path / "set/b/three.jpg", (10, 200, 10))
    listed = load_dataset(tmp_path / "set")
    rule = measure_bands([listed.file(row) for row in range(3)], (4, 3, 2), seed=0)
    reader = source_reader(replace(listed, bands=rule))
    images = [load_eval_image(reader.source(row), Preprocessing(image_size=16)) for row in range(3)]
    assert [image.shape for image in images] == [(16, 16, 3)] * 3
    green = images[[path.endswith("jpg") for path in listed.paths].index(True)]
    assert green.mean(axis=(0, 1)).argmax() == 1
    other = source_reader(replace(listed, bands=replace(rule, high=(9_999.0,) * 3)))
    # A cache of decoded images is invalidated by these.
    assert reader.stamps(range(3)) != other.stamps(range(3))
    np.testing.assert_array_equal(content_hashes(listed)[1], content_hashes(replace(listed, bands=rule))[1])


def test_damaged_rasters_are_recognized(tmp_path):
    good = write_raster(tmp_path / "good.tif", random_uint16())
    assert probe(str(good)).reason == ""
    assert mentions(probe(str(good)).colors, "5", "uint16")
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"II*\0 only a header" * 9)
    assert mentions(probe(str(bad)).reason, "GDAL", "raster")
    with pytest.raises(UnreadableImageError, match=mentioning("good.tif", "5", "6")):
        load_raster(str(good), Bands((6, 6, 6)))
    with pytest.raises(UnreadableImageError, match=r"bad\.tif"):
        load_raster(str(bad), Bands((1, 2, 3)))


@pytest.mark.parametrize("interleave", ["band", "pixel"])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 32}])
@pytest.mark.parametrize("compress", ["NONE", "DEFLATE"])
@pytest.mark.parametrize(("bands", "dtype"), [(5, "uint16"), (3, "uint8")])
def test_truncated_raster_is_found_by_the_probe(tmp_path, interleave, layout, compress, bands, dtype):
    """Its header is intact. Pillow reads only the first of band-interleaved bands."""
    values = RNG.integers(0, 255, (bands, 60, 90)).astype(dtype)  # no side is a multiple of the block size
    path = write_raster(tmp_path / "complete.tif", values, interleave=interleave, compress=compress, **layout)
    content = path.read_bytes()
    assert probe(str(path)).reason == ""
    for fraction in (0.5, 0.95):
        path.write_bytes(content[: int(fraction * len(content))])
        assert mentions(probe(str(path)).reason, "raster", "damaged")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_ordinary_tiff_damaged_in_the_middle_is_found_by_the_probe(tmp_path, compression):
    """Its last block is intact."""
    path = tmp_path / "photo.tif"
    pixels = RNG.integers(0, 255, (200, 200, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, compression=compression, tiffinfo={278: 20})  # rows of a strip
    assert probe(str(path)).reason == ""
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[: middle - 100] + b"\xff" * 200 + content[middle + 100 :])
    assert probe(str(path)).reason


def test_unreadable_files_are_named_without_gdal(tmp_path, monkeypatch):
    complete = tmp_path / "complete.tif"
    Image.fromarray(RNG.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(complete)
    (tmp_path / "half.tif").write_bytes(complete.read_bytes()[:2000])
    (tmp_path / "text.tif").write_text("<html>Not found</html>")
    Image.new("RGB", (1, 1)).save(tmp_path / "small.tif")
    monkeypatch.setattr("efficientnetv2.data.raster_checks.has_gdal", lambda: False)
    assert "a web page" in probe(str(tmp_path / "text.tif")).reason
    assert "too small" in probe(str(tmp_path / "small.tif")).reason
    assert "geo" not in probe(str(tmp_path / "half.tif")).reason
    assert probe(str(tmp_path / "half.tif")).reason


def test_decompression_bomb_is_not_opened_by_gdal(tmp_path, monkeypatch):
    """GDAL would read 600 MB for it at each draw."""
    plain = str(write_raster(tmp_path / "plain.tif", RNG.integers(0, 255, (3, 40, 40)).astype(np.uint8)))
    five = str(write_raster(tmp_path / "five.tif", random_uint16(px=40)))
    rule = measure_bands([five], None, seed=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    assert "a decompression bomb" in probe(plain).reason
    assert "0 million pixels" in probe(five).reason
    assert "effnetv2 geo map" in probe(five).reason
    with pytest.raises(UnreadableImageError, match="Cut it into pieces"):
        load_raster(five, rule)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # no limit
    assert not probe(five).reason
    load_raster(five, rule)


def test_rgb_tiffs_that_pillow_cannot_read_are_opened_by_gdal(tmp_path, monkeypatch):
    """WebP in a GeoTIFF: Pillow knows its number even if its libtiff cannot read it."""
    values = RNG.integers(0, 255, (3, 32, 32)).astype(np.uint8)
    path = str(write_raster(tmp_path / "webp.tif", values, compress="WEBP", webp_lossless=True))
    monkeypatch.setattr("efficientnetv2.data.raster_checks._loads", lambda image: False)
    assert probe(path).reason == ""
    rule = measure_bands([path], None, seed=0)
    np.testing.assert_array_equal(load_raster(path, rule), values.transpose(1, 2, 0))
    np.testing.assert_array_equal(load_raster(path, default_bands(path)), values.transpose(1, 2, 0))
    monkeypatch.setattr("efficientnetv2.data.raster_checks._loads", lambda image: True)
    assert measure_bands([path], None, seed=0) is None


def test_evaluation_rasters_are_rejected_if_training_has_no_scaling(tmp_path):
    """Training on JPEGs, validating on 16 bits: an error before the first step."""
    jpeg = str(paint(tmp_path / "a.jpg", (200, 10, 10)))
    plain = str(write_raster(tmp_path / "plain.tif", RNG.integers(0, 255, (3, 16, 16)).astype(np.uint8)))
    (tmp_path / "broken.tif").write_bytes(b"II*\0 broken")
    assert measure_bands([jpeg], None, seed=0, others=[plain, str(tmp_path / "broken.tif")]) is None
    sixteen = str(write_raster(tmp_path / "deep.tif", random_uint16(3)))
    with pytest.raises(InputError, match=mentioning("deep.tif", "uint16", "8")):
        measure_bands([jpeg, plain], None, seed=0, others=[plain, sixteen])


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_png_next_to_rasters_is_rejected(tmp_path, channels):
    """In training images, evaluation images, a folder to predict, and shards."""
    (tmp_path / "set/a").mkdir(parents=True)
    raster = str(write_raster(tmp_path / "set/a/one.tif", random_uint16(1)))
    png = tmp_path / "set/a/two.png"
    write_raster(png, random_uint16(channels), driver="PNG", crs=None, transform=None)
    jpeg = str(paint(tmp_path / "set/a/three.jpg", (9, 200, 9)))
    rule = measure_bands([raster, jpeg], None, seed=0)
    fault = r"two\.png.*holds values of more than 8 bits.*gdal_translate -of GTiff"
    for files, others in (([raster, jpeg, str(png)], []), ([raster, jpeg], [str(png)])):
        with pytest.raises(InputError, match=fault):
            measure_bands(files, None, seed=0, others=others)
    listed = load_dataset(tmp_path / "set", require_labels=False)
    reader = eval_reader(replace(listed, bands=rule))
    rows = {path.rpartition("/")[2]: row for row, path in enumerate(listed.paths)}
    with pytest.raises(UnreadableImageError, match=fault):
        reader.source(rows["two.png"])
    assert reader.source(rows["three.jpg"]) == jpeg
    plain = measure_bands([raster], (1, 1, 1), seed=0)
    eight = replace(plain, low=(0.0,) * 3, high=(255.0,) * 3, kinds=("uint8",))
    assert eval_reader(replace(listed, bands=eight)).source(rows["two.png"]) == str(png)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(png, "two.png")
        tar.add(jpeg, "three.jpg")
    packed = load_dataset(str(tmp_path / "x.tar"), require_labels=False)
    reader = eval_reader(replace(packed, bands=rule)).ahead([0, 1])
    with pytest.raises(UnreadableImageError, match=fault):
        reader.source(packed.paths.index("x.tar#two.png"))
    assert reader.source(packed.paths.index("x.tar#three.jpg")) == Path(jpeg).read_bytes()
    four = Bands((1, 2, 3, 4), (0.0,) * 4, (9.0,) * 4)
    with pytest.raises(UnreadableImageError, match="4 bands"):
        eval_reader(replace(packed, bands=four)).source(0)


def test_raster_without_gdal_names_the_extra(tmp_path, monkeypatch):
    path = str(write_raster(tmp_path / "five.tif", random_uint16()))
    monkeypatch.setattr("efficientnetv2.data.raster_checks.has_gdal", lambda: False)
    assert mentions(probe(path).reason, "geo")
    dataset = load_dataset(tmp_path, require_labels=False)
    assert mentions(collect_image_stats(dataset, workers=1).table["reason"][0], "geo")
    assert measure_bands([path], None, seed=0) is None
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InputError, match=mentioning("geo")):
        measure_bands([path], None, seed=0, nodata=(0.0,))


def test_netcdf_container_has_no_bands(tmp_path):
    """NetCDF with the name of a TIFF: GDAL opens it and finds its variables as subdatasets."""
    path = tmp_path / "container.tif"
    with netcdf_file(path, "w") as file:
        for side in ("x", "y"):
            file.createDimension(side, 8)
        for name in ("one", "other"):
            file.createVariable(name, "f4", ("y", "x"))[:] = np.ones((8, 8))
    assert probe(str(path)).reason == "has no bands"


SIXTEEN = Bands((1, 2, 3), (100.0,) * 3, (4000.0,) * 3, kinds=("uint16",))
EIGHT, REAL = Bands((1, 2, 3), kinds=("uint8",)), replace(SIXTEEN, kinds=("float32",))
OLD_SIXTEEN, OLD_EIGHT = replace(SIXTEEN, kinds=()), replace(EIGHT, kinds=())


@pytest.mark.parametrize(
    ("rule", "dtype", "fits"),
    [
        (SIXTEEN, "uint16", True), (SIXTEEN, "int16", True), (SIXTEEN, "int32", True), (SIXTEEN, "uint8", False),
        (SIXTEEN, "float32", False), (EIGHT, "uint8", True), (EIGHT, "uint16", False), (EIGHT, "float32", False),
        (REAL, "float64", True), (REAL, "uint16", False), (replace(SIXTEEN, kinds=("uint16", "uint8")), "uint8", True),
        (OLD_SIXTEEN, "uint8", True),
        (OLD_EIGHT, "uint8", True), (OLD_EIGHT, "uint16", False), (OLD_EIGHT, "float64", False),
    ],
)  # fmt: skip
def test_scaling_is_only_for_the_type_it_was_measured_on(tmp_path, rule, dtype, fits):
    """8-bit data by a 16-bit scaling would be black, and the reverse white; older scalings have no type."""
    path = str(write_raster(tmp_path / "one.tif", RNG.integers(0, 127, (3, 8, 8)).astype(dtype)))
    with open_raster(path) as dataset:
        assert (mismatch(dataset, rule) == "") == fits
    if fits:
        assert load_raster(path, rule).shape == (8, 8, 3)
    else:
        with pytest.raises(
            UnreadableImageError, match=rf"one\.tif: holds {dtype}, but the rule by which .* gdal_translate"
        ):
            load_raster(path, rule)


def test_types_of_the_training_images_are_saved_and_others_rejected(tmp_path):
    unsigned = str(write_raster(tmp_path / "deep.tif", random_uint16()))
    signed = str(write_raster(tmp_path / "signed.tif", random_uint16().astype(np.int16)))
    bright = str(write_raster(tmp_path / "bright.tif", RNG.integers(0, 255, (5, 24, 24)).astype(np.uint8)))
    rule = measure_bands([unsigned, signed], "all", seed=0, others=[unsigned])
    assert rule.kinds == rule.shown.kinds == ("int16", "uint16")
    preprocessing = Preprocessing(image_size=16).seeing(rule)
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    older = preprocessing.to_json()
    del older["bands"]["kinds"]
    assert Preprocessing.from_json(older).bands == replace(rule, kinds=())
    with pytest.raises(
        InputError, match=mentioning("bright.tif", "uint8", "0", "255", "uint16", "UInt16", "FROM", "TO")
    ):
        measure_bands([unsigned], "all", seed=0, others=[bright])
    assert measure_bands([unsigned, bright], "all", seed=0, others=[bright]).kinds == ("uint16", "uint8")


def test_bands_of_different_types_are_rejected_by_file(tmp_path):
    """As gdalbuildvrt -separate joins them; a scaling of bands of one type reads them."""
    counts = write_raster(tmp_path / "counts.tif", random_uint16(2))
    index = write_raster(tmp_path / "index.tif", RNG.random((1, 24, 24)).astype(np.float32))
    joined = "".join(
        f'<VRTRasterBand dataType="{dtype}" band="{number}"><SimpleSource><SourceFilename>{file}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for number, (dtype, file, band) in enumerate(
            [("UInt16", counts, 1), ("UInt16", counts, 2), ("Float32", index, 1)], start=1
        )
    )
    path = tmp_path / "joined.vrt"
    path.write_text(f'<VRTDataset rasterXSize="24" rasterYSize="24">{joined}</VRTDataset>')
    with warnings.catch_warnings(action="ignore"), rasterio.open(path) as dataset:
        message = band_mismatch(dataset, Bands((1, 2, 3)))
        assert mentions(message, "1", "uint16", "2", "3", "float32")
        assert mentions(message, "gdal_translate", "Float32")
        assert band_mismatch(dataset, Bands((2, 1))) == ""
    with pytest.raises(InputError, match=mentioning("gdal_translate", "joined.vrt", "joined.tif")), open_raster(path):
        pass


@pytest.fixture
def server_requests():
    """A server and the paths requested from it."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - name in http.server

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


READS_WITHIN = """
import sys
from efficientnetv2.utils.errors import InputError
from efficientnetv2.preprocessing import Bands
from efficientnetv2.data.geotiff import open_raster, read_values
try:
    with open_raster(sys.argv[1]) as dataset:
        dataset.overviews(1)
        read_values(dataset, (1,), ((0, dataset.height), (0, dataset.width)), (20, 20))
except InputError as error:
    print(error)
"""


def open_in_subprocess(path):
    """The output of opening a raster in a subprocess: GDAL blocks the interpreter while it waits for the server."""
    result = subprocess.run(
        [sys.executable, "-c", READS_WITHIN, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    return result.stdout


@pytest.mark.parametrize("prefix", ["/vsicurl/", ""])
@pytest.mark.parametrize("reference", ["itself", "overviews", "ovr", "msk"])
def test_raster_cannot_make_gdal_request_a_server(tmp_path, server_requests, reference, prefix):
    """A VRT named .tif, an overview tag, and a VRT next to a TIFF."""
    base, requests = server_requests
    address = f"{prefix}{base}/secret.tif"
    vrt = (
        '<VRTDataset rasterXSize="400" rasterYSize="400"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{address}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    path = tmp_path / "x.tif"
    if reference == "itself":
        path.write_text(vrt)
    else:
        write_raster(path, np.ones((1, 400, 400), np.uint8))
    if reference == "overviews":
        with rasterio.open(path, "r+") as target:
            target.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=address)
    elif reference != "itself":
        (tmp_path / f"x.tif.{reference}").write_text(vrt)
    assert "x.tif" in open_in_subprocess(path)
    assert requests == []


def test_overview_and_mask_files_are_read(tmp_path):
    path = write_raster(tmp_path / "x.tif", np.full((1, 400, 400), 7, np.uint8))
    with rasterio.Env(TIFF_USE_OVR=True, GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as target:
        target.build_overviews([2, 4])
        target.write_mask(np.zeros((400, 400), bool))
    assert {file.name for file in tmp_path.iterdir()} == {"x.tif", "x.tif.ovr", "x.tif.msk"}
    with open_raster(path) as dataset:
        assert dataset.overviews(1) == [2, 4]
        assert not read_raster(dataset, Bands((1,)))[1].any()


def with_fill(folder, fill, where=np.s_[:, :, :6], count=6, bands=4, low=0.1, high=0.9, dtype=np.float32, **options):
    """Tiles in which one value marks missing data."""
    files = []
    for number in range(count):
        values = np.random.default_rng(number).uniform(low, high, (bands, 40, 40)).astype(dtype)
        values[where] = fill
        files.append(str(write_raster(folder / f"{number}.tif", values, **options)))
    return files


@pytest.mark.parametrize(
    ("fill", "low", "high", "dtype"),
    [
        (-9999, 0.1, 0.9, np.float32),
        (-32768, 100, 900, np.int16),
        (65535, 100, 3_000, np.uint16),
        (float(np.finfo(np.float32).min), 0.1, 0.9, np.float32),
    ],
)
def test_undeclared_nodata_is_found(tmp_path, fill, low, high, dtype):
    """As after many crops. Otherwise nearly all valid values would become one level."""
    files = with_fill(tmp_path, fill, low=low, high=high, dtype=dtype)
    rule = measure_bands(files, "all", seed=0)
    assert rule.nodata == (fill,)
    assert min(rule.low) >= low
    assert max(rule.high) <= high
    pixels = load_raster(files[0], rule)
    assert (pixels[:, :6] == rule.missing).all()
    assert len(np.unique(pixels[:, 6:])) > 200
    with open_raster(files[0]) as dataset:
        assert read_raster(dataset, rule)[1].sum() == 40 * 34
    assert measure_bands(files, "all", seed=0, nodata=()).nodata == (), "--nodata none"


def test_band_with_nothing_but_a_fill_gets_a_range(tmp_path):
    values = np.random.default_rng(0).uniform(0.1, 0.9, (3, 40, 40)).astype(np.float32)
    values[2] = np.finfo(np.float32).min
    rule = measure_bands([write_raster(tmp_path / "one.tif", values)], "all", seed=0)
    assert rule.low[2] < rule.high[2]
    assert rule.high[0] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("typed", ["-3.4028235e+38", "-9999.9"])
def test_nodata_of_an_option_is_rounded_as_in_the_file(tmp_path, typed):
    """The lowest number of float32 as numpy prints it, and a number that no binary fraction equals."""
    files = with_fill(tmp_path, float(np.float32(typed)))
    rule = measure_bands(files, "all", seed=0, nodata=parse_nodata(typed))
    with open_raster(files[0]) as dataset:
        assert read_raster(dataset, rule)[1].sum() == 40 * 34


def test_declared_nodata_and_measurements_are_not_undeclared_nodata(tmp_path):
    declared = with_fill(tmp_path, -9999, nodata=-9999)
    assert measure_bands(declared, "all", seed=0).nodata == ()
    bright = with_fill(tmp_path, 1.2)  # clouds are close to the other values
    assert measure_bands(bright, "all", seed=0).nodata == ()
    scattered = with_fill(tmp_path, -9999, np.s_[:, ::5, ::5])  # single pixels
    assert measure_bands(scattered, "all", seed=0).nodata == ()
    codes = [str(write_raster(tmp_path / "codes.tif", np.repeat([[[0], [40]]], 8, axis=2).astype(np.uint16)))]
    assert measure_bands(codes, "all", seed=0).nodata == ()


@pytest.mark.parametrize("nodata", [(), (0.5,)])
def test_declared_nodata_counts_besides_that_of_an_option(tmp_path, nodata):
    files = with_fill(tmp_path, -9999, nodata=-9999)
    with open_raster(files[0]) as dataset:
        assert read_raster(dataset, measure_bands(files, "all", seed=0, nodata=nodata))[1].sum() == 40 * 34


def test_nodata_is_logged_and_set_by_an_option(tmp_path):
    with_fill(tmp_path, -9999)
    listed = load_dataset(tmp_path, require_labels=False)
    lines = logged_lines()
    found = with_bands(listed, DataConfig(str(tmp_path), bands="all"), seed=0)
    assert found.bands.nodata == (-9999,)
    assert any("-9999" in line and "nodata=none" in line for line in lines)
    assert not any("-9999" in line for line in lines if "become 0 to 255" in line)
    lines.clear()
    config = DataConfig(str(tmp_path), bands="all", nodata="-9999,0.5")
    assert with_bands(listed, config, seed=0).bands.nodata == (-9999, 0.5)
    assert not any("Missing data" in line for line in lines)
    for value in ("x", "nan", "1,,2"):
        with pytest.raises(InputError, match=f"`nodata` is '{value}'"):
            replace(config, nodata=value).read_any()


def test_rasters_without_training_images_are_measured_on_all(tmp_path):
    """A check of a table of test images."""
    for number in range(4):
        write_raster(tmp_path / f"{number}.tif", np.full((1, 8, 8), 1_000 * number, dtype=np.uint16))
    rows = [f"{number}.tif,{'ab'[number % 2]},test" for number in range(4)]
    (tmp_path / "test.csv").write_text("\n".join(["path,label,split", *rows]))
    source = DataConfig(str(tmp_path / "test.csv"))
    assert with_bands(source.read_any(), source, seed=0).bands.kinds == ("uint16",)


def test_nodata_of_rgb_images_is_rejected(tmp_path):
    paint(tmp_path / "a/0.jpg", (90, 90, 90))
    source = DataConfig(str(tmp_path), nodata="0")
    with pytest.raises(InputError, match=mentioning("nodata=0", "8-bit")):
        with_bands(source.read_any(), source, seed=0)


def test_nodata_of_8_bit_rasters_counts_with_bands(tmp_path):
    """Without bands they are ordinary images, which Pillow reads."""
    with_fill(tmp_path, 255, bands=3, low=0, high=200, dtype=np.uint8, nodata=255)
    listed = load_dataset(tmp_path, require_labels=False)
    assert with_bands(listed, DataConfig(str(tmp_path)), seed=0).bands is None
    with pytest.raises(InputError, match=mentioning("nodata=255", "bands=1,2,3")):
        with_bands(listed, DataConfig(str(tmp_path), nodata="255"), seed=0)
    rule = with_bands(listed, DataConfig(str(tmp_path), bands="1,2,3"), seed=0).bands
    pixels = load_raster(listed.file(0), rule)
    assert (pixels[:, :6] == rule.missing).all()
    assert max(rule.missing) < 255


def test_nodata_of_shards_is_rejected(tmp_path):
    for name in "ab":
        paint(tmp_path / f"photos/{name}/0.jpg", (90, 90, 90))
    write_shards(load_dataset(tmp_path / "photos"), tmp_path / "shards", PackOptions(10**9))
    with pytest.raises(InputError, match=mentioning("nodata=7", "shards")):
        with_bands(load_dataset(tmp_path / "shards"), DataConfig(str(tmp_path / "shards"), nodata="7"), seed=0)


def write_cmyk(path, dtype=np.uint8):
    """A CMYK image."""
    inks = (RNG.integers(0, 255, (4, 24, 24)) * (np.iinfo(dtype).max // 255)).astype(dtype)
    return str(write_raster(path, inks, photometric="CMYK", interleave="pixel"))


def test_cmyk_image_is_read_as_rgb(tmp_path):
    """GDAL converts CMYK to RGB and calls black alpha."""
    path = tmp_path / "printed.tif"
    inks = Image.frombytes("CMYK", (24, 24), RNG.bytes(24 * 24 * 4))
    inks.save(path)
    with open_raster(path) as dataset:
        assert [color.name for color in dataset.colorinterp] == ["red", "green", "blue", "alpha"]
    jpeg = str(paint(tmp_path / "a.jpg", (200, 10, 10)))
    assert measure_bands([str(path), jpeg], None, seed=0) is None
    # By GDAL it has the same colors, except for rounding.
    pixels = load_raster(str(path), Bands((1, 2, 3))).astype(int)
    np.testing.assert_allclose(pixels, np.asarray(inks.convert("RGB")), atol=1)


def test_16_bit_cmyk_is_accepted_alone_and_rejected_among_rasters(tmp_path):
    """Pillow converts it to RGB, GDAL does not; the error names this image."""
    path, jpeg = write_cmyk(tmp_path / "printed.tif", np.uint16), str(paint(tmp_path / "a.jpg", (200, 10, 10)))
    assert probe(path).reason == ""
    assert measure_bands([jpeg, path], None, seed=0) is None
    five = str(write_raster(tmp_path / "five.tif", random_uint16()))
    for files in ([jpeg, path, five], [five, path]):
        with pytest.raises(InputError, match=mentioning("printed.tif", "RGB")):
            measure_bands(files, None, seed=0)
    assert measure_bands([path], (1, 2, 3, 4), seed=0).channels == 4, "bands by number are always read"


def test_rasters_of_different_types_are_reported(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_raster(tmp_path / name / "bright.tif", RNG.integers(0, 255, (3, 24, 24)).astype(np.uint8))
        write_raster(tmp_path / name / "deep.tif", random_uint16(3))
    lines = logged_lines()
    with_bands(load_dataset(tmp_path), DataConfig(str(tmp_path)), seed=0)
    assert mentions(lines[1], "uint16", "uint8", "dark", "gdal_translate")
    for name in ("a", "b"):
        (tmp_path / name / "bright.tif").unlink()
    lines.clear()
    with_bands(load_dataset(tmp_path), DataConfig(str(tmp_path)), seed=0)
    assert len(lines) == 1, "one type"


def test_8_bit_bgr_is_read_as_rgb(tmp_path):
    """Pillow would swap blue and red, or not open it."""
    path = write_raster(tmp_path / "bgr8.tif", RNG.integers(0, 255, (3, 24, 24)).astype(np.uint8))
    kinds = rasterio.enums.ColorInterp
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [kinds.blue, kinds.green, kinds.red]
    rule = measure_bands([str(path)], None, seed=0)
    assert (rule.numbers, rule.low, rule.high) == ((3, 2, 1), (0,) * 3, (255,) * 3)
    with pytest.raises(UnreadableImageError, match=mentioning("3", "2", "1", "gdal_translate")):
        default_bands(str(path))


@pytest.mark.parametrize(
    ("profile", "fault"),
    [
        ({"photometric": "PALETTE"}, "palette's colors.*-expand rgb"),
        ({"photometric": "MINISWHITE"}, r"count from white .*-scale 0 255 255 0"),
        ({"NBITS": 1}, "palette's colors"),  # GDAL gives black and white a palette
        ({"NBITS": 4}, r"NBITS=4.*-scale 0 15 0 255"),
    ],
)
def test_palettes_and_bits_are_accepted_alone_and_rejected_among_rasters(tmp_path, profile, fault):
    """Pillow converts the values for training and prediction. GDAL does not."""
    path = str(write_raster(tmp_path / "coded.tif", RNG.integers(0, 2, (1, 24, 24)).astype(np.uint8), **profile))
    assert measure_bands([path], None, seed=0) is None
    assert default_bands(path) is None
    raster = str(write_raster(tmp_path / "deep.tif", random_uint16(1)))
    with pytest.raises(InputError, match=rf"coded\.tif holds .*{fault}"):
        measure_bands([path, raster], None, seed=0)
    assert measure_bands([path], (1,), seed=0).channels == 1, "bands by number are always read"


def colored_bands(path, *colors):
    write_raster(path, random_uint16(3))
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [rasterio.enums.ColorInterp[color] for color in colors]
    return str(path)


def test_bands_found_by_color_are_required_by_color(tmp_path):
    """Otherwise red and blue would be swapped from one image to the next."""
    bgr = colored_bands(tmp_path / "bgr.tif", "blue", "green", "red")
    rgb = colored_bands(tmp_path / "rgb.tif", "red", "green", "blue")
    unnamed = str(write_raster(tmp_path / "unnamed.tif", random_uint16(3)))
    with pytest.raises(InputError, match=mentioning("rgb.tif", "3", "1", "2")):
        measure_bands([bgr, rgb], None, seed=0)
    with pytest.raises(InputError, match=mentioning("rgb.tif", "3")):
        measure_bands([bgr], None, seed=0, others=[rgb])
    rule = measure_bands([bgr, unnamed], None, seed=0)
    assert (rule.numbers, rule.names) == ((3, 2, 1), ("red", "green", "blue"))
    with pytest.raises(UnreadableImageError, match=mentioning("rgb.tif", "3")):
        load_raster(rgb, rule)
    with open_raster(rgb) as dataset:
        preprocessing = Preprocessing(image_size=16).seeing(rule)
        with pytest.raises(InputError, match=mentioning("rgb.tif", "3")):
            resolve_bands(dataset, preprocessing, MapOptions(), "rgb.tif")
        assert resolve_bands(dataset, preprocessing, MapOptions(bands="3,2,1"), "rgb.tif").numbers == (3, 2, 1)
    assert measure_bands([bgr, rgb], (3, 2, 1), seed=0).names == ("", "", ""), "bands by number have no color"
    assert load_raster(rgb, replace(rule, names=())).shape == (24, 24, 3), "older scalings have no colors"


def test_band_descriptions_override_color_interpretation(tmp_path):
    """Described blue, green, red; GDAL interprets three 8-bit bands as red, green, blue."""
    path = write_raster(tmp_path / "named.tif", RNG.integers(0, 255, (4, 24, 24)).astype(np.uint8))
    with rasterio.open(path, "r+") as target:
        target.descriptions = ("blue", "green", "red", "infrared")
    assert measure_bands([str(path)], None, seed=0).names == ("blue", "green", "red")
    by_number = measure_bands([str(path)], (3, 2, 1), seed=0)
    assert by_number.names == ("red", "green", "blue")
    assert load_raster(str(path), by_number).shape == (24, 24, 3)


@pytest.mark.parametrize(("bands", "profile"), [(3, {"photometric": "MINISBLACK"}), (1, {"compress": "LERC"})])
def test_rgb_images_that_pillow_cannot_open_are_read(tmp_path, monkeypatch, bands, profile):
    """In training by a scaling; for a model of RGB images with their values."""
    (tmp_path / "set/a").mkdir(parents=True)
    values = RNG.integers(0, 255, (bands, 24, 24)).astype(np.uint8)
    path = str(write_raster(tmp_path / "set/a/one.tif", values, **profile))
    paint(tmp_path / "set/a/two.jpg", (9, 200, 9))
    expected = np.broadcast_to(values, (3, 24, 24)).transpose(1, 2, 0)
    listed = load_dataset(tmp_path / "set", require_labels=False)
    assert probe(path).reason == ""
    rule = measure_bands([listed.file(row) for row in range(2)], None, seed=0)
    for reader in (source_reader(replace(listed, bands=rule)), eval_reader(listed), display_reader(listed)):
        np.testing.assert_array_equal(reader.source(0), expected)
        assert load_eval_image(reader.source(1), Preprocessing(image_size=16)).mean(axis=(0, 1)).argmax() == 1
    monkeypatch.setattr("efficientnetv2.data.raster_checks.has_gdal", lambda: False)
    assert mentions(probe(path).reason, "geo", "raster")
    with pytest.raises(UnreadableImageError, match=mentioning("one.tif", "geo")):
        eval_reader(listed).source(0)


def test_scaling_is_measured_on_training_images_only(tmp_path):
    """The values of val are about ten times as large."""
    for split, low in (("train", 1_000), ("val", 20_000)):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            write_raster(tmp_path / split / name / "one.tif", random_uint16(3, low=low, high=low + 3_000))
    source = DataConfig(str(tmp_path))
    rule = with_bands(source.read(), source, seed=0).bands
    assert min(rule.low) >= 1_000
    assert max(rule.high) <= 4_000
