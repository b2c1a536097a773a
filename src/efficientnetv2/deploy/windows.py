"""Windows that cover a raster, and how their answers flow into one another.

A window's answer weighs most at its middle and falls evenly to nothing at its edges (a pyramid), so where windows
overlap, the map goes over from one to the next without an edge. With a stride of half a window that is bilinear
interpolation between the middles of windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.base.errors import InputError

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


def weights(starts: list[int], window_px: int, first: int, last: int) -> Floats:
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


def blended(answers: Floats, counts: Floats, down: Floats, across: Floats) -> Iterator[Floats]:
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
