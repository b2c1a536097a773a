"""Checkpoints of a run: the last two are kept until its end.

They resume a run. ``callbacks.ModelSelection`` has the best weights.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.data.loader import worker_errors
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.io import hint_for_os_error, remove_partial, write_atomically
from efficientnetv2.utils.memory import is_out_of_memory

_NAME = re.compile(r"step_(\d+)\.pt")
_KEPT = 2


def save_checkpoint(
    folder: Path, state: dict[str, Any], step: int, *, fix: str = ", then continue with `resume`"
) -> Path:
    """Write a checkpoint after ``step`` steps atomically, and remove all but the last two.

    Raises InputError if the file can't be written, as on a full disk, with ``fix`` after its hint. Earlier checkpoints
    stay.
    """
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        with worker_errors():
            write_atomically(path, lambda file: torch.save(state, file))
    except (OSError, RuntimeError) as error:
        hint = hint_for_os_error(error)
        raise InputError(f"{path} can't be written ({error}). {hint}{fix}.") from error
    for old in checkpoint_steps(folder)[:-_KEPT]:
        with suppress(OSError):  # one that is open elsewhere is removed the next time
            (folder / f"step_{old:08d}.pt").unlink()
    return path


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a finished run, also damaged and partial ones. The folder stays."""
    remove_partial(folder)
    for path in folder.glob("step_*"):
        if _NAME.fullmatch(path.with_suffix(".pt").name):
            with suppress(OSError):
                path.unlink()


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first."""
    matches = (_NAME.fullmatch(path.name) for path in folder.glob("step_*"))
    return sorted(int(match[1]) for match in matches if match)


def load_latest_checkpoint(
    folder: Path, matches: Callable[[dict[str, Any]], bool] = lambda state: True
) -> tuple[dict[str, Any] | None, list[str]]:
    """The latest checkpoint that is whole and ``matches`` (or None), and a sentence for each damaged one.

    Raises InputError if all checkpoints are damaged, or one can't be read now but may be intact.
    """
    damaged: list[str] = []
    for step in reversed(checkpoint_steps(folder)):
        path = folder / f"step_{step:08d}.pt"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if matches(state):
                return state, damaged
            if isinstance(state, dict) and isinstance(state.get("network"), dict) and "optimizer" in state:
                raise InputError(
                    f"{path} holds another model than this run has. Restore the recipe, the code of the model and the "
                    "versions of its libraries, then continue with `resume`."
                )
            reason = "it does not hold the state of this run"
        except InputError:
            raise
        except Exception as error:  # a damaged file may raise anything
            reason = error_summary(error)
            # A truncated file may make the reader seek before its start, which is EINVAL.
            of_system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
            if of_system or is_out_of_memory(error):
                raise InputError(
                    f"{path} can't be read now ({reason}), but may be intact. Fix that or move the file away, then "
                    "continue with `resume`."
                ) from error
        damaged.append(f"{path} is damaged ({reason})")
        path.rename(path.with_suffix(".damaged"))
    damaged = damaged or [f"{path} is damaged" for path in sorted(folder.glob("step_*.damaged"))]
    if damaged:
        raise InputError(f"{'; '.join(damaged)}. Start a new run with another `output`.")
    return None, []
