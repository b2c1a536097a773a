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
from efficientnetv2.nas.latency import ReferenceTiming
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError, pluralize

#: Recipe fields of every trial: it trains from scratch, and the search has its own selection set.
PROXY_OVERRIDES: Mapping[str, Any] = {
    "weights": "none",
    "minival": None,
    "patience": None,
    "eval_image_size_candidates": None,
}

StepTimeBy = Literal["measured", "cached", "unmeasured"]


@dataclass(frozen=True, eq=False)
class ProxyTask:
    """How every architecture of a study is trained and measured on this machine.

    Args:
        recipe: Resolved, except for what depends on the architecture: its name and groups.
        seeds: One run each; their mean top-1 counts. Without any, a few steps run for the memory of training.
        train: Images to train on.
        selection: Images that the top-1 is measured on.
        device: As PyTorch names it.
        workers: Processes that read images.
        times: File of the cached step times of this machine.
        quiet: Folder of the `MachineLock` by which trials of this machine measure alone.
        threads: PyTorch threads while steps are timed, on a CPU.
        training_threads: PyTorch threads while a trial trains; None is ``threads``.
        memory_gib: Memory that a trial may take; None is all.
        strict: Stop a trial at the first unreadable image.
        step_time: "measured" times every architecture; "cached" adds up known parts, and measures every tenth
            architecture; "unmeasured" times none, which leaves no reward.
        latency: Also measure the inference time of one image.
        reference: The backbone's timing, by which times are normalized; None leaves them as they are.
        microbatches: How many groups run in one pass; None until the trial has resolved it.
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
    """Refuse a dataset whose train or minival images are also in val or test, as a file or as a copy.

    Args:
        dataset: Split into train and minival, which a search uses, and val and perhaps test.
        contents: (N,) ids of the images, equal for identical files.

    Raises:
        InputError: There is no val or test, or an image is on both sides; names it and its copy.
    """
    used = np.flatnonzero(np.isin(dataset.split, ("train", "minival")))
    held_out = np.flatnonzero(np.isin(dataset.split, ("val", "test")))
    if not len(held_out):
        raise InputError(
            f"{dataset.source}: no images are left (val or test) to evaluate what a search finds. Provide a val split, "
            "or hold one out (--set val_fraction=0.2)."
        )
    _, mine, other = np.intersect1d(contents[used], contents[held_out], return_indices=True)
    if len(mine):
        row, copy = used[mine[0]], held_out[other[0]]
        raise InputError(
            f"{dataset.source}: {pluralize(len(mine), 'image')} that the search would use are also in val or test: "
            f"'{dataset.paths[row]}' ({dataset.split[row]}) is the same image as '{dataset.paths[copy]}' "
            f"({dataset.split[copy]}). Remove them from one of the two."
        )
