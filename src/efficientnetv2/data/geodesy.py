"""What a projection's areas are on the ellipsoid WGS 84."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

# WGS 84: equatorial radius in metres, and the square of the eccentricity.
RADIUS_M = 6_378_137.0
ECCENTRICITY_2 = 0.00669437999014
# How far a pixel's area by its projection may be from the ellipsoid's. UTM is within half of that in its zone. Ours.
TOLERANCE = 0.01
_SQUARE_M = 1_000.0  # side of the square by which that is measured; small beside the earth. Ours.


def ground_share(dataset: Any, row: int, column: int) -> float | None:
    """Of the area that a raster's projection states, what is there on the ellipsoid; None where it does not reach.

    Args:
        dataset: opened (``rasterio.DatasetReader``), in a projection.
        row: of the pixel around whose middle that is measured.
        column: likewise.
    """
    from rasterio._err import CPLE_BaseError  # named nowhere else
    from rasterio.warp import transform  # there is a dataset, so it is installed

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
    """(n, 3) metres from the earth's centre, of places on the ellipsoid: without a seam, and whole at the poles."""
    turned, risen = np.radians(longitudes), np.radians(latitudes)
    radius = RADIUS_M / np.sqrt(1 - ECCENTRICITY_2 * np.sin(risen) ** 2)
    across = radius * np.cos(risen)
    return np.stack(
        [across * np.cos(turned), across * np.sin(turned), radius * (1 - ECCENTRICITY_2) * np.sin(risen)],
        axis=1,
    )
