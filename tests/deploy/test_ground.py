"""How large a pixel is, on the ellipsoid and in projections."""

import numpy as np
import pytest
from tests.rasters import rasterio, write_raster

from efficientnetv2.data.raster import opened
from efficientnetv2.deploy.ground import row_hectares, side_m


def measured(tmp_path, height=180, width=360, **words):
    path = write_raster(tmp_path / "raster.tif", np.zeros((1, height, width), np.uint8), **words)
    with opened(path) as dataset:
        return side_m(dataset), row_hectares(dataset)


def test_pixels_of_a_degree_add_up_to_the_earth(tmp_path):
    """510,065,622 km² by the ellipsoid's closed formula (WGS 84); at the equator a degree is 12,309 km²."""
    side, hectares = measured(tmp_path, crs="EPSG:4326", transform=rasterio.Affine(1, 0, -180, 0, -1, 90))
    assert side is None
    assert 360 * hectares.sum() / 100 == pytest.approx(510_065_622, rel=1e-8)
    assert hectares[89] / 100 == pytest.approx(12_309, rel=1e-3)
    np.testing.assert_allclose(hectares, hectares[::-1])


def test_metres_and_feet(tmp_path):
    side, hectares = measured(tmp_path, 4, 4)
    assert side == 10
    assert hectares.tolist() == [0.01] * 4
    feet = rasterio.Affine(30, 0, 0, 0, -30, 0)
    side, _ = measured(tmp_path, 4, 4, crs="EPSG:2263", transform=feet)  # New York, US survey feet
    assert side == pytest.approx(30 * 1200 / 3937)


@pytest.mark.parametrize("crs", ["EPSG:3857", None])
def test_where_areas_are_not_known_none_are_told(tmp_path, crs):
    assert measured(tmp_path, 4, 4, crs=crs)[1] is None


def test_degrees_turned_have_no_simple_area(tmp_path):
    turned = rasterio.Affine(0.1, 0.1, 10, 0.1, -0.1, 50)
    assert measured(tmp_path, 4, 4, crs="EPSG:4326", transform=turned)[1] is None


def test_mercators_metres_are_shorter_on_the_ground(tmp_path):
    """At 60 degrees north, y = 8,399,738 m of EPSG:3857, by half."""
    place = rasterio.Affine(100, 0, 0, 0, -100, 8_399_738 + 200)
    assert measured(tmp_path, 4, 4, crs="EPSG:3857", transform=place)[0] == pytest.approx(50, abs=0.01)
