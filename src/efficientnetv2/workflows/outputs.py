"""A result in the place of an earlier one: it is said; and a file that is no such result is not lost to it.

So it is with what commands compute anew in the same place: tables, maps, sheets, reports. Models, runs and sets of
pictures are never replaced unasked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from efficientnetv2.utils.errors import InputError

_logger = logging.getLogger(__name__)


def tell_replaced(file: Path) -> None:
    """Say that a file will be replaced, if it is there.

    Args:
        file: to write.
    """
    if file.exists():
        _logger.info(f"{file} is there already: it will be replaced.")


def refuse_others(
    file: Path,
    called: str,
    ours: Callable[[Path], bool],
    why: str,
    mend: str = "Give another name, or remove it",
) -> None:
    """Refuse to replace a file that the same command has not written, as far as its content tells.

    Args:
        file: to write.
        called: what the user calls it by: ``--out``.
        ours: whether a file that is there is such a result.
        why: it is not to be replaced, to follow its name.
        mend: what to do.

    Raises:
        InputError: it is there, and is not ours.
    """
    if file.exists() and not ours(file):
        raise InputError(f"{called} {file} is there already, and {why}. {mend}.")
