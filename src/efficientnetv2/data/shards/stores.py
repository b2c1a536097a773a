"""Where shards lie: a folder of this machine, or a store that fsspec knows (http, S3, Google, Azure).

Both give ranges of bytes; what a picture is, is not their affair.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from efficientnetv2.data.shards.names import is_url

# Shards held open per process: far fewer than a system allows (1,024 as a rule). Ours.
_OPEN = 128


class Range(NamedTuple):
    """Bytes ``start`` to ``stop`` (excluded) of a shard."""

    shard: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.shard}, bytes {self.start} to {self.stop}"


class Stat(NamedTuple):
    """A file at a glance: its size, and a word that differs once it was written anew."""

    bytes: int
    stamp: str


class Store(Protocol):
    """Files of one folder, read in ranges. It travels to worker processes as a pickle."""

    @property
    def base(self) -> str:
        """The folder or URL, without a slash at its end."""
        ...

    def read(self, ranges: Sequence[Range]) -> list[bytes | str]:
        """The content of each range, or in words why it can't be had.

        Raises:
            InputError: the store can't be reached, so that nothing is known about the content.
        """
        ...

    def stats(self, names: Sequence[str]) -> list[Stat | None]:
        """Size and state of each file, None where there is none.

        Raises:
            InputError: the store can't be reached, so that nothing is known.
        """
        ...

    def matching(self, pattern: str) -> list[str]:
        """Names with stars in them spelled out, sorted; none where the store can't list its files.

        Raises:
            InputError: the store can't be reached, so that nothing is known.
        """
        ...

    def open(self, name: str) -> IO[bytes]:
        """A file to read from its beginning, or to seek in.

        Raises:
            OSError: there is no such file, or it may not be read.
            InputError: while reading: the store can't be reached.
        """
        ...


def store_at(base: str) -> Store:
    """The store of a folder or URL.

    Raises:
        InputError: of a URL: what reads it is not installed, or no one knows its kind.
    """
    if is_url(base):
        from efficientnetv2.data.shards.remote import RemoteStore  # fsspec is not needed for folders

        return RemoteStore(base)
    return LocalStore(base)


class LocalStore:
    """A folder of this machine.

    Args:
        base: absolute.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        self._opened = lru_cache(maxsize=_OPEN)(_Opened)

    def __reduce__(self) -> tuple[type[LocalStore], tuple[str]]:
        return LocalStore, (self._base,)

    @property
    def base(self) -> str:
        """The folder."""
        return self._base

    def read(self, ranges: Sequence[Range]) -> list[bytes | str]:
        """The content of each range, or in words why it can't be had."""
        return [self._read(*one) for one in ranges]

    def _read(self, shard: str, start: int, stop: int) -> bytes | str:
        try:
            content = self._content(os.path.join(self._base, shard), start, stop - start)
        except FileNotFoundError:
            return f"the shard {shard} is missing"
        except OSError as error:
            return f"{Range(shard, start, stop)} can't be read ({(error.strerror or str(error)).lower()})"
        if len(content) < stop - start:
            return f"{shard} is cut short: it ends before byte {stop}"
        return content

    def _content(self, path: str, start: int, count: int) -> bytes:
        """Bytes of a shard; where its handle is of no use any more, by a new one, once.

        Raises:
            OSError: there is no such file, or it can't be read by a new handle either.
        """
        try:
            return self._opened(path).read(start, count)
        except FileNotFoundError:
            raise
        except OSError:
            # A share that was away leaves every handle on it stale, so all go; those in use close after their reading.
            self._opened.cache_clear()
        return self._opened(path).read(start, count)

    def stats(self, names: Sequence[str]) -> list[Stat | None]:
        """Size and state of each file, None where there is none."""

        def stat(name: str) -> Stat | None:
            path = os.path.join(self._base, name)
            if not os.path.isfile(path):
                return None
            found = os.stat(path)
            return Stat(found.st_size, str(found.st_mtime_ns))

        return [stat(name) for name in names]

    def matching(self, pattern: str) -> list[str]:
        """Names with stars in them spelled out, sorted."""
        there = os.listdir(self._base) if os.path.isdir(self._base) else []
        return sorted(name for name in there if fnmatchcase(name, pattern) and not name.startswith("."))

    def open(self, name: str) -> IO[bytes]:
        """A file to read from its beginning, or to seek in."""
        return Path(self._base, name).open("rb")


class _Opened:
    """A file held open, closed once nobody uses it; several threads may read at once."""

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self, start: int, count: int) -> bytes:
        """Up to ``count`` bytes; fewer only where the file ends."""
        if not hasattr(os, "pread"):  # Windows
            with self._lock:
                os.lseek(self._handle, start, os.SEEK_SET)
                return _whole(lambda done: os.read(self._handle, count - done), count)
        return _whole(lambda done: os.pread(self._handle, count - done, start + done), count)


def _whole(part: Callable[[int], bytes], count: int) -> bytes:
    """Reads until there is enough: a system may give less at a time, and gives at most 2 GiB."""
    content = part(0)
    while len(content) < count:
        more = part(len(content))
        if not more:
            break
        content += more
    return content
