"""Predict a map from a large raster by overlapping windows, in memory that does not grow with the raster's height.

Windows are predicted row by row. A block of the map is written as soon as all windows that touch it are predicted.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.geotiff import RasterDataset, Valid, Window, read_raster, read_values
from efficientnetv2.data.image_io import Pixels
from efficientnetv2.data.records import Ints
from efficientnetv2.geospatial.map_file import BLOCK_PX, NODATA, WriteBlock, row_hectares
from efficientnetv2.inference.predict import predict
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Bands
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.probability import probabilities

Floats = npt.NDArray[np.float32]

# Bytes of blended probabilities, and of what they are summed from, at a time; a row of 256 px and 65,535 classes takes
# as much. Ours.
BLENDED_BYTES = 64 * 2**20
# Pixels of a raster to read at a time, at least a window: 50 MB while they are scaled. Ours.
_READ_PX = 4_000_000


@dataclass(frozen=True)
class Grid:
    """Windows in a raster: the first begins with it, the last ends with it, the others are evenly spaced."""

    height: int  # of the raster, in pixels
    width: int
    window_px: int
    stride_px: int  # largest distance between windows

    def __post_init__(self) -> None:
        most = min(self.height, self.width)
        if not (2 <= self.window_px <= most and 1 <= self.stride_px <= self.window_px):
            raise InputError(
                f"`window_px={self.window_px}` must be from 2 to {most}, as the raster is {self.width} x {self.height} "
                f"px. `stride_px={self.stride_px}` must be from 1 to the window size."
            )

    @property
    def tops(self) -> list[int]:
        """First row of each row of windows."""
        return self._starts(self.height)

    @property
    def lefts(self) -> list[int]:
        """First column of each column of windows."""
        return self._starts(self.width)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def _starts(self, length: int) -> list[int]:
        last = length - self.window_px
        gaps = -(-last // self.stride_px)
        return [round(place * last / gaps) for place in range(gaps + 1)] if gaps else [0]


@dataclass(frozen=True, eq=False)
class MapStatistics:
    """Sums over a map."""

    pixels: Ints  # (K,) of each class
    hectares: npt.NDArray[np.float64] | None  # (K,); None if the area of a pixel is not known
    confidence: npt.NDArray[np.float64]  # (K,) mean probability of the pixels of a class; NaN without any
    nodata: int  # pixels without data


def predict_blocks(
    network: Network,
    source: RasterDataset,
    write_block: WriteBlock,
    grid: Grid,
    bands: Bands,
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
) -> MapStatistics:
    """Predict class and probability of every pixel with data, block by block.

    A pixel gets the mean of the windows over it, weighted by ``window_weights`` and their fraction with data.
    """
    hectares_of_row = row_hectares(source)
    num_values = network.num_classes + 1
    pixels = np.zeros(num_values, np.int64)
    confidence_sum, hectares = np.zeros(num_values), np.zeros(num_values)
    with progress("mapping", len(grid), "windows") as update:
        windows = _WindowRows(network, source, grid, bands, batch_size, torch.device(device), update)
        for top in range(0, grid.height, BLOCK_PX):
            bottom = min(top + BLOCK_PX, grid.height)
            windows.move(top, bottom)
            for window, valid in _blocks(source, bands, top, bottom):
                values, confidence = windows.blend(*window[1], valid)
                flat = values.ravel()
                pixels += np.bincount(flat, minlength=num_values)
                confidence_sum += np.bincount(flat, weights=confidence.ravel(), minlength=num_values)
                if hectares_of_row is not None:
                    each = np.repeat(hectares_of_row[top:bottom], values.shape[1])
                    hectares += np.bincount(flat, weights=each, minlength=num_values)
                percent = np.rint(100 * confidence).clip(1, 100).astype(np.int64)
                write_block(values, np.where(values == NODATA, NODATA, percent), window)
    mean = np.full(num_values, np.nan)
    np.divide(confidence_sum, pixels, out=mean, where=pixels > 0)
    known = None if hectares_of_row is None else hectares[1:]
    return MapStatistics(pixels[1:], known, mean[1:], int(pixels[NODATA]))


def _blocks(source: RasterDataset, bands: Bands, top: int, bottom: int) -> Iterator[tuple[Window, Valid]]:
    """Blocks of a row from the left, and where they have data; many are read at once, since strips are wide."""
    width = BLOCK_PX * max(1, _READ_PX // (BLOCK_PX * (bottom - top)))
    for first in range(0, source.width, width):
        last = min(first + width, source.width)
        window = ((top, bottom), (first, last))
        valid = np.logical_or.reduce(read_values(source, bands.numbers, window, nodata=bands.nodata)[1])
        for left in range(first, last, BLOCK_PX):
            right = min(left + BLOCK_PX, last)
            yield ((top, bottom), (left, right)), valid[:, left - first : right - first]


def window_weights(starts: list[int], window_px: int, first: int, last: int) -> Floats:
    """(last - first, n) weights of n windows for a range of pixels: 1 in the middle of a window, 0 outside."""
    offset = np.arange(first, last)[:, None] + 0.5 - np.asarray(starts)
    weights: Floats = np.maximum(0, 1 - np.abs(2 * offset / window_px - 1)).astype(np.float32)
    return weights


def blend_windows(predicted: Floats, counts: Floats, down: Floats, across: Floats) -> Iterator[Floats]:
    """Weighted means of windows: (h, W, K) probabilities of the next h rows of pixels, NaN where no window counts.

    ``predicted`` are (R, C, K) probabilities of R rows and C columns of windows, ``counts`` (R, C) their weights,
    ``down`` (H, R) and ``across`` (W, C) ``window_weights``. h is limited by ``BLENDED_BYTES``.
    """
    columns, classes = predicted.shape[1:]
    weighted = (predicted * counts[:, :, None]).reshape(len(predicted), columns * classes)
    norm = down @ counts @ across.T  # (H, W)
    rows = rows_at_a_time(len(across), columns, classes)
    for first in range(0, len(down), rows):
        part = slice(first, first + rows)
        with np.errstate(invalid="ignore"):  # some BLAS builds set the flag although all values are finite
            blended: Floats = across @ (down[part] @ weighted).reshape(-1, columns, classes)  # (h, W, K)
        counting = norm[part] > 0
        np.divide(blended, norm[part][:, :, None], out=blended, where=counting[:, :, None])
        blended[~counting] = np.nan
        yield blended


def rows_at_a_time(width: int, columns: int, classes: int) -> int:
    """Rows of ``width`` pixels that ``blend_windows`` yields at a time, from so many columns of windows."""
    return max(1, BLENDED_BYTES // (np.dtype(np.float32).itemsize * (width + columns) * classes))


@dataclass(eq=False)
class _WindowRows:
    """Predicts rows of windows from the top down, and keeps those that are still needed."""

    network: Network
    source: RasterDataset
    grid: Grid
    bands: Bands
    batch_size: int
    device: torch.device
    update: Callable[[int], object]
    done: int = 0
    rows: list[tuple[int, Floats, Floats]] = field(default_factory=list)  # first row of pixels, predictions, counts

    def move(self, top: int, bottom: int) -> None:
        """Go down to the pixels between two rows: (R, C, K) predictions, (R, C) and (H, R) weights of windows."""
        px = self.grid.window_px
        last = self.rows[-1][0] if self.rows else -1
        new = [first for first in self.grid.tops if last < first < bottom]
        self.rows = [row for row in self.rows if row[0] + px > top]
        self.rows += [(first, *self._predict(first)) for first in new]
        firsts, predicted, counts = zip(*self.rows, strict=True)
        self.predicted, self.counts = np.stack(predicted), np.stack(counts)
        self.down = window_weights(list(firsts), px, top, bottom)

    def blend(self, left: int, right: int, valid: Valid) -> tuple[Ints, Floats]:
        """(H, W) classes from 1, and their probabilities, of these rows between two columns; 0 without data."""
        lefts, px = self.grid.lefts, self.grid.window_px
        columns = slice(bisect_right(lefts, left - px), bisect_left(lefts, right))
        across = window_weights(lefts[columns], px, left, right)
        best, highest = np.empty(valid.shape, np.int64), np.empty(valid.shape, np.float32)
        first = 0
        for blended in blend_windows(self.predicted[:, columns], self.counts[:, columns], self.down, across):
            part = slice(first, first + len(blended))
            best[part] = blended.argmax(axis=2)
            # max(axis=2) takes ten times as long over so short an axis.
            highest[part] = np.take_along_axis(blended, best[part][:, :, None], axis=2)[:, :, 0]
            first += len(blended)
        known = valid & np.isfinite(highest)
        return np.where(known, best + 1, NODATA), np.where(known, highest, np.float32(0))

    def _predict(self, top: int) -> tuple[Floats, Floats]:
        """(C, K) probabilities of a row of windows, and (C,) their fractions with data."""
        fractions: list[float] = []
        network, images = self.network, self._images(top, fractions)
        batches = iter(lambda: list(islice(images, self.batch_size)), [])
        tensors = (torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2) for batch in batches)
        logits = predict(network, tensors, preprocessing=network.preprocessing, device=self.device)
        predicted = np.zeros((len(fractions), network.num_classes), np.float32)
        predicted[np.array(fractions) > 0] = probabilities(logits, network.activation).numpy()
        self.update(self.done)
        return predicted, np.array(fractions, np.float32)

    def _images(self, top: int, fractions: list[float]) -> Iterator[Pixels]:
        """Windows with data as images; appends the fraction with data of every window."""
        px, lefts = self.grid.window_px, self.grid.lefts
        while len(fractions) < len(lefts):
            remaining = lefts[len(fractions) :]
            first = remaining[0]
            part = [left for left in remaining if left == first or px * (left + px - first) <= _READ_PX]
            window = ((top, top + px), (first, part[-1] + px))
            pixels, valid = read_raster(self.source, self.bands, window)
            for left in part:
                inside = slice(left - first, left - first + px)
                fractions.append(float(valid[:, inside].mean()))
                self.done += 1
                if fractions[-1]:
                    image = np.ascontiguousarray(pixels[:, inside])
                    yield load_eval_image(image, self.network.preprocessing)
            self.update(self.done)
