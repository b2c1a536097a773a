"""Progress of long work: reported to whoever shows it, and to nobody in a library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

# From a description, a total and a unit to what takes the number of units done so far.
Reporter = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]

_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


@contextmanager
def progress(description: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Report how far the block has come; yields what to call with the number of units done so far.

    A ``total`` of None says only that the block is under way.
    """
    reporter = _reporter.get()
    if reporter is None:
        yield lambda done: None
    else:
        with reporter(description, total, unit) as update:
            yield update


@contextmanager
def reported_to(reporter: Reporter | None) -> Iterator[None]:
    """Report the block's progress to ``reporter``, or to nobody."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)
