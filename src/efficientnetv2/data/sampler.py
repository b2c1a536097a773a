"""Which pictures each step gets: the sampler, a pure function of the step.

A run reads one endless stream of samples, epoch after epoch, and cuts it into steps of
``batch_images`` and groups of ``group_images``. Epoch ends need not meet step ends, so no picture is
dropped; unbalanced, each is seen once an epoch. Whoever asks for step 1,000 gets the same pictures as a
run that arrived there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from efficientnetv2.progressive.schedule import Progressive, Setting
from efficientnetv2.progressive.step_plan import StepPlan
from efficientnetv2.utils.rng import Key

#: How strongly rare classes are brought forward: ``equal`` until all count alike, ``sqrt`` half of the way on a scale
#: of ratios, ``effective`` by the effective number of pictures.
Balance = Literal["sqrt", "effective", "equal"]
Floats = npt.NDArray[np.float64]

# Of ``effective``: with n pictures of a class, about min(n, 1 / (1 - beta)) count in full. Of the values that the
# paper compares (0.9, 0.99, 0.999, 0.9999) the one for classes of some hundred to some thousand pictures. Ours.
BETA = 0.999


def effective_number(counts: npt.ArrayLike, beta: float = BETA) -> Floats:
    """How many pictures those of a class are worth, since each further one overlaps with what is there.

    Args:
        counts: (K,) pictures of each class.
        beta: 0 lets each class count as one picture, towards 1 all pictures count.

    Returns:
        (K,) ``(1 - beta^n) / (1 - beta)``.

    Source: arXiv:1901.05555, equation 1 (proposition 1).
    """
    number: Floats = (1 - beta ** np.asarray(counts, dtype=np.float64)) / (1 - beta)
    return number


def image_weights(counts: npt.ArrayLike, balance: Balance, beta: float = BETA) -> Floats:
    """How much one picture of each class counts, before any scale: (K,), 0 for a class without pictures.

    Args:
        counts: (K,) pictures of each class.
        balance: see there.
        beta: of ``effective``.

    Source: ``effective`` is arXiv:1901.05555, equation 2; ``equal`` is its limit for beta towards 1, the inverse of the
        number; ``sqrt`` the inverse of its root, as arXiv:1805.00932, section 2.2, draws hashtags.
    """
    number = np.asarray(counts, dtype=np.float64)
    worth = {"equal": number, "sqrt": np.sqrt(number), "effective": effective_number(number, beta)}[balance]
    each: Floats = np.divide(1.0, worth, out=np.zeros_like(worth), where=number > 0)
    return each


def class_fractions(counts: npt.ArrayLike, balance: Balance | None, beta: float = BETA) -> Floats:
    """How often each class is drawn, as shares that sum to 1.

    Args:
        counts: (K,) pictures of each class, not all 0.
        balance: None draws as many as there are.
        beta: of ``effective``.
    """
    drawn = np.asarray(counts, dtype=np.float64)
    if balance is not None:
        drawn = drawn * image_weights(counts, balance, beta)
    shares: Floats = drawn / drawn.sum()
    return shares


def target_counts(
    counts: npt.ArrayLike, balance: Balance, *, fewer: bool = False, beta: float = BETA
) -> npt.NDArray[np.int64]:
    """How many pictures of each class a balanced set has.

    Args:
        counts: (K,) pictures of each class.
        balance: in which proportions.
        fewer: none is added, frequent classes have some left out; else none is left out, rare ones get copies.
        beta: of ``effective``.
    """
    number = np.asarray(counts, dtype=np.int64)
    there = number > 0
    drawn = class_fractions(number, balance, beta)
    # As shares of the class that keeps its number: the rarest if none is added, else the commonest.
    keeps = int(np.where(there, number, number.max() + 1).argmin() if fewer else number.argmax())
    wanted = np.round(drawn / drawn[keeps] * number[keeps]).astype(np.int64)
    return np.where(there, np.minimum(wanted, number) if fewer else np.maximum(wanted, number), 0)


Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchRequest:
    """What a worker is asked for: the pictures of one group of one step, and the setting they meet.

    Args:
        step: of the run.
        group: of the step, from 0.
        setting: that holds at this step.
        samples: (n,) positions in the training dataset.
        turns: (n,) how often each had been drawn before in the run; unbalanced, that is the epoch.
    """

    step: int
    group: int
    setting: Setting
    samples: Ids
    turns: Ids

    @property
    def ids(self) -> Ids:
        """(n,) the draw id of each picture, never the same twice: what its crop, flip and all else are drawn by."""
        return (self.turns << 32) | self.samples


@dataclass(frozen=True)
class Sampler:
    """The requests of a whole run, from any step on.

    Args:
        labels: (N,) class ids of the training pictures.
        progressive: the schedule of settings.
        steps: of the whole run, as the recipe has it.
        batch_images: pictures a step.
        group_images: pictures a group; divides ``batch_images``.
        balance: None draws every picture once an epoch; ``equal`` draws every class equally often,
            ``sqrt`` in proportion to the square root of its size, ``effective`` in proportion to its size over its
            effective number of pictures; see ``data.sampler``.
        key: of the run.
        first_step: where to begin.
        rank, world: this process's number and how many there are; it gets every ``world``-th group.
        beta: of ``effective``.
        plan: Steps of the run where their number may change. None takes ``steps``.
    """

    labels: npt.NDArray[np.int64]
    progressive: Progressive
    steps: int
    batch_images: int
    group_images: int
    balance: Balance | None
    key: Key
    first_step: int = 0
    rank: int = 0
    world: int = 1
    beta: float = BETA
    plan: StepPlan | None = None

    def __iter__(self) -> Iterator[BatchRequest]:
        """Requests in the order of the run: step by step, this rank's groups of each."""
        count = len(self.labels)
        order = lru_cache(maxsize=2)(
            lambda epoch: epoch_order(self.labels, self.balance, self.key, epoch, beta=self.beta)
        )
        plan, step = self.plan or StepPlan(self.steps), self.first_step
        while step < plan.steps:
            plan.requested = max(plan.requested, step + 1)
            setting = self.progressive.at(plan.scheduled_step(step), steps=self.steps)
            for group in range(self.rank, self.batch_images // self.group_images, self.world):
                first = step * self.batch_images + group * self.group_images
                epochs, places = np.divmod(np.arange(first, first + self.group_images), count)
                drawn = [order(int(epoch))[:, places[epochs == epoch]] for epoch in np.unique(epochs)]
                samples, turns = np.concatenate(drawn, axis=1)
                yield BatchRequest(step, group, setting, samples, turns)
            step += 1

    def __len__(self) -> int:
        """Number of requests that ``__iter__`` gives."""
        groups = len(range(self.rank, self.batch_images // self.group_images, self.world))
        steps = self.steps if self.plan is None else self.plan.steps
        return (steps - self.first_step) * groups


def epoch_order(
    labels: npt.NDArray[np.int64], balance: Balance | None, key: Key, epoch: int, *, beta: float = BETA
) -> Ids:
    """The samples of one epoch, in order.

    Unbalanced, a permutation. Balanced, each class fills its quota from a stream of its own
    permutations that runs on from epoch to epoch, so that within a class every picture is seen equally
    often; and classes are dealt evenly over the epoch, so that every batch is balanced.

    Args:
        labels: (N,) class ids, 0 to K-1.
        balance: see ``Sampler``.
        key: of the run.
        epoch: from 0.
        beta: see ``Sampler``.

    Returns:
        (2, N): positions in ``labels``, and how often each had been drawn before.
    """
    if balance is None:
        shuffled = key.fold("order", epoch).generator().permutation(len(labels))
        return np.stack([shuffled, np.full_like(shuffled, epoch)])
    parts, places = [], []
    counts = np.bincount(labels)
    for cls, (quota, members) in enumerate(
        zip(_quotas(counts, balance, beta), class_members(labels, len(counts)), strict=True)
    ):
        if quota == 0:
            continue
        rounds, within = np.divmod(np.arange(epoch * quota, (epoch + 1) * quota), len(members))
        for turn, places_in in zip(*_runs(rounds, within), strict=True):
            shuffled = key.fold("order of class", cls, int(turn)).generator().permutation(members)
            chosen = shuffled[places_in]
            parts.append(np.stack([chosen, np.full_like(chosen, turn)]))
        jitter = key.fold("deal", cls, epoch).generator().random(quota)
        places.append((np.arange(quota) + jitter) / quota)
    order: Ids = np.concatenate(parts, axis=1)[:, np.argsort(np.concatenate(places), kind="stable")]
    return order


def class_members(labels: npt.NDArray[np.int64], classes: int) -> list[npt.NDArray[np.int64]]:
    """The positions of each class, ascending, in one look at all: of many classes one for each would take minutes.

    Args:
        labels: (N,) class ids.
        classes: K; each has its entry, though it may have no member.
    """
    ends = np.cumsum(np.bincount(labels, minlength=classes))[:-1]
    return np.split(np.argsort(labels, kind="stable"), ends)


def _runs(
    rounds: npt.NDArray[np.int64], values: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """Ascending rounds, each once, and the values of each."""
    begins = np.flatnonzero(np.diff(rounds, prepend=-1))
    return rounds[begins], np.split(values, begins[1:])


def _quotas(counts: npt.NDArray[np.int64], balance: Balance, beta: float) -> npt.NDArray[np.int64]:
    """How many of each class an epoch of the same length draws; largest remainders get the rest."""
    shares = class_fractions(counts, balance, beta) * counts.sum()
    quotas: npt.NDArray[np.int64] = np.floor(shares).astype(np.int64)
    rest = np.argsort(quotas - shares, kind="stable")[: counts.sum() - quotas.sum()]
    quotas[rest] += 1
    return quotas
