"""What a foreign weight file holds, before anyone has said which network it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from efficientnetv2.base.preprocessing import Preprocessing

Source = Literal["timm", "torchvision", "keras", "tensorflow"]


@dataclass(frozen=True, eq=False)
class Raw:
    """Tensors of a foreign file under their own names.

    Args:
        path: of the file.
        source: whose names they are.
        tensors: in PyTorch's layout (convolutions (out, in / groups, k, k), linear layers (out, in)), in the
            number format of the file.
        model: what the file calls its network, in its own words; None if it does not say.
        batch_norm_epsilon: that the file states; None if it does not.
        preprocessing: that the file states; None if it does not.
        class_names: that the file states.
        notes: what a user should know of how it was read, a sentence each.
    """

    path: Path
    source: Source
    tensors: dict[str, Tensor]
    model: str | None = None
    batch_norm_epsilon: float | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
