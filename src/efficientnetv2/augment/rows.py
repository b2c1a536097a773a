"""Different operations on different pictures of a batch, without a loop over pictures.

The operations want each channel's plane contiguous, and hand it on so; ``channels_last``
goes back. The draws are made on the CPU (they are counted, see ``base.keys``), so which
picture gets which operation is known there, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def as_ids(ids: npt.ArrayLike | Tensor) -> Ids:
    """Draw ids as numpy integers, whatever sequence they came in."""
    return np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids, dtype=np.int64)


def on_device(values: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    """Numbers drawn on the CPU, beside the pictures they belong to; floats become float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype).to(like.device, non_blocking=True)


def by_group(
    images: Tensor, groups: npt.NDArray[np.integer], apply: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """Apply one operation per group of pictures.

    Args:
        images: (N, C, H, W); unchanged.
        groups: (N,) which operation each picture gets; negative leaves it as it is.
        apply: from (group, rows, the pictures of that group) to these pictures, shape unchanged.
            ``rows`` is an int64 tensor on the pictures' device.

    Returns:
        (N, C, H, W), each channel's plane contiguous in memory.
    """
    order = np.argsort(groups, kind="stable")
    rows = on_device(order, images)
    pictures = images.contiguous().index_select(0, rows)
    present, counts = np.unique(groups[order], return_counts=True)
    start, parts = 0, []
    for group, count in zip(present, counts, strict=True):
        part = pictures[start : start + int(count)]
        chosen = rows[start : start + int(count)]
        parts.append(apply(int(group), chosen, part) if group >= 0 else part)
        start += int(count)
    return torch.cat(parts).index_select(0, on_device(np.argsort(order), images))


def channels_last(images: Tensor) -> Tensor:
    """The same pictures in channels-last memory, in which the network works."""
    if images.is_contiguous(memory_format=torch.channels_last):
        return images
    # Plane by plane is more than twice as fast on a CPU as asking for the memory format.
    return torch.stack(images.unbind(1), dim=3).permute(0, 3, 1, 2)


def choose(mask: Tensor, where_true: Tensor, where_false: Tensor) -> Tensor:
    """``torch.where`` for pictures; bitwise for uint8, which on a CPU is an order of magnitude faster.

    Args:
        mask: bool, broadcast against the others.
        where_true: values where the mask holds; of the type of ``where_false``.
        where_false: values elsewhere.

    Returns:
        The broadcast shape, type unchanged.
    """
    if where_false.dtype != torch.uint8:
        return torch.where(mask, where_true, where_false)
    bits = mask.to(torch.uint8).neg()  # 0 or 255
    return where_false ^ ((where_true ^ where_false) & bits)
