"""Compound scaling: a wider and deeper network from a base table."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from efficientnetv2.arch.spec import Architecture
from efficientnetv2.base.errors import InputError

Rounding = Literal["v1", "v2"]


def round_channels(channels: float, *, rounding: Rounding) -> int:
    """The multiple of 8 nearest to a scaled channel count, at least 8.

    Args:
        channels: the base table's channels times the width coefficient, > 0.
        rounding: ``v2`` rounds to the nearest (halves up); ``v1`` takes the next multiple where that
            would lose more than a tenth.

    Source: google/automl, efficientnetv2 (``v2``) and tensorflow/tpu, efficientnet (``v1``).
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    if rounding == "v1" and rounded < 0.9 * channels:
        rounded += 8
    return rounded


def scale(base: Architecture, *, width: float, depth: float, rounding: Rounding) -> Architecture:
    """A base table times two coefficients.

    Args:
        base: the table to scale.
        width: of the channels of stem, stages and head; > 0.
        depth: of the layers of each stage, rounded up; > 0.
        rounding: of the channels, see ``round_channels``.

    Raises:
        InputError: a coefficient is not a positive number.

    Source: arXiv:1905.11946, section 3.3; roundings as the released code.
    """
    for name, value in (("width", width), ("depth", depth)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value:g}, but a scaling coefficient is finite and above 0")

    def wide(channels: int) -> int:
        return round_channels(channels * width, rounding=rounding)

    def deep(layers: int) -> int:
        # 2.2 * 25 is 55.00000000000001: the noise of floating point must not add a layer.
        return math.ceil(round(layers * depth, 9))

    stages = (
        replace(stage, channels=wide(stage.channels), layers=deep(stage.layers)) for stage in base.stages
    )
    return replace(
        base,
        stem_channels=wide(base.stem_channels),
        stages=tuple(stages),
        head_channels=wide(base.head_channels),
    )
