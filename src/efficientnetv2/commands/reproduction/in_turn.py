"""Timing work of which some may not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

from efficientnetv2.base.memory import is_out_of_memory, release
from efficientnetv2.base.timing import alternate, waiting

Name = TypeVar("Name", bound=Hashable)

#: Why a time is missing that is not of ``in_turn``'s result.
OUT_OF_MEMORY = "out of memory"


def in_turn(
    begin: Mapping[Name, Callable[[], Callable[[], None]]],
    rounds: int,
    device: torch.device,
    *,
    warmup: int = 1,
) -> dict[Name, list[float]]:
    """Time pieces of work one after the other, again and again.

    All are kept meanwhile, so that a machine that grows slower or faster does so for each of them.

    Args:
        begin: by any name, makes the work: a call that does it once.
        rounds: that count.
        device: that it is done on.
        warmup: rounds before them that do not.

    Returns:
        Of each the seconds of every round; nothing of one for which memory did not suffice.
    """
    keys = {str(number): name for number, name in enumerate(begin)}
    begun = {key: _begun(begin[name], device) for key, name in keys.items()}
    ready = {key: work for key, work in begun.items() if work is not None}
    seconds = alternate(ready, rounds=rounds, warmup=warmup, wait=waiting(device))
    return {keys[key]: taken for key, taken in seconds.items()}


def _begun(begin: Callable[[], Callable[[], None]], device: torch.device) -> Callable[[], None] | None:
    """Work that has been done once; None where memory ran out."""
    try:
        work = begin()
        work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        release(device)  # what one needed is not kept from the next
    return work
