"""Small rasters on disk with a location."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
warp = pytest.importorskip("rasterio.warp")

# UTM zone 21 south, 10 m pixels, north up.
UTM = "EPSG:32721"
PLACE = rasterio.Affine(10, 0, 500_000, 0, -10, 8_000_000)


def write_raster(path: Path, values: npt.ArrayLike, **options: object) -> Path:
    """Write a GeoTIFF of (bands, height, width) values. ``options`` of rasterio may replace the location."""
    pixels = np.asarray(values)
    bands, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    # rasterio warns about rasters without a location.
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.open(path, "w", **(profile | {"crs": UTM, "transform": PLACE} | options)) as target,
    ):
        target.write(pixels)
    return path


def colored(*colors: tuple[int, int, int], px: int) -> npt.NDArray[np.uint8]:
    """Return squares of colors from left to right: (3, px, n * px)."""
    row = np.repeat(np.array(colors, np.uint8).T, px, axis=1)  # (3, n * px)
    return np.repeat(row[:, None], px, axis=1)
