"""Quiet moments on a machine whose processes share a processor: whoever measures a speed has it for itself.

Processes that work hold a lock each and look up now and then; whoever wants quiet asks for it, waits until all of
them have paused, and measures. The locks are files, which the system releases when a process dies.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def system() -> str:
    """This machine as one can call a folder: by how its system was started, which no other's has been.

    A home may be shared by all machines of a cluster, which do not disturb each other.
    """
    started = Path("/proc/sys/kernel/random/boot_id")
    known = started.read_text(encoding="ascii").strip() if started.exists() else f"{uuid.getnode():x}"
    return known.replace("-", "")[:16]


class Quiet:
    """The agreement of the processes of one machine that measure and work by turns.

    Args:
        folder: on a disk of that machine, the same for all of them; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._wanted = FileLock(folder / "quiet.lock")
        self._busy = FileLock(folder / f"busy_{os.getpid()}_{secrets.token_hex(4)}.lock")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within, this process computes; whoever wants quiet waits until it ends or pauses."""
        self._begin()
        try:
            yield
        finally:
            self._busy.release()
            Path(self._busy.lock_file).unlink(missing_ok=True)

    def pause(self) -> None:
        """While working: wait if anybody wants quiet, until they have measured."""
        if not self._is_wanted():
            return
        self._busy.release()
        self._begin()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, every other process of the agreement waits. Not to be called while working."""
        with self._wanted:
            for file in self.folder.glob("busy_*.lock"):
                other = FileLock(file)
                with other, contextlib.suppress(OSError):  # its holder has paused, or has died
                    file.unlink()
            yield

    def _begin(self) -> None:
        """Take the own lock at a moment when nobody wants quiet; who asks afterwards finds it held."""
        with self._wanted:
            self._busy.acquire()

    def _is_wanted(self) -> bool:
        with contextlib.suppress(Timeout):
            self._wanted.acquire(timeout=0)
            self._wanted.release()
            return False
        return True
