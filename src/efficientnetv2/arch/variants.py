"""Architectures made from others, block by block."""

from __future__ import annotations

from dataclasses import replace

from efficientnetv2.arch.spec import Architecture, Operator, fused
from efficientnetv2.base.errors import InputError


def with_fused(architecture: Architecture, *, stages: int, kernel: int | None = None) -> Architecture:
    """The same network, its first stages Fused-MBConv without squeeze-excite (the paper's Table 3).

    Args:
        architecture: to change.
        stages: how many of its first stages, 0 to all.
        kernel: of the fused blocks; None keeps each stage's own, which is what the paper's parameter counts are of.

    Raises:
        InputError: more stages than there are, or fewer than none.
    """
    there = len(architecture.stages)
    if not 0 <= stages <= there:
        raise InputError(f"stages is {stages}, but this network has {there} to fuse (0 to {there}).")

    def changed(operator: Operator) -> Operator:
        return fused(expand=operator.expand, kernel=kernel or operator.kernel)

    made = [
        replace(stage, operator=changed(stage.operator)) if index < stages else stage
        for index, stage in enumerate(architecture.stages)
    ]
    return replace(architecture, stages=tuple(made))
