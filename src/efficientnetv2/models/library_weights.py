"""The weights that a tag of timm or torchvision names: fetched as our own are, before the library asks for them.

Left to themselves, the libraries try for a minute where there is no network, say each try, and check nothing. What is
in their caches is used without asking the network.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from efficientnetv2.models import hub
from efficientnetv2.models.pretrained import Remote
from efficientnetv2.utils.errors import InputError

# In the order in which timm looks for them in a repository.
_TIMMS_FILES = ("model.safetensors", "pytorch_model.bin")


def timm_file(config: Mapping[str, Any], name: str, user: hub.Hub | None = None) -> Path | None:
    """The file of pretrained weights of timm, from the cache or fetched into it.

    Args:
        config: timm's ``pretrained_cfg`` of the weights, as a dictionary.
        name: of the network with its tag.
        user: where from and where to; None is as the user's environment says.

    Returns:
        None for the few (19 of 1,826) that lie on a server of somebody else, where timm has to look for itself.

    Raises:
        InputError: it is not in the cache and can't be fetched; see ``hub.fetch``.
    """
    repository = config.get("hf_hub_id")
    if not repository:
        return None
    stated = config.get("hf_hub_filename")
    files = [Remote(name, "timm", repository, file) for file in ([stated] if stated else _TIMMS_FILES)]
    for file in files:
        if hub.cached(file, user):
            return hub.fetch(file, user)
    for file in files[:-1]:
        try:
            return hub.fetch(file, user)
        except hub.WeightsNotFoundError:
            continue
    return hub.fetch(files[-1], user)


def torchvision_file(url: str, name: str, user: hub.Hub | None = None) -> Path:
    """The file of pretrained weights of torchvision, in its cache; fetched if need be.

    Args:
        url: as torchvision states it.
        name: of the network with its tag.
        user: where from and where to; None is as the user's environment says.

    Raises:
        InputError: it is not in the cache and can't be fetched; see ``hub.fetch``.
    """
    folder, _, file = url.removeprefix(f"{hub.PYTORCH}/").rpartition("/")
    return hub.fetch(Remote(name, "torchvision", folder, file), user)


@contextmanager
def reading(title: str, path: Path | None) -> Iterator[None]:
    """Say which file it was if a library can't read its own weights from it.

    Args:
        title: of the network with its tag.
        path: of the file; None if the library fetched it by itself, or if there is none to read.

    Raises:
        InputError: it can't.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if path is not None:
            raise InputError(
                f"{path} does not hold the weights of '{title}' ({reason}). Remove it, and try again."
            ) from error
        if isinstance(error, OSError):
            raise InputError(
                f"the weights of '{title}' cannot be fetched ({reason}). They lie on a server of their own, and come "
                "through their library alone. Try again with a network, or fetch them elsewhere with that library "
                "and copy its cache here."
            ) from error
        raise
