"""The images of each training step: a pure function of the step, so that a resumed run draws the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from efficientnetv2.progressive.schedule import ProgressiveSchedule, StepPlan, StepSettings
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World
from efficientnetv2.utils.errors import InputError, short_repr
from efficientnetv2.utils.random_key import Floats, Key

#: How classes are balanced: ``equal`` draws all equally often, ``sqrt`` by the square root of their size, ``effective``
#: by their size over their effective number of images.
ClassSampling = Literal["sqrt", "effective", "equal"]

Ints = npt.NDArray[np.int64]

# beta of ``effective``: about min(n, 1 / (1 - beta)) of n images count in full. The paper compares 0.9, 0.99, 0.999 and
# 0.9999; this one suits classes of some hundred to some thousand images. Ours.
DEFAULT_BETA = 0.999


def effective_number(counts: npt.ArrayLike, beta: float = DEFAULT_BETA) -> Floats:
    """(K,) ``(1 - beta^n) / (1 - beta)``, since images overlap. Source: arXiv:1901.05555, equation 1."""
    number: Floats = (1 - beta ** np.asarray(counts, dtype=np.float64)) / (1 - beta)
    return number


def image_weights(counts: npt.ArrayLike, class_sampling: ClassSampling, beta: float = DEFAULT_BETA) -> Floats:
    """(K,) unscaled weight of one image of each class, 0 for a class without images.

    Source: ``effective`` is arXiv:1901.05555, equation 2; ``sqrt`` is as arXiv:1805.00932, section 2.2, draws hashtags.
    """
    number = np.asarray(counts, dtype=np.float64)
    size = {"equal": number, "sqrt": np.sqrt(number), "effective": effective_number(number, beta)}[class_sampling]
    weights: Floats = np.divide(1.0, size, out=np.zeros_like(size), where=number > 0)
    return weights


def class_fractions(
    counts: npt.ArrayLike,
    class_sampling: ClassSampling | None,
    beta: float = DEFAULT_BETA,
    sizes: npt.ArrayLike | None = None,
) -> Floats:
    """(K,) fraction of draws of each class. None draws in proportion to the (K,) counts.

    ``sizes`` (K,) are the sizes of the classes. With several labels per image, they count all labels, and ``counts``
    only the one that an image is drawn by: a common label is not rare where it stands alone. None takes ``counts``.
    """
    drawn = np.asarray(counts, dtype=np.float64)
    if class_sampling is not None:
        drawn = drawn * image_weights(counts if sizes is None else sizes, class_sampling, beta)
    fractions: Floats = drawn / drawn.sum()
    return fractions


def target_counts(
    counts: npt.ArrayLike, class_sampling: ClassSampling, *, fewer: bool = False, beta: float = DEFAULT_BETA
) -> Ints:
    """(K,) images of each class in a balanced dataset. ``fewer`` only removes images, otherwise copies are added."""
    number = np.asarray(counts, dtype=np.int64)
    present = number > 0
    drawn = class_fractions(number, class_sampling, beta)
    # Relative to the class that keeps its count: the rarest where images are removed, else the commonest.
    kept = int(np.where(present, number, number.max() + 1).argmin() if fewer else number.argmax())
    wanted = np.round(drawn / drawn[kept] * number[kept]).astype(np.int64)
    return np.where(present, np.minimum(wanted, number) if fewer else np.maximum(wanted, number), 0)


@dataclass(frozen=True)
class BatchRequest:
    """(n,) samples of one group of one step, and how often each had been drawn before in the run (``turns``)."""

    step: int
    group: int
    setting: StepSettings
    samples: Ints
    turns: Ints

    @property
    def ids(self) -> Ints:
        """(n,) draw ids, unique in the run. They key the crop, flip and other randomness of each image."""
        return (self.turns << 32) | self.samples


@dataclass(frozen=True)
class TrainSampler:
    """The requests of a whole run, from ``first_step`` on, for the groups of this process in ``world``.

    ``plan`` holds the steps of a run whose length may change; None takes ``steps``. ``sizes``: see ``class_fractions``.
    """

    labels: Ints
    progressive: ProgressiveSchedule
    steps: int
    batch_size: int
    ghost_batch_size: int
    class_sampling: ClassSampling | None
    key: Key
    first_step: int = 0
    world: World = SINGLE_PROCESS
    beta: float = DEFAULT_BETA
    plan: StepPlan | None = None
    sizes: Ints | None = None

    def __iter__(self) -> Iterator[BatchRequest]:
        count = len(self.labels)
        order = lru_cache(maxsize=2)(
            partial(epoch_order, self.labels, self.class_sampling, self.key, beta=self.beta, sizes=self.sizes)
        )
        plan, step = self.plan or StepPlan(self.steps), self.first_step
        while step < plan.steps:
            plan.requested = max(plan.requested, step + 1)
            setting = self.progressive.at(plan.scheduled_step(step), total_steps=self.steps)
            for group in self.world.groups(self.batch_size // self.ghost_batch_size):
                first = step * self.batch_size + group * self.ghost_batch_size
                epochs, places = np.divmod(np.arange(first, first + self.ghost_batch_size), count)
                drawn = [order(int(epoch))[:, places[epochs == epoch]] for epoch in np.unique(epochs)]
                samples, turns = np.concatenate(drawn, axis=1)
                yield BatchRequest(step, group, setting, samples, turns)
            step += 1

    def __len__(self) -> int:
        steps = self.steps if self.plan is None else self.plan.steps
        return (steps - self.first_step) * len(self.world.groups(self.batch_size // self.ghost_batch_size))


def epoch_order(
    labels: Ints,
    class_sampling: ClassSampling | None,
    key: Key,
    epoch: int,
    *,
    beta: float = DEFAULT_BETA,
    sizes: Ints | None = None,
) -> Ints:
    """The samples of one epoch: (2, N), indices into (N,) labels and how often each had been drawn before.

    Balanced, each class fills its quota from its own stream of permutations, which runs on from epoch to epoch, and
    classes are spread evenly over the epoch.
    """
    if class_sampling is None:
        shuffled = key.fold("order", epoch).generator().permutation(len(labels))
        return np.stack([shuffled, np.full_like(shuffled, epoch)])
    parts, places = [], []
    counts = np.bincount(labels, minlength=0 if sizes is None else len(sizes))
    exact = class_fractions(counts, class_sampling, beta, sizes) * counts.sum()
    quotas: Ints = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(quotas - exact, kind="stable")[: counts.sum() - quotas.sum()]
    quotas[largest_remainders] += 1
    for cls, (quota, members) in enumerate(zip(quotas, class_members(labels, len(counts)), strict=True)):
        if quota == 0:
            continue
        turns, within = np.divmod(np.arange(epoch * quota, (epoch + 1) * quota), len(members))
        starts = np.flatnonzero(np.diff(turns, prepend=-1))
        for turn, here in zip(turns[starts], np.split(within, starts[1:]), strict=True):
            chosen = key.fold("order of class", cls, int(turn)).generator().permutation(members)[here]
            parts.append(np.stack([chosen, np.full_like(chosen, turn)]))
        jitter = key.fold("deal", cls, epoch).generator().random(quota)
        places.append((np.arange(quota) + jitter) / quota)
    order: Ints = np.concatenate(parts, axis=1)[:, np.argsort(np.concatenate(places), kind="stable")]
    return order


def class_members(labels: Ints, classes: int) -> list[Ints]:
    """Ascending indices of each of the classes, in one pass over the (N,) labels."""
    ends = np.cumsum(np.bincount(labels, minlength=classes))[:-1]
    return np.split(np.argsort(labels, kind="stable"), ends)


def rank_in_class(labels: Ints) -> Ints:
    """(N,) number of images with the same label that come before each image."""
    order = np.argsort(labels, kind="stable")
    _, firsts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(firsts, counts)
    return rank


class ProgressiveBatchSampler(Sampler[list[tuple[int, StepSettings]]]):
    """The batches of a whole run, one per step. Each index comes with the setting of its step.

    Example::

        import efficientnetv2 as ev2

        schedule = ev2.ProgressiveSchedule(stages=2, image_size=ev2.Ramp(128, 224))
        sampler = ev2.ProgressiveBatchSampler(1_000, batch_size=32, progressive=schedule, steps=300)
        index, setting = next(iter(sampler))[0]
        setting.image_size  # 128

    ``DataLoader(images, batch_sampler=sampler)`` calls ``images[index, setting]``. The dataset makes the image at the
    size of the setting and returns the setting, so that the loop can apply it to the model (``apply_regularization``).
    Batches depend only on step and seed, so that a run may resume. ``examples/loops/`` has whole examples for a plain
    loop, Lightning and Hugging Face's Trainer.

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
        if not isinstance(progressive, ProgressiveSchedule):
            raise InputError(
                f"`progressive` is {short_repr(progressive)}, but must be a ProgressiveSchedule. Make one, or use "
                "paper_schedule('efficientnetv2_s')."
            )
        counts = {"images": images, "batch_size": batch_size, "accumulate": accumulate, "steps": steps}
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int | np.integer):
                raise InputError(f"`{name}` is {short_repr(count)}, but must be a whole number.")
            if count < 1:
                raise InputError(f"`{name}` is {count}, but must be at least 1.")
        if not 0 <= rank < world:
            raise InputError(f"`rank` is {rank} and `world` is {world}, but ranks go from 0 to world - 1.")
        if batch_size % (world * accumulate):
            raise InputError(
                f"`batch_size` is {batch_size}, but {world} processes and {accumulate} micro-batches share it. Use a "
                f"multiple of {world * accumulate}."
            )
        progressive.at(0, total_steps=steps)  # refuses stages that do not fit into the steps
        if not 0 <= first_step <= steps:
            raise InputError(f"`first_step` is {first_step}, but must be from 0 to {steps}.")
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
