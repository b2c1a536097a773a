"""The order of a tensor's axes: TensorFlow's and Keras' on one side, PyTorch's on the other."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
