"""Spaces that are ready: the paper's, one around any network, a small one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from efficientnetv2.architectures.registry import EFFICIENTNETV2_B0, get_architecture, round_channels, scale
from efficientnetv2.architectures.spec import Architecture, Stage
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import SE, StageChoices, se_of
from efficientnetv2.utils.errors import InputError

# arXiv:2104.00298, section 3.3.
KERNELS = (3, 5)
EXPANDS = (1, 4, 6)


def paper() -> Space:
    """The space of the EfficientNetV2 paper: around EfficientNet-B4, whose channels and strides its networks keep.

    Source: arXiv:2104.00298, section 3.3. Which numbers of layers it chose from is not published: see ``around``.
    """
    return around(get_architecture("efficientnet_b4"))


def around(
    backbone: Architecture,
    *,
    widths: Sequence[float] = (1.0,),
    choose_se: bool = False,
    removable: bool = True,
) -> Space:
    """The paper's choices around the channels and strides of any network, which is one of the space.

    Per stage: MBConv or Fused-MBConv, kernel 3 or 5, expansion 1, 4 or 6, and every number of layers from 1 to twice
    the backbone's (ours: with EfficientNet-B4 for a backbone that holds the layers of EfficientNetV2-S); what the
    backbone itself has besides is added to its stage.

    Args:
        backbone: gives stem, head, channels and strides.
        widths: of each stage's channels, times the backbone's, rounded to multiples of 8; 1 is always among them.
        choose_se: whether squeeze-excite is a decision of each stage too; else MBConv has it and Fused-MBConv not.
        removable: whether stages with stride 1 may be removed, of several in a row the last.

    Raises:
        InputError: a width that is not a positive number.
    """
    for width in widths:
        if not (math.isfinite(width) and width > 0):
            raise InputError(f"a width is {width:g}, but is a number above 0, times the backbone's channels")
    strides = [stage.stride for stage in backbone.stages]
    last = [stride == 1 and after != 1 for stride, after in zip(strides, [*strides[1:], None], strict=True)]
    if sum(last) == len(strides):  # a single stage, which has to stay
        removable = False
    stages = (
        _choices(stage, widths=widths, choose_se=choose_se, removable=removable and may)
        for stage, may in zip(backbone.stages, last, strict=True)
    )
    return Space(backbone, tuple(stages))


def small() -> Space:
    """A space for tiny budgets: networks for pictures of 64 px that a CPU trains in seconds.

    Around V2-B0 at half its width and half its depth (``small_b0``), with what the paper decides where it matters
    most at that size: at 64 px the last stage's maps are 2 x 2, where a kernel of 5 sees no more than one of 3.
    Ours.
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
    """EfficientNetV2-B0 at half its width and depth: the backbone of ``small``."""
    return scale(EFFICIENTNETV2_B0, width=0.5, depth=0.5, rounding="v2")


def _choices(stage: Stage, *, widths: Sequence[float], choose_se: bool, removable: bool) -> StageChoices:
    operator = stage.operator
    wide = {round_channels(width * stage.channels, rounding="v2") for width in widths if width != 1}
    unusual = operator.se != se_of(operator.kind)
    return StageChoices(
        channels=tuple(sorted({*wide, stage.channels})),
        layers=tuple(range(0 if removable else 1, 2 * stage.layers + 1)),
        kernels=tuple(sorted({*KERNELS, operator.kernel})),
        expands=tuple(sorted({*EXPANDS, operator.expand})),
        se=(None, operator.se or SE) if choose_se or unusual else "by kind",
    )
