"""Log lines of the package, for tests."""

from __future__ import annotations

import logging

from efficientnetv2.utils.logs import PACKAGE


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def logged_lines() -> list[str]:
    """Return a list that receives each line of level INFO. A fixture in ``conftest`` ends this after the test."""
    handler = _Lines()
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    return handler.lines


def forget_log() -> None:
    """Remove the handlers of ``logged_lines``."""
    for handler in [one for one in PACKAGE.handlers if isinstance(one, _Lines)]:
        PACKAGE.removeHandler(handler)
    PACKAGE.setLevel(logging.NOTSET)
