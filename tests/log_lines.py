"""The lines that the package logs, for tests."""

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
    """A list that gets every line of level INFO from now on; the fixture of ``conftest`` ends that with the test."""
    handler = _Lines()
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(logging.INFO)
    return handler.lines


def forget_log() -> None:
    """End what ``logged_lines`` began."""
    for handler in [one for one in PACKAGE.handlers if isinstance(one, _Lines)]:
        PACKAGE.removeHandler(handler)
    PACKAGE.setLevel(logging.NOTSET)
