"""Commands as one types them, for messages that say what to type."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextvars import ContextVar

#: The call of the Python API that is running, as text; None in a command.
CALL: ContextVar[str | None] = ContextVar("call", default=None)


def typed(words: Sequence[str]) -> str:
    """A command in a line, quoted as the shells of this system take it.

    Args:
        words: of the command.
    """
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def command_line() -> str:
    """The command, or the call in Python, that a user would type again."""
    return CALL.get() or typed(["effnetv2", *sys.argv[1:]])


def options(**said: object) -> list[str]:
    """Options by their names in Python.

    Args:
        said: a name's value; True for an option without one. None and False are not said.
    """
    words: list[str] = []
    for name, value in said.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    return words
