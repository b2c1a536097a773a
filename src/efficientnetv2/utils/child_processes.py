"""What a process that is killed leaves: its children end with it, and its temporary folder goes at the next start."""

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
# Source: prctl(2), linux/prctl.h.
_PR_SET_PDEATHSIG = 1
# A folder younger than this may not be locked yet. Ours.
_YOUNG_S = 60.0
# The longest path of a socket, less the names that multiprocessing adds. Source: unix(7), sun_path of 108 bytes.
_LONGEST = 108 - len("/pymp-01234567/listener-01234567") - 1


def end_with_parent(parent: int) -> None:
    """Let the system kill this process when the thread that started it ends; on Linux, elsewhere nothing.

    Args:
        parent: Process id of the parent, which may have ended already.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def own_folder() -> Path:
    """The temporary folder of this process; what multiprocessing puts aside lies in it too.

    It is removed at the end of the process. Where that is killed, the next process that asks for a folder removes it.
    """
    folder = _own_folder(os.getpid())[0]
    if not folder.is_dir():  # whoever tidies the temporary folder has removed it
        _own_folder.cache_clear()
        folder = _own_folder(os.getpid())[0]
    return folder


@cache
def _own_folder(process: int) -> tuple[Path, FileLock]:
    """The folder and its lock, kept in forked children too: there the lock's end would open it for all."""
    remove_leftovers(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = FileLock(folder / _LOCK)
    lock.acquire()

    def remove() -> None:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)

    # Behind multiprocessing's own, of -100, which complains of a folder that is gone; a fork that ends runs neither.
    multiprocessing.util.Finalize(None, remove, exitpriority=-200)
    if len(str(folder)) <= _LONGEST:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            multiprocessing.util.get_temp_dir()
        finally:
            tempfile.tempdir = before
    return folder, lock


def remove_leftovers(place: Path) -> None:
    """Remove temporary folders of this user whose process has ended: its lock has ended with it.

    Args:
        place: That they lie in. Others may write there too: to lock what they have put there opens it, wherever a link
            leads.
    """
    for folder in place.glob(f"{_PREFIX}*"):
        try:
            found = folder.lstat()
            if hasattr(os, "getuid") and found.st_uid != os.getuid():
                continue
            if not (folder / _LOCK).is_file() or time.time() - found.st_mtime < _YOUNG_S:
                continue
            with FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):  # its process is there, or it is another user's
            continue
