"""What the two PyTorch formats have in common: names within a module, published shapes, files of tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from efficientnetv2.arch.published import NAMES, published
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError
from efficientnetv2.base.files import write_atomically
from efficientnetv2.models.header import CARRIED
from efficientnetv2.models.interop import carried
from efficientnetv2.models.network import EfficientNet

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def tensors_of(modules: Mapping[str, str]) -> dict[str, str]:
    """Every tensor name of ours, and theirs, where both sides have PyTorch's names within a module.

    Args:
        modules: names of ours that hold tensors, and theirs; batch-norms of ours end in ``norm``,
            convolutions without bias in ``conv``, all others have weight and bias.
    """
    names: dict[str, str] = {}
    for ours, theirs in modules.items():
        kind = ours.rpartition(".")[2]
        leaves = {"norm": _BATCH_NORM, "conv": ("weight",)}.get(kind, ("weight", "bias"))
        names |= {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in leaves}
    return names


def shape_name(architecture: Architecture) -> str | None:
    """The published network of this shape, whatever the padding and the epsilon; None if there is none."""
    for name in NAMES:
        table = published(name).architecture
        same = replace(architecture, padding=table.padding, batch_norm_epsilon=table.batch_norm_epsilon)
        if same == table:
            return name
    return None


def write_tensors(
    path: Path, network: EfficientNet, names: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    """Write a network's tensors under other names, and what we know of it beside them, whole or not at all.

    Args:
        path: ending in ``.safetensors``, or else a pickle of tensors as ``torch.save`` makes it.
        network: on any device.
        names: from ours to theirs.
        metadata: of a safetensors file.

    Raises:
        InputError: it can't be written.
    """
    tensors = {names[ours]: value.detach().cpu().contiguous() for ours, value in network.state_dict().items()}
    text = carried.text_of(network)
    stated = {"format": "pt", **metadata, CARRIED: text}
    # Where PyTorch keeps the versions of modules, by name: those who load the tensors look no other name up.
    pickled = OrderedDict(tensors)
    pickled._metadata = OrderedDict({CARRIED: text})  # type: ignore[attr-defined]
    safe = path.suffix == ".safetensors"

    def fill(partial: Path) -> None:
        if safe:
            save_file(tensors, partial, stated)
        else:
            torch.save(pickled, partial)

    try:
        write_atomically(path, fill)
    except (
        OSError,
        SafetensorError,
        RuntimeError,
    ) as error:  # a full disk is each of them to one of the three
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise InputError(f"{reason}. Make room, or give another place.") from error
