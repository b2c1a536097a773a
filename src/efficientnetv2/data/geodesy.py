"""Areas of map projections on the ellipsoid WGS 84."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

# WGS 84: equatorial radius in meters, and the square of the eccentricity.
RADIUS_M = 6_378_137.0
ECCENTRICITY_2 = 0.00669437999014
# Maximum relative error of a projection's area. UTM has less than half of it in its zone. Ours.
TOLERANCE = 0.01
_SQUARE_M = 1_000.0  # side of the measured square. Ours.


def ground_share(dataset: Any, row: int, column: int) -> float | None:
    """Area on the ellipsoid / area in a raster's projection, around a pixel. None outside the projection's range."""
    from rasterio._err import CPLE_BaseError
    from rasterio.warp import transform

    half = _SQUARE_M / 2 / dataset.crs.linear_units_factor[1]
    east, north = dataset.xy(row, column)
    xs = [east - half, east + half, east + half, east - half]
    ys = [north - half, north - half, north + half, north + half]
    with suppress(CPLE_BaseError):
        places = np.array(transform(dataset.crs, "EPSG:4326", xs, ys))
        if np.isfinite(places).all():
            square = _in_space(*places)
            area = np.linalg.norm(np.cross(square[2] - square[0], square[3] - square[1])) / 2
            return float(area) / _SQUARE_M**2
    return None


def _in_space(
    longitudes: npt.NDArray[np.float64], latitudes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(n, 3) meters from the earth's center: continuous across the date line and at the poles."""
    longitude, latitude = np.radians(longitudes), np.radians(latitudes)
    radius = RADIUS_M / np.sqrt(1 - ECCENTRICITY_2 * np.sin(latitude) ** 2)
    across = radius * np.cos(latitude)
    height = radius * (1 - ECCENTRICITY_2) * np.sin(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), height], axis=1)
