"""How long the pieces of a run take, as numbers: measured in ``training.rates``, added up in ``training.plan``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class StepRate:
    """Steps of one picture size.

    Args:
        image_px: side of the pictures.
        begin_s: that the first step takes longer than those that follow.
        each_s: of a step of the whole batch.
        memory_bytes: the most in use meanwhile, all that the process takes included.
    """

    image_px: int
    begin_s: float
    each_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Rate:
    """Answers to pictures, or files written.

    Args:
        begin_s: before the first of them, or that the first takes longer.
        each_s: for each.
    """

    begin_s: float
    each_s: float

    def seconds(self, number: int) -> float:
        """For so many."""
        return self.begin_s + self.each_s * number if number else 0.0


@dataclass(frozen=True)
class Rates:
    """What the pieces of a run take.

    Args:
        compile_s: to compile the network for every stage; about 0 where the recipe does not.
        steps: one for each size, growing.
        curve: answers for a point of the validation curve.
        answers: final ones, with all views.
        checkpoints: written, one after the other.
        checkpoint_bytes: of one.
        model_s: to write the model file.
        model_bytes: of it.
    """

    compile_s: float
    steps: tuple[StepRate, ...]
    curve: Rate
    answers: Rate
    checkpoints: Rate
    checkpoint_bytes: int
    model_s: float
    model_bytes: int

    def step_s(self, image_px: float) -> float:
        """Of a step at any size; between those that were measured, in proportion to the pixels."""
        pixels = [rate.image_px**2 for rate in self.steps]
        return float(np.interp(image_px**2, pixels, [rate.each_s for rate in self.steps]))

    def of_sizes(self, sizes: Sequence[int]) -> Rates:
        """The same with a rate for each of some sizes; below the smallest measured size in proportion to the pixels.

        Args:
            sizes: Image sizes in pixels.
        """
        least = self.steps[0]

        def rate(px: int) -> StepRate:
            known = next((one for one in self.steps if one.image_px >= px), self.steps[-1])
            if px >= least.image_px:
                return replace(known, image_px=px, each_s=self.step_s(px))
            return replace(least, image_px=px, each_s=least.each_s * (px / least.image_px) ** 2)

        return replace(self, steps=tuple(rate(px) for px in sorted(set(sizes))))

    def shared(self, processes: int, groups: int) -> Rates:
        """The same for processes that share steps and answers.

        What begins them, compiling included, each does for itself at the same time; files are written by one alone.

        Args:
            processes: at least 1, each as fast as the one that was measured.
            groups: of a step, which are dealt whole: the process that has most of them ends it.
        """
        most = math.ceil(groups / processes)

        def answered(rate: Rate) -> Rate:
            return replace(rate, each_s=rate.each_s / processes)

        steps = tuple(replace(rate, each_s=rate.each_s * most / groups) for rate in self.steps)
        return replace(self, steps=steps, curve=answered(self.curve), answers=answered(self.answers))
