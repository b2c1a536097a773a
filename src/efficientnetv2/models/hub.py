"""Files of pretrained weights: found in the caches of huggingface_hub and torchvision, or downloaded into them.

timm and torchvision find the same files. A cached file is used without a request.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
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
from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import tqdm

from efficientnetv2.architectures.flops import FLOAT_BYTES, count_flops
from efficientnetv2.architectures.registry import NAMES, get_model_info
from efficientnetv2.models.pretrained import Pretrained, Remote, get_weights, weight_names
from efficientnetv2.utils.errors import InputError, error_summary
from efficientnetv2.utils.io import sha256_of
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
MAX_BYTES = 2**34


def _torch_folder() -> Path:
    from torch.hub import get_dir

    return Path(get_dir()) / "checkpoints"


@dataclass(frozen=True)
class Hub:
    """Servers and caches of weights; by default those of the user's environment (HF_ENDPOINT, TORCH_HOME, ...)."""

    endpoint: str = field(default_factory=lambda: constants.ENDPOINT)
    folder: Path = field(default_factory=lambda: Path(constants.HF_HUB_CACHE))
    pytorch: str = PYTORCH
    torch_folder: Path = field(default_factory=_torch_folder)
    offline: bool = field(default_factory=is_offline_mode)
    patience_s: float = 10.0  # for a first response, and for the next bytes


class DownloadError(InputError):
    """Weights are not on this machine and cannot be downloaded. ``state`` says why, the message also what to do."""

    def __init__(self, entry: Remote, hub: Hub, state: str) -> None:
        again = "Unset it" if hub.offline else "Try again with a network: the download resumes"
        command = f" (or run effnetv2 models --fetch {entry.name})" if isinstance(entry, Pretrained) else ""
        cache, variable = _cache(entry, hub)
        super().__init__(
            f"{state}. {again}. Or fill the cache by hand: on a machine with a network, download {url(entry, hub)}"
            f"{command} and put the file at {_manual_path(entry, hub)} (the cache folder is {cache}; {variable} names "
            "another)."
        )
        self.state = state


class WeightsNotFoundError(DownloadError):
    """The server was reached, but has no such file."""


def list_models(*, pretrained: bool = False) -> tuple[str, ...]:
    """Names that ``create`` accepts.

    Args:
        pretrained: List weights (``name.tag``) instead of architectures.

    Example::

        import efficientnetv2 as ev2

        ev2.list_models(pretrained=True)  # ("efficientnetv2_b0.in1k", ...)
    """
    return weight_names() if pretrained else NAMES


def published_models() -> list[dict[str, Any]]:
    """Name, parameters, MACs and evaluation size of each published model."""
    rows = []
    for model in map(get_model_info, NAMES):
        size = model.eval_image_size
        total = count_flops(model.architecture, image_size=size).total
        counts = {"parameters": total.parameters, "multiply_adds": total.multiply_adds}
        rows.append({"name": model.name, **counts, "eval_image_size": size})
    return rows


def pretrained_weights() -> list[dict[str, Any]]:
    """Model, accuracy, size, license and source of all weights that can be had by name."""
    hub, rows = Hub(), []
    for name in weight_names():
        entry = get_weights(name)
        size, num_classes = entry.preprocessing.image_size, entry.num_classes
        table = get_model_info(entry.model).architecture
        parameters = count_flops(table, image_size=size, num_classes=num_classes).total.parameters
        file = cached(name, hub)
        rows.append(
            {
                "name": name,
                "model": entry.model,
                "image_size": size,
                "num_classes": num_classes,
                "top1_percent": entry.top1_percent,
                "megabytes_about": round(parameters * FLOAT_BYTES / 1e6, 1),
                "license": entry.license,
                "source": entry.source,
                "url": url(name, hub),
                "cached": None if file is None else str(file),
            }
        )
    return rows


def url(weights: str | Remote, hub: Hub | None = None) -> str:
    """Where a file of pretrained weights is downloaded from."""
    hub, entry = hub or Hub(), _remote(weights)
    if entry.source == "torchvision":
        return f"{hub.pytorch}/{entry.repository}/{entry.file}"
    return hf_hub_url(entry.repository, entry.file, endpoint=hub.endpoint)


def cached(weights: str | Remote, hub: Hub | None = None) -> Path | None:
    """The file of pretrained weights if it is on this machine."""
    hub, entry = hub or Hub(), _remote(weights)
    if entry.source == "timm":
        try:
            found = try_to_load_from_cache(entry.repository, entry.file, cache_dir=hub.folder)
        except OSError:  # in a shared cache, the folder of another user
            found = None
        if isinstance(found, str) and os.access(found, os.R_OK):
            return Path(found)
    manual = _manual_path(entry, hub)
    return manual if os.path.isfile(manual) and os.access(manual, os.R_OK) else None


def fetch(weights: str | Remote, hub: Hub | None = None) -> Path:
    """The file of pretrained weights, from the cache or downloaded into it; an interrupted download resumes.

    A file is kept only if its SHA-256 is the one that the hub states, or that torchvision has in the file name. Raises
    InputError for an unknown name or a full disk, DownloadError (with the steps to fill the cache by hand) and
    WeightsNotFoundError.
    """
    hub, entry = hub or Hub(), _remote(weights)
    path, manual = cached(entry, hub), _manual_path(entry, hub)
    if path is not None and _is_intact(path, entry):
        return path
    if path not in (None, manual) and os.path.isfile(manual):
        return manual  # in place of the damaged file
    state = f"'{entry.name}' is not in the cache" if path is None else f"{path} is damaged (wrong SHA-256)"
    if hub.offline:
        raise DownloadError(entry, hub, f"{state}, and HF_HUB_OFFLINE forbids downloads, or TRANSFORMERS_OFFLINE does")
    try:
        get_session()
    except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
        settings = f"the settings of the proxy or of certificates cannot be used ({error_summary(error)})"
        fix = "Correct ALL_PROXY, HTTPS_PROXY or SSL_CERT_FILE"
        raise DownloadError(entry, hub, f"{state}, and {settings}. {fix}") from error
    source = url(entry, hub)
    server = "/".join(source.split("/")[:3])
    _logger.warning(
        f"Downloading the weights '{entry.name}' from {server}. This stops after {STALL_S:g} s without progress. "
        "HF_HUB_OFFLINE=1 skips downloads."
    )
    try:
        return _download(entry, source, hub)
    except (httpx2.HTTPError, TimeoutError, LocalEntryNotFoundError, FileMetadataError) as error:
        kind: type[DownloadError] = DownloadError
        reason = f"{server} cannot be reached, or breaks the connection ({str(error) or type(error).__name__})"
        if (response := getattr(error, "response", None)) is not None:
            reason = f"{source} responds with {response.status_code} {response.reason_phrase}".rstrip()
            kind = WeightsNotFoundError if response.status_code == HTTPStatus.NOT_FOUND else DownloadError
            if response.status_code == HTTPStatus.UNAUTHORIZED and entry.source == "timm":
                reason += ", perhaps because the saved token has expired (hf auth login, or hf auth logout)"
        raise kind(entry, hub, f"{state}, and the download failed: {reason}") from error
    except OSError as error:
        cache, variable = _cache(entry, hub)
        raise InputError(
            f"'{entry.name}' cannot be stored in the cache {cache} ({error.strerror or error}). Make room, or name "
            f"another folder with {variable}."
        ) from error


def _download(entry: Remote, source: str, hub: Hub) -> Path:
    """The file in its library's cache."""
    # hf_hub_download (2.4.0) checks no SHA-256 and never gives up on a server that sends a byte at a time; torch.hub
    # does not resume. So the content is downloaded here, and huggingface_hub then links to it.
    in_hub = entry.source == "timm"
    stated = call_with_timeout(
        hub.patience_s,
        lambda: get_hf_file_metadata(
            source, token=None if in_hub else False, timeout=hub.patience_s, endpoint=hub.endpoint
        ),
    )
    content, sha256 = hub.torch_folder / entry.file, _hash_in_name(entry)
    headers: dict[str, str] = {}
    lock = hub.torch_folder / ".locks" / "torchvision" / f"{entry.file}.lock"
    if in_hub:
        if stated.etag is None or not _SHA256.fullmatch(stated.etag):
            raise DownloadError(entry, hub, f"{source} states no SHA-256 ({stated.etag}) to check it by")
        folder, sha256 = _hub_folder(entry, hub), stated.etag
        content, lock = folder / "blobs" / sha256, hub.folder / ".locks" / folder.name / f"{sha256}.lock"
        headers = build_hf_headers(library_name="efficientnetv2")
    _Transfer(source, content, sha256, stated.size, hub.patience_s, headers).run(lock)
    if not in_hub:
        return content
    path = hf_hub_download(
        entry.repository, entry.file, cache_dir=hub.folder, endpoint=hub.endpoint, etag_timeout=hub.patience_s
    )
    return Path(path)


def _remote(weights: str | Remote) -> Remote:
    return get_weights(weights) if isinstance(weights, str) else weights


def _hub_folder(entry: Remote, hub: Hub) -> Path:
    return hub.folder / ("models--" + entry.repository.replace("/", "--"))


def _manual_path(entry: Remote, hub: Hub) -> Path:
    """Where a file that a user copies by hand is looked for."""
    if entry.source == "torchvision":
        return hub.torch_folder / entry.file
    return _hub_folder(entry, hub) / "snapshots" / "main" / entry.file


def _cache(entry: Remote, hub: Hub) -> tuple[Path, str]:
    """The cache that a file belongs in, and the environment variable that names it."""
    if entry.source == "torchvision":
        return hub.torch_folder, "TORCH_HOME"
    return hub.folder, "HF_HUB_CACHE"


def _hash_in_name(entry: Remote) -> str:
    return entry.file.removesuffix(".pth").rpartition("-")[2]


def _is_intact(path: Path, entry: Remote) -> bool:
    """Whether a file has its known SHA-256. None is known of a timm file that was copied by hand."""
    if entry.source == "torchvision":
        return sha256_of(path).startswith(_hash_in_name(entry))
    known = path.resolve().name
    return not _SHA256.fullmatch(known) or sha256_of(path) == known


@dataclass(frozen=True)
class _Transfer:
    """A file to download, checked by its SHA-256 (or its first digits)."""

    url: str
    path: Path
    sha256: str
    size: int | None  # None if unknown
    patience_s: float  # for a response, and for the next bytes
    headers: Mapping[str, str]

    def run(self, lock: Path) -> None:
        """Download the file unless another process has, and go on where an earlier download ended."""
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if self.path.is_file() and sha256_of(self.path).startswith(self.sha256):
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(f"{self.path.name}.incomplete")
            resumed = partial.exists() and partial.stat().st_size > 0
            for _ in range(2 if resumed else 1):  # the old part may be wrong: once more from the start
                self._fill(partial)
                found = sha256_of(partial)
                if found.startswith(self.sha256):
                    os.replace(partial, self.path)
                    return
                partial.unlink()
            raise InputError(
                f"{self.url} sent another file than it announced: its SHA-256 is {found[:16]}..., not "
                f"{self.sha256[:16]}.... Try again; if it stays so, a proxy or a mirror in between changes files."
            )

    def _fill(self, partial: Path) -> None:
        """Append what is missing; raise after ``TRIES`` tries or ``STALL_S`` without progress."""
        failures, progressed = 0, time.monotonic()
        with open(partial, "ab") as file:
            bar = tqdm(  # type: ignore[no-untyped-call]
                desc=self.url.rpartition("/")[2],
                total=self.size,
                initial=file.tell(),
                unit="B",
                unit_scale=True,
                disable=None,  # shown on a terminal alone
            )
            with bar:
                while self.size is None or file.tell() != self.size:
                    start = file.tell()
                    try:
                        self._append(file, bar.update)
                        return
                    except httpx2.HTTPError as error:
                        if file.tell() - start >= LEAST_BYTES:
                            failures, progressed = 0, time.monotonic()
                        else:
                            failures += 1
                        if _is_final(error) or failures == TRIES or time.monotonic() - progressed >= STALL_S:
                            raise
                        time.sleep(PAUSE_S)

    def _append(self, file: BinaryIO, progress: Callable[[int], object]) -> None:
        """Request the rest of the file and write it as it arrives, up to the announced size."""
        start, most = file.tell(), MAX_BYTES if self.size is None else self.size
        # Uncompressed, so that sizes and positions are those of the file.
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with get_session().stream("GET", self.url, headers=headers, timeout=self.patience_s) as response:
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


def _is_final(error: httpx2.HTTPError) -> bool:
    """Whether a server will refuse again: a status below 500, except for a timeout and too many requests."""
    if not isinstance(error, httpx2.HTTPStatusError):
        return False
    return error.response.status_code < 500 and error.response.status_code not in (408, 429)


def timm_file(config: Mapping[str, Any], name: str, hub: Hub | None = None) -> Path | None:
    """The file of timm's weights with this ``pretrained_cfg``; None for 19 of 1,826, which timm itself downloads."""
    hub, repository = hub or Hub(), config.get("hf_hub_id")
    if not repository:
        cache = hub.torch_folder / str(config.get("url", "")).rpartition("/")[2]
        if hub.offline and not cache.is_file():
            fix = f"Unset it, or put the file of {config.get('url')} there"
            raise InputError(f"'{name}' is not in the cache ({cache}), and HF_HUB_OFFLINE forbids downloads. {fix}.")
        return None
    stated = config.get("hf_hub_filename")
    files = [Remote(name, "timm", repository, file) for file in ([stated] if stated else _TIMM_FILES)]
    files.sort(key=lambda file: cached(file, hub) is None)
    for file in files[:-1]:
        try:
            return fetch(file, hub)
        except WeightsNotFoundError:
            continue
    return fetch(files[-1], hub)


def torchvision_file(url: str, name: str, hub: Hub | None = None) -> Path:
    """The file of torchvision's weights at a URL, in its cache."""
    folder, _, file = url.removeprefix(f"{PYTORCH}/").rpartition("/")
    return fetch(Remote(name, "torchvision", folder, file), hub)
