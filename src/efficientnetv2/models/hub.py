"""Files of pretrained weights: found in the caches of huggingface_hub and torchvision, or downloaded into them.

``pretrained`` lists the weights, ``conversion.convert.read_pretrained`` loads them. timm and torchvision find the same
files. A cached file is used without a request.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import tqdm

from efficientnetv2.architectures.registry import NAMES
from efficientnetv2.models.pretrained import Pretrained, Remote, get_weights, weight_names
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.processes import call_with_timeout

_logger = logging.getLogger(__name__)

PYTORCH = "https://download.pytorch.org"
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm looks for them
_SHA256 = re.compile(r"[0-9a-f]{64}")

TRIES = 3  # in a row without progress. Ours
PAUSE_S = 1.0  # between them. Ours
# A transfer with fewer bytes in these seconds has stalled. Ours.
STALL_S, LEAST_BYTES = 30.0, 30_000
# Limit for a server that does not state the size: more than any published weights. Ours.
MOST_BYTES = 2**34


def _torch_folder() -> Path:
    from torch.hub import get_dir

    return Path(get_dir()) / "checkpoints"


@dataclass(frozen=True)
class Hub:
    """Servers and caches of weights; by default those of the user's environment.

    Args:
        endpoint: The Hugging Face hub or a mirror; from HF_ENDPOINT.
        folder: Its cache; from HF_HUB_CACHE or HF_HOME.
        pytorch: Server of torchvision's files.
        torch_folder: Their cache; from TORCH_HOME.
        offline: Never use the network; from HF_HUB_OFFLINE.
        patience_s: Seconds to wait for a first answer, and for the next bytes of one try.
    """

    endpoint: str = field(default_factory=lambda: constants.ENDPOINT)
    folder: Path = field(default_factory=lambda: Path(constants.HF_HUB_CACHE))
    pytorch: str = PYTORCH
    torch_folder: Path = field(default_factory=_torch_folder)
    offline: bool = field(default_factory=is_offline_mode)
    patience_s: float = 10.0

    def cache_of(self, entry: Remote) -> Path:
        """The cache that a file belongs in."""
        return self.torch_folder if entry.source == "torchvision" else self.folder


class DownloadError(InputError):
    """Weights are not on this machine and cannot be downloaded."""


class WeightsNotFoundError(DownloadError):
    """The server was reached, but has no such file."""


def list_models(pretrained: bool = False) -> tuple[str, ...]:
    """Names that ``create`` accepts.

    Args:
        pretrained: List weights (``name.tag``) instead of architectures.

    Example::

        ev2.list_models(pretrained=True)  # ("efficientnetv2_b0.in1k", ...)
    """
    return weight_names() if pretrained else NAMES


def url(what: str | Remote, hub: Hub | None = None) -> str:
    """Where a file of pretrained weights is downloaded from."""
    hub, entry = hub or Hub(), _remote(what)
    if entry.source == "torchvision":
        return f"{hub.pytorch}/{entry.repository}/{entry.file}"
    return hf_hub_url(entry.repository, entry.file, endpoint=hub.endpoint)


def cached(what: str | Remote, hub: Hub | None = None) -> Path | None:
    """The file of pretrained weights if it is on this machine."""
    hub, entry = hub or Hub(), _remote(what)
    manual = _manual_path(entry, hub)
    if entry.source == "timm":
        found = try_to_load_from_cache(entry.repository, entry.file, cache_dir=hub.folder)
        if isinstance(found, str):
            return Path(found)
    return manual if manual.is_file() else None


def fetch(what: str | Remote, hub: Hub | None = None) -> Path:
    """The file of pretrained weights, from the cache or downloaded into it.

    An interrupted download resumes. A file is kept only if its SHA-256 is the one that the hub states, or that
    torchvision has in the file name. A damaged file in the cache is downloaded again.

    Args:
        what: One of ``pretrained.weight_names()``, or a file of another library.
        hub: None is the user's environment.

    Raises:
        InputError: No such name, or the file cannot be written.
        DownloadError: The file is neither here nor can it be downloaded; says how to fill the cache by hand.
        WeightsNotFoundError: The server has no such file.
    """
    hub, entry = hub or Hub(), _remote(what)
    path, manual = cached(entry, hub), _manual_path(entry, hub)
    if path is not None and _is_intact(path, entry):
        return path
    if path not in (None, manual) and manual.is_file():
        return manual  # in place of the damaged file
    state = f"'{entry.name}' is not in the cache" if path is None else f"{path} is damaged (wrong SHA-256)"
    if hub.offline:
        raise _not_available(entry, hub, f"{state}, and HF_HUB_OFFLINE forbids downloads")
    source = url(entry, hub)
    server = "/".join(source.split("/")[:3])
    _logger.warning(
        f"Downloading the weights '{entry.name}' from {server}. This stops after {STALL_S:g} s without progress. "
        "HF_HUB_OFFLINE=1 skips downloads."
    )
    try:
        return _from_pytorch(entry, hub) if entry.source == "torchvision" else _from_hub(entry, hub)
    except (httpx2.HTTPError, TimeoutError, LocalEntryNotFoundError) as error:
        response = getattr(error, "response", None)
        if response is None:
            reason = f"{server} cannot be reached, or breaks off ({str(error) or type(error).__name__})"
        else:
            reason = f"{source} answers {response.status_code} {response.reason_phrase}".rstrip()
        kind: type[DownloadError] = DownloadError
        if response is not None and response.status_code == HTTPStatus.NOT_FOUND:
            kind = WeightsNotFoundError
        raise kind(str(_not_available(entry, hub, f"{state}, and the download failed: {reason}"))) from error
    except OSError as error:
        raise InputError(
            f"'{entry.name}' cannot be stored in the cache {hub.cache_of(entry)} ({error.strerror or error}). Make "
            f"room, or name another folder with {_variable(entry)}."
        ) from error


def _from_hub(entry: Remote, hub: Hub) -> Path:
    """Into huggingface_hub's cache: first the content, checked, then huggingface_hub's own link to it.

    hf_hub_download (2.4.0) checks no SHA-256, and never gives up on a server that sends a byte at a time.
    """
    source = url(entry, hub)
    stated = call_with_timeout(
        hub.patience_s,
        lambda: get_hf_file_metadata(source, timeout=hub.patience_s, endpoint=hub.endpoint),
    )
    if stated.etag is None or not _SHA256.fullmatch(stated.etag):
        raise _not_available(entry, hub, f"{source} states no SHA-256 ({stated.etag}) to check it by")
    folder = hub.folder / _repository_folder(entry)
    headers = build_hf_headers(library_name="efficientnetv2")
    with _lock(hub.folder, folder.name, stated.etag):
        _ensure(folder / "blobs" / stated.etag, source, stated.etag, stated.size, headers, hub)
    path = hf_hub_download(
        entry.repository,
        entry.file,
        cache_dir=hub.folder,
        endpoint=hub.endpoint,
        etag_timeout=hub.patience_s,
    )
    return Path(path)


def _from_pytorch(entry: Remote, hub: Hub) -> Path:
    """Into torchvision's cache."""
    source, path = url(entry, hub), hub.torch_folder / entry.file
    head = call_with_timeout(
        hub.patience_s,
        lambda: get_session().head(source, headers={"Accept-Encoding": "identity"}, timeout=hub.patience_s),
    )
    head.raise_for_status()
    length = head.headers.get("Content-Length")
    with _lock(hub.torch_folder, "torchvision", entry.file):
        _ensure(path, source, _hash_in_name(entry), None if length is None else int(length), {}, hub)
    return path


def _ensure(
    path: Path, source: str, sha256: str, size: int | None, headers: Mapping[str, str], hub: Hub
) -> None:
    """Download a file unless another process has; the caller holds the lock."""
    if not (path.is_file() and sha256_of(path).startswith(sha256)):
        path.parent.mkdir(parents=True, exist_ok=True)
        download(source, path, sha256=sha256, size=size, headers=headers, patience_s=hub.patience_s)


def _remote(what: str | Remote) -> Remote:
    return get_weights(what) if isinstance(what, str) else what


def _lock(cache: Path, group: str, name: str) -> AbstractContextManager[object]:
    """In the cache, where huggingface_hub has its own locks, under the names that it gives them."""
    folder = cache / ".locks" / group
    folder.mkdir(parents=True, exist_ok=True)
    lock: AbstractContextManager[object] = WeakFileLock(folder / f"{name}.lock")
    return lock


def _repository_folder(entry: Remote) -> str:
    return "models--" + entry.repository.replace("/", "--")


def _manual_path(entry: Remote, hub: Hub) -> Path:
    """Where a file that a user copies by hand is looked for."""
    if entry.source == "torchvision":
        return hub.torch_folder / entry.file
    return hub.folder / _repository_folder(entry) / "snapshots" / "main" / entry.file


def _hash_in_name(entry: Remote) -> str:
    return entry.file.removesuffix(".pth").rpartition("-")[2]


def _is_intact(path: Path, entry: Remote) -> bool:
    """Whether a file has its known SHA-256. None is known of a timm file that was copied by hand."""
    if entry.source == "torchvision":
        return sha256_of(path).startswith(_hash_in_name(entry))
    known = path.resolve().name
    return not _SHA256.fullmatch(known) or sha256_of(path) == known


def _variable(entry: Remote) -> str:
    return "TORCH_HOME" if entry.source == "torchvision" else "HF_HUB_CACHE"


def _not_available(entry: Remote, hub: Hub, state: str) -> DownloadError:
    again = "Unset it" if hub.offline else "Try again with a network: the download resumes"
    also = f" (or run effnetv2 models --fetch {entry.name})" if isinstance(entry, Pretrained) else ""
    return DownloadError(
        f"{state}. {again}. Or fill the cache by hand: on a machine with a network, download {url(entry, hub)}{also} "
        f"and put the file at {_manual_path(entry, hub)} (the cache folder is {hub.cache_of(entry)}; "
        f"{_variable(entry)} names another)."
    )


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


def timm_file(config: Mapping[str, Any], name: str, user: Hub | None = None) -> Path | None:
    """The file of timm's weights; None for the few (19 of 1,826) on another server, where timm has to look itself.

    Args:
        config: timm's ``pretrained_cfg`` of the weights, as a dictionary.
        name: Model name with tag.
        user: Servers and caches; None is the user's environment.
    """
    repository = config.get("hf_hub_id")
    if not repository:
        return None
    stated = config.get("hf_hub_filename")
    files = [Remote(name, "timm", repository, file) for file in ([stated] if stated else _TIMM_FILES)]
    for file in files:
        if cached(file, user):
            return fetch(file, user)
    for file in files[:-1]:
        try:
            return fetch(file, user)
        except WeightsNotFoundError:
            continue
    return fetch(files[-1], user)


def torchvision_file(url: str, name: str, user: Hub | None = None) -> Path:
    """The file of torchvision's weights at a URL, in its cache. Raises InputError, see ``fetch``."""
    folder, _, file = url.removeprefix(f"{PYTORCH}/").rpartition("/")
    return fetch(Remote(name, "torchvision", folder, file), user)
