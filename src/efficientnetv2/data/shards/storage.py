"""Read parts of shards, in a local folder or, with fsspec, in a remote store: http, S3, Google Cloud, Azure."""

from __future__ import annotations

import bisect
import errno
import io
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import IO, Any, NamedTuple, TypeVar, cast

from fsspec.core import url_to_fs
from fsspec.registry import available_protocols
from fsspec.spec import AbstractFileSystem
from fsspec.utils import merge_offset_ranges

from efficientnetv2.data.shards.index import is_url
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.optional_deps import import_optional
from efficientnetv2.utils.processes import call_with_timeout

# Shards that a process keeps open. Systems usually allow 1,024 files. Ours.
_OPEN = 128
# Images this close are fetched together, since a request takes as long as so many bytes (20 ms at 10 MB/s); and the
# maximum size of a request. Ours.
_GAP_BYTES = 200_000
_MAX_BYTES = 16_000_000
# Attempts of a request, and the pause before the second. Each further pause is twice as long: 7.5 s in all. Ours.
_ATTEMPTS = 5
_PAUSE_S = 0.5
# Timeout of one attempt, and of all; minimum average speed of a request, beyond the timeout. Ours.
_SILENCE_S, _LIMIT_S = 15.0, 30.0
_MIN_BYTES_PER_S = 20_000
_PARALLEL_REQUESTS = 16
# Buffer for sequential reading. Ours.
_READ_AHEAD_BYTES = 4_000_000
# Protocol -> package that fsspec needs, and our extra with it.
_EXTRAS = {
    "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"), "abfs": ("adlfs", "azure"),
}  # fmt: skip
_KNOWN = (
    "Known are https://, s3:// (extra s3), gs:// (extra gcs), az:// (extra azure) and what else fsspec reads."
)
# HTTP status codes that repeating will not change, but those of busy or slow servers.
_FINAL = range(400, 500)
_BUSY = (408, 425, 429)

Result = TypeVar("Result")


class Range(NamedTuple):
    """Bytes ``start`` to ``stop`` (excluded) of a shard."""

    shard: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.shard}, bytes {self.start} to {self.stop}"


class Stat(NamedTuple):
    """Size of a file, and a text that changes when it is rewritten."""

    bytes: int
    stamp: str


class Store(ABC):
    """Files of one folder or URL without a final slash, read in ranges. It is pickled for worker processes.

    Methods raise InputError if the store does not answer.
    """

    def __init__(self, base: str) -> None:
        self.base = base

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return type(self), (self.base,)

    @abstractmethod
    def read(self, ranges: Sequence[Range]) -> list[bytes | str]:
        """Content of each range, or why it is unavailable."""

    @abstractmethod
    def stats(self, names: Sequence[str]) -> list[Stat | None]:
        """Size and state of each file, None for missing files."""

    def matching(self, pattern: str) -> list[str]:
        """Sorted names of files that match a pattern with stars. Empty if the store cannot list its files."""
        return sorted(n for n in self._names() if fnmatchcase(n, pattern) and not n.startswith("."))

    @abstractmethod
    def _names(self) -> list[str]: ...

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading and seeking. Raises OSError if it is missing or not readable."""


def store_at(base: str) -> Store:
    """The store of a folder or URL. Raises InputError if the kind of URL is unknown or its driver is missing."""
    return RemoteStore(base) if is_url(base) else LocalStore(base)


class LocalStore(Store):
    """An absolute folder of this machine."""

    def __init__(self, base: str) -> None:
        super().__init__(base)
        self._open_files = lru_cache(maxsize=_OPEN)(_OpenFile)

    def read(self, ranges: Sequence[Range]) -> list[bytes | str]:
        """See ``Store.read``."""
        return [self._read(part) for part in ranges]

    def _read(self, part: Range) -> bytes | str:
        path = os.path.join(self.base, part.shard)
        try:
            try:
                content = self._open_files(path).read(part)
            except FileNotFoundError:
                return f"the shard {part.shard} is missing"
            except OSError:
                # A lost network share leaves all handles stale. Those in use close after reading.
                self._open_files.cache_clear()
                content = self._open_files(path).read(part)
        except OSError as error:
            return f"{part} can't be read ({(error.strerror or str(error)).lower()})"
        return content if len(content) == part.stop - part.start else _cut(part, part.stop)

    def stats(self, names: Sequence[str]) -> list[Stat | None]:
        """See ``Store.stats``."""
        return [self._stat(os.path.join(self.base, name)) for name in names]

    def _stat(self, path: str) -> Stat | None:
        if not os.path.isfile(path):
            return None
        found = os.stat(path)
        return Stat(found.st_size, str(found.st_mtime_ns))

    def _names(self) -> list[str]:
        return os.listdir(self.base) if os.path.isdir(self.base) else []

    def open(self, name: str) -> IO[bytes]:
        """See ``Store.open``."""
        return open(os.path.join(self.base, name), "rb")


class _OpenFile:
    """An open file for several threads, closed when nobody uses it."""

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self, part: Range) -> bytes:
        """The bytes, fewer only at the end of the file. A system returns at most 2 GiB at a time."""
        size = part.stop - part.start
        content = self._read_at(part.start, size)
        while len(content) < size and (more := self._read_at(part.start + len(content), size - len(content))):
            content += more
        return content

    def _read_at(self, start: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._handle, count, start)
        with self._lock:  # Windows
            os.lseek(self._handle, start, os.SEEK_SET)
            return os.read(self._handle, count)


class RemoteStore(Store):
    """Files under a URL. Raises InputError if its driver is unknown, missing or fails."""

    def __init__(self, base: str) -> None:
        super().__init__(base)
        protocol = base.partition("://")[0].lower()
        self._options: dict[str, Any] = {}
        if protocol in _EXTRAS:
            package, extra = _EXTRAS[protocol]
            import_optional(package, extra, f"reading {protocol}://")
        elif protocol in ("http", "https"):
            import aiohttp  # comes with fsspec[http]

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
            self._options = {"client_kwargs": {"timeout": timeout}}
        # With FTP, fsspec would connect, log in and list the folder for each image.
        if protocol == "ftp" or protocol not in available_protocols():
            near = did_you_mean(protocol, ("http", "https", *_EXTRAS))
            raise InputError(
                f"{base}: shards cannot be read by {protocol}://{near} {_KNOWN} Give one of these, or copy the shards "
                "to this machine."
            )
        try:
            self._files()
        except ImportError as error:
            raise InputError(
                f"{base}: reading {protocol}:// needs a package that no extra of efficientnetv2 installs: {error}. "
                f"{_KNOWN}"
            ) from error
        except Exception as error:  # each driver raises its own
            raise InputError(
                f"{base}: can't be opened ({_describe(error)}). Check the address and the credentials of the store."
            ) from error

    def read(self, ranges: Sequence[Range]) -> list[bytes | str]:
        """See ``Store.read``. Close ranges are fetched as one, others in parallel.

        Raises InputError also if the server does not support ranges.
        """
        # Without duplicates: some releases of fsspec drop both of two equal ranges.
        once = sorted(set(ranges))
        shards, starts, stops = (list(column) for column in zip(*once, strict=True)) if once else ([], [], [])
        merged = merge_offset_ranges(shards, starts, stops, max_gap=_GAP_BYTES, max_block=_MAX_BYTES)
        blocks = [Range(*block) for block in zip(*merged, strict=True)]
        contents = self._fetch(blocks)
        return [_slice(part, blocks, contents) for part in ranges]

    def _fetch(self, blocks: list[Range]) -> dict[Range, bytes | str]:
        """Contents of the blocks, with retries."""
        contents: dict[Range, bytes | str] = {}
        pending = list(dict.fromkeys(blocks))
        problem: Exception | None = None
        began = time.monotonic()
        for _ in _attempts():
            paths = [f"{self.base}/{block.shard}" for block in pending]
            starts, stops = [block.start for block in pending], [block.stop for block in pending]
            ask = partial(self._files().cat_ranges, paths, starts, stops, on_error="return")
            try:
                answers = call_with_timeout(_LIMIT_S + (sum(stops) - sum(starts)) / _MIN_BYTES_PER_S, ask)
            except TimeoutError as error:
                problem = error
                break
            failed = []
            for block, answer in zip(pending, answers, strict=True):
                if isinstance(answer, Exception) and not _is_final(answer):
                    problem = answer
                    failed.append(block)
                else:
                    contents[block] = self._check_answer(block, answer)
            pending = failed
            if not pending:
                return contents
        raise _no_answer(f"{self.base}/{pending[0]}", problem, began) from problem

    def _check_answer(self, block: Range, answer: bytes | Exception) -> bytes | str:
        if isinstance(answer, FileNotFoundError):
            return f"the shard {block.shard} is missing"
        if isinstance(answer, Exception):
            if getattr(answer, "status", None) == 416:  # "range not satisfiable"
                return _cut(block, block.start)
            return f"{block} can't be read ({_describe(answer)})"
        if len(answer) > block.stop - block.start:
            raise InputError(
                f"{self.base}/{block.shard}: asked for a part, the server sends the whole file, as python -m "
                "http.server does. Serve the shards with nginx, Apache or an object store; or copy them here."
            )
        return answer

    def stats(self, names: Sequence[str]) -> list[Stat | None]:
        """See ``Store.stats``."""
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            return list(pool.map(self._stat, names))

    def _stat(self, name: str) -> Stat | None:
        known = self._ask(f"{self.base}/{name}", lambda files, path: cast(dict[str, Any], files.info(path)))
        if known is None:
            return None
        words = (known.get(field) for field in ("ETag", "etag", "Last-Modified", "LastModified", "mtime"))
        return Stat(int(known["size"] or 0), str(next((word for word in words if word), "")))

    def _names(self) -> list[str]:
        # Not fsspec's glob, which reports a store that does not answer as empty.
        listed = self._ask(f"{self.base}/", lambda files, path: cast(list[str], files.ls(path, detail=False)))
        return [path.rstrip("/").rpartition("/")[2] for path in listed or []]

    def _ask(self, path: str, ask: Callable[[AbstractFileSystem, str], Result]) -> Result | None:
        """Answer about a path. None if it is missing, forbidden or not supported."""
        problem: BaseException | None = None
        began = time.monotonic()
        for _ in _attempts():
            files = self._files()  # fsspec keeps one per thread
            try:
                return call_with_timeout(_LIMIT_S, partial(ask, files, path))
            except NotImplementedError:  # not supported by the driver
                return None
            except Exception as error:  # each driver raises its own
                # fsspec's http reports every failure as "not found", with the real one as its cause.
                problem = error.__cause__ or error
                if _is_final(problem):
                    return None
        raise _no_answer(path, problem, began)

    def open(self, name: str) -> IO[bytes]:
        """See ``Store.open``. Reads some megabytes ahead."""
        (stat,) = self.stats([name])
        if stat is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.base}/{name}")
        self.read([Range(name, 0, min(4, stat.bytes))])  # fails early if the server does not support ranges
        return cast(IO[bytes], io.BufferedReader(_RemoteFile(self, name, stat.bytes), _READ_AHEAD_BYTES))

    def _files(self) -> AbstractFileSystem:
        # fsspec keeps one per process: connections do not survive a fork.
        return url_to_fs(self.base, **self._options)[0]


def _slice(part: Range, blocks: list[Range], contents: dict[Range, bytes | str]) -> bytes | str:
    """A range of the block that covers it. Blocks are sorted."""
    block = blocks[bisect.bisect_right(blocks, part[:2], key=lambda block: block[:2]) - 1]
    content = contents[block]
    if isinstance(content, str):
        return content
    found = content[part.start - block.start : part.stop - block.start]
    return found if len(found) == part.stop - part.start else _cut(part, part.stop)


class _RemoteFile(io.RawIOBase):
    """A raw file of a store. Each read is a request."""

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
        content = self._read_to(min(self._at + len(buffer), self._size))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        return self._read_to(self._size)

    def _read_to(self, stop: int) -> bytes:
        starts = range(self._at, stop, _MAX_BYTES)
        parts = self._store.read([Range(self._name, at, min(at + _MAX_BYTES, stop)) for at in starts])
        for part in parts:
            if isinstance(part, str):
                raise OSError(errno.EIO, part, f"{self._store.base}/{self._name}")
        self._at = max(self._at, stop)
        return b"".join(cast(list[bytes], parts))


def _attempts() -> Iterator[int]:
    """Numbers of attempts, with growing pauses between them, until the time is over."""
    until = time.monotonic() + _LIMIT_S
    for attempt in range(_ATTEMPTS):
        if attempt and time.monotonic() >= until:
            return
        if attempt:
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        yield attempt


def _cut(part: Range, end: int) -> str:
    return f"{part.shard} is cut short: it ends before byte {end}"


def _no_answer(what: str, problem: BaseException | None, began: float) -> InputError:
    silent = time.monotonic() - began >= _LIMIT_S
    tried = f"{_LIMIT_S:g} s without an answer" if silent else f"{_ATTEMPTS} attempts"
    return InputError(
        f"{what}: can't be read, after {tried} ({_describe(problem)}). Check the network and the store, and try again, "
        "with --resume for a run."
    )


def _is_final(error: BaseException) -> bool:
    status = getattr(error, "status", None)
    return isinstance(error, FileNotFoundError | PermissionError) or (
        status in _FINAL and status not in _BUSY
    )


def _describe(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
