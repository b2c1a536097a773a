"""Pretrained weights by name: ``load("efficientnetv2_s.in1k")``.

What can be had is listed in ``pretrained``. Files lie in the caches of ``huggingface_hub`` and of torchvision, where
timm and torchvision find them too. What is there is used without asking the network.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

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

from efficientnetv2.architectures.registry import NAMES
from efficientnetv2.models.download import STALL_S, download, sha256_of
from efficientnetv2.models.pretrained import Pretrained, Remote, about, names
from efficientnetv2.utils.cpu import within
from efficientnetv2.utils.errors import InputError

_logger = logging.getLogger(__name__)

PYTORCH = "https://download.pytorch.org"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _torch_folder() -> Path:
    from torch.hub import get_dir

    return Path(get_dir()) / "checkpoints"


@dataclass(frozen=True)
class Hub:
    """Where weights come from, and where they are kept.

    Args:
        endpoint: of the Hugging Face hub or of a mirror that speaks its protocol; from HF_ENDPOINT.
        folder: its cache; from HF_HUB_CACHE or HF_HOME.
        pytorch: server of torchvision's files.
        torch_folder: their cache; from TORCH_HOME.
        offline: never ask the network; from HF_HUB_OFFLINE.
        patience_s: how long to wait for a first answer, and for the next bytes of a try.
    """

    endpoint: str = field(default_factory=lambda: constants.ENDPOINT)
    folder: Path = field(default_factory=lambda: Path(constants.HF_HUB_CACHE))
    pytorch: str = PYTORCH
    torch_folder: Path = field(default_factory=_torch_folder)
    offline: bool = field(default_factory=is_offline_mode)
    patience_s: float = 10.0


class DownloadError(InputError):
    """Weights are not on this machine whole, and cannot be had from their source."""


class WeightsNotFoundError(DownloadError):
    """The server was reached, and has no such file."""


def list_models(pretrained: bool = False) -> tuple[str, ...]:
    """Names that ``create`` takes.

    Args:
        pretrained: those with weights, ``name.tag``, instead of the published networks.
    """
    return names() if pretrained else NAMES


def url(what: str | Remote, hub: Hub | None = None) -> str:
    """Where the file of pretrained weights is fetched from."""
    hub, entry = hub or Hub(), _remote(what)
    if entry.source == "torchvision":
        return f"{hub.pytorch}/{entry.repository}/{entry.file}"
    return hf_hub_url(entry.repository, entry.file, endpoint=hub.endpoint)


def cached(what: str | Remote, hub: Hub | None = None) -> Path | None:
    """The file of pretrained weights if it is on this machine; no network is asked.

    Args:
        what: one of ``pretrained.names()``, or a file of others.
        hub: where to look; None is the user's own caches.
    """
    hub, entry = hub or Hub(), _remote(what)
    by_hand = _by_hand(entry, hub)
    if entry.source == "timm":
        found = try_to_load_from_cache(entry.repository, entry.file, cache_dir=hub.folder)
        if isinstance(found, str):
            return Path(found)
    return by_hand if by_hand.is_file() else None


def fetch(what: str | Remote, hub: Hub | None = None) -> Path:
    """The file of pretrained weights, from the cache or fetched into it.

    A download that broke off goes on where it was. What comes is kept only if its SHA-256 is the one that the hub
    states, or that torchvision has in the file's name; a cached file that is no longer so is fetched again.

    Args:
        what: one of ``pretrained.names()``, or a file of others.
        hub: where from and where to; None is as the user's environment says.

    Raises:
        InputError: no such name, or the file can't be kept. ``DownloadError`` if it is not there and can't be fetched:
            says why, where the cache is and how to fill it by hand. ``WeightsNotFoundError`` if the
            server has no such file.
    """
    hub, entry = hub or Hub(), _remote(what)
    path = cached(entry, hub)
    if path is not None and _intact(path, entry):
        return path
    if path is not None and path != (brought := _by_hand(entry, hub)) and brought.is_file():
        return brought  # in place of the damaged one
    state = (
        f"'{entry.name}' is not in the cache" if path is None else f"{path} is damaged (its SHA-256 is wrong)"
    )
    if hub.offline:
        raise _missing(entry, hub, f"{state}, and HF_HUB_OFFLINE forbids to fetch it")
    server = "/".join(url(entry, hub).split("/")[:3])
    _logger.warning(
        f"Downloading the weights '{entry.name}' from {server}. This stops after {STALL_S:g} s without progress. "
        "HF_HUB_OFFLINE=1 skips downloads."
    )
    get: Callable[[Remote, Hub], Path] = _from_pytorch if entry.source == "torchvision" else _from_hub
    try:
        return get(entry, hub)
    except (httpx2.HTTPError, TimeoutError, LocalEntryNotFoundError) as error:
        told = _missing(entry, hub, f"{state}, and fetching it failed: {_reason(error, url(entry, hub))}")
        response = getattr(error, "response", None)
        absent = response is not None and response.status_code == HTTPStatus.NOT_FOUND
        raise (WeightsNotFoundError(str(told)) if absent else told) from error
    except OSError as error:
        folder = hub.torch_folder if entry.source == "torchvision" else hub.folder
        raise InputError(
            f"'{entry.name}' cannot be kept in the cache {folder} ({error.strerror or error}). Make room, or name "
            f"another folder with {_variable(entry)}."
        ) from error


def _from_hub(entry: Remote, hub: Hub) -> Path:
    """Into huggingface_hub's cache: the content first, checked; then its own link to it."""
    source = url(entry, hub)
    said = within(
        hub.patience_s,
        lambda: get_hf_file_metadata(source, timeout=hub.patience_s, endpoint=hub.endpoint),
    )
    if said.etag is None or not _SHA256.fullmatch(said.etag):
        raise _missing(entry, hub, f"{source} states no SHA-256 ({said.etag}), so that it cannot be checked")
    folder = hub.folder / _repository_folder(entry)
    content = folder / "blobs" / said.etag
    with _lock(hub.folder, folder.name, said.etag):
        if not (content.is_file() and sha256_of(content) == said.etag):
            content.parent.mkdir(parents=True, exist_ok=True)
            download(
                source,
                content,
                sha256=said.etag,
                size=said.size,
                headers=build_hf_headers(library_name="efficientnetv2"),
                patience_s=hub.patience_s,
            )
    # It has the content now, and only writes down which commit of which repository this is.
    return Path(
        hf_hub_download(
            entry.repository,
            entry.file,
            cache_dir=hub.folder,
            endpoint=hub.endpoint,
            etag_timeout=hub.patience_s,
        )
    )


def _from_pytorch(entry: Remote, hub: Hub) -> Path:
    """Into torchvision's cache."""
    source, to = url(entry, hub), hub.torch_folder / entry.file
    head = within(
        hub.patience_s,
        lambda: get_session().head(source, headers={"Accept-Encoding": "identity"}, timeout=hub.patience_s),
    )
    head.raise_for_status()
    length = head.headers.get("Content-Length")
    with _lock(hub.torch_folder, "torchvision", entry.file):
        if not (to.is_file() and _intact(to, entry)):
            to.parent.mkdir(parents=True, exist_ok=True)
            download(
                source,
                to,
                sha256=_stated_hash(entry),
                size=None if length is None else int(length),
                headers={},
                patience_s=hub.patience_s,
            )
    return to


def _remote(what: str | Remote) -> Remote:
    return about(what) if isinstance(what, str) else what


def _lock(cache: Path, group: str, name: str) -> AbstractContextManager[object]:
    """Within the cache that is written to: where huggingface_hub has its own locks, under its name for its files."""
    folder = cache / ".locks" / group
    folder.mkdir(parents=True, exist_ok=True)
    lock: AbstractContextManager[object] = WeakFileLock(folder / f"{name}.lock")
    return lock


def _repository_folder(entry: Remote) -> str:
    return "models--" + entry.repository.replace("/", "--")


def _by_hand(entry: Remote, hub: Hub) -> Path:
    """Where a file that somebody brings is looked for."""
    if entry.source == "torchvision":
        return hub.torch_folder / entry.file
    return hub.folder / _repository_folder(entry) / "snapshots" / "main" / entry.file


def _stated_hash(entry: Remote) -> str:
    return entry.file.removesuffix(".pth").rpartition("-")[2]


def _intact(path: Path, entry: Remote) -> bool:
    """Whether a file still has the SHA-256 that it is known by; a file brought by hand is not known by one."""
    if entry.source == "torchvision":
        return sha256_of(path).startswith(_stated_hash(entry))
    known = path.resolve().name
    return not _SHA256.fullmatch(known) or sha256_of(path) == known


def _variable(entry: Remote) -> str:
    return "TORCH_HOME" if entry.source == "torchvision" else "HF_HUB_CACHE"


def _missing(entry: Remote, hub: Hub, state: str) -> DownloadError:
    folder = hub.torch_folder if entry.source == "torchvision" else hub.folder
    again = "Unset it" if hub.offline else "Try again with a network; what has come so far is kept"
    also = f" (or run effnetv2 models --fetch {entry.name})" if isinstance(entry, Pretrained) else ""
    return DownloadError(
        f"{state}. {again}. Or fill the cache by hand: on a machine "
        f"with a network download {url(entry, hub)}{also} and put the file at {_by_hand(entry, hub)} "
        f"(the cache folder is {folder}; {_variable(entry)} names another)."
    )


def _reason(error: Exception, source: str) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"{source} answers {response.status_code} {response.reason_phrase}".rstrip()
    server = "/".join(source.split("/")[:3])
    return f"{server} cannot be reached, or breaks off ({str(error) or type(error).__name__})"
