"""How a long task tells how far it is; what a command draws as a bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# From what is counted and how many there are to what is called with the number done.
Counting = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


def uncounted(what: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
    """A ``Counting`` where nobody looks on.

    Args:
        what: is counted.
        total: how many there are.
    """
    return nullcontext(lambda done: None)
