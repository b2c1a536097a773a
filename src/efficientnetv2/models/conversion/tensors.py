"""What the formats have in common: tensor names within a module, published shapes, tensor layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efficientnetv2.architectures.registry import NAMES, published
from efficientnetv2.architectures.spec import Architecture

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def tensors_of(modules: Mapping[str, str]) -> dict[str, str]:
    """Tensor names from ours to those of another PyTorch library.

    Args:
        modules: Module names from ours to theirs. Ours end in ``norm`` for batch-norms and in ``conv`` for convolutions
            without bias; all others have weight and bias.
    """
    names: dict[str, str] = {}
    for ours, theirs in modules.items():
        kind = ours.rpartition(".")[2]
        leaves = {"norm": _BATCH_NORM, "conv": ("weight",)}.get(kind, ("weight", "bias"))
        names |= {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in leaves}
    return names


def shape_name(architecture: Architecture) -> str | None:
    """The published model of this shape, whatever its padding and epsilon."""
    for name in NAMES:
        table = published(name).architecture
        same = replace(architecture, padding=table.padding, batch_norm_epsilon=table.batch_norm_epsilon)
        if same == table:
            return name
    return None


Kind = Literal["convolution", "depthwise", "dense", "vector"]

# From TensorFlow's axes to PyTorch's: (k, k, in, out), (k, k, channels, 1), (in, out).
_AXES: dict[Kind, tuple[int, ...]] = {
    "convolution": (3, 2, 0, 1),
    "depthwise": (2, 3, 0, 1),
    "dense": (1, 0),
    "vector": (0,),
}


def to_torch(array: npt.NDArray[Any], kind: Kind) -> Tensor:
    """An array of TensorFlow in PyTorch's layout, in its own number format.

    Two bytes that numpy has no name for are bfloat16. An array with another number of axes than its kind is returned
    as it is, for the caller to refuse by its shape.
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
