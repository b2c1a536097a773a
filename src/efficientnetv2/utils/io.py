"""Files that are whole or not there: a reader never meets half of one, even after a power cut."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from efficientnetv2.utils import legacy
from efficientnetv2.utils.errors import InputError

# What mounts answer that sync no folders, or only for who may list them: some of FUSE, CIFS and vboxsf. The file is
# written and in its place by then.
_NOT_SYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES}


def write_atomically(path: str | Path, writer: Callable[[Path], object]) -> None:
    """Let ``writer`` fill a temporary file beside ``path``, then put it in its place in one move.

    Args:
        path: of the finished file; its folder exists. A file already there is replaced.
        writer: is given the temporary path, of an empty file, and writes and closes that file or puts another in
            its place. If it raises, nothing is left behind and the old file stands.

    The finished file may be read by whom the user's umask lets read new files, whatever mode the writer gave it.

    Raises:
        OSError: the folder is missing, full or read-only.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        # A umask cannot be asked for without setting it, for all threads; a new file's mode tells as much.
        partial.touch(exist_ok=False)
        mode = stat.S_IMODE(partial.stat().st_mode)
        writer(partial)
        # safetensors, for one, writes through a file of its own that nobody else may read.
        partial.chmod(mode)
        with open(partial, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_object(file: Path, *keys: str, fix: str) -> dict[str, Any]:
    """The JSON object of a file that this program has written.

    Args:
        file: Of the object.
        keys: That it must have.
        fix: What to do if it is damaged, as a sentence.

    Raises:
        InputError: The file is missing or damaged, or a key is missing.
    """
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}. {fix}") from error
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 raises a ValueError too
        raise InputError(f"{file} is damaged ({error}). {fix}") from error
    plain = legacy.upgrade(plain)
    missing = [key for key in keys if not isinstance(plain, dict) or key not in plain]
    if missing or not isinstance(plain, dict):
        what = f"it has no '{missing[0]}'" if missing else "it is not a JSON object"
        raise InputError(f"{file} is damaged ({what}). {fix}")
    return plain


def write_text_atomically(path: str | Path, text: str) -> None:
    """``write_atomically`` of a text, in UTF-8 with plain line ends."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8", newline="\n"))


@contextmanager
def provisional_dir(path: Path) -> Iterator[None]:
    """Within, there is a folder; ended by an error or Ctrl-C, what was made of it goes if it is empty.

    So it is known before long work that its results can be kept, and work that is refused leaves nothing.

    Args:
        path: of the folder, which may be there already, and then stays.

    Raises:
        OSError: it can't be made.
    """
    made = [one for one in (path, *path.parents) if not one.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for one in made:
            with contextlib.suppress(OSError):  # it is not empty, or has gone
                one.rmdir()
        raise


@contextmanager
def output_dir(folder: Path, called: str) -> Iterator[None]:
    """``provisional_dir`` of a folder that the user has named.

    Args:
        folder: to write into.
        called: what the user calls it by: ``--output``.

    Raises:
        InputError: it is a file, or it can't be made or written into.
    """
    with contextlib.ExitStack() as kept:
        try:
            check_writable_dir(folder, called)
            kept.enter_context(provisional_dir(folder))
        except OSError as error:
            raise InputError(f"{called} {folder}: {error.strerror or error}. Give another folder.") from error
        yield


def check_writable_file(file: Path, called: str, *, such_as: str) -> None:
    """Refuse a file that can't be written where it is to be, before the work that it is to hold is done.

    Args:
        file: to write; one that is there may be replaced.
        called: what the user calls it by: ``--output``.
        such_as: a name for it, for whoever gave a folder.

    Raises:
        InputError: it is a folder, a pipe or a device, its own folder is not there, or nothing may be written there.
    """
    folder = file.absolute().parent
    if file.is_dir():
        raise InputError(f"{called} {file} is a folder. Give a file, such as {file / such_as}.")
    if file.exists() and not file.is_file():
        raise InputError(f"{called} {file} is not a regular file. Give a file, such as {such_as}.")
    if not folder.is_dir():
        raise InputError(
            f"{called} {file}: there is no folder {file.parent}. Make it, or give another place."
        )
    if not os.access(folder, os.W_OK):
        raise InputError(f"{called} {file}: nothing may be written into {file.parent}. Give another place.")


def check_writable_dir(folder: Path, called: str) -> None:
    """Likewise a folder, which may be there or is still to be made.

    Args:
        folder: to write into.
        called: what the user calls it by: ``--output``.

    Raises:
        InputError: it is a file or lies in one, or nothing may be written there.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{called} {folder}: {there} is a file. Give a folder.")
    if not os.access(there, os.W_OK):
        raise InputError(f"{called} {folder}: nothing may be written into {there}. Give another folder.")


def hint_for_os_error(error: BaseException) -> str:
    """What lets a file be written that could not be: an instruction without its full stop.

    Args:
        error: an OSError; or another that says that the disk is full in its own way, as PyTorch's does.
    """
    if not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Make room on the disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Let it be written to again: its permissions, or how its disk is mounted"
    return "Make room on the disk, or bring it back"


def remove_partial(folder: Path) -> None:
    """Remove what a kill in the middle of ``write_atomically``, or of a measurement, left in a folder."""
    for partial in folder.glob(".*.partial"):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets folders be opened and synced (not on Windows)."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise


VARIABLE = "EFFNETV2_CACHE"
#: After so many days without use what is kept is removed. Ours.
UNUSED_DAYS = 30


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


def is_unused(file: Path) -> bool:
    """Whether nobody has used a file, which sets its time, for ``UNUSED_DAYS``; not if it is gone meanwhile."""
    try:
        return time.time() - file.stat().st_mtime > UNUSED_DAYS * 86400
    except FileNotFoundError:
        return False


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
