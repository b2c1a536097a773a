"""The log of the package and the progress of long work: a block of code records, hides or silences them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

from efficientnetv2.utils.io import writing

PACKAGE = logging.getLogger("efficientnetv2")

# From a description, a total and a unit to what takes the number of units done so far.
Reporter = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]

# Attribute of records that show how far a run has come.
IS_PROGRESS = "is_progress"

# How the running program writes a message of the library, which names parameters in backticks.
spelling: ContextVar[Callable[[str], str]] = ContextVar("spelling", default=str)

_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


class RunLog(logging.Handler):
    """The log of a run with its times: in memory until there is a run directory, then in ``log.txt``.

    It gets every line, also those that ``hushed`` and ``as_details`` keep from other handlers. Lines are written as on
    the screen. A line that can't be written, as on a full disk, raises InputError where it is logged.
    """

    shown = logging.DEBUG  # level from which other handlers get lines

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._file: Path | None = None
        self._waiting: list[logging.LogRecord] = []
        self._spell = spelling.get()  # a line may come from a thread, which has no context

    def write_to(self, folder: Path) -> None:
        """Write what was logged so far, and each line from now on, into ``log.txt`` of a folder."""
        self._file = folder / "log.txt"
        waiting, self._waiting = self._waiting, []
        for record in waiting:
            self.emit(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or keep it until there is a file."""
        if self._file is None:
            self._waiting.append(record)
            return
        with writing(self._file), self._file.open("a", encoding="utf-8", errors="backslashreplace") as file:
            when = datetime.fromtimestamp(record.created)
            file.write(f"{when:%Y-%m-%d %H:%M:%S}  {self._spell(record.getMessage())}\n")


@contextmanager
def attached(handler: logging.Handler) -> Iterator[None]:
    """Send the block's lines of the package to ``handler`` too. Other handlers get what they get without it."""
    level, shown = PACKAGE.level, PACKAGE.getEffectiveLevel()
    if isinstance(handler, RunLog):
        handler.shown = shown
    with _filtered(lambda other, record: record.levelno >= shown):
        PACKAGE.setLevel(min(shown, handler.level))
        PACKAGE.addHandler(handler)
        try:
            yield
        finally:
            PACKAGE.removeHandler(handler)
            PACKAGE.setLevel(level)


def shown_by_default() -> AbstractContextManager[None]:
    """Print the block's lines of level INFO to stderr, if the program has not set up logging for the package."""
    handlers = (*PACKAGE.handlers, *logging.root.handlers)
    is_set = (PACKAGE.level, logging.root.level) != (logging.NOTSET, logging.WARNING)
    level = PACKAGE.getEffectiveLevel()
    if (is_set and level > logging.INFO) or any(not isinstance(one, logging.NullHandler) for one in handlers):
        return nullcontext()
    handler = logging.StreamHandler()
    handler.setLevel(min(level, logging.INFO))
    return attached(handler)


def hushed() -> AbstractContextManager[None]:
    """Send only the block's lines of progress to the handlers that were there before, but for logs of runs."""
    return _filtered(lambda handler, record: getattr(record, IS_PROGRESS, False))


@contextmanager
def as_details() -> Iterator[None]:
    """Show the block's lines of level INFO only where those of level DEBUG are shown."""
    logs = (handler for handler in PACKAGE.handlers if isinstance(handler, RunLog))
    shown = max((PACKAGE.getEffectiveLevel(), *(log.shown for log in logs)))
    with _filtered(lambda handler, record: record.levelno > logging.INFO or max(handler.level, shown) <= logging.DEBUG):
        yield


@contextmanager
def silenced() -> Iterator[None]:
    """Turn log and progress off, as in every process of a run but the first."""
    level = PACKAGE.level
    PACKAGE.setLevel(logging.CRITICAL + 1)
    try:
        with reported_to(None):
            yield
    finally:
        PACKAGE.setLevel(level)


@contextmanager
def _filtered(passes: Callable[[logging.Handler, logging.LogRecord], bool]) -> Iterator[None]:
    """Let handlers that are there now get a line of the package only if it ``passes``."""
    with ExitStack() as stack:
        for handler in (*PACKAGE.handlers, *logging.root.handlers):
            if not isinstance(handler, RunLog):

                def rule(record: logging.LogRecord, handler: logging.Handler = handler) -> bool:
                    return record.name.partition(".")[0] != PACKAGE.name or passes(handler, record)

                handler.addFilter(rule)
                stack.callback(handler.removeFilter, rule)
        yield


@contextmanager
def progress(description: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Report how far the block has come; yields what to call with the units done so far. ``total`` may be unknown."""
    reporter = _reporter.get()
    with nullcontext(lambda done: None) if reporter is None else reporter(description, total, unit) as update:
        yield update


@contextmanager
def reported_to(reporter: Reporter | None) -> Iterator[None]:
    """Report the block's progress to ``reporter``, or to nobody."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)
