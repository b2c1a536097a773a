"""Progressive learning in a training loop of one's own: a batch sampler for any ``DataLoader``.

The setting of a step has to reach the data set, which makes the picture of that size, and the network,
whose dropout grows with it. So each index comes with its setting::

    batches = ProgressiveBatches(len(photos), batch_images=32, progressive=plan, steps=1_000)
    loader = DataLoader(photos, batch_sampler=batches, num_workers=4)  # photos[index, setting]

Several processes, as of ``torchrun``, share each step: give ``rank`` and ``world``. Whole examples, for a plain loop,
Lightning and Hugging Face's Trainer: ``examples/loops/``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from efficientnetv2.data.sampler import epoch_order
from efficientnetv2.progressive.schedule import Progressive, Setting
from efficientnetv2.utils.errors import InputError, count_of
from efficientnetv2.utils.rng import Key


class ProgressiveBatches(Sampler[list[tuple[int, Setting]]]):
    """The batches of a whole run, one per step, each index with the setting of its step.

    Every picture is drawn once an epoch; epochs need not end with a batch. What a step gets depends on its
    number and the seed alone, so a run goes on with ``first_step`` as if it had never stopped, and worker
    processes may read ahead: the setting travels with the index. Let the data set hand it on, so that the network is
    set as the pictures are made, whatever the loop counts.

    Args:
        images: in the data set.
        batch_images: per step, of all processes and micro-batches together; a multiple of ``world * accumulate``.
        progressive: the schedule.
        steps: of the optimizer, in the whole run.
        seed: of the order.
        first_step: where to begin; 0 where the loop itself skips what it had (Hugging Face's Trainer does). ``steps``
            where nothing is left to do, and there are no batches: so it is asked for when a run that has come to its
            end is gone on with.
        rank, world: this process's number and how many there are; it gets every ``world``-th picture of each step.
        accumulate: micro-batches that a step's pictures come in, where gradients are summed over several before the
            optimizer steps. They share the step's setting.

    Raises:
        InputError: no pictures, no steps, a batch below 1 or that processes and micro-batches cannot share evenly, a
            rank that there is not, fewer than 1 micro-batch, a first step outside the run, or more stages than steps in
            growing order.
    """

    def __init__(
        self,
        images: int,
        *,
        batch_images: int,
        progressive: Progressive,
        steps: int,
        seed: int = 0,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        if images < 1:
            raise InputError(
                f"images is {images}: there is nothing to draw from. Look at the data set's length."
            )
        if batch_images < 1:
            raise InputError(f"batch_images is {batch_images}, but a step has at least 1 picture.")
        if not 0 <= rank < world:
            raise InputError(f"rank is {rank} and world is {world}, but ranks go from 0 to world - 1.")
        if accumulate < 1:
            raise InputError(f"accumulate is {accumulate}, but a step has at least 1 micro-batch.")
        if batch_images % (world * accumulate):
            sharers = {"processes": world, "micro-batches": accumulate}
            said = " and ".join(f"{number} {noun}" for noun, number in sharers.items() if number > 1)
            raise InputError(
                f"batch_images is {batch_images}, but {said} share each step evenly. "
                f"Take a multiple of {world * accumulate}."
            )
        if steps < 1:
            raise InputError(
                f"steps is {steps}, but a run has at least 1. Give the number of the optimizer's steps: epochs * "
                "images / batch_images. A trainer that was given epochs alone does not know it; give it max_steps."
            )
        progressive.at(0, steps=steps)  # refuses stages that do not fit into the steps
        if not 0 <= first_step <= steps:
            raise InputError(
                f"first_step is {first_step}, but the run has {count_of(steps, 'step')}: begin at 0 to {steps}, or "
                "give more steps."
            )
        self.images, self.batch_images, self.steps = images, batch_images, steps
        self.progressive, self.seed, self.first_step = progressive, seed, first_step
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __iter__(self) -> Iterator[list[tuple[int, Setting]]]:
        labels, key = np.zeros(self.images, dtype=np.int64), Key.of(self.seed)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        micro_images = self.batch_images // self.accumulate
        for micro in range(self.first_step * self.accumulate, self.steps * self.accumulate):
            setting = self.progressive.at(micro // self.accumulate, steps=self.steps)
            batch, begin = [], micro * micro_images
            for place in range(begin + self.rank, begin + micro_images, self.world):
                if place // self.images != epoch:
                    epoch = place // self.images
                    order = epoch_order(labels, None, key, epoch)[0]
                batch.append((int(order[place % self.images]), setting))
            yield batch

    def __len__(self) -> int:
        """Micro-batches of the whole run, wherever it begins: a loop that goes on counts from the run's beginning."""
        return self.accumulate * self.steps
