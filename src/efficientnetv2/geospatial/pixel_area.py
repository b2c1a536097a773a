"""Ground area of the pixels of a raster."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.geotiff import (
    AREA_TOLERANCE,
    EARTH_RADIUS_M,
    ECCENTRICITY_2,
    RasterDataset,
    ground_share,
    is_mercator,
    pixel_side_m,
)


def row_hectares(dataset: RasterDataset) -> npt.NDArray[np.float64] | None:
    """(H,) hectares of a pixel in each row of an opened raster; None if not known.

    In a projection that is true to area within 1 %, as UTM or an equal-area one, from its units. In degrees, north up,
    the area of the ellipsoid WGS 84 between the row's latitudes. Not known without coordinates, in rotated degrees, in
    Mercator's projection, and in others that distort areas here.

    Source: Snyder, Map projections: a working manual (USGS Professional Paper 1395, 1987), equation 3-12.
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
    sine, eccentricity = np.sin(np.radians(edges.clip(-90, 90))), math.sqrt(ECCENTRICITY_2)
    logarithm = np.log((1 - eccentricity * sine) / (1 + eccentricity * sine))
    # Snyder's q: from the equator to a latitude the area is radius² / 2 * q per radian of longitude.
    q = (1 - ECCENTRICITY_2) * (sine / (1 - ECCENTRICITY_2 * sine**2) - logarithm / (2 * eccentricity))
    hectares: npt.NDArray[np.float64] = (
        EARTH_RADIUS_M**2 / 2 * math.radians(abs(transform.a)) * np.abs(np.diff(q)) / 1e4
    )
    return hectares


def distortion_warning(dataset: RasterDataset) -> str:
    """Why areas of a projected raster are given in pixels, not in hectares; '' if they are true.

    Areas are compared in the middle and the corners, as far as they lie on the earth.
    """
    crs = dataset.crs
    if crs is None or not crs.is_projected:
        return ""
    bottom, right = dataset.height - 1, dataset.width - 1
    middle = (dataset.height // 2, dataset.width // 2)
    places = [middle, (0, 0), (0, right), (bottom, 0), (bottom, right)]
    shares = [share for place in places if (share := ground_share(dataset, *place)) is not None]
    if shares and not is_mercator(crs) and max(abs(share - 1) for share in shares) <= AREA_TOLERANCE:
        return ""
    ends = [f"{share:.0%}" for share in (min(shares), max(shares))] if shares else ["an unknown share"]
    projection = "this projection"
    if is_mercator(crs):
        projection = "Mercator's projection, which enlarges towards the poles,"
    return (
        f"Areas are told in pixels: in {projection} a pixel covers {' to '.join(dict.fromkeys(ends))} of the ground "
        "that it states. Project the raster first, as with gdalwarp -t_srs EPSG:32721 (the number of your zone)."
    )
