"""Progressive learning in a training loop of one's own: a batch sampler for any ``DataLoader``.

The setting of a step has to reach the data set, which makes the picture of that size, and the network,
whose dropout grows with it. So each index comes with its setting::

    batches = ProgressiveBatches(len(photos), batch_images=32, progressive=plan, steps=1_000)
    loader = DataLoader(photos, batch_sampler=batches, num_workers=4)  # photos[index, setting]

Whole examples, for a plain loop, Lightning and Hugging Face's Trainer: ``examples/loops/``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.keys import Key
from efficientnetv2.data.sampling import epoch_order
from efficientnetv2.progressive import Progressive, Setting


class ProgressiveBatches(Sampler[list[tuple[int, Setting]]]):
    """The batches of a whole run, one per step, each index with the setting of its step.

    Every picture is drawn once an epoch; epochs need not end with a batch. What a step gets depends on its
    number and the seed alone, so a run goes on with ``first_step`` as if it had never stopped, and worker
    processes may read ahead: the setting travels with the index.

    Args:
        images: in the data set.
        batch_images: per step.
        progressive: the schedule.
        steps: of the whole run.
        seed: of the order.
        first_step: where to begin.

    Raises:
        InputError: no pictures, a batch below 1, a first step outside the run, or more stages than steps.
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
    ) -> None:
        if images < 1:
            raise InputError(
                f"images is {images}: there is nothing to draw from. Look at the data set's length."
            )
        if batch_images < 1:
            raise InputError(f"batch_images is {batch_images}, but a step has at least 1 picture.")
        progressive.at(first_step, steps=steps)  # refuses a step outside the run
        self.images, self.batch_images, self.steps = images, batch_images, steps
        self.progressive, self.seed, self.first_step = progressive, seed, first_step

    def __iter__(self) -> Iterator[list[tuple[int, Setting]]]:
        labels, key = np.zeros(self.images, dtype=np.int64), Key.of(self.seed)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.first_step, self.steps):
            setting = self.progressive.at(step, steps=self.steps)
            batch = []
            for place in range(step * self.batch_images, (step + 1) * self.batch_images):
                if place // self.images != epoch:
                    epoch = place // self.images
                    order = epoch_order(labels, None, key, epoch)[0]
                batch.append((int(order[place % self.images]), setting))
            yield batch

    def __len__(self) -> int:
        """Steps from ``first_step`` to the end."""
        return self.steps - self.first_step
