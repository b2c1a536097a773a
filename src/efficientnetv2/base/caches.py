"""Where the program keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "EFFNETV2_CACHE"


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
