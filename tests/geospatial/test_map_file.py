"""The map as a file: what GDAL itself reads of it."""

from __future__ import annotations

import ctypes
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.messages import mentioning
from tests.rasters import UTM, rasterio, write_raster

from efficientnetv2.data.geotiff import open_raster
from efficientnetv2.geospatial import map_file
from efficientnetv2.utils.errors import InputError

NAMES = ("Forêt & <bush>", "water", "bare\x07")


@pytest.fixture
def written(tmp_path):
    """1,300 x 700 px in stripes of the three classes, 90 % sure, the last row without data."""
    raster = write_raster(tmp_path / "blank.tif", np.zeros((1, 700, 1300), np.uint8))
    values = np.repeat(np.arange(1300)[None] // 500 + 1, 700, axis=0)
    values[-1] = 0
    sure = np.where(values == 0, 0, 90)

    def fill(put):
        for top in range(0, 700, 256):
            for left in range(0, 1300, 256):
                window = ((top, min(top + 256, 700)), (left, min(left + 256, 1300)))
                rows, columns = (slice(*side) for side in window)
                put(values[rows, columns], sure[rows, columns], window)

    with open_raster(raster) as source:
        map_file.write_map(tmp_path / "map.tif", source, NAMES, fill, metadata={"model": "m"})
    return tmp_path / "map.tif", values


def gdal():
    """GDAL's own library, as rasterio's wheels bring it along."""
    for file in sorted((Path(rasterio.__file__).parent.parent / "rasterio.libs").glob("libgdal-*")):
        return ctypes.CDLL(str(file))
    return pytest.skip("rasterio was not installed as a wheel that brings GDAL along")


def test_gdal_knows_the_classes_by_name(written):
    library = gdal()
    library.GDALAllRegister()
    library.GDALOpen.restype = library.GDALGetRasterBand.restype = ctypes.c_void_p
    library.GDALGetRasterBand.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.GDALGetRasterCategoryNames.restype = ctypes.POINTER(ctypes.c_char_p)
    library.GDALGetRasterCategoryNames.argtypes = library.GDALClose.argtypes = [ctypes.c_void_p]
    library.GDALGetMetadata.restype = ctypes.c_void_p
    library.GDALGetMetadata.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.GDALOpen.argtypes = [ctypes.c_char_p, ctypes.c_int]
    dataset = library.GDALOpen(str(written[0]).encode(), 0)
    band = library.GDALGetRasterBand(dataset, 1)
    library.GDALGetMetadata(band, b"")  # GDAL opens what lies beside a GeoTIFF when metadata are asked for
    listed = library.GDALGetRasterCategoryNames(band)
    names = [listed[place].decode() for place in range(4)]
    assert listed[4] is None
    library.GDALClose(dataset)
    assert names == ["no data", "Forêt & <bush>", "water", "bare"]


def test_smaller_copies_hold_the_same_classes(written):
    path, values = written
    with rasterio.open(path) as target:
        assert target.overviews(1) == target.overviews(2) == [2, 4, 8]
        np.testing.assert_array_equal(target.read(1), values)
        assert json.loads(target.tags()["class_names"]) == list(NAMES)
        assert len({target.colormap(1)[value] for value in range(4)}) == 4
    for level, factor in enumerate((2, 4, 8)):
        with rasterio.open(path, overview_level=level) as copy:
            small, sure = copy.read()
        assert small.shape == (-(-700 // factor), -(-1300 // factor))
        assert set(np.unique(small[:-1])) == {1, 2, 3}
        assert set(np.unique(sure[:-1])) == {90}
        # Stripes of 500 px, but for the pixel on a border.
        wanted = (np.arange(small.shape[1]) * factor + factor // 2) // 500 + 1
        assert (small[5] != wanted.clip(max=3)).sum() <= 2


def test_a_small_map_needs_no_copies(tmp_path):
    raster = write_raster(tmp_path / "blank.tif", np.zeros((1, 90, 90), np.uint8))
    ones = np.ones((90, 90), np.int64)
    with open_raster(raster) as source:
        map_file.write_map(
            tmp_path / "map.tif", source, NAMES, lambda put: put(ones, ones, ((0, 90), (0, 90))), metadata={}
        )
    with rasterio.open(tmp_path / "map.tif") as target:
        assert target.overviews(1) == []


def test_more_classes_than_a_pixel_tells_apart_are_refused_before_the_work(tmp_path):
    raster = write_raster(tmp_path / "blank.tif", np.zeros((1, 4, 4), np.uint8))
    names = [str(number) for number in range(65_536)]
    with (
        open_raster(raster) as source,
        pytest.raises(InputError, match=mentioning("map.tif", "65,536", "65,535")),
    ):
        map_file.write_map(
            tmp_path / "map.tif", source, names, lambda put: pytest.fail("it began"), metadata={}
        )
    assert not (tmp_path / "map.tif").exists()


def test_areas_are_counted_in_memory_that_does_not_grow_with_the_width(tmp_path):
    """100,000 px wide, forest in the first block of the second row of blocks, and no data elsewhere."""
    with rasterio.open(
        tmp_path / "map.tif", "w", driver="GTiff", width=100_000, height=300, count=2, dtype="uint8", nodata=0,
        crs=UTM, transform=rasterio.Affine(1, 0, 500_000, 0, -1, 8_000_000), sparse_ok=True,
        tiled=True, blockxsize=256, blockysize=256, compress="deflate",
    ) as target:  # fmt: skip
        target.update_tags(class_names=json.dumps(["forest", "water"]))
        target.write(np.ones((1, 44, 256), np.uint8), [1], window=((256, 300), (0, 256)))
    tracemalloc.start()
    try:
        names, pixels, hectares = map_file.count_classes(tmp_path / "map.tif")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6
    assert (names, pixels.tolist()) == (("forest", "water"), [44 * 256, 0])
    np.testing.assert_allclose(hectares, [44 * 256 / 10_000, 0])


@pytest.mark.parametrize("of_gdal", [False, True])
def test_a_disk_that_fills_under_the_smaller_copies_leaves_the_old_map(written, monkeypatch, of_gdal):
    """Of GDAL's own errors rasterio lets some out as they are, and none of them is an OSError."""
    path, _ = written
    before = path.read_bytes()
    error = (
        rasterio._err.CPLE_AppDefinedError(3, 1, "TIFFAppendToStrip: write error")
        if of_gdal
        else rasterio.errors.OverviewCreationError("write error")
    )

    def fails(target, factors, resampling):
        raise error

    monkeypatch.setattr(rasterio.io.DatasetWriter, "build_overviews", fails)
    ones = np.ones((700, 1300), np.int64)
    with (
        open_raster(path.with_name("blank.tif")) as source,
        pytest.raises(InputError, match=mentioning("map.tif", "write error")),
    ):
        map_file.write_map(
            path, source, NAMES, lambda put: put(ones, ones, ((0, 700), (0, 1300))), metadata={}
        )
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*"))
