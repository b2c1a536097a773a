"""What the two PyTorch formats have in common: names within a module, published shapes, files of tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from efficientnetv2.architectures.registry import NAMES, published
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.models.conversion import embedded_metadata
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.models.model_card import CARRIED
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import write_atomically

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
    text = embedded_metadata.text_of(network)
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


Kind = Literal["convolution", "depthwise", "dense", "vector"]

# How PyTorch's axes are found among theirs: (k, k, in, out), (k, k, channels, 1), (in, out).
_AXES: dict[Kind, tuple[int, ...]] = {
    "convolution": (3, 2, 0, 1),
    "depthwise": (2, 3, 0, 1),
    "dense": (1, 0),
    "vector": (0,),
}


def to_torch(array: npt.NDArray[Any], kind: Kind) -> Tensor:
    """An array in PyTorch's layout, in its own number format.

    Args:
        array: in TensorFlow's layout. Two bytes that numpy has no name for are taken for bfloat16.
        kind: what it belongs to; if its axes are not as many as that has, it is left as it is, for the
            caller to refuse by its shape.
    """
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        tensor = torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    axes = _AXES[kind]
    return tensor.permute(axes).contiguous() if tensor.ndim == len(axes) else tensor


def to_tensorflow(tensor: Tensor, kind: Kind) -> npt.NDArray[np.float32]:
    """The inverse of ``to_torch``, as 32-bit floats, which hold every shorter format exactly."""
    axes = tuple(int(axis) for axis in np.argsort(_AXES[kind]))
    array: npt.NDArray[np.float32] = tensor.detach().float().cpu().permute(axes).contiguous().numpy()
    return array
