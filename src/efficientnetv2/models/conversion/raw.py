"""The contents of another library's weight file, before the model is detected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from efficientnetv2.models.model_card import Header
from efficientnetv2.preprocessing import Preprocessing

Source = Literal["timm", "torchvision", "keras", "tensorflow"]


@dataclass(frozen=True, eq=False)
class RawWeights:
    """Tensors under the file's own names.

    Args:
        tensors: In PyTorch's layout (convolutions (out, in / groups, k, k), linear layers (out, in)) and the file's
            number format.
        model: The file's name of the model; None if it states none.
        batch_norm_epsilon: None if the file states none.
        preprocessing: None if the file states none.
        stated: Fields of ``preprocessing`` that the file states; the others are as published.
        class_names: As the file states them.
        carried: The header that this package embedded in the file; None without one.
        notes: How the file was read, a sentence each.
    """

    path: Path
    source: Source
    tensors: dict[str, Tensor]
    model: str | None = None
    batch_norm_epsilon: float | None = None
    preprocessing: Preprocessing | None = None
    stated: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    carried: Header | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Tensors:
    """The contents of one PyTorch or safetensors file.

    Args:
        model: The file's name of the model; None if it states none.
        carried: The embedded text of this package, not yet parsed; None without one.
        notes: What was chosen among several, a sentence each.
    """

    tensors: dict[str, Tensor]
    model: str | None
    carried: Any
    notes: tuple[str, ...] = ()
