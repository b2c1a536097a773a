"""How much ground a raster's pixels cover."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.geodesy import ECCENTRICITY_2, RADIUS_M, TOLERANCE, ground_share
from efficientnetv2.data.geotiff import RasterDataset, is_mercator, pixel_side_m


def row_hectares(dataset: RasterDataset) -> npt.NDArray[np.float64] | None:
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
        if distortion_warning(dataset):
            return None
        side = pixel_side_m(dataset)
        assert side is not None, "a projection has a unit of length"
        return np.full(dataset.height, side**2 / 1e4)
    if not crs.is_geographic or transform.b or transform.d:
        return None
    edges = transform.f + transform.e * np.arange(dataset.height + 1)
    zones = np.abs(np.diff(_authalic(np.radians(edges.clip(-90, 90)))))
    result: npt.NDArray[np.float64] = RADIUS_M**2 / 2 * math.radians(abs(transform.a)) * zones / 1e4
    return result


def distortion_warning(dataset: RasterDataset) -> str:
    """Why a projection's areas are not told in hectares, as a sentence; '' where they are true, or none is given.

    Measured at the raster's middle and its corners, as far as they lie on the earth.

    Args:
        dataset: opened.
    """
    crs = dataset.crs
    if crs is None or not crs.is_projected:
        return ""
    shares = _ground_shares(dataset)
    if shares and not is_mercator(crs) and max(abs(share - 1) for share in shares) <= TOLERANCE:
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


def _ground_shares(dataset: RasterDataset) -> list[float]:
    """Of the area that a projection states, what is there on the ellipsoid: at a raster's middle, then its corners."""
    rows, columns = (0, dataset.height - 1), (0, dataset.width - 1)
    places = [
        (dataset.height // 2, dataset.width // 2),
        *((row, column) for row in rows for column in columns),
    ]
    shares = [ground_share(dataset, row, column) for row, column in places]
    return [share for share in shares if share is not None]


def _authalic(latitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Snyder's q: the area from the equator to a latitude is radius^2 / 2 * q for each radian of longitude."""
    sine, eccentricity = np.sin(latitude), math.sqrt(ECCENTRICITY_2)
    logarithm = np.log((1 - eccentricity * sine) / (1 + eccentricity * sine))
    result: npt.NDArray[np.float64] = (1 - ECCENTRICITY_2) * (
        sine / (1 - ECCENTRICITY_2 * sine**2) - logarithm / (2 * eccentricity)
    )
    return result
