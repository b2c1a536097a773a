"""What there is to know of whoever launched this process, and what torchrun is told of an error.

Its own report of a failure ends then with the sentence that counts.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

from efficientnetv2.utils.errors import InputError

# PyTorch's name for the file of a process, and the shape of what stands in it
# (torch.distributed.elastic.multiprocessing.errors).
_FILE = "TORCHELASTIC_ERROR_FILE"
# torchrun takes the earliest failure for the cause, by whole seconds; one that only follows another is dated later.
_LATER_S = 2

#: What helps where the environment tells of several processes, and is not a launcher's.
START_OR_UNSET = "Start several processes with torchrun. For a single process, unset RANK and WORLD_SIZE."


def rank_and_world_size() -> tuple[int, int] | None:
    """This process's number among those that were launched together, and how many they are; None without a launcher.

    As the environment says it: torchrun's, or that of whoever sets the same names.

    Raises:
        InputError: A variable is not a number in its range.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    size = env_int("WORLD_SIZE", least=1)
    return env_int("RANK", below=size), size


def env_int(name: str, otherwise: int = 0, *, least: int = 0, below: int | None = None) -> int:
    """A whole number that a launcher has set.

    Args:
        name: Of the environment variable.
        otherwise: Its value where it is not set.
        least: Smallest value that it may have.
        below: First value that is too large. None has no such limit.

    Raises:
        InputError: It is not a whole number, or out of range.
    """
    text = os.environ.get(name, str(otherwise))
    found = int(text) if re.fullmatch(r"\d{1,9}", text) else -1
    if found < least or (below is not None and found >= below):
        most = "" if below is None else f" and below {below}"
        raise InputError(
            f"environment variable {name}: invalid value '{text}' (must be a whole number, at least {least}{most}). "
            f"{START_OR_UNSET}"
        )
    return found


def report_to_torchrun(message: str, *, cause: bool = True) -> None:
    """Leave a message for torchrun, which shows it after its own traceback; nothing without torchrun.

    Args:
        message: that ended this process.
        cause: whether it is the cause, or follows from another process's end.
    """
    if _FILE not in os.environ:
        return
    moment = int(time.time()) + (0 if cause else _LATER_S)
    shown = {"py_callstack": message, "timestamp": str(moment)}
    told = {"message": {"message": message, "extraInfo": shown}}
    try:
        Path(os.environ[_FILE]).write_text(json.dumps(told), encoding="utf-8")
    except OSError:  # the message is on the screen all the same
        return


#: The call of the Python API that is running, as text; None in a command.
CALL: ContextVar[str | None] = ContextVar("call", default=None)


def shell_join(words: Sequence[str]) -> str:
    """A command in a line, quoted as the shells of this system take it.

    Args:
        words: of the command.
    """
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def command_line() -> str:
    """The command, or the call in Python, that a user would type again."""
    return CALL.get() or shell_join(["effnetv2", *sys.argv[1:]])


def option_args(**said: object) -> list[str]:
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
