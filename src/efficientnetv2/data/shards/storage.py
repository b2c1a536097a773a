"""Shards in a store of another machine, through fsspec: http, S3, Google Cloud Storage, Azure, ..."""

from __future__ import annotations

import bisect
import errno
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeVar, cast

from fsspec.core import url_to_fs
from fsspec.registry import available_protocols
from fsspec.spec import AbstractFileSystem
from fsspec.utils import merge_offset_ranges

from efficientnetv2.data.shards.index import is_url
from efficientnetv2.utils.cpu import within
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.optional_deps import needed

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


# All ours. Pictures that lie this close are fetched together, for a request takes as long as so many bytes do (20 ms
# at 10 MB/s); but not more at once than memory holds easily.
_GAP_BYTES = 200_000
_MOST_BYTES = 16_000_000
# Tries of a request, and the pause before the second; each further one is twice as long: 7.5 s in all.
_TRIES = 5
_PAUSE_S = 0.5
# A server that says nothing for so long is asked again, until it has not answered for so long in all.
_SILENCE_S, _LIMIT_S = 15.0, 30.0
# Bytes a second that a request has to bring on average, beyond the time that a first answer may take.
_LEAST_BYTES_PER_S = 20_000
_ASKED_AT_ONCE = 16
# What is read at a time of a file that is read from its beginning. Ours.
_READ_AHEAD_BYTES = 4_000_000

# Packages that fsspec needs for a kind of store, and the extra that brings them.
_EXTRAS = {
    "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"), "abfs": ("adlfs", "azure"),
}  # fmt: skip
_KINDS = (
    "Known are https://, s3:// (extra s3), gs:// (extra gcs), az:// (extra azure) and what else fsspec reads."
)
# Answers that will be the same next time: not there, not allowed. (Too busy and too slow will not.)
_FINAL = range(400, 500)
_BUSY = (408, 425, 429)

Answer = TypeVar("Answer")


class RemoteStore:
    """Files under a URL.

    Args:
        base: the URL, without a slash at its end.

    Raises:
        InputError: what reads such URLs is not installed or can't begin, or nobody knows their kind.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        protocol = base.partition("://")[0].lower()
        self._options: dict[str, Any] = {}
        if protocol == "ftp":  # fsspec would connect, log in and list the folder again for each picture
            raise InputError(
                f"{base}: a run draws pictures from all over its shards, thousands of small parts a minute, which FTP "
                f"was not made for. Copy the shards to this machine, or serve them by another way. {_KINDS}"
            )
        if protocol in _EXTRAS:
            package, extra = _EXTRAS[protocol]
            needed(package, extra, f"reading {protocol}://")
        elif protocol in ("http", "https"):
            import aiohttp  # comes with fsspec[http]

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
            self._options = {"client_kwargs": {"timeout": timeout}}
        if protocol not in available_protocols():
            near = did_you_mean(protocol, ("http", "https", *_EXTRAS))
            raise InputError(
                f"{base}: {protocol}:// is no kind of store that can be read{near} {_KINDS} Give one of these, or copy "
                "the shards to this machine."
            )
        try:
            self._files()
        except ImportError as error:
            raise InputError(
                f"{base}: reading {protocol}:// needs a package that is not installed, and that no extra of "
                f"efficientnetv2 brings: {error}. {_KINDS}"
            ) from error
        except Exception as error:  # of every driver its own kind
            raise InputError(
                f"{base}: can't be opened ({_words(error)}). Is the address right, and what the store wants to know "
                "of whoever asks?"
            ) from error

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str]]:
        return RemoteStore, (self._base,)

    @property
    def base(self) -> str:
        """The URL."""
        return self._base

    def read(self, ranges: Sequence[Range]) -> list[bytes | str]:
        """The content of each range, or in words why it can't be had.

        Ranges that lie close together are fetched as one, different ones at the same time.

        Raises:
            InputError: the store does not answer, or not to requests for a part of a file.
        """
        # Each once: one drawn twice is asked for twice, and some releases of fsspec drop both of two equal ranges.
        once = sorted(set(ranges))
        shards, starts, stops = (list(column) for column in zip(*once, strict=True)) if once else ([], [], [])
        merged = merge_offset_ranges(shards, starts, stops, max_gap=_GAP_BYTES, max_block=_MOST_BYTES)
        blocks = [Range(*block) for block in zip(*merged, strict=True)]
        contents = self._fetched(blocks)
        return [_cut(one, blocks, contents) for one in ranges]

    def _fetched(self, blocks: list[Range]) -> list[bytes | str]:
        """The blocks, those that failed asked for again."""
        contents: dict[Range, bytes | str] = {}
        pending = list(dict.fromkeys(blocks))
        problem: Exception | None = None
        began = time.monotonic()
        for _ in _attempts():
            wanted = sum(block.stop - block.start for block in pending)
            ask = partial(
                self._files().cat_ranges,
                [f"{self._base}/{block.shard}" for block in pending],
                [block.start for block in pending],
                [block.stop for block in pending],
                on_error="return",
            )
            try:
                answers = within(_LIMIT_S + wanted / _LEAST_BYTES_PER_S, ask)
            except TimeoutError as error:
                raise InputError(_unanswered(f"{self._base}/{pending[0]}", error, began)) from error
            failed = []
            for block, answer in zip(pending, answers, strict=True):
                if isinstance(answer, Exception) and not _is_final(answer):
                    problem = answer
                    failed.append(block)
                else:
                    contents[block] = self._judged(block, answer)
            pending = failed
            if not pending:
                return [contents[block] for block in blocks]
        raise InputError(_unanswered(f"{self._base}/{pending[0]}", problem, began))

    def _judged(self, block: Range, answer: bytes | Exception) -> bytes | str:
        if isinstance(answer, FileNotFoundError):
            return f"the shard {block.shard} is missing"
        if isinstance(answer, Exception):
            if getattr(answer, "status", None) == 416:  # "range not satisfiable"
                return f"{block.shard} is cut short: it ends before byte {block.start}"
            return f"{block} can't be read ({_words(answer)})"
        if len(answer) > block.stop - block.start:
            raise InputError(
                f"{self._base}/{block.shard}: asked for a part, the server sends the whole file, so pictures can't be "
                "read out of shards there (python -m http.server is such a one). Serve them with one that knows "
                "ranges, as nginx, Apache and object stores do; or copy them here."
            )
        return answer

    def stats(self, names: Sequence[str]) -> list[Stat | None]:
        """Size and state of each file, None where there is none.

        Raises:
            InputError: the store does not answer.
        """
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            return list(pool.map(self._stat, names))

    def _stat(self, name: str) -> Stat | None:
        known = self._answer(
            f"{self._base}/{name}", lambda files, path: cast(dict[str, Any], files.info(path))
        )
        if known is None:
            return None
        words = (known.get(field) for field in ("ETag", "etag", "Last-Modified", "LastModified", "mtime"))
        return Stat(int(known["size"] or 0), str(next((word for word in words if word), "")))

    def matching(self, pattern: str) -> list[str]:
        """Names with stars in them spelled out, sorted; none where the store can't list its files.

        Raises:
            InputError: the store does not answer.
        """
        # Not fsspec's glob, which takes a store that does not answer for an empty one.
        listed = self._answer(
            f"{self._base}/", lambda files, path: cast(list[str], files.ls(path, detail=False))
        )
        names = (path.rstrip("/").rpartition("/")[2] for path in listed or [])
        return sorted(name for name in names if fnmatchcase(name, pattern) and not name.startswith("."))

    def _answer(self, path: str, ask: Callable[[AbstractFileSystem, str], Answer]) -> Answer | None:
        """What the store says of a path; None where it says that it is not there, not allowed or not to be had.

        Raises:
            InputError: the store does not answer.
        """
        problem: BaseException | None = None
        began = time.monotonic()
        for _ in _attempts():
            files = self._files()  # of this thread: fsspec keeps one for each
            try:
                return within(_LIMIT_S, partial(ask, files, path))
            except NotImplementedError:  # a driver that cannot be asked this, and never will
                return None
            except Exception as error:  # of every driver its own kind
                # fsspec's http says "not found" of every failed look at a file, and gives the true one as its cause.
                problem = error.__cause__ or error
                if _is_final(problem):
                    return None
        raise InputError(_unanswered(path, problem, began))

    def open(self, name: str) -> IO[bytes]:
        """A file to read from its beginning, or to seek in; read ahead some megabytes at a time."""
        (stat,) = self.stats([name])
        if stat is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self._base}/{name}")
        self.read(
            [Range(name, 0, min(4, stat.bytes))]
        )  # where parts can't be had, it shows before anything is begun
        return cast(IO[bytes], io.BufferedReader(_Ranged(self, name, stat.bytes), _READ_AHEAD_BYTES))

    def _files(self) -> AbstractFileSystem:
        # fsspec keeps one for each process: connections do not survive a fork.
        return url_to_fs(self._base, **self._options)[0]


def _cut(one: Range, blocks: list[Range], contents: list[bytes | str]) -> bytes | str:
    """A range out of the block that covers it; blocks are sorted."""
    place = (
        bisect.bisect_right(blocks, (one.shard, one.start), key=lambda block: (block.shard, block.start)) - 1
    )
    block, content = blocks[place], contents[place]
    if isinstance(content, str):
        return content
    part = content[one.start - block.start : one.stop - block.start]
    if len(part) < one.stop - one.start:
        return f"{one.shard} is cut short: it ends before byte {one.stop}"
    return part


class _Ranged(io.RawIOBase):
    """A file of a store, as one reads files; each read is a request."""

    def __init__(self, store: RemoteStore, name: str, size: int) -> None:
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._upto(min(self._at + len(buffer), self._size))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        return self._upto(self._size)

    def _upto(self, stop: int) -> bytes:
        starts = range(self._at, stop, _MOST_BYTES)
        parts = self._store.read([Range(self._name, at, min(at + _MOST_BYTES, stop)) for at in starts])
        for part in parts:
            if isinstance(part, str):
                raise OSError(errno.EIO, part, f"{self._store.base}/{self._name}")
        self._at = max(self._at, stop)
        return b"".join(cast(list[bytes], parts))


def _attempts() -> Iterator[int]:
    """Numbers of tries, with growing pauses between them, as long as there is time for another."""
    until = time.monotonic() + _LIMIT_S
    for attempt in range(_TRIES):
        if attempt and time.monotonic() >= until:
            return
        if attempt:
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        yield attempt


def _unanswered(what: str, problem: BaseException | None, began: float) -> str:
    silent = time.monotonic() - began >= _LIMIT_S
    tried = f"{_LIMIT_S:g} s without an answer" if silent else f"{_TRIES} tries"
    return (
        f"{what}: can't be read, after {tried} ({_words(problem)}). Is the network there, and the store? "
        "Then go on, with --resume if a run was under way."
    )


def _is_final(error: BaseException) -> bool:
    status = getattr(error, "status", None)
    return isinstance(error, FileNotFoundError | PermissionError) or (
        status in _FINAL and status not in _BUSY
    )


def _words(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
