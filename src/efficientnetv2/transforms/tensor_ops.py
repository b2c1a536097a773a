"""Tensor operations that the transforms share: one strength or operation per image, without a loop over images.

They compute on the long rows of ``to_rows``, in channels-last memory. Draws are made on the CPU: nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.utils.device import to_device

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def as_ids(ids: npt.ArrayLike | Tensor) -> Ids:
    """Draw ids as numpy integers."""
    return np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids, dtype=np.int64)


def on_device(values: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    """Numbers drawn on the CPU, on the device of the images; floats become float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return to_device(tensor.to(dtype), like.device)


def to_rows(images: Tensor) -> Tensor:
    """The rows of images, channels side by side: (N, C, H, W) to (N, H, W * C). A view of channels-last memory."""
    return images.permute(0, 2, 3, 1).flatten(2)


def from_rows(rows: Tensor, channels: int) -> Tensor:
    """The inverse of ``to_rows``: (N, H, W * C) to (N, C, H, W) in channels-last memory, a view."""
    count, height, _ = rows.shape
    return rows.view(count, height, -1, channels).permute(0, 3, 1, 2)


def apply_by_group(
    images: Tensor, groups: npt.NDArray[np.integer], apply: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """Apply one operation per group, (N,) of the images; negative leaves an image as it is.

    ``apply`` maps (group, int64 rows, the images of that group) to these images, shape unchanged.
    """
    memory = images.permute(0, 2, 3, 1).contiguous()
    out = torch.empty_like(memory)
    order = np.argsort(groups, kind="stable")
    rows = on_device(order, images)
    targets = out.unbind(0)
    present, starts = np.unique(groups[order], return_index=True)
    for group, start, end in zip(present, starts, [*starts[1:], len(order)], strict=True):
        part = memory.index_select(0, rows[start:end]).permute(0, 3, 1, 2)
        done = apply(int(group), rows[start:end], part) if group >= 0 else part
        # Each image to its place while it is still in the processor's cache.
        torch._foreach_copy_([targets[row] for row in order[start:end]], done.permute(0, 2, 3, 1).unbind(0))
    return out.permute(0, 3, 1, 2)


def where(bits: Tensor, where_true: Tensor, where_false: Tensor) -> Tensor:
    """``torch.where`` for uint8 images and bits of 255 or 0; an order of magnitude faster on a CPU."""
    return where_false ^ ((where_true ^ where_false) & bits)
