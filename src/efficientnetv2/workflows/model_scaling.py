"""Scale an architecture up, as the paper made EfficientNetV2-M and L from S, or by compound scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from efficientnetv2.architectures.registry import round_channels, scale
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.utils.errors import InputError

MAX_EVAL_IMAGE_SIZE = 480  # Source: arXiv:2104.00298, section 3.3.
# Largest phi of compound scaling, about a million times the multiply-adds. Ours; the largest published EfficientNet,
# L2, is 4.3 = 1.1**15.3 times as wide as B0 (arXiv:1911.04252).
MAX_PHI = 20
TRAIN_FRACTION = 0.8  # "About 20 % smaller": Table 6 has 300 px for 384 (S) and 380 px for 480 (M, L).


@dataclass(frozen=True)
class Scaling:
    """Factors by which an architecture grows.

    Args:
        width: Times the channels of stem and stages, rounded to multiples of 8. The head stays, as in S, M and L.
        depth: Times the layers of each stage, rounded up.
        px: Times the image size at inference, up to ``MAX_EVAL_IMAGE_SIZE``.
        more_layers: Layers added to the last stages after that; the last number is of the last stage.
        new_layers: Layers of a stage added at the end, with the last one's operator and stride 1. 0 adds none.
        new_width: Channels of the added stage over those of the base's last stage.

    Raises:
        InputError: A factor below 1, or a negative number of layers.
    """

    width: float
    depth: float
    px: float
    more_layers: tuple[int, ...] = ()
    new_layers: int = 0
    new_width: float = 2.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "px", "new_width"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 1):
                raise InputError(f"{name} is {value:g}, but must be at least 1: the architecture grows")
        for layers in (*self.more_layers, self.new_layers):
            if layers < 0:
                raise InputError(f"{layers} layers cannot be added: must be at least 0")


# Fitted to the published tables, from which the added layers and the seventh stage are read off.
TO_M = Scaling(width=1.08, depth=7 / 6, px=1.25, more_layers=(3, 0), new_layers=5, new_width=2.0)
TO_L = Scaling(width=1.49, depth=5 / 3, px=1.25, more_layers=(4, 0), new_layers=7, new_width=2.5)


def compound_scaling(phi: float) -> Scaling:
    """EfficientNet's compound scaling: each 1 of phi (0 to ``MAX_PHI``) about doubles the multiply-adds.

    Source: arXiv:1905.11946, section 3.3: 1.2, 1.1 and 1.15 to the power of phi for depth, width and size.
    """
    if not 0 <= phi <= MAX_PHI:
        raise InputError(
            f"phi is {phi:g}, but must be from 0 to {MAX_PHI}: each 1 of it about doubles the multiply-adds"
        )
    return Scaling(width=1.1**phi, depth=1.2**phi, px=1.15**phi)


def parse_scaling(text: str) -> Scaling:
    """``m``, ``l``, or a number, the phi of `compound_scaling`. Raises InputError."""
    if (named := {"m": TO_M, "l": TO_L}.get(text.lower())) is not None:
        return named
    try:
        phi = float(text)
    except ValueError:
        raise InputError(
            f"--grow {text}: must be m or l, which grow a network as EfficientNetV2-S grew to M or L, or the phi of "
            f"compound scaling, a number from 0 to {MAX_PHI}"
        ) from None
    return compound_scaling(phi)


@dataclass(frozen=True)
class ScaledArchitecture:
    """A larger architecture, and its image sizes at inference and at the end of training."""

    architecture: Architecture
    eval_image_size: int
    train_image_size: int


def scale_up(base: Architecture, scaling: Scaling, *, eval_image_size: int) -> ScaledArchitecture:
    """A larger architecture by the paper's rules; ``eval_image_size`` is the base's image size at inference.

    Raises:
        InputError: Layers are added to more stages than there are.
    """
    if len(scaling.more_layers) > len(base.stages):
        raise InputError(
            f"layers are added to {len(scaling.more_layers)} stages, but the network has {len(base.stages)}"
        )
    scaled = scale(base, width=scaling.width, depth=scaling.depth, rounding="v2")
    stages = list(scaled.stages)
    for place, more in enumerate(reversed(scaling.more_layers), 1):
        stages[-place] = replace(stages[-place], layers=stages[-place].layers + more)
    if scaling.new_layers:
        channels = round_channels(scaling.new_width * base.stages[-1].channels, rounding="v2")
        stages.append(replace(stages[-1], stride=1, channels=channels, layers=scaling.new_layers))
    architecture = replace(scaled, stages=tuple(stages), head_channels=base.head_channels)
    larger_size = min(MAX_EVAL_IMAGE_SIZE, round(scaling.px * eval_image_size / 8) * 8)
    return ScaledArchitecture(
        architecture, larger_size, max(architecture.stride, train_size_for(larger_size))
    )


def train_size_for(eval_image_size: int) -> int:
    """The last image size of training: 20 % below that of inference, rounded down to a multiple of 20 from 100 on.

    Source: arXiv:2104.00298, Table 6, whose sizes of S, M and L this gives. The multiple of 20 is ours.
    """
    px = round(TRAIN_FRACTION * eval_image_size, 6)
    return max(1, int(px // 20 * 20 if px >= 100 else px // 1))
