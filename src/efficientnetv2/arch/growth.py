"""From a found network to larger ones: how EfficientNetV2-S became M and L.

The paper scales S "using similar compound scaling" as EfficientNet and says what it does besides (arXiv:2104.00298,
section 3.3): pictures of at most 480 px at inference, more layers "gradually" in later stages; its Table 6 trains on
pictures about 20 % smaller than those of inference. It prints no coefficients. Those of ``TO_M`` and ``TO_L`` are
fitted to the published tables: one depth coefficient each gives the layers of the stages 1 to 4 and 6 of both; no one
width coefficient gives all channels, and ``M_CHANNELS`` and ``L_CHANNELS`` state those that ours does not give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from efficientnetv2.arch.scaling import round_channels, scale
from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError

MOST_PX = 480  # at inference: arXiv:2104.00298, section 3.3
# Of compound scaling: about a million times the multiply-adds. Ours; the largest EfficientNet published, L2, is 4.3 =
# 1.1**15.3 times as wide as B0 (arXiv:1911.04252).
MOST_PHI = 20
TRAIN_SHARE = 0.8  # "about 20 % smaller": Table 6 has 300 px for 384 (S) and 380 px for 480 (M, L)


@dataclass(frozen=True)
class Growth:
    """How much larger a network becomes.

    Args:
        width: times the channels of stem and stages, rounded to multiples of 8. The head stays, as in S, M and L.
        depth: times the layers of each stage, rounded up.
        px: times the side of the pictures at inference, of which there are at most ``MOST_PX``.
        more_layers: added to the last stages of the base after that; the last number is of the last stage.
        new_layers: of a stage that is added at the end, its operator that of the last one, its stride 1; 0 for none.
        new_width: its channels over those of the base's last stage.

    Raises:
        InputError: a coefficient below 1, or a negative number of layers.
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
                raise InputError(f"{name} is {value:g}, but a network grows: give 1 or more")
        for layers in (*self.more_layers, self.new_layers):
            if layers < 0:
                raise InputError(f"{layers} layers cannot be added: give 0 or more")


# Fitted, see above. The layers added to stage 5, and the seventh stage, are read off the published tables.
TO_M = Growth(width=1.08, depth=7 / 6, px=1.25, more_layers=(3, 0), new_layers=5, new_width=2.0)
TO_L = Growth(width=1.49, depth=5 / 3, px=1.25, more_layers=(4, 0), new_layers=7, new_width=2.5)
# Of the published M and L, by the number of the stage: what S and the coefficient do not give.
M_CHANNELS: Mapping[int, int] = MappingProxyType({3: 80, 4: 160, 6: 304})
L_CHANNELS: Mapping[int, int] = MappingProxyType({2: 64, 5: 224})


def compound(phi: float) -> Growth:
    """EfficientNet's compound scaling: each step of phi about doubles the multiply-adds.

    Args:
        phi: 0 changes nothing; at most ``MOST_PHI``.

    Raises:
        InputError: phi below 0, or so large that it can only be a mistake.

    Source: arXiv:1905.11946, section 3.3: 1.2, 1.1 and 1.15 to the power of phi for depth, width and size.
    """
    if not 0 <= phi <= MOST_PHI:
        raise InputError(
            f"phi is {phi:g}, but is from 0 to {MOST_PHI}: compound scaling makes larger networks, and each 1 of it "
            "about doubles the multiply-adds"
        )
    return Growth(width=1.1**phi, depth=1.2**phi, px=1.15**phi)


def growth_of(word: str) -> Growth:
    """A growth by a word: ``m``, ``l``, or a number, the phi of ``compound``.

    Raises:
        InputError: none of them.
    """
    named = {"m": TO_M, "l": TO_L}
    if word.lower() in named:
        return named[word.lower()]
    try:
        return compound(float(word))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"'{word}' is no way to grow: give m or l, which make of a network what became of EfficientNetV2-S, or "
            f"the phi of compound scaling, a number from 0 to {MOST_PHI}"
        ) from error


@dataclass(frozen=True)
class Grown:
    """A larger network, and the pictures it is for.

    Args:
        architecture: the table.
        eval_px: side of the pictures at inference.
        train_px: side of the largest ones in training; at least the network's stride.
    """

    architecture: Architecture
    eval_px: int
    train_px: int


def grow(
    base: Architecture, growth: Growth, *, eval_px: int, channels: Mapping[int, int] | None = None
) -> Grown:
    """A larger network by the paper's rules.

    Args:
        base: a found network, say.
        growth: how much larger: ``TO_M``, ``TO_L``, ``compound(phi)`` or one's own.
        eval_px: side of the base's pictures at inference.
        channels: of stages by their numbers, from 1, in place of those that the width coefficient gives.

    Raises:
        InputError: layers are added to more stages than there are, or channels are given of a stage that is not there.
    """
    if len(growth.more_layers) > len(base.stages):
        raise InputError(
            f"layers are added to {len(growth.more_layers)} stages, but the network has {len(base.stages)}"
        )
    scaled = scale(base, width=growth.width, depth=growth.depth, rounding="v2")
    stages = list(scaled.stages)
    for place, more in enumerate(reversed(growth.more_layers), 1):
        stages[-place] = replace(stages[-place], layers=stages[-place].layers + more)
    if growth.new_layers:
        wide = round_channels(growth.new_width * base.stages[-1].channels, rounding="v2")
        stages.append(replace(stages[-1], stride=1, channels=wide, layers=growth.new_layers))
    for number, wide in (channels or {}).items():
        if not 1 <= number <= len(stages):
            raise InputError(
                f"channels are given of stage {number}, but the grown network has {len(stages)} stages"
            )
        stages[number - 1] = replace(stages[number - 1], channels=wide)
    architecture = replace(scaled, stages=tuple(stages), head_channels=base.head_channels)
    larger_px = min(MOST_PX, round(growth.px * eval_px / 8) * 8)
    return Grown(architecture, larger_px, max(architecture.stride, training_px(larger_px)))


def training_px(eval_px: int) -> int:
    """Side of the largest pictures in training: 20 % below that of inference, down to a multiple of 20 where it can.

    Args:
        eval_px: of inference.

    Source: arXiv:2104.00298, Table 6, whose sizes of S, M and L this gives. The multiple of 20 is ours.
    """
    px = round(TRAIN_SHARE * eval_px, 6)
    return max(1, int(px // 20 * 20 if px >= 100 else px // 1))
