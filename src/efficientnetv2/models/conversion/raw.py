"""What a foreign weight file holds, before anyone has said which network it is."""

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
    """Tensors of a foreign file under their own names.

    Args:
        path: of the file.
        source: whose names they are.
        tensors: in PyTorch's layout (convolutions (out, in / groups, k, k), linear layers (out, in)), in the
            number format of the file.
        model: what the file calls its network, in its own words; None if it does not say.
        batch_norm_epsilon: that the file states; None if it does not.
        preprocessing: that the file states; None if it states nothing of it.
        stated: which fields of that are the file's own; the others are as published.
        class_names: that the file states.
        carried: what this package wrote into the file beside the weights; None if it wrote nothing.
        notes: what a user should know of how it was read, a sentence each.
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
    """What a single file of PyTorch or safetensors holds.

    Args:
        tensors: under their own names.
        model: what the file calls its network; None if it does not say.
        carried: what lies where this package writes its own text; None if nothing does.
        notes: what was chosen among several, a sentence each.
    """

    tensors: dict[str, Tensor]
    model: str | None
    carried: Any
    notes: tuple[str, ...] = ()
