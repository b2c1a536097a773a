"""Shards in a store of another machine, through fsspec: http, S3, Google Cloud Storage, Azure, ..."""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem
from fsspec.utils import merge_offset_ranges

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.extras import needed
from efficientnetv2.data.shards.stores import Range, Stat

# All ours. Pictures that lie this close are fetched together, for a request takes as long as so many bytes do (20 ms
# at 10 MB/s); but not more at once than memory holds easily.
_GAP_BYTES = 200_000
_MOST_BYTES = 16_000_000
# Tries of a request, and the pause before the second; each further one is twice as long: 7.5 s in all.
_TRIES = 5
_PAUSE_S = 0.5
# A server that says nothing for so long is asked again.
_CONNECT_S, _SILENCE_S = 15, 30
_ASKED_AT_ONCE = 16

# Packages that fsspec needs for a kind of store, and the extra that brings them.
_EXTRAS = {
    "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"), "abfs": ("adlfs", "azure"),
}  # fmt: skip
# Answers that will be the same next time: not there, not allowed. (Too busy and too slow will not.)
_FINAL = range(400, 500)
_BUSY = (408, 425, 429)


class RemoteStore:
    """Files under a URL.

    Args:
        base: the URL, without a slash at its end.

    Raises:
        InputError: what reads such URLs is not installed, or nobody knows their kind.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        protocol = base.partition("://")[0].lower()
        self._options: dict[str, Any] = {}
        if protocol in _EXTRAS:
            package, extra = _EXTRAS[protocol]
            needed(package, extra, f"reading {protocol}://")
        elif protocol in ("http", "https"):
            import aiohttp  # comes with fsspec[http]

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
            self._options = {"client_kwargs": {"timeout": timeout}}
        try:
            self._files()
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{base}: {error}. Known are https://, s3://, gs://, az:// and what else fsspec reads."
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
        shards, starts, stops = (
            (list(column) for column in zip(*ranges, strict=True)) if ranges else ([], [], [])
        )
        merged = merge_offset_ranges(shards, starts, stops, max_gap=_GAP_BYTES, max_block=_MOST_BYTES)
        blocks = [Range(*block) for block in zip(*merged, strict=True)]
        contents = self._fetched(blocks)
        return [_cut(one, blocks, contents) for one in ranges]

    def _fetched(self, blocks: list[Range]) -> list[bytes | str]:
        """The blocks, those that failed asked for again."""
        contents: dict[Range, bytes | str] = {}
        pending = list(dict.fromkeys(blocks))
        problem: Exception | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))
            answers = self._files().cat_ranges(
                [f"{self._base}/{block.shard}" for block in pending],
                [block.start for block in pending],
                [block.stop for block in pending],
                on_error="return",
            )
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
        raise InputError(
            f"{self._base}/{pending[0]}: can't be read, after {_TRIES} tries ({_words(problem)}). Is the network "
            "there, and the store? Then go on with --resume."
        )

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
        """Size and state of each file, None where there is none."""

        def stat(name: str) -> Stat | None:
            try:
                known = self._files().info(f"{self._base}/{name}")
            except FileNotFoundError:
                return None
            words = (known.get(field) for field in ("ETag", "etag", "Last-Modified", "LastModified", "mtime"))
            return Stat(int(known["size"] or 0), str(next((word for word in words if word), "")))

        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            return list(pool.map(stat, names))

    def matching(self, pattern: str) -> list[str]:
        """Names with stars in them spelled out, sorted; none where the store can't list its files."""
        try:
            found = cast(list[str], self._files().glob(f"{self._base}/{pattern}"))
        except (OSError, NotImplementedError):
            return []
        return sorted(path.rpartition("/")[2] for path in found)

    def open(self, name: str) -> IO[bytes]:
        """A file to read from its beginning, or to seek in."""
        return cast(IO[bytes], self._files().open(f"{self._base}/{name}", "rb"))

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


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)
    return isinstance(error, FileNotFoundError | PermissionError) or (
        status in _FINAL and status not in _BUSY
    )


def _words(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
