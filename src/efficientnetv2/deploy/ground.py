"""How much ground a raster's pixels cover."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.raster import Dataset, is_mercator, side_m

# WGS 84: equatorial radius in metres, and the square of the eccentricity.
_RADIUS_M = 6_378_137.0
_ECCENTRICITY_2 = 0.00669437999014
# How far a pixel's area by its projection may be from the ellipsoid's. UTM is within half of that in its zone. Ours.
_TOLERANCE = 0.01
_SQUARE_M = 1_000.0  # side of the square by which that is measured; small beside the earth. Ours.


def row_hectares(dataset: Dataset) -> npt.NDArray[np.float64] | None:
    """Hectares that a pixel covers, for each row of a raster.

    In a projection what the projection says, where that is true to 1 %, as it is of UTM and of equal-area ones. In
    degrees the part of the ellipsoid WGS 84 between the row's latitudes.

    Args:
        dataset: opened, north up where it is in degrees.

    Returns:
        (H,); None where that can't be said: without coordinates, in degrees but turned, in Mercator's projection, whose
        areas are wrong by the square of the latitude's secant, or in another that is not true to area here.

    Source: the ellipsoid's, Snyder, Map projections: a working manual (USGS Professional Paper 1395, 1987), equation
    3-12.
    """
    crs, transform = dataset.crs, dataset.transform
    if crs is None:
        return None
    if crs.is_projected:
        if untrue(dataset):
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


def untrue(dataset: Dataset) -> str:
    """Why a projection's areas are not told in hectares, as a sentence; '' where they are true, or none is given.

    Measured at the raster's middle and its corners, as far as they lie on the earth.

    Args:
        dataset: opened.
    """
    crs = dataset.crs
    if crs is None or not crs.is_projected:
        return ""
    shares = _ground_shares(dataset)
    if shares and not is_mercator(crs) and max(abs(share - 1) for share in shares) <= _TOLERANCE:
        return ""
    ends = [f"{share:.0%}" for share in (min(shares), max(shares))] if shares else ["an unknown share"]
    covered = " to ".join(dict.fromkeys(ends))
    where = (
        "Mercator's projection, which enlarges towards the poles," if is_mercator(crs) else "this projection"
    )
    return (
        f"Areas are told in pixels: in {where} a pixel covers {covered} of the ground that it states. Project the "
        "raster first, as with gdalwarp -t_srs EPSG:32721 (the number of your zone)."
    )


def _ground_shares(dataset: Dataset) -> list[float]:
    """Of the area that a projection states, what is there on the ellipsoid: at a raster's middle, then its corners."""
    from rasterio._err import CPLE_BaseError  # named nowhere else
    from rasterio.warp import transform  # there is a dataset, so it is installed

    half = _SQUARE_M / 2 / dataset.crs.linear_units_factor[1]
    rows, columns = (0, dataset.height - 1), (0, dataset.width - 1)
    shares = []
    for row, column in [(dataset.height // 2, dataset.width // 2), *((r, c) for r in rows for c in columns)]:
        east, north = dataset.xy(row, column)
        xs = [east - half, east + half, east + half, east - half]
        ys = [north - half, north - half, north + half, north + half]
        with suppress(CPLE_BaseError):  # the projection does not reach there
            places = np.array(transform(dataset.crs, "EPSG:4326", xs, ys))
            if np.isfinite(places).all():
                square = _in_space(*places)
                area = np.linalg.norm(np.cross(square[2] - square[0], square[3] - square[1])) / 2
                shares.append(float(area) / _SQUARE_M**2)
    return shares


def _in_space(
    longitudes: npt.NDArray[np.float64], latitudes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(n, 3) metres from the earth's centre, of places on the ellipsoid: without a seam, and whole at the poles."""
    turned, risen = np.radians(longitudes), np.radians(latitudes)
    radius = _RADIUS_M / np.sqrt(1 - _ECCENTRICITY_2 * np.sin(risen) ** 2)
    across = radius * np.cos(risen)
    return np.stack(
        [across * np.cos(turned), across * np.sin(turned), radius * (1 - _ECCENTRICITY_2) * np.sin(risen)],
        axis=1,
    )


def _authalic(latitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Snyder's q: the area from the equator to a latitude is radius^2 / 2 * q for each radian of longitude."""
    sine, eccentricity = np.sin(latitude), math.sqrt(_ECCENTRICITY_2)
    logarithm = np.log((1 - eccentricity * sine) / (1 + eccentricity * sine))
    result: npt.NDArray[np.float64] = (1 - _ECCENTRICITY_2) * (
        sine / (1 - _ECCENTRICITY_2 * sine**2) - logarithm / (2 * eccentricity)
    )
    return result
