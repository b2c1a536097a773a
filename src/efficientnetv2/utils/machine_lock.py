"""A lock by which processes of a machine measure alone, and the name of the machine since its last start."""

from __future__ import annotations

import contextlib
import os
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def boot_id() -> str:
    """This machine since its last start, as a name for a folder: machines of a cluster may share a home folder."""
    file = Path("/proc/sys/kernel/random/boot_id")
    text = file.read_text(encoding="ascii").strip() if file.exists() else f"{uuid.getnode():x}"
    return text.replace("-", "")[:16]


class MachineLock:
    """Lets processes of a machine work together, or one measure while the others wait. All have the same ``folder``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._exclusive = FileLock(folder / "quiet.lock")
        self._busy = FileLock(folder / f"busy_{os.getpid()}_{secrets.token_hex(4)}.lock")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the block, this process computes: who wants to measure waits until it ends or pauses."""
        self._begin()
        try:
            yield
        finally:
            self._busy.release()
            Path(self._busy.lock_file).unlink(missing_ok=True)

    def pause(self) -> None:
        """While working: wait if a process wants to measure, until it is done."""
        try:
            self._exclusive.acquire(timeout=0)
            self._exclusive.release()
        except Timeout:
            self._busy.release()
            self._begin()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within the block, every other process waits. Not to be entered while working."""
        with self._exclusive:
            for file in self.folder.glob("busy_*.lock"):
                other = FileLock(file)
                with other, contextlib.suppress(OSError):  # Its holder has paused, or has died.
                    file.unlink()
            yield

    def _begin(self) -> None:
        """Take the own lock while nobody measures; whoever wants to afterward finds it held."""
        with self._exclusive:
            self._busy.acquire()
