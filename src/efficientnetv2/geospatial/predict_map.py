"""A large raster and a network make a map, in memory that does not grow with the raster's height.

Windows are answered row by row; a block of the map is written as soon as all windows that touch it are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.geotiff import RasterDataset, Valid, read_raster, read_values
from efficientnetv2.data.image_io import Pixels
from efficientnetv2.geospatial.map_file import BLOCK_PX, NODATA, Window, WriteBlock
from efficientnetv2.geospatial.pixel_area import row_hectares
from efficientnetv2.inference.predict import predict
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Bands, Preprocessing
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.probability import probabilities

Floats = npt.NDArray[np.float32]

# Answers of pixels that are blended at a time, and what they are summed from; a row of 256 px and 65,535 classes takes
# as much. While they are made the last ones are still held. Ours.
BLENDED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Grid:
    """Where windows lie in a raster; none sticks out of it.

    The first window of a row or column begins with the raster and the last ends with it, so that no half ones are
    needed; the others stand evenly between, as many as keep the stride.

    Args:
        height: of the raster, in pixels.
        width: likewise.
        window_px: side of a window.
        stride_px: from a window to the next, at most.

    Raises:
        InputError: windows that do not fit into the raster, or leave gaps.
    """

    height: int
    width: int
    window_px: int
    stride_px: int

    def __post_init__(self) -> None:
        least = min(self.height, self.width)
        if least < 2:
            raise InputError(
                f"the raster is {self.width} x {self.height} px, but a map needs 2 each way. Give a larger one."
            )
        if not 2 <= self.window_px <= least:
            raise InputError(
                f"windows are {self.window_px} px wide, but the raster is {self.width} x {self.height} px. Give "
                f"--window-px of 2 to {least}."
            )
        if not 1 <= self.stride_px <= self.window_px:
            raise InputError(
                f"--stride-px is {self.stride_px} px, but lies in 1 to {self.window_px}: windows further apart "
                f"than their {self.window_px} px would leave gaps."
            )

    @property
    def tops(self) -> list[int]:
        """First row of each row of windows."""
        return _starts(self.height, self.window_px, self.stride_px)

    @property
    def lefts(self) -> list[int]:
        """First column of each column of windows."""
        return _starts(self.width, self.window_px, self.stride_px)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = length - window
    gaps = -(-last // stride)
    return [round(place * last / gaps) for place in range(gaps + 1)] if gaps else [0]


def window_weights(starts: list[int], window_px: int, first: int, last: int) -> Floats:
    """How much windows count for pixels, along one side.

    Args:
        starts: (n,) first pixels of windows.
        window_px: their length.
        first: pixel.
        last: the one behind the last pixel.

    Returns:
        (last - first, n) in [0, 1]: of a window's outermost pixels 1 / window_px, at its middle 1, outside 0.
    """
    middle = np.arange(first, last)[:, None] + 0.5 - np.asarray(starts)  # from the window's beginning
    result: Floats = np.maximum(0, 1 - np.abs(2 * middle / window_px - 1)).astype(np.float32)
    return result


def blend_windows(answers: Floats, counts: Floats, down: Floats, across: Floats) -> Iterator[Floats]:
    """Answers of windows as answers of pixels: their mean, weighted.

    Args:
        answers: (R, C, K) of R rows and C columns of windows.
        counts: (R, C) how much each counts at all, at least 0.
        down: (H, R) of ``weights``.
        across: (W, C) likewise.

    Yields:
        (h, W, K) of the next h rows, from the top down, all H in turn; NaN where no window counts. So few rows, but at
        least one, that they take no more than ``BLENDED_BYTES``, however many classes there are.
    """
    columns, classes = answers.shape[1:]
    weighed = (answers * counts[:, :, None]).reshape(len(answers), columns * classes)
    norm = down @ counts @ across.T  # (H, W)
    rows = rows_at_a_time(len(across), columns, classes)
    for first in range(0, len(down), rows):
        part = slice(first, first + rows)
        shares: Floats = across @ (down[part] @ weighed).reshape(-1, columns, classes)  # (h, W, K)
        counting = norm[part] > 0
        np.divide(shares, norm[part][:, :, None], out=shares, where=counting[:, :, None])
        shares[~counting] = np.nan
        yield shares


def rows_at_a_time(width: int, columns: int, classes: int) -> int:
    """Rows of pixels that ``blended`` gives at a time: as many as fit, or one.

    Args:
        width: of a row, in pixels.
        columns: of windows, whose answers the pixels' are summed from.
        classes: of each answer.
    """
    return max(1, BLENDED_BYTES // (np.dtype(np.float32).itemsize * (width + columns) * classes))


# Pixels of a raster that are read at a time, at least a window: 50 MB as they are turned into a picture. Ours.
_READ_PX = 4_000_000


@dataclass(frozen=True, eq=False)
class MapStatistics:
    """What stands on a map.

    Args:
        pixels: (K,) of each class.
        hectares: (K,) likewise; None where the raster does not say how large a pixel is.
        confidence: (K,) mean probability, 0 to 1, of the pixels of a class; NaN where it has none.
        nodata: pixels without data.
    """

    pixels: npt.NDArray[np.int64]
    hectares: npt.NDArray[np.float64] | None
    confidence: npt.NDArray[np.float64]
    nodata: int


def predict_blocks(
    network: Network,
    source: RasterDataset,
    put: WriteBlock,
    grid: Grid,
    bands: Bands,
    *,
    batch_images: int = 32,
    device: str | torch.device = "cpu",
    progress: Callable[[int], object] | None = None,
) -> MapStatistics:
    """Fill a map: class and confidence of every pixel that has data.

    A window's probabilities count for the pixels in it by ``windows.weights``, and by its share of pixels that have
    data; windows without any are not looked at.

    Args:
        network: for as many channels as the rule has, with at least one class.
        source: the raster, opened.
        put: writes a block of the map.
        grid: of the windows.
        bands: how the raster becomes a picture.
        batch_images: windows computed at a time.
        device: to compute on.
        progress: called with the number of windows done so far.

    Raises:
        InputError: the raster can't be read, or the network answers with NaN.
        OSError: the map can't be written.
    """
    answered = _Answering(network, source, grid, bands, batch_images, torch.device(device), progress)
    tally = _Counting(network.num_classes, row_hectares(source))
    for top in range(0, grid.height, BLOCK_PX):
        bottom = min(top + BLOCK_PX, grid.height)
        rows = answered.rows(top, bottom)
        for window, valid in _blocks(source, bands, top, bottom):
            values, confidence = rows.told(grid, *window[1], valid)
            tally.add(values, confidence, top)
            put(values, _per_cent(confidence, values), window)
    return tally.result()


def _blocks(source: RasterDataset, bands: Bands, top: int, bottom: int) -> Iterator[tuple[Window, Valid]]:
    """The blocks of a row, from the left, and where each has data.

    Many are read at once: a strip of a raster goes over its whole width, and would be decoded for each of them.
    """
    some_px = BLOCK_PX * max(1, _READ_PX // (BLOCK_PX * (bottom - top)))
    for first in range(0, source.width, some_px):
        last = min(first + some_px, source.width)
        window = ((top, bottom), (first, last))
        valid = np.logical_or.reduce(read_values(source, bands.numbers, window, nodata=bands.nodata)[1])
        for left in range(first, last, BLOCK_PX):
            right = min(left + BLOCK_PX, last)
            yield ((top, bottom), (left, right)), valid[:, left - first : right - first]


@dataclass(frozen=True, eq=False)
class _Rows:
    """All rows of windows that touch a row of blocks.

    Args:
        answers: (R, C, K).
        counts: (R, C).
        down: (H, R) weights for the rows of pixels.
    """

    answers: Floats
    counts: Floats
    down: Floats

    def told(self, grid: Grid, left: int, right: int, valid: Valid) -> tuple[npt.NDArray[np.int64], Floats]:
        """(H, W) the classes of the pixels between two columns, from 1, and their probabilities; 0 without data."""
        lefts, px = grid.lefts, grid.window_px
        some = slice(bisect_right(lefts, left - px), bisect_left(lefts, right))
        across = window_weights(lefts[some], px, left, right)
        best, highest = np.empty(valid.shape, np.int64), np.empty(valid.shape, np.float32)
        first = 0
        for shares in blend_windows(self.answers[:, some], self.counts[:, some], self.down, across):
            part = slice(first, first + len(shares))
            best[part], highest[part] = _highest(shares)
            first += len(shares)
        known = valid & np.isfinite(highest)
        return np.where(known, best + 1, NODATA), np.where(known, highest, np.float32(0))


def _highest(shares: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """The most probable class of each pixel, from 0, and its probability: NaN where no window counts."""
    best = shares.argmax(axis=2)
    # Not shares.max(axis=2): over so short an axis numpy takes ten times as long.
    return best, np.take_along_axis(shares, best[:, :, None], axis=2)[:, :, 0]


def _per_cent(confidence: Floats, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Whole ones, at least 1 where there is a class: 0 says that there is no data."""
    return np.where(values == NODATA, NODATA, np.rint(100 * confidence).clip(1, 100).astype(np.int64))


@dataclass
class _Answering:
    """Asks the network about rows of windows, from the top down, and keeps those that are still needed."""

    network: Network
    source: RasterDataset
    grid: Grid
    bands: Bands
    batch_images: int
    device: torch.device
    progress: Callable[[int], object] | None
    done: int = 0
    _kept: list[tuple[int, Floats, Floats]] = field(
        default_factory=list
    )  # first row of pixels, answers, counts

    def rows(self, top: int, bottom: int) -> _Rows:
        """Those that touch the pixels between two rows; each call's lie below those of the last."""
        px = self.grid.window_px
        last = self._kept[-1][0] if self._kept else -1
        new = [first for first in self.grid.tops if last < first < bottom]
        self._kept = [row for row in self._kept if row[0] + px > top]
        self._kept += [(first, *self._row(first)) for first in new]
        firsts, answers, counts = zip(*self._kept, strict=True)
        return _Rows(np.stack(answers), np.stack(counts), window_weights(list(firsts), px, top, bottom))

    def _row(self, top: int) -> tuple[Floats, Floats]:
        """(C, K) probabilities of the windows of a row, and (C,) how much each counts."""
        preprocessing = self.network.preprocessing
        counts: list[float] = []
        logits = predict(
            self.network,
            _batches(self._pictures(top, preprocessing, counts), self.batch_images),
            preprocessing=preprocessing,
            device=self.device,
        )
        answers = np.zeros((len(counts), self.network.num_classes), np.float32)
        answers[np.array(counts) > 0] = probabilities(logits, self.network.answer).numpy()
        if self.progress is not None:
            self.progress(self.done)
        return answers, np.array(counts, np.float32)

    def _pictures(self, top: int, preprocessing: Preprocessing, counts: list[float]) -> Iterator[Pixels]:
        """Windows as the network sees them, but those without data; notes how much each counts."""
        px = self.grid.window_px
        for part in _together(self.grid.lefts, px):
            width = part[-1] + px - part[0]
            pixels, valid = read_raster(self.source, self.bands, part[0], top, width, px)
            for left in part:
                inside = slice(left - part[0], left - part[0] + px)
                counts.append(float(valid[:, inside].mean()))
                self.done += 1
                if counts[-1]:
                    yield load_eval_image(np.ascontiguousarray(pixels[:, inside]), preprocessing)
            if self.progress is not None:
                self.progress(self.done)


def _together(lefts: Sequence[int], px: int) -> Iterator[list[int]]:
    """Windows of a row that are read at once."""
    part: list[int] = []
    for left in lefts:
        if part and px * (left + px - part[0]) > _READ_PX:
            yield part
            part = []
        part.append(left)
    yield part


def _batches(pictures: Iterator[Pixels], batch_images: int) -> Iterator[Tensor]:
    """(n, C, H, W) uint8 each."""
    batch: list[Pixels] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == batch_images:
            yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
            batch = []
    if batch:
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)


class _Counting:
    """Sums over the blocks of a map."""

    def __init__(self, classes: int, row_hectares: npt.NDArray[np.float64] | None) -> None:
        self.row_hectares = row_hectares
        self.pixels = np.zeros(classes + 1, np.int64)
        self.sure = np.zeros(classes + 1)
        self.hectares = np.zeros(classes + 1)

    def add(self, values: npt.NDArray[np.int64], confidence: Floats, top: int) -> None:
        flat, many = values.ravel(), len(self.pixels)
        self.pixels += np.bincount(flat, minlength=many)
        self.sure += np.bincount(flat, weights=confidence.ravel(), minlength=many)
        if self.row_hectares is not None:
            each = np.repeat(self.row_hectares[top : top + len(values)], values.shape[1])
            self.hectares += np.bincount(flat, weights=each, minlength=many)

    def result(self) -> MapStatistics:
        sure = np.full(len(self.pixels), np.nan)
        np.divide(self.sure, self.pixels, out=sure, where=self.pixels > 0)
        hectares = None if self.row_hectares is None else self.hectares[1:]
        return MapStatistics(self.pixels[1:], hectares, sure[1:], int(self.pixels[NODATA]))
