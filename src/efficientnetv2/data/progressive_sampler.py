"""A batch sampler for progressive learning with any ``DataLoader`` and training loop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from efficientnetv2.data.sampler import epoch_order
from efficientnetv2.progressive.schedule import ProgressiveSchedule, StepSettings
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.rng import Key


class ProgressiveBatchSampler(Sampler[list[tuple[int, StepSettings]]]):
    """The batches of a whole run, one per step. Each index comes with the setting of its step.

    ::

        sampler = ProgressiveBatchSampler(len(photos), batch_size=32, progressive=plan, steps=1_000)
        loader = DataLoader(photos, batch_sampler=sampler, num_workers=4)  # calls photos[index, setting]

    The dataset makes the image at the size of the setting and returns the setting, so that the loop can apply it to the
    model (``apply_regularization``). Batches depend only on step and seed, so that a run may resume.
    ``examples/loops/`` has whole examples for a plain loop, Lightning and Hugging Face's Trainer.

    Args:
        images: Number of images in the dataset.
        batch_size: Images per step, in all processes and micro-batches. A multiple of ``world * accumulate``.
        progressive: Schedule.
        steps: Optimizer steps of the whole run.
        seed: Seed of the order.
        first_step: Step to resume from. 0 where the loop itself skips batches (Hugging Face's Trainer).
        rank: Index of this process, which gets every ``world``-th image of each step.
        world: Number of processes, as of ``torchrun``.
        accumulate: Micro-batches per step, where gradients are accumulated. They share one setting.

    Raises:
        InputError: A value is out of range, or the schedule has more stages than steps.
    """

    def __init__(
        self,
        images: int,
        *,
        batch_size: int,
        progressive: ProgressiveSchedule,
        steps: int,
        seed: int = 0,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        counts = {"images": images, "batch_size": batch_size, "accumulate": accumulate, "steps": steps}
        if low := next((name for name, count in counts.items() if count < 1), None):
            fix = " Give the trainer max_steps, and pass it." if low == "steps" else ""
            raise InputError(f"{low} is {counts[low]}, but must be at least 1.{fix}")
        if not 0 <= rank < world:
            raise InputError(f"rank is {rank} and world is {world}, but ranks go from 0 to world - 1.")
        if batch_size % (world * accumulate):
            raise InputError(
                f"batch_size is {batch_size}, but {world} processes and {accumulate} micro-batches share each step "
                f"evenly. Take a multiple of {world * accumulate}."
            )
        progressive.at(0, total_steps=steps)  # refuses stages that do not fit into the steps
        if not 0 <= first_step <= steps:
            raise InputError(
                f"first_step is {first_step}, but the run has {pluralize(steps, 'step')}: begin at 0 to {steps}, or "
                "give more steps."
            )
        self.images, self.batch_size, self.steps = images, batch_size, steps
        self.progressive, self.seed, self.first_step = progressive, seed, first_step
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __iter__(self) -> Iterator[list[tuple[int, StepSettings]]]:
        labels, key = np.zeros(self.images, dtype=np.int64), Key.of(self.seed)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        micro_images = self.batch_size // self.accumulate
        for micro in range(self.first_step * self.accumulate, self.steps * self.accumulate):
            setting = self.progressive.at(micro // self.accumulate, total_steps=self.steps)
            batch, start = [], micro * micro_images
            for place in range(start + self.rank, start + micro_images, self.world):
                if place // self.images != epoch:
                    epoch = place // self.images
                    order = epoch_order(labels, None, key, epoch)[0]
                batch.append((int(order[place % self.images]), setting))
            yield batch

    def __len__(self) -> int:
        """Micro-batches of the whole run from step 0: resuming loops count from there."""
        return self.accumulate * self.steps
