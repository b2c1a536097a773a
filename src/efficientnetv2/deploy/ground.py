"""How much ground a raster's pixels cover."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.raster import Dataset, is_mercator, side_m

# WGS 84: equatorial radius in metres, and the square of the eccentricity.
_RADIUS_M = 6_378_137.0
_ECCENTRICITY_2 = 0.00669437999014


def row_hectares(dataset: Dataset) -> npt.NDArray[np.float64] | None:
    """Hectares that a pixel covers, for each row of a raster.

    In a projection what the projection says, which of UTM and of equal-area ones is true to 0.2 %. In degrees the
    part of the ellipsoid WGS 84 between the row's latitudes.

    Args:
        dataset: opened, north up where it is in degrees.

    Returns:
        (H,); None where that can't be said: without coordinates, in degrees but turned, or in Mercator's projection,
        whose areas are wrong by the square of the latitude's secant.

    Source: the ellipsoid's, Snyder, Map projections: a working manual (USGS Professional Paper 1395, 1987), equation
    3-12.
    """
    crs, transform = dataset.crs, dataset.transform
    if crs is None:
        return None
    if crs.is_projected:
        if is_mercator(crs):
            return None
        side = side_m(dataset)
        assert side is not None, "a projection has a unit of length"
        return np.full(dataset.height, side**2 / 1e4)
    if not crs.is_geographic or transform.b or transform.d:
        return None
    edges = transform.f + transform.e * np.arange(dataset.height + 1)
    zones = np.abs(np.diff(_authalic(np.radians(edges.clip(-90, 90)))))
    result: npt.NDArray[np.float64] = _RADIUS_M**2 / 2 * math.radians(abs(transform.a)) * zones / 1e4
    return result


def _authalic(latitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Snyder's q: the area from the equator to a latitude is radius^2 / 2 * q for each radian of longitude."""
    sine, eccentricity = np.sin(latitude), math.sqrt(_ECCENTRICITY_2)
    logarithm = np.log((1 - eccentricity * sine) / (1 + eccentricity * sine))
    result: npt.NDArray[np.float64] = (1 - _ECCENTRICITY_2) * (
        sine / (1 - _ECCENTRICITY_2 * sine**2) - logarithm / (2 * eccentricity)
    )
    return result
