"""Where the program keeps what it can make again."""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "EFFNETV2_CACHE"
#: After so many days without use what is kept is removed. Ours.
UNUSED_DAYS = 30


def cache_folder(kind: str) -> Path:
    """The folder for one kind of thing; it may not be there yet, and may be deleted at any time.

    ``EFFNETV2_CACHE`` names the folder around it; else it is ``efficientnetv2`` under ``XDG_CACHE_HOME``, or under
    ``~/.cache``, where PyTorch and the Hugging Face hub keep theirs on every system.

    Args:
        kind: what it is for, e.g. ``shards``.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return Path(os.path.expanduser(given)) / kind
    around = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.path.expanduser(around)) / "efficientnetv2" / kind


def is_unused(file: Path) -> bool:
    """Whether nobody has used a file, which sets its time, for ``UNUSED_DAYS``; not if it is gone meanwhile."""
    try:
        return time.time() - file.stat().st_mtime > UNUSED_DAYS * 86400
    except FileNotFoundError:
        return False
