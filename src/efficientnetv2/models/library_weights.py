"""Files of pretrained weights of timm and torchvision, downloaded by ``hub`` before the library looks for them.

The libraries themselves try for a minute without a network, print each try, and check no hash.
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
from efficientnetv2.utils.errors import InputError, error_summary

_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm looks for them


def timm_file(config: Mapping[str, Any], name: str, user: hub.Hub | None = None) -> Path | None:
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
        if hub.cached(file, user):
            return hub.fetch(file, user)
    for file in files[:-1]:
        try:
            return hub.fetch(file, user)
        except hub.WeightsNotFoundError:
            continue
    return hub.fetch(files[-1], user)


def torchvision_file(url: str, name: str, user: hub.Hub | None = None) -> Path:
    """The file of torchvision's weights at a URL, in its cache. Raises InputError, see ``hub.fetch``."""
    folder, _, file = url.removeprefix(f"{hub.PYTORCH}/").rpartition("/")
    return hub.fetch(Remote(name, "torchvision", folder, file), user)


@contextmanager
def reading(title: str, path: Path | None) -> Iterator[None]:
    """Raise an InputError that names the file (None: the library finds it) if a library cannot read its own weights."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = error_summary(error)
        if path is not None:
            raise InputError(
                f"{path} does not hold the weights of '{title}' ({reason}). Remove it, and try again."
            ) from error
        if isinstance(error, OSError):
            raise InputError(
                f"the weights of '{title}' cannot be fetched ({reason}). Only their library fetches them. Try again "
                "with a network, or copy that library's cache here."
            ) from error
        raise
