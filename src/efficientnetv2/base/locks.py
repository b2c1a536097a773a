"""Files that one process at a time holds, for as long as it works on what stands beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from efficientnetv2.base.errors import InputError


@contextmanager
def locked(file: Path, what: str, *, taken: str, fix: str, patience_s: float = 0.0) -> Iterator[None]:
    """Within, no other process holds a file; then it is gone.

    It is a lock of the operating system, which ends with the process that holds it: one that was killed bars nobody.

    Args:
        file: to hold; its folder is there.
        what: is worked on, in the user's words.
        taken: what to say where another holds it.
        fix: what to do where it can't be written.
        patience_s: seconds to wait for another.

    Raises:
        InputError: another process holds it, or it can't be written.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=patience_s)
    except Timeout as error:
        raise InputError(f"{what}: {taken}") from error
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}, of its {file.name}. {fix}") from error
    try:
        yield
    finally:
        # While it is held: whoever has opened it before will find what has been begun.
        with suppress(OSError):
            file.unlink(missing_ok=True)
        lock.release()
