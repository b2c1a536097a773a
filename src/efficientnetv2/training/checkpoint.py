"""Checkpoints: everything a run needs to go on to the same bits.

A checkpoint is written beside its place, synced and renamed, so that at every moment the newest whole
one is a valid one. The last two are kept while the run is under way, and none once it has finished: its schedules have
run out, so whoever wants to train longer begins another run from the model file.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import remedy, remove_partial, write_atomically
from efficientnetv2.utils.memory import is_out_of_memory

_NAME = re.compile(r"step_(\d+)\.pt")
_DAMAGED = ".damaged"  # in the place of its suffix
_KEPT = 2


def save(folder: Path, kept: dict[str, Any], step: int) -> Path:
    """Write the checkpoint of a step and drop all but the last two.

    Args:
        folder: the run's ``checkpoints/``; made if need be.
        kept: tensors and plain values.
        step: steps done.

    Raises:
        InputError: it could not be written (a full disk, say); the earlier ones are untouched.
    """
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        write_atomically(path, lambda file: torch.save(kept, file))
    except (OSError, RuntimeError) as error:
        before = saved_steps(folder)
        rest = f"The checkpoint of step {before[-1]} is whole" if before else "There is none before it"
        raise InputError(
            f"{path}: the checkpoint could not be written ({error}). {rest}. {remedy(error)}, then go on with --resume."
        ) from error
    for old in saved_steps(folder)[:-_KEPT]:
        (folder / f"step_{old:08d}.pt").unlink()
    return path


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that has finished, damaged ones and halves too; the folder stays.

    Args:
        folder: the run's ``checkpoints/``, which need not be there.
    """
    if not folder.is_dir():
        return
    remove_partial(folder)
    for path in folder.glob("step_*"):
        if _NAME.fullmatch(path.with_suffix(".pt").name):
            path.unlink()


def saved_steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def load_latest(
    folder: Path, fits: Callable[[dict[str, Any]], bool] = lambda kept: True
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that is whole.

    Args:
        folder: the run's ``checkpoints/``.
        fits: whether the run can take over what a checkpoint holds; one that does not fit counts as damaged.

    Returns:
        What was kept (None if there is no checkpoint), and a sentence for each that was damaged.

    Raises:
        InputError: there are checkpoints, but none is whole, now or when they were looked at before; or one can't be
            read now, and may well be whole.
    """
    damaged: list[str] = []
    for step in reversed(saved_steps(folder)):
        path = folder / f"step_{step:08d}.pt"
        try:
            kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if not fits(kept):
                raise ValueError("it does not hold the state of this run")
            return kept, damaged
        except Exception as error:  # a damaged zip raises whatever its damage hits
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if _is_passing(error):
                raise InputError(
                    f"{path} can't be read now ({reason}), but may well be whole. Mend that, then go on with --resume; "
                    "or move the file away, to go on from the checkpoint before it."
                ) from error
            damaged.append(f"{path} is damaged ({reason})")
            path.rename(path.with_suffix(_DAMAGED))  # so that it is not taken for the newest again
    damaged = damaged or [f"{path} is damaged" for path in sorted(folder.glob(f"step_*{_DAMAGED}"))]
    if damaged:
        raise InputError("; ".join(damaged) + ". Start anew with another --out.")
    return None, []


def _is_passing(error: Exception) -> bool:
    """Whether reading failed for want of memory, of permission, of the disk: nothing that the file is to blame for."""
    # A file that was cut short may send the reader to a place before its beginning, which is EINVAL.
    of_the_system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    return of_the_system or is_out_of_memory(error)
