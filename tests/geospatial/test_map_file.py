"""The map as a file, as GDAL reads it."""

from __future__ import annotations

import ctypes
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.messages import mentioning, mentions
from tests.rasters import UTM, rasterio, warp, write_raster

from efficientnetv2.data.geotiff import open_raster, pixel_side_m
from efficientnetv2.geospatial import map_file
from efficientnetv2.geospatial.map_file import distortion_warning, row_hectares
from efficientnetv2.utils.errors import InputError

NAMES = ("Forêt & <bush>", "water", "bare\x07")


@pytest.fixture
def written(tmp_path):
    """A map of 1,300 x 700 px: stripes of three classes with a probability of 90 %, and a last row without data."""
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
    """Load the GDAL library of rasterio's wheel."""
    for file in sorted((Path(rasterio.__file__).parent.parent / "rasterio.libs").glob("libgdal-*")):
        return ctypes.CDLL(str(file))
    return pytest.skip("rasterio was not installed as a wheel that brings GDAL along")


def test_gdal_reads_the_class_names(written):
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
    library.GDALGetMetadata(band, b"")  # GDAL reads files next to a GeoTIFF when metadata are requested
    listed = library.GDALGetRasterCategoryNames(band)
    names = [listed[value].decode() for value in range(4)]
    assert listed[4] is None
    library.GDALClose(dataset)
    assert names == ["no data", "Forêt & <bush>", "water", "bare"]


def test_overviews_have_the_same_classes(written):
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
        # Stripes of 500 px, except for the pixel at a border.
        wanted = (np.arange(small.shape[1]) * factor + factor // 2) // 500 + 1
        assert (small[5] != wanted.clip(max=3)).sum() <= 2


def test_small_map_has_no_overviews(tmp_path):
    raster = write_raster(tmp_path / "blank.tif", np.zeros((1, 90, 90), np.uint8))
    ones = np.ones((90, 90), np.int64)
    with open_raster(raster) as source:
        map_file.write_map(
            tmp_path / "map.tif", source, NAMES, lambda put: put(ones, ones, ((0, 90), (0, 90))), metadata={}
        )
    with rasterio.open(tmp_path / "map.tif") as target:
        assert target.overviews(1) == []


def test_more_classes_than_pixel_values_are_refused_before_any_work(tmp_path):
    raster = write_raster(tmp_path / "blank.tif", np.zeros((1, 4, 4), np.uint8))
    names = [str(number) for number in range(65_536)]
    with open_raster(raster) as source, pytest.raises(InputError, match=mentioning("map.tif", "65,536", "65,535")):
        map_file.write_map(tmp_path / "map.tif", source, names, lambda put: pytest.fail("it began"), metadata={})
    assert not (tmp_path / "map.tif").exists()


def test_memory_for_counting_areas_does_not_grow_with_the_width(tmp_path):
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
def test_full_disk_while_writing_overviews_keeps_the_earlier_map(written, monkeypatch, of_gdal):
    """rasterio raises some errors of GDAL unchanged, and none of them is an OSError."""
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
        map_file.write_map(path, source, NAMES, lambda put: put(ones, ones, ((0, 700), (0, 1300))), metadata={})
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*"))


def measured(tmp_path, height=180, width=360, **options):
    path = write_raster(tmp_path / "raster.tif", np.zeros((1, height, width), np.uint8), **options)
    with open_raster(path) as dataset:
        return pixel_side_m(dataset), row_hectares(dataset)


def test_pixels_of_one_degree_add_up_to_the_earth(tmp_path):
    """510,065,622 km² by the formula of the ellipsoid (WGS 84). A square degree at the equator is 12,309 km²."""
    side, hectares = measured(tmp_path, crs="EPSG:4326", transform=rasterio.Affine(1, 0, -180, 0, -1, 90))
    assert side is None
    assert 360 * hectares.sum() / 100 == pytest.approx(510_065_622, rel=1e-8)
    assert hectares[89] / 100 == pytest.approx(12_309, rel=1e-3)
    np.testing.assert_allclose(hectares, hectares[::-1])


def test_pixel_sizes_in_meters_and_feet(tmp_path):
    side, hectares = measured(tmp_path, 4, 4)
    assert side == 10
    assert hectares.tolist() == [0.01] * 4
    feet = rasterio.Affine(30, 0, 0, 0, -30, 0)
    side, _ = measured(tmp_path, 4, 4, crs="EPSG:2263", transform=feet)  # New York, US survey feet
    assert side == pytest.approx(30 * 1200 / 3937)


@pytest.mark.parametrize("crs", ["EPSG:3857", None])
def test_unknown_areas_are_none(tmp_path, crs):
    assert measured(tmp_path, 4, 4, crs=crs)[1] is None


def test_rotated_degrees_have_no_area(tmp_path):
    turned = rasterio.Affine(0.1, 0.1, 10, 0.1, -0.1, 50)
    assert measured(tmp_path, 4, 4, crs="EPSG:4326", transform=turned)[1] is None


def test_meters_of_web_mercator_are_shorter_on_the_ground(tmp_path):
    """Half as long at 60 degrees north, where y is 8,399,738 m in EPSG:3857."""
    transform = rasterio.Affine(100, 0, 0, 0, -100, 8_399_738 + 200)
    # Not the 50 m of the sphere: the ellipsoid's radii of curvature at 60 degrees are 1.00252 times the sphere's to the
    # east, and 1.00083 times to the north. So 100 m become 50.126 m and 50.042 m, of the area of a square of 50.084 m.
    assert measured(tmp_path, 4, 4, crs="EPSG:3857", transform=transform)[0] == pytest.approx(50.084, abs=0.01)


# Polar stereographic, true to scale at 70 and 71 degrees north; Lambert conformal, true between 49 and 77; UTM.
@pytest.mark.parametrize(
    ("crs", "longitude", "latitude"),
    [("EPSG:3413", 0, 55), ("EPSG:3413", 0, 88), ("EPSG:3995", 40, 60), ("EPSG:3347", -90, 40), ("EPSG:32631", 3, 60)],
)
def test_pixels_in_other_projections_have_their_length_on_the_ground(tmp_path, crs, longitude, latitude):
    """Compared with a degree of the meridian on the ellipsoid. A conformal scale is equal in all directions."""
    (east, beyond), (north, up) = warp.transform("EPSG:4326", crs, [longitude] * 2, [latitude, latitude + 0.01])
    curved = 6_378_137 * (1 - 0.00669438) / (1 - 0.00669438 * np.sin(np.radians(latitude)) ** 2) ** 1.5
    expected = 10 * np.radians(0.01) * curved / np.hypot(beyond - east, up - north)
    side, _ = measured(tmp_path, 2, 2, crs=crs, transform=rasterio.Affine(10, 0, east - 15, 0, -10, north + 15))
    assert side == pytest.approx(expected, rel=0.002 if abs(expected - 10) > 0.1 else 0.005)


# World Mercator, PDC Mercator, the Mercator of Brazil (true to scale at 2 degrees south), and a Mercator for 41 degrees
# south.
MERCATORS = [
    ("EPSG:3395", 1.0),
    ("EPSG:3832", 1.0),
    ("EPSG:5641", np.cos(np.radians(2))),
    ("EPSG:3994", np.cos(np.radians(41))),
]


@pytest.mark.parametrize(("crs", "scale"), MERCATORS)
def test_meters_of_other_mercators_are_shorter_on_the_ground(tmp_path, crs, scale):
    """Half as long at 60 degrees as at the latitude that is true to scale. Areas are unknown."""
    ((east,), (north,)) = warp.transform("EPSG:4326", crs, [{"EPSG:5641": -43, "EPSG:3994": 100}.get(crs, 150)], [60])
    transform = rasterio.Affine(100, 0, east, 0, -100, north + 250)
    side, hectares = measured(tmp_path, 4, 4, crs=crs, transform=transform)
    assert side == pytest.approx(50 / scale, rel=0.004)
    assert hectares is None


def placed(crs, longitude, latitude, px=10):
    """Return the options for a raster of four by four pixels around a location."""
    (east,), (north,) = warp.transform("EPSG:4326", crs, [longitude], [latitude])
    return {"crs": crs, "transform": rasterio.Affine(px, 0, east - 2 * px, 0, -px, north + 2 * px)}


@pytest.mark.parametrize(
    ("crs", "location"),
    [("EPSG:32633", (18, 72)), ("EPSG:3078", (-85, 45)), ("EPSG:2056", (8, 47)), ("EPSG:3035", (10, 52))],
)
def test_pixels_of_accurate_projections_have_their_nominal_size(tmp_path, crs, location):
    """UTM, Hotine of Michigan, Swiss, Lambert: true to scale, so that a pixel has its nominal size."""
    side, hectares = measured(tmp_path, 4, 4, **placed(crs, *location))
    assert side == 10
    assert hectares.tolist() == [0.01] * 4


@pytest.mark.parametrize(
    ("crs", "location", "covered"),
    [
        ("EPSG:4087", (10, 60), "50%"), ("EPSG:32662", (10, 60), "50%"),  # plate carrée: by half at 60 degrees
        ("EPSG:3413", (-45, 60), "93%"), ("EPSG:3413", (-45, 90), "106%"),  # polar stereographic, true at 70 degrees
        ("EPSG:3034", (10, 60), "104%"),  # Lambert's conformal conic of Europe
    ],
)  # fmt: skip
def test_inaccurate_areas_of_a_projection_are_not_reported(tmp_path, crs, location, covered):
    path = write_raster(tmp_path / "raster.tif", np.zeros((1, 4, 4), np.uint8), **placed(crs, *location))
    with open_raster(path) as dataset:
        assert row_hectares(dataset) is None
        assert mentions(distortion_warning(dataset), covered, "pixel")


@pytest.mark.parametrize(
    ("crs", "location"),
    [
        ("EPSG:32632", (9, 50)), ("EPSG:32632", (6.1, 1)), ("EPSG:32601", (180, 60)), ("EPSG:3035", (10, 52)),
        ("EPSG:3413", (-45, 70)), ("EPSG:6933", (10, 60)), ("EPSG:3575", (10, 90)), ("EPSG:2263", (-74, 40.7)),
    ],
)  # fmt: skip
def test_accurate_areas_of_a_projection_are_reported(tmp_path, crs, location):
    """UTM in the middle and at the edge of a zone and at the date line; equal-area projections, also at a pole."""
    path = write_raster(tmp_path / "raster.tif", np.zeros((1, 4, 4), np.uint8), **placed(crs, *location))
    with open_raster(path) as dataset:
        assert row_hectares(dataset) is not None
        assert distortion_warning(dataset) == ""


def test_distortion_is_reported_from_minimum_to_maximum(tmp_path):
    """Polar stereographic from 60 degrees to 70, where it is true to scale; and Mercator."""
    _, (low, high) = warp.transform("EPSG:4326", "EPSG:3413", [-45, -45], [60, 70])
    between = rasterio.Affine(1_000, 0, -500, 0, (low - high) / 4, high - (low - high) / 8)
    pixels = np.zeros((1, 5, 2), np.uint8)
    path = write_raster(tmp_path / "polar.tif", pixels, crs="EPSG:3413", transform=between)
    with open_raster(path) as dataset:
        assert mentions(distortion_warning(dataset), "93", "100")
    path = write_raster(tmp_path / "web.tif", np.zeros((1, 4, 4), np.uint8), **placed("EPSG:3857", 10, 60))
    with open_raster(path) as dataset:
        assert mentions(distortion_warning(dataset), "25")


def test_corners_outside_the_earth_do_not_affect_areas(tmp_path):
    """The world in the equal-area projection of Mollweide is an ellipse within its raster."""
    transform = rasterio.Affine(2e6, 0, -18e6, 0, -2e6, 9e6)
    assert measured(tmp_path, 9, 18, crs="ESRI:54009", transform=transform)[1].tolist() == pytest.approx([4e8] * 9)


def test_meters_of_mercator_are_shorter_at_the_date_line(tmp_path):
    """Defined by parameters without a code, around 180 degrees, in feet."""
    crs = "+proj=merc +lon_0=0 +k=1 +x_0=0 +y_0=0 +datum=WGS84 +to_meter=0.3048 +no_defs"
    ((_,), (north,)) = warp.transform("EPSG:4326", crs, [0], [60])
    east = np.pi * 6_378_137 / 0.3048 - 200
    transform = rasterio.Affine(100, 0, east, 0, -100, north + 250)
    assert measured(tmp_path, 4, 4, crs=crs, transform=transform)[0] == pytest.approx(0.3048 * 50, rel=0.004)
