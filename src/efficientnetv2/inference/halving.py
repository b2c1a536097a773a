"""Pictures that are looked at in fewer at a time where memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from efficientnetv2.base.errors import MemoryShortError
from efficientnetv2.base.memory import is_out_of_memory, reason_of, release


def as_many_as_fit(
    compute: Callable[[Tensor], Tensor], images: Tensor, most: int, device: torch.device
) -> tuple[Tensor, int]:
    """What ``compute`` makes of a batch; where memory runs out, of the rest of it with half as many at a time.

    Args:
        compute: pictures -> a row for each, on the CPU; pictures do not know of each other.
        images: (n, C, H, W), n above 0.
        most: how many pictures at a time.
        device: that ``compute`` uses.

    Returns:
        (n, ...), and how many at a time from now on.

    Raises:
        MemoryShortError: a single picture does not fit.
    """
    results: list[Tensor] = []
    done = 0
    while done < len(images):
        part = images[done : done + most]
        try:
            results.append(compute(part))
            done += len(part)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise MemoryShortError(
                    f"Memory ran out with a single picture of {images.shape[-1]} px that is only looked at "
                    f"({reason_of(error)}). End what else takes memory, then say the same again (a run goes on with "
                    "--resume), or look at smaller pictures."
                ) from error
        # Only here, where the error and all that its traceback held on to are gone, is memory free again.
        most = len(part) // 2
        release(device)
    return torch.cat(results), most
