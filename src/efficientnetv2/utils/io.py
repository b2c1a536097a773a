"""Atomic writes, locks, YAML, checks of output paths, and the cache folder."""

from __future__ import annotations

import errno
import hashlib
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
from urllib.parse import quote

import yaml
from filelock import FileLock, Timeout

from efficientnetv2.utils.errors import InputError

# Missing values of pandas, R, Python and databases in a table, in lower case. Ours.
MISSING_WORDS = frozenset(("nan", "na", "n/a", "<na>", "none", "null"))
# Errors of file systems that cannot sync folders (some of FUSE, CIFS and vboxsf). The file is in place by then.
_NOT_SYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES}
VARIABLE = "EFFNETV2_CACHE"
#: Unused cache files are removed after so many days. Ours.
UNUSED_DAYS = 30
# How long a file may be open elsewhere. Windows replaces no file that a virus scanner reads, and no folder with one.
_PATIENCE_S = 5.0 if os.name == "nt" else 0.0
# Files of Finder and Explorer, which come of themselves.
_SYSTEM_FILES = ("._", ".DS_Store", "desktop.ini", "Thumbs.db")


def replace(source: Path, target: Path) -> None:
    """Rename a file or a folder. A file that exists is replaced; it is tried again while one is open elsewhere."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)


def entry_names(folder: Path) -> list[str]:
    """Names in a folder, but for those of Finder and Explorer; none where there is no folder."""
    return [name for name in os.listdir(folder) if not name.startswith(_SYSTEM_FILES)] if folder.is_dir() else []


def write_atomically(path: str | Path, writer: Callable[[Path], object]) -> None:
    """Write a file completely or not at all, even after a power cut. A file that exists is replaced.

    ``writer`` writes and closes the temporary file that it is given, or replaces it. If it raises, nothing changes.
    Raises OSError if the folder is missing, full or read-only.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        # The mode of a new file has the umask, which cannot be read without setting it.
        partial.touch(exist_ok=False)
        mode = stat.S_IMODE(partial.stat().st_mode)
        writer(partial)
        # safetensors writes through a file of its own that nobody else may read.
        partial.chmod(mode)
        with open(partial, "rb+") as written:
            os.fsync(written.fileno())
        replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_object(file: Path, *keys: str, fix: str) -> dict[str, Any]:
    """A JSON object that this program has written, with at least the given keys; ``fix`` is a sentence.

    Raises InputError if the file is missing or damaged, or a key is missing.
    """
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}. {fix}") from error
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 raises a ValueError too
        raise InputError(f"{file} is damaged ({error}). {fix}") from error
    if not isinstance(plain, dict):
        raise InputError(f"{file} is damaged (it is not a JSON object). {fix}")
    if missing := [key for key in keys if key not in plain]:
        raise InputError(f"{file} is damaged (it has no '{missing[0]}'). {fix}")
    return plain


def read_object_or_empty(file: Path) -> dict[str, Any]:
    """A JSON object as it is stored; empty if the file is missing, damaged or holds something else."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write text atomically, in UTF-8 with plain line ends."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8", newline="\n"))


@contextmanager
def output_dir(folder: Path, called: str) -> Iterator[None]:
    """Create an output folder for the block; after an error or Ctrl-C, created folders are removed if they are empty.

    So it is known before long work that its results can be written. ``called`` names the folder in messages. Raises
    InputError.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            check_writable_dir(folder, called)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{called} {folder}: {error.strerror or error}. Give another folder.") from error
        yield
    except BaseException:
        for path in created:
            with suppress(OSError):  # Not empty, or gone.
                path.rmdir()
        raise


def check_writable_file(file: Path, called: str, *, such_as: str) -> None:
    """Refuse an output file that cannot be written, before the work that it is to hold is done.

    ``called`` is the option that names it; ``such_as`` a file name for a user who gave a folder. Raises InputError.
    """
    if file.exists() and not file.is_file():
        kind, example = ("a folder", file / such_as) if file.is_dir() else ("not a regular file", such_as)
        raise InputError(f"{called} {file} is {kind}. Give a file, such as {example}.")
    if not file.absolute().parent.is_dir():
        raise InputError(f"{called} {file}: there is no folder {file.parent}. Create it.")
    check_writable_dir(file.parent, called)


def check_writable_dir(folder: Path, called: str) -> None:
    """Refuse an output folder that cannot be created or written. Raises InputError."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{called} {folder}: {existing} is a file. Give a folder.")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{called} {folder}: nothing may be written into {existing}. Give another folder.")


def hint_for_os_error(error: BaseException) -> str:
    """The fix for a file that could not be written, without a full stop. Other errors than OSError mean a full disk."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Make it writable (its permissions, or how its disk is mounted)"
    is_full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"Make room on the disk{'' if is_full else ', or bring it back'}"


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Within, a file of a run is written. Raises InputError if it can't be, as on a full disk."""
    try:
        yield
    except OSError as error:
        hint = hint_for_os_error(error)
        raise InputError(
            f"{file} can't be written ({error.strerror or error}). {hint}, then continue with `resume`."
        ) from error


def remove_partial(folder: Path) -> None:
    """Remove what a killed ``write_atomically`` or measurement left in a folder."""
    for partial in folder.glob(".*.partial"):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not on Windows, which cannot open folders."""
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


def cache_folder(kind: str) -> Path:
    """The cache folder for one kind of file, such as ``shards``; it may be missing, and may be deleted at any time.

    It is in ``EFFNETV2_CACHE``, or in ``efficientnetv2`` under ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser() / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "efficientnetv2" / kind


def is_unused(file: Path) -> bool:
    """Whether a file was not used, which sets its time, for ``UNUSED_DAYS``; False if it is gone."""
    try:
        return time.time() - file.stat().st_mtime > UNUSED_DAYS * 86400
    except FileNotFoundError:
        return False


@contextmanager
def locked(file: Path, what: str, *, taken: str, fix: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file during the block, then remove it.

    The lock ends with its process, also if that is killed, except on a file system without locks.

    Raises InputError if another process holds it (message ``what``: ``taken``), or it cannot be written (``fix`` it).
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
        # While it is held: a process that opened it before then finds what was written.
        with suppress(OSError):
            file.unlink(missing_ok=True)
        lock.release()


class _YamlLoader(yaml.SafeLoader):
    """An integer with more digits than Python converts stays text, for the field's validation to refuse."""

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        try:
            return int(self.construct_yaml_int(node))
        except ValueError:
            return str(node.value)


_YamlLoader.add_constructor("tag:yaml.org,2002:int", _YamlLoader.construct_whole)
_YamlLoader.add_constructor(
    "tag:yaml.org,2002:timestamp", lambda _, node: str(node.value)
)  # text, as no field is a date


def parse_yaml(text: str, called: str) -> Any:
    """Plain values of YAML or JSON; ``called`` names its source in messages. Raises InputError."""
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except RecursionError as error:
        raise InputError(f"{called} is nested too deeply.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{called} is not YAML: {error}") from error


def read_yaml(file: Path, option: str = "") -> Any:
    """Plain values of a YAML or JSON file; ``option`` names it in messages. Raises InputError."""
    called = f"{option} {file}".strip()
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{called}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{called} is not YAML: {error}") from error
    if file.suffix.lower() == ".json" and "\t" in text:  # which YAML does not allow
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return parse_yaml(text, called)


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """A path, "~" resolved, that stays the same when the working directory changes. Links are kept."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def shown_path(path: Path) -> str:
    """A path for people: from the working directory on, if it is inside."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        return str(path)
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def link_to(file: Path, folder: Path) -> str:
    """A link to a file in a page that lies in a folder."""
    try:
        return quote(os.fsencode(os.path.relpath(file, folder).replace(os.sep, "/")))
    except ValueError:  # on another drive of Windows
        return file.absolute().as_uri()
