"""Ready-made search spaces: the paper's, one around any architecture, and a small one for CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from efficientnetv2.architectures.registry import EFFICIENTNETV2_B0, get_architecture, round_channels, scale
from efficientnetv2.architectures.spec import Architecture, Stage
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import SE, StageChoices, default_se
from efficientnetv2.utils.errors import InputError

# Source: arXiv:2104.00298, section 3.3.
KERNELS = (3, 5)
EXPANDS = (1, 4, 6)


def paper() -> Space:
    """The paper's space: around EfficientNet-B4, whose channels and strides its architectures keep.

    Source: arXiv:2104.00298, section 3.3. The numbers of layers to choose from are not published: see `around`.
    """
    return around(get_architecture("efficientnet_b4"))


def around(
    backbone: Architecture,
    *,
    widths: Sequence[float] = (1.0,),
    choose_se: bool = False,
    removable: bool = True,
) -> Space:
    """The paper's choices around the channels and strides of any architecture, which is in the space too.

    Each stage chooses MBConv or Fused-MBConv, kernel 3 or 5, expansion 1, 4 or 6, and from 1 to twice the backbone's
    layers (ours: with EfficientNet-B4 this includes EfficientNetV2-S).

    Args:
        backbone: Gives stem, head, channels and strides.
        widths: Multiples of the backbone's channels, rounded to multiples of 8. 1 is always included.
        choose_se: Choose squeeze-excite per stage too. Otherwise MBConv has it and Fused-MBConv does not.
        removable: Let the last of adjacent stages of stride 1 be removed.

    Raises:
        InputError: A width that is not a positive number.
    """
    for width in widths:
        if not (math.isfinite(width) and width > 0):
            raise InputError(
                f"a width is {width:g}, but must be above 0: a multiple of the backbone's channels"
            )
    strides = [stage.stride for stage in backbone.stages]
    is_last = [
        stride == 1 and after != 1 for stride, after in zip(strides, [*strides[1:], None], strict=True)
    ]
    removable = removable and sum(is_last) < len(strides)  # A single stage has to stay.
    return Space(
        backbone,
        tuple(
            _choices(stage, widths=widths, choose_se=choose_se, removable=removable and last)
            for stage, last in zip(backbone.stages, is_last, strict=True)
        ),
    )


def _choices(stage: Stage, *, widths: Sequence[float], choose_se: bool, removable: bool) -> StageChoices:
    operator = stage.operator
    channels = {round_channels(width * stage.channels, rounding="v2") for width in widths if width != 1}
    choose_se = choose_se or operator.se != default_se(operator.kind)
    return StageChoices(
        channels=tuple(sorted({*channels, stage.channels})),
        layers=tuple(range(0 if removable else 1, 2 * stage.layers + 1)),
        kernels=tuple(sorted({*KERNELS, operator.kernel})),
        expands=tuple(sorted({*EXPANDS, operator.expand})),
        se=(None, operator.se or SE) if choose_se else "by kind",
    )


def small() -> Space:
    """A space for tiny budgets: architectures for images of 64 px that a CPU trains in seconds.

    Around `small_b0`. Decides what matters most at that size: at 64 px the last feature maps are 2 x 2, where a kernel
    of 5 sees no more than one of 3. Ours.
    """
    return Space(
        small_b0(),
        (
            StageChoices(channels=(8,), layers=(1,), kinds=("fused",), kernels=(3,), expands=(1,)),
            StageChoices(channels=(16,), layers=(1, 2), kernels=(3,), expands=(1, 4)),
            StageChoices(channels=(24,), layers=(1, 2), kernels=KERNELS, expands=(1, 4)),
            StageChoices(channels=(48,), layers=(1, 2), kernels=(3,), expands=(1, 4)),
            StageChoices(channels=(56,), layers=(0, 1, 3), kernels=(3,), expands=(1, 6)),
            StageChoices(channels=(96,), layers=(2, 4), kernels=(3,), expands=(1, 6)),
        ),
    )


def small_b0() -> Architecture:
    """EfficientNetV2-B0 at half its width and depth: the backbone of `small`."""
    return scale(EFFICIENTNETV2_B0, width=0.5, depth=0.5, rounding="v2")
