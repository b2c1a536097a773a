"""Checkpoints: everything that a run needs to resume to the same bits.

Files are written atomically. The last two checkpoints are kept during a run, and none after its end: to train longer,
start another run from the model file.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import hint_for_os_error, remove_partial, write_atomically
from efficientnetv2.utils.memory import is_out_of_memory

_NAME = re.compile(r"step_(\d+)\.pt")
_DAMAGED_SUFFIX = ".damaged"
_KEPT = 2


def save(folder: Path, state: dict[str, Any], step: int) -> Path:
    """Write a checkpoint after ``step`` steps, and remove all but the last two.

    Raises:
        InputError: The file can't be written, as on a full disk. Earlier checkpoints stay.
    """
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        write_atomically(path, lambda file: torch.save(state, file))
    except (OSError, RuntimeError) as error:
        before = saved_steps(folder)
        rest = f"The checkpoint of step {before[-1]} is whole" if before else "There is no earlier checkpoint"
        raise InputError(
            f"{path}: the checkpoint could not be written ({error}). {rest}. "
            f"{hint_for_os_error(error)}, then go on with --resume."
        ) from error
    for old in saved_steps(folder)[:-_KEPT]:
        (folder / f"step_{old:08d}.pt").unlink()
    return path


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a finished run, also damaged and partial ones. The folder stays."""
    if not folder.is_dir():
        return
    remove_partial(folder)
    for path in folder.glob("step_*"):
        if _NAME.fullmatch(path.with_suffix(".pt").name):
            path.unlink()


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def load_latest(
    folder: Path, matches: Callable[[dict[str, Any]], bool] = lambda state: True
) -> tuple[dict[str, Any] | None, list[str]]:
    """The latest checkpoint that is whole (None without checkpoints), and a sentence for each damaged one.

    Args:
        folder: Checkpoints of the run.
        matches: Whether a checkpoint has the state of this run. If not, it counts as damaged.

    Raises:
        InputError: All checkpoints are damaged, or one can't be read now but may be whole.
    """
    damaged: list[str] = []
    for step in reversed(saved_steps(folder)):
        path = folder / f"step_{step:08d}.pt"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if not matches(state):
                raise ValueError("it does not hold the state of this run")
            return state, damaged
        except Exception as error:  # a damaged file may raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if _is_temporary(error):
                raise InputError(
                    f"{path} can't be read now ({reason}), but may be whole. Fix that, then go on with --resume; or "
                    "move the file away, to go on from the checkpoint before it."
                ) from error
            damaged.append(f"{path} is damaged ({reason})")
            path.rename(path.with_suffix(_DAMAGED_SUFFIX))
    damaged = damaged or [f"{path} is damaged" for path in sorted(folder.glob(f"step_*{_DAMAGED_SUFFIX}"))]
    if damaged:
        raise InputError("; ".join(damaged) + ". Start a new run with another --output.")
    return None, []


def _is_temporary(error: Exception) -> bool:
    """Whether reading failed for memory, permission or the disk, rather than for the content of the file."""
    # A truncated file may make the reader seek before its start, which is EINVAL.
    is_system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    return is_system or is_out_of_memory(error)
