"""The length of a run in steps, and the steps at which something is due: a stage ends, a validation, a log row."""

from __future__ import annotations

from dataclasses import dataclass

from efficientnetv2.training.recipe import Recipe

# Log rows in a run: enough for a curve, few enough that reading the loss costs nothing. Ours.
_LOG_ROWS = 200


@dataclass(frozen=True)
class RunLength:
    """Number of steps of a run, and of an epoch, which need not end with a step."""

    steps: int
    steps_per_epoch: float

    @classmethod
    def of(cls, recipe: Recipe, images: int) -> RunLength:
        """Length of a resolved recipe on a number of training images."""
        steps = max(1, round(float(recipe.epochs) * images / recipe.batch_size))
        return cls(steps, images / recipe.batch_size)


def stage_ends(recipe: Recipe, length: RunLength) -> list[int]:
    """The steps after which a stage ends, in order; the last is the run's end."""
    ends: list[int] = []
    while not ends or ends[-1] < length.steps:
        ends.append(recipe.progressive.stage_end(ends[-1] if ends else 0, total_steps=length.steps))
    return ends


def validation_steps(recipe: Recipe, length: RunLength) -> frozenset[int]:
    """The steps before a validation: each stage's end, and every ``val_interval_epochs`` unless a stage ends near.

    Near is within half an interval after the step, or a tenth before it. Ours.
    """
    every = max(1, round(recipe.val_interval_epochs * length.steps_per_epoch))
    ends = stage_ends(recipe, length)
    between = range(every, length.steps, every)
    near = {step for step in between for end in ends if -every / 10 < end - step < every / 2}
    return frozenset(ends) | frozenset(between) - near


def log_steps(recipe: Recipe, length: RunLength) -> frozenset[int]:
    """The steps before a log row: evenly spaced, and each stage's end."""
    every = max(1, length.steps // _LOG_ROWS)
    return frozenset(range(every, length.steps + 1, every)) | frozenset(stage_ends(recipe, length))
