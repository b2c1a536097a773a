"""Timing work of which some may not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from efficientnetv2.utils.benchmark import interleave
from efficientnetv2.utils.device import synchronizer
from efficientnetv2.utils.memory import is_out_of_memory, release_memory

Work = Callable[[], None]

#: Why a time is missing from the result of ``time_in_turn``.
OUT_OF_MEMORY = "out of memory"


def time_in_turn(begin: Mapping[str, Callable[[], Work]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds per round of each work, after a round that warms up; work that runs out of memory is left out.

    ``begin`` makes each work once. The works alternate, so that changes of the machine's pace affect all of them.
    """
    ready = {name: work for name, make in begin.items() if (work := _begun(make, device)) is not None}
    return interleave(ready, rounds=rounds, warmup=1, wait=synchronizer(device))


def _begun(begin: Callable[[], Work], device: torch.device) -> Work | None:
    """The work, done once; None where memory runs out."""
    try:
        work = begin()
        work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        release_memory(device)  # what one work needed is free for the next
    return work
