"""The environment of a launcher such as torchrun, and its error file."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from efficientnetv2.utils.errors import InputError

# The variable and the content of the error file are torch.distributed.elastic.multiprocessing.errors'.
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# torchrun takes the earliest failure for the cause, by whole seconds; one that only follows another is dated later.
_CONSEQUENCE_S = 2

#: The fix where the environment describes several processes but is not a launcher's.
START_OR_UNSET = "Start several processes with torchrun. For a single process, unset RANK and WORLD_SIZE."


def rank_and_world_size() -> tuple[int, int] | None:
    """The process's rank and the number of processes, from the launcher's environment. None without a launcher."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    size = env_int("WORLD_SIZE", least=1)
    return env_int("RANK", below=size), size


def env_int(name: str, default: int = 0, *, least: int = 0, below: int | None = None) -> int:
    """A whole number from ``least`` to less than ``below`` in an environment variable of a launcher."""
    text = os.environ.get(name, str(default))
    if re.fullmatch(r"\d{1,9}", text) and int(text) in range(least, 10**9 if below is None else below):
        return int(text)
    most = "" if below is None else f" and below {below}"
    rule = f"must be a whole number, at least {least}{most}"
    raise InputError(f"environment variable {name}: invalid value '{text}' ({rule}). {START_OR_UNSET}")


def report_to_torchrun(message: str, *, cause: bool = True) -> None:
    """Write an error message for torchrun, which prints it last. ``cause`` is False after another process's error."""
    if _ERROR_FILE not in os.environ:
        return
    moment = int(time.time()) + (0 if cause else _CONSEQUENCE_S)
    details = {"py_callstack": message, "timestamp": str(moment)}
    content = {"message": {"message": message, "extraInfo": details}}
    with suppress(OSError):  # the message is on the screen nevertheless
        Path(os.environ[_ERROR_FILE]).write_text(json.dumps(content), encoding="utf-8")
