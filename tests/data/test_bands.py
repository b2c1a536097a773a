"""Rasters of any bands and depth become images by one rule, measured on those that train."""

import http.server
import subprocess
import sys
import tarfile
import threading
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

from efficientnetv2.data.bands import load_raster, measure_bands
from efficientnetv2.data.config import DataConfig, with_bands
from efficientnetv2.data.dataset import load_dataset
from efficientnetv2.data.decode import load_eval_image, load_image
from efficientnetv2.data.file_probe import probe
from efficientnetv2.data.geotiff import (
    all_bands,
    ignore_not_georeferenced,
    open_raster,
    read_raster,
    scale_to_uint8,
    visible_bands,
)
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.image_metadata import content_hashes
from efficientnetv2.data.raster_checks import band_mismatch, mismatch
from efficientnetv2.data.readers import default_bands, display_reader, eval_reader, source_reader
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows.predict_map import MapOptions, resolve_bands

RNG = np.random.default_rng(0)


def deep(bands=5, px=24, least=1_000, most=4_000):
    return RNG.integers(least, most, (bands, px, px)).astype(np.uint16)


@given(st.integers(0, 60_000), st.integers(1, 5_000), st.integers(0, 65_535))
def test_values_are_spread_evenly_and_cut_off_at_the_ends(low, span, value):
    bands = Bands((1, 1, 1), (low,) * 3, (low + span,) * 3)
    found = scale_to_uint8(np.full((3, 1, 1), value, np.uint16), np.ones((3, 1, 1), bool), bands)
    assert abs(int(found[0, 0, 0]) - np.clip(255 * (value - low) / span, 0, 255)) <= 0.51


def test_what_is_missing_gets_its_level(tmp_path):
    """A nodata value in all bands, a NaN in all bands, and one in a single band, whose others count."""
    values = np.full((3, 4, 4), 0.5, np.float32)
    values[:, 0, 0], values[:, 0, 1], values[1, 0, 2] = -9999, np.nan, np.nan
    path = write_raster(tmp_path / "float.tif", values, nodata=-9999)
    bands = Bands((1, 2, 3), (0,) * 3, (1,) * 3, missing=(10, 20, 30))
    with open_raster(path) as dataset:
        found, valid = read_raster(dataset, bands)
    assert found[0, 0].tolist() == found[0, 1].tolist() == [10, 20, 30]
    assert found[0, 2].tolist() == [128, 20, 128]
    assert found[3, 3].tolist() == [128, 128, 128]
    assert (~valid).sum() == 2


def test_an_alpha_band_says_where_there_is_data(tmp_path):
    values = np.full((4, 4, 4), 200, np.uint8)
    values[3, 0, 0] = 0
    path = write_raster(tmp_path / "alpha.tif", values, photometric="RGB", alpha="yes")
    with open_raster(path) as dataset:
        assert visible_bands(dataset) == all_bands(dataset) == (1, 2, 3)
        _, valid = read_raster(dataset, Bands((1, 2, 3)))
    assert valid.sum() == 15


def test_a_part_is_that_part(tmp_path):
    values = deep(3, 30)
    path = write_raster(tmp_path / "deep.tif", values)
    with open_raster(path) as dataset:
        bands = Bands((3, 2, 1), (0,) * 3, (65535,) * 3)
        found, _ = read_raster(dataset, bands, ((7, 11), (5, 16)))
    expected = np.rint(values[::-1, 7:11, 5:16].transpose(1, 2, 0) / 257)
    assert np.abs(found - expected).max() <= 1


def test_the_raster_says_which_bands_are_red_green_and_blue(tmp_path):
    path = write_raster(tmp_path / "planet.tif", deep(4), photometric="MINISBLACK")
    kinds = rasterio.enums.ColorInterp
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [kinds.blue, kinds.green, kinds.red, kinds.undefined]
    with open_raster(path) as dataset:
        assert visible_bands(dataset) == (3, 2, 1)
        assert all_bands(dataset) == (3, 2, 1, 4)


def test_a_rule_is_measured_once_on_all_that_train(tmp_path):
    """Band 4 of one image lies at 0 to 100, of the other at 900 to 1,000: the rule spans both."""
    files = []
    for name, least in (("a", 0), ("b", 900)):
        values = deep()
        values[3] = np.linspace(least, least + 100, 24 * 24).reshape(24, 24)
        files.append(str(write_raster(tmp_path / f"{name}.tif", values)))
    rule = measure_bands(files, (4, 3, 2), seed=0)
    assert rule.numbers == (4, 3, 2)
    assert rule.low[0] == pytest.approx(2, abs=1)
    assert rule.high[0] == pytest.approx(998, abs=1)
    assert rule.low[1] > 1_000
    assert rule.missing[0] == pytest.approx(127, abs=2)
    assert rule.ground_m == pytest.approx(240)  # 24 px of 10 m
    assert rule == measure_bands(files, (4, 3, 2), seed=0)
    alone = measure_bands(files[:1], (4, 3, 2), seed=0)
    assert alone.high[0] < 101  # so that the line above is not of the first alone


def test_a_rule_is_of_the_pixels_not_of_the_averages_that_a_file_holds_beside_them(tmp_path):
    """As a cloud-optimized GeoTIFF does: of noise, averages of 16 x 16 have a sixteenth of the deviation."""
    values = np.random.default_rng(0).normal(2000, 400, (1, 512, 512)).clip(0, 4000).astype(np.uint16)
    plain, beside = (write_raster(tmp_path / "plain.tif", values), write_raster(tmp_path / "beside.tif", values))
    with rasterio.open(beside, "r+") as target:
        target.build_overviews([2, 4, 8, 16], rasterio.enums.Resampling.average)
    one, other = (measure_bands([str(file)], "all", seed=0) for file in (plain, beside))
    assert (one.low, one.high) == (other.low, other.high)
    assert other.high[0] - other.low[0] == pytest.approx(2 * 2.326 * 400, rel=0.1)


@pytest.mark.parametrize("kind", [np.uint32, np.int32, np.float64])
def test_values_far_from_0_keep_what_they_differ_by(kind):
    """Which is less than what float32 can tell apart there."""
    low = 2_000_000_000
    values = (low + np.arange(256).reshape(1, 16, 16)).astype(kind)
    rule = Bands((1,), low=(low,), high=(low + 255,), missing=(0,))
    found = scale_to_uint8(values, np.ones_like(values, bool), rule)
    assert found.flatten().tolist() == list(range(256))


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("big", [False, True])
def test_a_raster_that_says_how_it_is_turned_is_read_as_it_is_to_be_seen(turned, big, tmp_path):
    """As Pillow reads the same file where no rule is: GDAL leaves it as it is stored."""
    colors = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    file = tmp_path / "scan.tif"
    Image.fromarray(colors).save(file, tiffinfo={274: turned}, big_tiff=big)
    seen = load_raster(str(file), Bands((1, 2, 3)))
    assert np.array_equal(seen, np.asarray(load_image(str(file))))
    assert seen.shape == ((30, 20, 3) if turned >= 5 else (20, 30, 3))


def test_eight_bits_stay_as_they_are(tmp_path):
    values = RNG.integers(30, 60, (6, 16, 16)).astype(np.uint8)
    path = str(write_raster(tmp_path / "six.tif", values, photometric="MINISBLACK"))
    rule = measure_bands([path], (6, 1, 1), seed=0)
    assert (rule.low, rule.high) == ((0,) * 3, (255,) * 3)
    np.testing.assert_array_equal(load_raster(path, rule), values[[5, 0, 0]].transpose(1, 2, 0))


def test_ordinary_images_need_no_rule(tmp_path):
    plain = write_raster(tmp_path / "plain.tif", RNG.integers(0, 255, (3, 16, 16)).astype(np.uint8))
    jpeg = paint(tmp_path / "a.jpg", (200, 10, 10))
    assert measure_bands([str(plain), str(jpeg)], None, seed=0) is None
    with pytest.raises(InputError, match=mentioning("bands", "1,2,3")):
        measure_bands([str(jpeg)], (1, 2, 3), seed=0)


def test_rasters_that_say_too_little_are_refused_by_name(tmp_path):
    path = write_raster(tmp_path / "five.tif", deep())
    with rasterio.open(path, "r+") as target:
        target.set_band_description(4, "B4 red")
    with pytest.raises(InputError, match=mentioning("five.tif", "5", "4", "B4", "7", "bands")):
        measure_bands([str(path)], (7,), seed=0)
    three = str(write_raster(tmp_path / "three.tif", deep(3)))
    with pytest.raises(InputError, match=mentioning("three.tif", "3", "4", "B4", "2")):
        measure_bands([str(path), three], (4, 3, 2), seed=0)
    empty = str(write_raster(tmp_path / "empty.tif", np.zeros((3, 9, 9), np.uint16), nodata=0))
    with pytest.raises(InputError, match=mentioning("empty.tif", "raster")):
        measure_bands([empty], None, seed=0)


def test_images_of_one_set_may_differ_in_size_and_kind(tmp_path):
    """Two rasters of different size and a JPEG, through the dataset's reader and a network's crop mode."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
    write_raster(tmp_path / "set/a/one.tif", deep(px=24))
    write_raster(tmp_path / "set/b/two.tif", deep(px=40))
    paint(tmp_path / "set/b/three.jpg", (10, 200, 10))
    listed = load_dataset(tmp_path / "set")
    rule = measure_bands([listed.file(row) for row in range(3)], (4, 3, 2), seed=0)
    pictures = source_reader(replace(listed, bands=rule))
    seen = [load_eval_image(pictures.source(row), Preprocessing(image_size=16)) for row in range(3)]
    assert [one.shape for one in seen] == [(16, 16, 3)] * 3
    green = seen[[path.endswith("jpg") for path in listed.paths].index(True)]
    assert green.mean(axis=(0, 1)).argmax() == 1
    other = source_reader(replace(listed, bands=replace(rule, high=(9_999.0,) * 3)))
    # A cache of decoded images knows by these that they are others.
    assert pictures.stamps(range(3)) != other.stamps(range(3))
    np.testing.assert_array_equal(content_hashes(listed)[1], content_hashes(replace(listed, bands=rule))[1])


def test_damaged_rasters_are_told_from_good_ones(tmp_path):
    good = write_raster(tmp_path / "good.tif", deep())
    assert probe(str(good)).reason == ""
    assert mentions(probe(str(good)).colors, "5", "uint16")
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"II*\0 no more than a beginning" * 9)
    assert mentions(probe(str(bad)).reason, "GDAL", "raster")
    with pytest.raises(UnreadableImageError, match=mentioning("good.tif", "5", "6")):
        load_raster(str(good), Bands((6, 6, 6)))
    with pytest.raises(UnreadableImageError, match=r"bad\.tif"):
        load_raster(str(bad), Bands((1, 2, 3)))


@pytest.mark.parametrize("interleave", ["band", "pixel"])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 32}])
@pytest.mark.parametrize("compress", ["NONE", "DEFLATE"])
@pytest.mark.parametrize(("bands", "kind"), [(5, "uint16"), (3, "uint8")])
def test_a_raster_that_is_cut_short_is_found_by_the_look(tmp_path, interleave, layout, compress, bands, kind):
    """Its header is whole. Of bands that lie one behind the other Pillow reads the first alone."""
    values = RNG.integers(0, 255, (bands, 60, 90)).astype(kind)  # no side a multiple of a block's
    path = write_raster(tmp_path / "whole.tif", values, interleave=interleave, compress=compress, **layout)
    whole = path.read_bytes()
    assert probe(str(path)).reason == ""
    for share in (0.5, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        assert mentions(probe(str(path)).reason, "raster", "damaged")


def test_without_the_extra_what_is_no_raster_is_called_what_it_is(tmp_path, monkeypatch):
    whole = tmp_path / "whole.tif"
    Image.fromarray(RNG.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(whole)
    (tmp_path / "half.tif").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.tif").write_text("<html>Not found</html>")
    Image.new("RGB", (1, 1)).save(tmp_path / "small.tif")
    monkeypatch.setattr("efficientnetv2.data.raster_checks.has_gdal", lambda: False)
    assert "a web page" in probe(str(tmp_path / "text.tif")).reason
    assert "too small" in probe(str(tmp_path / "small.tif")).reason
    assert "geo" not in probe(str(tmp_path / "half.tif")).reason
    assert probe(str(tmp_path / "half.tif")).reason


def test_a_image_that_pillow_takes_for_an_attack_stays_one(tmp_path, monkeypatch):
    """GDAL would read 600 MB for it, at each draw."""
    plain = str(write_raster(tmp_path / "plain.tif", RNG.integers(0, 255, (3, 40, 40)).astype(np.uint8)))
    five = str(write_raster(tmp_path / "five.tif", deep(px=40)))
    rule = measure_bands([five], None, seed=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    assert "a decompression bomb" in probe(plain).reason
    assert "0 million pixels" in probe(five).reason
    assert "effnetv2 geo map" in probe(five).reason
    with pytest.raises(UnreadableImageError, match="Cut it into pieces"):
        load_raster(five, rule)


def test_ordinary_images_stored_as_pillow_cannot_read_them_are_left_to_gdal(tmp_path, monkeypatch):
    """As WebP in a GeoTIFF, of which Pillow knows the number whether or not its libtiff reads it."""
    values = RNG.integers(0, 255, (3, 32, 32)).astype(np.uint8)
    path = str(write_raster(tmp_path / "webp.tif", values, compress="WEBP", webp_lossless=True))
    monkeypatch.setattr("efficientnetv2.data.raster_checks._loads", lambda image: False)
    assert probe(path).reason == ""
    rule = measure_bands([path], None, seed=0)
    np.testing.assert_array_equal(load_raster(path, rule), values.transpose(1, 2, 0))
    np.testing.assert_array_equal(load_raster(path, default_bands(path)), values.transpose(1, 2, 0))
    monkeypatch.setattr("efficientnetv2.data.raster_checks._loads", lambda image: True)
    assert measure_bands([path], None, seed=0) is None


def test_what_is_answered_needs_no_rule_either_where_what_trains_has_none(tmp_path):
    """Training on JPEGs, validating on 16 bits: told before the first step, not after the last."""
    jpeg = str(paint(tmp_path / "a.jpg", (200, 10, 10)))
    plain = str(write_raster(tmp_path / "plain.tif", RNG.integers(0, 255, (3, 16, 16)).astype(np.uint8)))
    (tmp_path / "broken.tif").write_bytes(b"II*\0 broken")
    assert measure_bands([jpeg], None, seed=0, others=[plain, str(tmp_path / "broken.tif")]) is None
    sixteen = str(write_raster(tmp_path / "deep.tif", deep(3)))
    with pytest.raises(InputError, match=mentioning("deep.tif", "uint16", "8")):
        measure_bands([jpeg, plain], None, seed=0, others=[plain, sixteen])


def test_sixteen_bits_in_another_format_are_not_seen_nearly_black_beside_a_rule(tmp_path):
    """Among those that train or are held out, in a folder that is answered, and within shards."""
    (tmp_path / "set/a").mkdir(parents=True)
    raster = str(write_raster(tmp_path / "set/a/one.tif", deep(1)))
    png = tmp_path / "set/a/two.png"
    Image.fromarray(deep(1)[0]).save(png)
    jpeg = str(paint(tmp_path / "set/a/three.jpg", (9, 200, 9)))
    rule = measure_bands([raster, jpeg], None, seed=0)
    fault = r"two\.png.*holds values of more than 8 bits.*gdal_translate -of GTiff"
    for files, others in (([raster, jpeg, str(png)], []), ([raster, jpeg], [str(png)])):
        with pytest.raises(InputError, match=fault):
            measure_bands(files, None, seed=0, others=others)
    listed = load_dataset(tmp_path / "set", require_labels=False)
    answered = eval_reader(replace(listed, bands=rule))
    rows = {path.rpartition("/")[2]: row for row, path in enumerate(listed.paths)}
    with pytest.raises(UnreadableImageError, match=fault):
        answered.source(rows["two.png"])
    assert answered.source(rows["three.jpg"]) == jpeg
    plain = measure_bands([raster], (1, 1, 1), seed=0)
    eight = replace(plain, low=(0.0,) * 3, high=(255.0,) * 3, kinds=("uint8",))
    assert eval_reader(replace(listed, bands=eight)).source(rows["two.png"]) == str(png)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(png, "two.png")
        tar.add(jpeg, "three.jpg")
    packed = load_dataset(str(tmp_path / "x.tar"), require_labels=False)
    answered = eval_reader(replace(packed, bands=rule)).ahead([0, 1])
    with pytest.raises(UnreadableImageError, match=fault):
        answered.source(packed.paths.index("x.tar#two.png"))
    assert answered.source(packed.paths.index("x.tar#three.jpg")) == Path(jpeg).read_bytes()
    four = Bands((1, 2, 3, 4), (0.0,) * 4, (9.0,) * 4)
    with pytest.raises(UnreadableImageError, match="4 bands"):
        eval_reader(replace(packed, bands=four)).source(0)


def test_without_the_extra_a_raster_names_it(tmp_path, monkeypatch):
    path = str(write_raster(tmp_path / "five.tif", deep()))
    monkeypatch.setattr("efficientnetv2.data.raster_checks.has_gdal", lambda: False)
    assert mentions(probe(path).reason, "geo")
    assert measure_bands([path], None, seed=0) is None


def test_a_container_of_rasters_has_no_bands_itself(tmp_path):
    """NetCDF under a TIFF's name: GDAL opens it, and finds its variables to be rasters of their own."""
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
    ("rule", "kind", "fits"),
    [
        (SIXTEEN, "uint16", True), (SIXTEEN, "int16", True), (SIXTEEN, "int32", True), (SIXTEEN, "uint8", False),
        (SIXTEEN, "float32", False), (EIGHT, "uint8", True), (EIGHT, "uint16", False), (EIGHT, "float32", False),
        (REAL, "float64", True), (REAL, "uint16", False), (replace(SIXTEEN, kinds=("uint16", "uint8")), "uint8", True),
        (OLD_SIXTEEN, "uint8", True),
        (OLD_EIGHT, "uint8", True), (OLD_EIGHT, "uint16", False), (OLD_EIGHT, "float64", False),
    ],
)  # fmt: skip
def test_a_rule_is_for_the_kind_of_values_it_was_measured_on(tmp_path, rule, kind, fits):
    """8 bits by a rule of 16 would be black, 16 by one of 8 white; of older rules little is known."""
    path = str(write_raster(tmp_path / "one.tif", RNG.integers(0, 127, (3, 8, 8)).astype(kind)))
    with open_raster(path) as dataset:
        assert (mismatch(dataset, rule) == "") == fits
    if fits:
        assert load_raster(path, rule).shape == (8, 8, 3)
    else:
        with pytest.raises(
            UnreadableImageError, match=rf"one\.tif: holds {kind}, but the rule by which .* gdal_translate"
        ):
            load_raster(path, rule)


def test_the_kinds_of_all_that_train_are_kept_and_others_are_refused(tmp_path):
    deep_one = str(write_raster(tmp_path / "deep.tif", deep()))
    signed = str(write_raster(tmp_path / "signed.tif", deep().astype(np.int16)))
    bright = str(write_raster(tmp_path / "bright.tif", RNG.integers(0, 255, (5, 24, 24)).astype(np.uint8)))
    rule = measure_bands([deep_one, signed], "all", seed=0, others=[deep_one])
    assert rule.kinds == rule.shown.kinds == ("int16", "uint16")
    seen = Preprocessing(image_size=16).seeing(rule)
    assert Preprocessing.from_json(seen.to_json()) == seen
    older = seen.to_json()
    del older["bands"]["kinds"]
    assert Preprocessing.from_json(older).bands == replace(rule, kinds=())
    with pytest.raises(
        InputError, match=mentioning("bright.tif", "uint8", "0", "255", "uint16", "UInt16", "FROM", "TO")
    ):
        measure_bands([deep_one], "all", seed=0, others=[bright])
    assert measure_bands([deep_one, bright], "all", seed=0, others=[bright]).kinds == ("uint16", "uint8")


def test_bands_of_different_types_are_refused_by_name(tmp_path):
    """As gdalbuildvrt -separate joins them; a rule of those alone that are alike reads them."""
    counts = write_raster(tmp_path / "counts.tif", deep(2))
    index = write_raster(tmp_path / "index.tif", RNG.random((1, 24, 24)).astype(np.float32))
    joined = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{number}"><SimpleSource><SourceFilename>{file}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for number, (kind, file, band) in enumerate(
            [("UInt16", counts, 1), ("UInt16", counts, 2), ("Float32", index, 1)], start=1
        )
    )
    path = tmp_path / "joined.vrt"
    path.write_text(f'<VRTDataset rasterXSize="24" rasterYSize="24">{joined}</VRTDataset>')
    with ignore_not_georeferenced(), rasterio.open(path) as dataset:
        told = band_mismatch(dataset, Bands((1, 2, 3)))
        assert mentions(told, "1", "uint16", "2", "3", "float32")
        assert mentions(told, "gdal_translate", "Float32")
        assert band_mismatch(dataset, Bands((2, 1))) == ""
    with pytest.raises(InputError, match=mentioning("gdal_translate", "joined.vrt", "joined.tif")), open_raster(path):
        pass


@pytest.fixture
def fetched():
    """A server, and what was asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - the server's name for it

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
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


def told_of(path):
    """What opening says. In a process of its own: GDAL keeps the interpreter while it waits for this one's server."""
    done = subprocess.run(
        [sys.executable, "-c", READS_WITHIN, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.parametrize("prefix", ["/vsicurl/", ""])
@pytest.mark.parametrize("way", ["itself", "overviews", "ovr", "msk"])
def test_no_raster_makes_gdal_ask_a_server(tmp_path, fetched, way, prefix):
    """As a VRT that is called a TIFF, by its tag of overviews, and by a VRT next to it."""
    base, asked = fetched
    place = f"{prefix}{base}/secret.tif"
    vrt = (
        '<VRTDataset rasterXSize="400" rasterYSize="400"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{place}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    path = tmp_path / "x.tif"
    if way == "itself":
        path.write_text(vrt)
    else:
        write_raster(path, np.ones((1, 400, 400), np.uint8))
    if way == "overviews":
        with rasterio.open(path, "r+") as target:
            target.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=place)
    elif way != "itself":
        (tmp_path / f"x.tif.{way}").write_text(vrt)
    assert "x.tif" in told_of(path)
    assert asked == []


def test_overviews_and_masks_beside_a_raster_are_read(tmp_path):
    path = write_raster(tmp_path / "x.tif", np.full((1, 400, 400), 7, np.uint8))
    with rasterio.Env(TIFF_USE_OVR=True, GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as target:
        target.build_overviews([2, 4])
        target.write_mask(np.zeros((400, 400), bool))
    assert {file.name for file in tmp_path.iterdir()} == {"x.tif", "x.tif.ovr", "x.tif.msk"}
    with open_raster(path) as dataset:
        assert dataset.overviews(1) == [2, 4]
        assert not read_raster(dataset, Bands((1,)))[1].any()


def with_fill(folder, fill, where=np.s_[:, :, :6], count=6, bands=4, least=0.1, most=0.9, kind=np.float32, **words):
    """Tiles in parts of which a value stands for missing data."""
    files = []
    for number in range(count):
        values = np.random.default_rng(number).uniform(least, most, (bands, 40, 40)).astype(kind)
        values[where] = fill
        files.append(str(write_raster(folder / f"{number}.tif", values, **words)))
    return files


@pytest.mark.parametrize(
    ("fill", "least", "most", "kind"),
    [
        (-9999, 0.1, 0.9, np.float32),
        (-32768, 100, 900, np.int16),
        (65535, 100, 3_000, np.uint16),
        (float(np.finfo(np.float32).min), 0.1, 0.9, np.float32),
    ],
)
def test_missing_data_that_no_file_declares_is_found(tmp_path, fill, least, most, kind):
    """As after many crops: else nearly all real values would become one level."""
    files = with_fill(tmp_path, fill, least=least, most=most, kind=kind)
    rule = measure_bands(files, "all", seed=0)
    assert rule.nodata == (fill,)
    assert min(rule.low) >= least
    assert max(rule.high) <= most
    seen = load_raster(files[0], rule)
    assert (seen[:, :6] == rule.missing).all()
    assert len(np.unique(seen[:, 6:])) > 200
    with open_raster(files[0]) as dataset:
        assert read_raster(dataset, rule)[1].sum() == 40 * 34
    assert measure_bands(files, "all", seed=0, nodata=()).nodata == (), "--nodata none"


def test_what_is_declared_or_a_measurement_is_not_taken_for_missing(tmp_path):
    declared = with_fill(tmp_path, -9999, nodata=-9999)
    assert measure_bands(declared, "all", seed=0).nodata == ()
    bright = with_fill(tmp_path, 1.2)  # clouds lie near the others
    assert measure_bands(bright, "all", seed=0).nodata == ()
    alone = with_fill(tmp_path, -9999, np.s_[:, ::5, ::5])  # no area
    assert measure_bands(alone, "all", seed=0).nodata == ()
    codes = [str(write_raster(tmp_path / "codes.tif", np.repeat([[[0], [40]]], 8, axis=2).astype(np.uint16)))]
    assert measure_bands(codes, "all", seed=0).nodata == ()


def test_nodata_is_said_in_a_line_and_by_an_option(tmp_path):
    with_fill(tmp_path, -9999)
    listed = load_dataset(tmp_path, require_labels=False)
    said = logged_lines()
    found = with_bands(listed, DataConfig(str(tmp_path), bands="all"), seed=0)
    assert found.bands.nodata == (-9999,)
    assert any("-9999" in line and "nodata=none" in line for line in said)
    assert not any("-9999" in line for line in said if "become 0 to 255" in line)
    said.clear()
    given = DataConfig(str(tmp_path), bands="all", nodata="-9999,0.5")
    assert with_bands(listed, given, seed=0).bands.nodata == (-9999, 0.5)
    assert not any("Missing data" in line for line in said)
    for wrong in ("x", "nan", "1,,2"):
        with pytest.raises(InputError, match=f"`nodata` is '{wrong}'"):
            replace(given, nodata=wrong).read_any()


def test_nodata_of_ordinary_images_is_refused(tmp_path):
    paint(tmp_path / "a/0.jpg", (90, 90, 90))
    source = DataConfig(str(tmp_path), nodata="0")
    with pytest.raises(InputError, match=mentioning("nodata=0", "8-bit")):
        with_bands(source.read_any(), source, seed=0)


def printed(path, kind=np.uint8):
    """A image of a printer's: cyan, magenta, yellow and black."""
    inks = (RNG.integers(0, 255, (4, 24, 24)) * (np.iinfo(kind).max // 255)).astype(kind)
    return str(write_raster(path, inks, photometric="CMYK", interleave="pixel"))


def test_a_printed_image_is_an_ordinary_one(tmp_path):
    """One among photos makes no rasters of them; GDAL turns its inks into colors and calls black alpha."""
    path = tmp_path / "printed.tif"
    inks = Image.frombytes("CMYK", (24, 24), RNG.bytes(24 * 24 * 4))
    inks.save(path)
    with open_raster(path) as dataset:
        assert [color.name for color in dataset.colorinterp] == ["red", "green", "blue", "alpha"]
    jpeg = str(paint(tmp_path / "a.jpg", (200, 10, 10)))
    assert measure_bands([str(path), jpeg], None, seed=0) is None
    # Among rasters it is seen with the same colors, but for rounding.
    seen = load_raster(str(path), Bands((1, 2, 3))).astype(int)
    np.testing.assert_allclose(seen, np.asarray(inks.convert("RGB")), atol=1)


def test_a_printed_image_of_16_bits_is_ordinary_alone_and_refused_by_its_name_among_rasters(tmp_path):
    """Pillow makes colors of its inks, GDAL does not; no other image is to blame."""
    path, jpeg = printed(tmp_path / "printed.tif", np.uint16), str(paint(tmp_path / "a.jpg", (200, 10, 10)))
    assert probe(path).reason == ""
    assert measure_bands([jpeg, path], None, seed=0) is None
    five = str(write_raster(tmp_path / "five.tif", deep()))
    for files in ([jpeg, path, five], [five, path]):
        with pytest.raises(InputError, match=mentioning("printed.tif", "RGB")):
            measure_bands(files, None, seed=0)
    assert measure_bands([path], (1, 2, 3, 4), seed=0).channels == 4, "by number anything may be seen"


def test_rasters_of_several_kinds_are_counted_and_the_dark_ones_told(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_raster(tmp_path / name / "bright.tif", RNG.integers(0, 255, (3, 24, 24)).astype(np.uint8))
        write_raster(tmp_path / name / "deep.tif", deep(3))
    write_raster(tmp_path / "a/third.tif", deep(3))
    said = logged_lines()
    with_bands(load_dataset(tmp_path), DataConfig(str(tmp_path)), seed=0)
    assert mentions(said[1], "3 of uint16", "2 of uint8", "dark", "gdal_translate")
    for name in ("a", "b"):
        (tmp_path / name / "bright.tif").unlink()
    said.clear()
    with_bands(load_dataset(tmp_path), DataConfig(str(tmp_path)), seed=0)
    assert len(said) == 1, "of one kind there is nothing to tell"


def test_eight_bits_in_another_order_are_seen_in_that_order(tmp_path):
    """Blue, green, red: as ordinary images Pillow would take blue for red, or not open them."""
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
def test_numbers_that_are_no_levels_are_ordinary_alone_and_refused_among_rasters(tmp_path, profile, fault):
    """Pillow makes levels of them, for training and answers alike; GDAL does not."""
    path = str(write_raster(tmp_path / "coded.tif", RNG.integers(0, 2, (1, 24, 24)).astype(np.uint8), **profile))
    assert measure_bands([path], None, seed=0) is None
    assert default_bands(path) is None
    beside = str(write_raster(tmp_path / "deep.tif", deep(1)))
    with pytest.raises(InputError, match=rf"coded\.tif holds .*{fault}"):
        measure_bands([path, beside], None, seed=0)
    assert measure_bands([path], (1,), seed=0).channels == 1, "by number anything may be seen"


def colored_bands(path, *colors):
    write_raster(path, deep(3))
    with rasterio.open(path, "r+") as target:
        target.colorinterp = [rasterio.enums.ColorInterp[color] for color in colors]
    return str(path)


def test_bands_that_were_found_by_color_are_looked_for_by_color_in_all(tmp_path):
    """Else red and blue would change places from one image to the next."""
    bgr = colored_bands(tmp_path / "bgr.tif", "blue", "green", "red")
    rgb = colored_bands(tmp_path / "rgb.tif", "red", "green", "blue")
    unnamed = str(write_raster(tmp_path / "unnamed.tif", deep(3)))
    with pytest.raises(InputError, match=mentioning("rgb.tif", "3", "1", "2")):
        measure_bands([bgr, rgb], None, seed=0)
    with pytest.raises(InputError, match=mentioning("rgb.tif", "3")):
        measure_bands([bgr], None, seed=0, others=[rgb])
    rule = measure_bands([bgr, unnamed], None, seed=0)
    assert (rule.numbers, rule.names) == ((3, 2, 1), ("red", "green", "blue"))
    with pytest.raises(UnreadableImageError, match=mentioning("rgb.tif", "3")):
        load_raster(rgb, rule)
    with open_raster(rgb) as dataset:
        asked = Preprocessing(image_size=16).seeing(rule)
        with pytest.raises(InputError, match=mentioning("rgb.tif", "3")):
            resolve_bands(dataset, asked, MapOptions(), "rgb.tif")
        assert resolve_bands(dataset, asked, MapOptions(bands="3,2,1"), "rgb.tif").numbers == (3, 2, 1)
    assert measure_bands([bgr, rgb], (3, 2, 1), seed=0).names == ("", "", ""), "by number no color counts"
    assert load_raster(rgb, replace(rule, names=())).shape == (24, 24, 3), "a rule of before colors were kept"


def test_what_a_raster_describes_its_bands_as_counts_before_their_colors(tmp_path):
    """Described blue, green, red, and called red, green, blue by GDAL, as it calls three bands of 8 bits: no fault."""
    path = write_raster(tmp_path / "named.tif", RNG.integers(0, 255, (4, 24, 24)).astype(np.uint8))
    with rasterio.open(path, "r+") as target:
        target.descriptions = ("blue", "green", "red", "infrared")
    assert measure_bands([str(path)], None, seed=0).names == ("blue", "green", "red")
    by_number = measure_bands([str(path)], (3, 2, 1), seed=0)
    assert by_number.names == ("red", "green", "blue")
    assert load_raster(str(path), by_number).shape == (24, 24, 3)


@pytest.mark.parametrize(("bands", "profile"), [(3, {"photometric": "MINISBLACK"}), (1, {"compress": "LERC"})])
def test_ordinary_images_that_pillow_cannot_open_are_read_all_the_same(tmp_path, monkeypatch, bands, profile):
    """For training by a rule, so that each step does; for a network of ordinary images with their values."""
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
