"""What there is to know of whoever launched this process, and what torchrun is told of an error.

Its own report of a failure ends then with the sentence that counts.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

# PyTorch's name for the file of a process, and the shape of what stands in it
# (torch.distributed.elastic.multiprocessing.errors).
_FILE = "TORCHELASTIC_ERROR_FILE"
# torchrun takes the earliest failure for the cause, by whole seconds; one that only follows another is dated later.
_LATER_S = 2


def placed() -> tuple[int, int] | None:
    """This process's number among those that were launched together, and how many they are; None without a launcher.

    As the environment says it: torchrun's, or that of whoever sets the same names.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def tell_launcher(message: str, *, cause: bool = True) -> None:
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
