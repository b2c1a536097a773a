"""Child processes that end with their parent, and a temporary folder that a killed process leaves to the next start."""

from __future__ import annotations

import ctypes
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX, _LOCK = "effnetv2-", "owner.lock"
_PR_SET_PDEATHSIG = 1  # Source: prctl(2), linux/prctl.h.
_MIN_AGE_S = 60.0  # A younger folder may not be locked yet. Ours.
# The longest path for a socket of multiprocessing. Source: unix(7), sun_path of 108 bytes.
_MAX_SOCKET_FOLDER = 108 - len("/pymp-01234567/listener-01234567") - 1


def end_with_parent(parent: int) -> None:
    """Let the system kill this process when the thread that started it ends; only on Linux.

    ``parent`` is the parent's process id. If it has ended already, so does this process.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def own_folder() -> Path:
    """The temporary folder of this process, also for multiprocessing's files.

    It is removed at the end of the process. If the process is killed, the next one that asks for a folder removes it.
    """
    folder = _own_folder(os.getpid())[0]
    if not folder.is_dir():  # A cleaner of temporary files has removed it.
        _own_folder.cache_clear()
        folder = _own_folder(os.getpid())[0]
    return folder


@cache
def _own_folder(process: int) -> tuple[Path, FileLock]:
    """The folder and its lock; forked children keep the lock too, whose end would release it for all."""
    remove_leftovers(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = FileLock(folder / _LOCK)
    lock.acquire()

    def remove() -> None:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)

    # After multiprocessing's own finalizer (-100), which complains of a missing folder.
    multiprocessing.util.Finalize(None, remove, exitpriority=-200)
    if len(str(folder)) <= _MAX_SOCKET_FOLDER:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            multiprocessing.util.get_temp_dir()
        finally:
            tempfile.tempdir = before
    return folder, lock


def remove_leftovers(parent: Path) -> None:
    """Remove temporary folders of this user in ``parent`` whose process, and so its lock, has ended.

    Only folders of this user are opened: others may have put links there.
    """
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            found = folder.lstat()
            if hasattr(os, "getuid") and found.st_uid != os.getuid():
                continue
            if not (folder / _LOCK).is_file() or time.time() - found.st_mtime < _MIN_AGE_S:
                continue
            with FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):  # Its process is running.
            continue
