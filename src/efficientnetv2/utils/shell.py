"""Command lines as text: the running command, and commands that messages recommend."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextvars import ContextVar

#: The running call of the Python API, as text; None in a command.
CALL: ContextVar[str | None] = ContextVar("call", default=None)


def shell_join(words: Sequence[str]) -> str:
    """A command in one line, quoted for this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def command_line() -> str:
    """The running command, or the running call of the Python API."""
    return CALL.get() or shell_join(["effnetv2", *sys.argv[1:]])


def option_args(**options: object) -> list[str]:
    """Options by their Python names as arguments. True is a flag; None and False are left out."""
    words: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, float):
            short = f"{value:g}"
            words += [option, short if float(short) == value else repr(value)]
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words
