"""Download a file over HTTP: resumed after a break, stopped when it stalls, checked by its SHA-256."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import get_session
from huggingface_hub.utils.tqdm import tqdm

from efficientnetv2.utils.errors import InputError

TRIES = 3  # in a row without progress. Ours
PAUSE_S = 1.0  # between them. Ours
# A transfer with fewer bytes in these seconds has stalled. Ours.
STALL_S, LEAST_BYTES = 30.0, 30_000
# Limit for a server that does not state the size: more than any published weights. Ours.
MOST_BYTES = 2**34


def partial_of(to: Path) -> Path:
    """Where an incomplete download is kept."""
    return to.with_name(f"{to.name}.incomplete")


def download(
    url: str,
    to: Path,
    *,
    sha256: str,
    size: int | None,
    headers: Mapping[str, str],
    patience_s: float,
) -> None:
    """Download a file, checked by its SHA-256; an interrupted download resumes from ``partial_of``.

    Callers hold a lock, so that no two processes write at a time.

    Args:
        to: Its directory exists. A file there is replaced.
        sha256: In hexadecimal digits, or the first of them.
        size: In bytes; None if unknown.
        patience_s: Seconds that one try waits for an answer, and for the next bytes.

    Raises:
        InputError: The content has another SHA-256. Nothing of it is kept.
        httpx2.HTTPError: The server refused, or the connection broke and did not recover.
        OSError: The file cannot be written.
    """
    partial = partial_of(to)
    resumed = partial.exists() and partial.stat().st_size > 0
    _fill(partial, url, size, headers, patience_s)
    found = sha256_of(partial)
    if resumed and not found.startswith(sha256):  # the old part may be wrong: once more from the start
        partial.unlink()
        _fill(partial, url, size, headers, patience_s)
        found = sha256_of(partial)
    if not found.startswith(sha256):
        partial.unlink()
        raise InputError(
            f"{url} sent another file than it announced: its SHA-256 is {found[:16]}..., not {sha256[:16]}... "
            "Nothing of it was kept. Try again; if it stays so, a proxy or a mirror in between changes files."
        )
    os.replace(partial, to)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(partial: Path, url: str, size: int | None, headers: Mapping[str, str], patience_s: float) -> None:
    """Append what is missing; raise after ``TRIES`` tries or ``STALL_S`` without progress."""
    failures, progressed = 0, time.monotonic()
    most = MOST_BYTES if size is None else size
    with open(partial, "ab") as file:
        bar = tqdm(  # type: ignore[no-untyped-call]
            desc=url.rpartition("/")[2],
            total=size,
            initial=file.tell(),
            unit="B",
            unit_scale=True,
            disable=None,  # shown on a terminal alone
        )
        with bar:
            while size is None or file.tell() != size:
                start = file.tell()
                try:
                    _append(file, url, headers, patience_s, bar.update, most=most)
                    return
                except httpx2.HTTPError as error:
                    status = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else None
                    if file.tell() - start >= LEAST_BYTES:
                        failures, progressed = 0, time.monotonic()
                    else:
                        failures += 1
                    final = status is not None and status < 500 and status not in (408, 429)
                    if final or failures == TRIES or time.monotonic() - progressed >= STALL_S:
                        raise
                    time.sleep(PAUSE_S)


def _append(
    file: BinaryIO,
    url: str,
    headers: Mapping[str, str],
    patience_s: float,
    progress: Callable[[int], object],
    *,
    most: int,
) -> None:
    """Request the rest of a file and write it as it arrives, up to ``most`` bytes in all."""
    start = file.tell()
    # Uncompressed, so that sizes and positions are those of the file.
    wanted = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream("GET", url, headers=wanted, timeout=patience_s) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # there is no more; the hash is checked later
        response.raise_for_status()
        if start and response.status_code != HTTPStatus.PARTIAL_CONTENT:
            file.seek(0)
            file.truncate()  # the server starts from the beginning
            progress(-start)
        began, bytes_then = time.monotonic(), file.tell()
        for piece in response.iter_bytes():
            room = most - file.tell()
            file.write(piece[:room])
            progress(min(len(piece), room))
            if len(piece) > room:
                return  # more than was announced; the hash is checked later
            if file.tell() - bytes_then >= LEAST_BYTES:
                began, bytes_then = time.monotonic(), file.tell()
            elif time.monotonic() - began >= STALL_S:
                raise httpx2.ReadTimeout(f"fewer than {LEAST_BYTES:,} bytes came in {STALL_S:g} s")
