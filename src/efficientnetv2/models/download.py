"""A file over the network: gone on with where an earlier try broke off, and kept only if it is the right one."""

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

TRIES = 3  # in a row that bring nothing; ours
PAUSE_S = 1.0  # between them; ours
# A transfer that brings fewer bytes in so many seconds makes no progress, and ends. Ours.
STALL_S, LEAST_BYTES = 30.0, 30_000
# More than any published weights, for a server that does not say how much it sends. Ours.
MOST_BYTES = 2**34


def partial_of(to: Path) -> Path:
    """Where what has come of a file waits for the rest."""
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
    """Fetch a file; it stands in its place only once it is whole and its SHA-256 is right.

    What came before a break stays beside it (``partial_of``), and the next call goes on from there. Callers hold a
    lock, so that two processes do not write to it at a time.

    Args:
        url: of the file; redirections are followed.
        to: its place; the folder exists. A file already there is replaced.
        sha256: in hexadecimal digits, or the first of them.
        size: in bytes; None if it is not known.
        headers: of the request.
        patience_s: how long one try waits for an answer, and for the next bytes.

    Raises:
        InputError: another content than that of ``sha256`` came; nothing of it is kept.
        httpx2.HTTPError: the server refused, or the connection broke and did not come back.
        OSError: no room, or no right to write.
    """
    partial = partial_of(to)
    resumed = partial.exists() and partial.stat().st_size > 0
    _fill(partial, url, size, headers, patience_s)
    found = sha256_of(partial)
    if resumed and not found.startswith(sha256):  # the old part may be to blame: once more, from the start
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
    """Append what is missing, try after try; raises once several in a row, or a while, brought nothing."""
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
    came: Callable[[int], object],
    *,
    most: int,
) -> None:
    """Ask for the rest of a file and write it as it comes, up to ``most`` bytes in all."""
    start = file.tell()
    # Compressed, neither size nor position would be those of the file.
    wanted = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream("GET", url, headers=wanted, timeout=patience_s) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # there is no more: whether it is all of it, the hash says
        response.raise_for_status()
        if start and response.status_code != HTTPStatus.PARTIAL_CONTENT:
            file.seek(0)
            file.truncate()  # the server begins again
            came(-start)
        began, bytes_then = time.monotonic(), file.tell()
        for piece in response.iter_bytes():  # as it comes, so that nothing is lost where it breaks off
            wanted_bytes = most - file.tell()
            file.write(piece[:wanted_bytes])
            came(min(len(piece), wanted_bytes))
            if len(piece) > wanted_bytes:
                return  # more than was announced: whether what came is right, the hash says
            if file.tell() - bytes_then >= LEAST_BYTES:
                began, bytes_then = time.monotonic(), file.tell()
            elif time.monotonic() - began >= STALL_S:
                raise httpx2.ReadTimeout(f"fewer than {LEAST_BYTES:,} bytes came in {STALL_S:g} s")
