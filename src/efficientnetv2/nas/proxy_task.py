"""The proxy task of a search: how every architecture is trained for a short time and evaluated.

A search uses a part of the train split: some images are trained on, the selection set (minival) gives the top-1. The
images that evaluate the chosen architecture in the end (val, test) are neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.nas.step_time import ReferenceTiming
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError, pluralize

#: Recipe fields of every trial: it trains from scratch, the search has its own selection set, and steps are timed
#: without CUDA graphs.
PROXY_OVERRIDES: Mapping[str, Any] = {
    "weights": "none",
    "minival": None,
    "patience": None,
    "eval_image_size_candidates": None,
    "cuda_graphs": False,
}

StepTimeBy = Literal["measured", "cached", "unmeasured"]


@dataclass(frozen=True, eq=False)
class ProxyTask:
    """How every architecture of a study is trained and measured on this machine.

    The recipe is resolved, except for what depends on the architecture. Each of the ``seeds`` is a run; without any, a
    few steps run for the memory of training. ``times`` is the file of cached step times, ``quiet`` the folder of the
    `MachineLock`. ``threads`` time steps on a CPU, ``training_threads`` (None: as many) train. ``step_time`` "measured"
    times every architecture; "cached" adds up known parts, and measures every tenth; "unmeasured" leaves no reward.
    ``latency`` measures inference too. ``microbatches`` is None until the trial has resolved it.
    """

    recipe: Recipe
    seeds: tuple[int, ...]
    train: ImageDataset
    selection: ImageDataset
    device: str
    workers: int
    times: Path
    quiet: Path
    threads: int | None = None
    training_threads: int | None = None
    memory_gib: float | None = None
    strict: bool = False
    step_time: StepTimeBy = "measured"
    latency: bool = False
    reference: ReferenceTiming | None = None
    microbatches: MicrobatchPlan | None = None

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return len(self.train.class_names)


def require_no_leakage(dataset: ImageDataset, contents: Ints) -> None:
    """Refuse a dataset without val or test, or whose train or minival images are also there, as a file or as a copy.

    ``contents`` are (N,) ids of the images, equal for identical files. Raises InputError.
    """
    used = np.flatnonzero(np.isin(dataset.split, ("train", "minival")))
    held_out = np.flatnonzero(np.isin(dataset.split, ("val", "test")))
    if not len(held_out):
        raise InputError(
            f"{dataset.source}: no images are left in val or test to evaluate what a search finds. Use "
            "`val_fraction=0.2`."
        )
    _, mine, other = np.intersect1d(contents[used], contents[held_out], return_indices=True)
    if len(mine):
        row, copy = used[mine[0]], held_out[other[0]]
        raise InputError(
            f"{dataset.source}: {pluralize(len(mine), 'image')} for the search is also in val or test, such as "
            f"'{dataset.paths[row]}' ({dataset.split[row]}) as '{dataset.paths[copy]}' ({dataset.split[copy]}). "
            "Remove one of each pair."
        )
