"""Read parts of shards, in a local folder or, with fsspec, in a remote store: http, S3, Google Cloud, Azure."""

from __future__ import annotations

import bisect
import errno
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import IO, Any, NamedTuple, TypeVar, cast

from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.registry import available_protocols
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import merge_offset_ranges

from efficientnetv2.data.shards.index import is_url
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.optional_deps import import_optional
from efficientnetv2.utils.processes import call_with_timeout

# Shards that a process keeps open. Systems usually allow 1,024 files. Ours.
_OPEN = 128
# Images this close are fetched together, since a request takes as long as so many bytes (20 ms at 10 MB/s); and the
# maximum size of a request. Ours.
_GAP_BYTES, _MAX_BYTES = 200_000, 16_000_000
# Attempts of a request, and the pause before the second. Each further pause is twice as long: 7.5 s in all. Ours.
_ATTEMPTS, _PAUSE_S = 5, 0.5
# Timeout of one attempt, and of all; minimum average speed of a request, beyond the timeout. Ours.
_SILENCE_S, _LIMIT_S = 15.0, 30.0
_MIN_BYTES_PER_S = 20_000
_PARALLEL_REQUESTS = 16
_READ_AHEAD_BYTES = 4_000_000  # buffer for sequential reading. Ours.
# Protocol -> package that fsspec needs, and our extra with it.
_EXTRAS = {
    "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"), "abfs": ("adlfs", "azure"),
}  # fmt: skip
_KNOWN = "Use https://, s3://, gs:// or az://, or copy the shards to this machine."
# HTTP status codes that repeating will not change, but those of busy or slow servers.
_FINAL, _BUSY, _REFUSED = range(400, 500), (408, 425, 429), (401, 403)

Result = TypeVar("Result")


class Range(NamedTuple):
    """Bytes ``start`` to ``stop`` (excluded) of a shard."""

    shard: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.shard}, bytes {self.start} to {self.stop}"

    def cut(self, end: int) -> str:
        """Why the range is unavailable if the shard ends before a byte."""
        return f"{self.shard} is cut short: it ends before byte {end}"


class Stat(NamedTuple):
    """Size of a file, and a text that changes when it is rewritten."""

    bytes: int
    stamp: str


class Store(ABC):
    """Files of one folder or URL, read in ranges, pickled for workers. Raises InputError without a response."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.refused = ""  # the last response that access is not allowed; some stores give it for missing files

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return type(self), (self.base,)

    @abstractmethod
    def read(self, ranges: Sequence[Range]) -> list[bytes | str]:
        """Content of each range, or why it is unavailable."""

    @abstractmethod
    def stats(self, names: Sequence[str]) -> list[Stat | None]:
        """Size and state of each file, None for missing files."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading and seeking. Raises OSError if it is missing or not readable."""

    def matching(self, pattern: str) -> list[str]:
        """Sorted names of files that match a pattern with stars. Empty if the store cannot list its files."""
        return sorted(n for n in self._names() if fnmatchcase(n, pattern) and not n.startswith("."))

    @abstractmethod
    def _names(self) -> list[str]: ...


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
        return content if len(content) == part.stop - part.start else part.cut(part.stop)

    def stats(self, names: Sequence[str]) -> list[Stat | None]:
        """See ``Store.stats``."""
        paths = [os.path.join(self.base, name) for name in names]
        found = [os.stat(path) if os.path.isfile(path) else None for path in paths]
        return [status and Stat(status.st_size, str(status.st_mtime_ns)) for status in found]

    def open(self, name: str) -> IO[bytes]:
        """See ``Store.open``."""
        return open(os.path.join(self.base, name), "rb")

    def _names(self) -> list[str]:
        return os.listdir(self.base) if os.path.isdir(self.base) else []


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
            # An argument would replace the whole entry of fsspec's configuration.
            configured = {**conf.get("http", {}), **conf.get(protocol, {})}
            self._options = {"client_kwargs": {"timeout": timeout} | configured.get("client_kwargs", {})}
        # With FTP, fsspec would connect, log in and list the folder for each image.
        if protocol == "ftp" or protocol not in available_protocols():
            near = did_you_mean(protocol, ("http", "https", *_EXTRAS))
            raise InputError(f"{base}: shards cannot be read by {protocol}://{near} {_KNOWN}")
        try:
            self._files()
        except ImportError as error:
            fault = f"{protocol}:// needs a package that no extra of efficientnetv2 installs: {error}"
            raise InputError(f"{base}: {fault}. {_KNOWN}") from error
        except Exception as error:  # each driver raises its own
            fix = "Check the address and the credentials of the store."
            raise InputError(f"{base}: can't be opened ({_describe(error)}). {fix}") from error

    def _files(self) -> AbstractFileSystem:
        # fsspec keeps one per process and thread: connections do not survive a fork.
        return url_to_fs(self.base, **self._options)[0]

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
        found: list[bytes | str] = []
        for part in ranges:  # of the sorted block that covers it
            block = blocks[bisect.bisect_right(blocks, part[:2], key=lambda block: block[:2]) - 1]
            content = contents[block]
            if not isinstance(content, str):
                content = content[part.start - block.start : part.stop - block.start]
                content = content if len(content) == part.stop - part.start else part.cut(part.stop)
            found.append(content)
        return found

    def _fetch(self, blocks: list[Range]) -> dict[Range, bytes | str]:
        """Contents of the blocks. Those that fail for a reason that may pass are asked for again."""
        responses: dict[Range, bytes | Exception] = {}

        def ask(files: AbstractFileSystem, _: str) -> bool:
            pending = [block for block in blocks if block not in responses]
            paths = [f"{self.base}/{block.shard}" for block in pending]
            starts, stops = [block.start for block in pending], [block.stop for block in pending]
            found = files.cat_ranges(paths, starts, stops, on_error="return")
            failure: Exception | None = None
            for block, response in zip(pending, found, strict=True):
                if not isinstance(response, Exception) or _is_final(response):
                    responses[block] = response
                else:
                    failure = response
            if failure is not None:
                raise failure from None
            return True

        if blocks:
            size = sum(block.stop - block.start for block in blocks)
            self._ask(f"{self.base}/{blocks[0]}", ask, _LIMIT_S + size / _MIN_BYTES_PER_S)
        return {block: self._check_response(block, response) for block, response in responses.items()}

    def _check_response(self, block: Range, response: bytes | Exception) -> bytes | str:
        if isinstance(response, FileNotFoundError):
            return f"the shard {block.shard} is missing"
        if isinstance(response, Exception):
            if getattr(response, "status", None) == 416:  # "range not satisfiable"
                return block.cut(block.start)
            if isinstance(response, PermissionError) or getattr(response, "status", None) in _REFUSED:
                # The shard was readable when it was listed.
                fix = "Renew the credentials, or restore the shard, then try again or resume."
                raise InputError(f"{self.base}/{block.shard}: access is refused ({_describe(response)}). {fix}")
            return f"{block} can't be read ({_describe(response)})"
        if len(response) > block.stop - block.start:
            fault = "the server ignores byte ranges and sends whole files. Use nginx, Apache or an object store."
            raise InputError(f"{self.base}/{block.shard}: {fault}")
        return response

    def _ask(
        self, path: str, ask: Callable[[AbstractFileSystem, str], Result], seconds: float | None = None
    ) -> Result | None:
        """Response about a path, after retries. None if it is missing, forbidden or not supported."""
        problem: BaseException | None = None
        began = time.monotonic()
        for attempt in range(_ATTEMPTS):
            if attempt:
                if time.monotonic() >= began + _LIMIT_S:
                    break
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))
            try:
                return call_with_timeout(seconds or _LIMIT_S, partial(ask, self._files(), path))
            except NotImplementedError:  # not supported by the driver
                return None
            except Exception as error:  # each driver raises its own
                # fsspec's http reports every failure as "not found", with the real one as its cause.
                problem = error.__cause__ or error
                if _is_final(problem):
                    if isinstance(problem, PermissionError) or getattr(problem, "status", None) in _REFUSED:
                        self.refused = _describe(problem)
                    return None
        silent = time.monotonic() - began >= _LIMIT_S
        tried = f"{_LIMIT_S:g} s without a response" if silent else f"{_ATTEMPTS} attempts"
        fix = "Check the network and the store, then try again or resume."
        raise InputError(f"{path}: can't be read, after {tried} ({_describe(problem)}). {fix}") from problem

    def stats(self, names: Sequence[str]) -> list[Stat | None]:
        """See ``Store.stats``."""
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            return list(pool.map(self._stat, names))

    def _stat(self, name: str) -> Stat | None:
        known = self._ask(f"{self.base}/{name}", lambda files, path: cast(dict[str, Any], files.info(path)))
        if known is None:
            return None
        stamps = (known.get(field) for field in ("ETag", "etag", "Last-Modified", "LastModified", "mtime"))
        return Stat(int(known["size"] or 0), str(next(filter(None, stamps), "")))

    def _names(self) -> list[str]:
        # Not fsspec's glob, which reports a store that does not respond as empty.
        listed = self._ask(f"{self.base}/", lambda files, path: cast(list[str], files.ls(path, detail=False)))
        return [path.rstrip("/").rpartition("/")[2] for path in listed or []]

    def open(self, name: str) -> IO[bytes]:
        """See ``Store.open``. Reads some megabytes ahead."""
        (stat,) = self.stats([name])
        if stat is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.base}/{name}")
        self.read([Range(name, 0, min(4, stat.bytes))])  # fails early if the server does not support ranges
        return cast(IO[bytes], _RemoteFile(self, name, stat.bytes))


class _RemoteFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file of a store, read some megabytes ahead."""

    def __init__(self, store: RemoteStore, name: str, size: int) -> None:
        super().__init__(None, f"{store.base}/{name}", block_size=_READ_AHEAD_BYTES, size=size)
        self._store, self._name = store, name

    def _fetch_range(self, start: int, end: int) -> bytes:
        starts = range(start, end, _MAX_BYTES)
        parts = self._store.read([Range(self._name, at, min(at + _MAX_BYTES, end)) for at in starts])
        if reasons := [part for part in parts if isinstance(part, str)]:
            raise OSError(errno.EIO, reasons[0], self.path)
        return b"".join(cast(list[bytes], parts))


def _is_final(error: BaseException) -> bool:
    status = getattr(error, "status", None)
    final = isinstance(error, FileNotFoundError | PermissionError)
    return final or (status in _FINAL and status not in _BUSY)


def _describe(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
