"""How every network of a study is tried: by which recipe, with which seeds, on which pictures.

The pictures of a search are a part of train: some are trained on, others choose. Those that a network found is judged
by in the end (val, test) are neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.nas.latency import Pace
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError, pluralize

#: Of a recipe, what a trial goes without: it begins from scratch, and its pictures that choose are those of the search.
LEFT_OUT: Mapping[str, Any] = {"weights": "none", "minival": None, "patience": None, "eval_px_tried": None}

StepTimeBy = Literal["measured", "cached", "unmeasured"]


@dataclass(frozen=True, eq=False)
class Proxy:
    """How every network of a study is tried.

    Args:
        recipe: settled but for what depends on the network: its name, its groups.
        seeds: a run each; their mean top-1 counts. Of none a few steps are done for the memory of training.
        train: the pictures to train on.
        choosing: the pictures that the top-1 is of.
        device: as PyTorch names it.
        workers: processes that read pictures.
        threads: of PyTorch on a CPU; None leaves them as they are. Steps are timed with so many.
        training_threads: of PyTorch while a network trains, fewer where several trials share the processor; None: as
            many as steps are timed with.
        memory_gib: that a trial may take; None is what there is.
        strict: a trial ends at the first picture that can't be read any more.
        step_time: ``measured``: of every network; ``cached``: where all of its parts are known from others, their sum,
            and of every tenth network all the same, so that the sum stays true; ``unmeasured``: of none, which leaves
            no reward.
        times: file of the parts' times on this machine.
        quiet: folder by which the processes of this machine agree on who measures.
        latency: whether the time of a picture at inference is measured too.
        pace: at which steps, and pictures at inference, are told; None tells their seconds as they were.
        at_a_time: how many groups of the network run in one pass; None until its trial has settled that.
    """

    recipe: Recipe
    seeds: tuple[int, ...]
    train: ImageDataset
    choosing: ImageDataset
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
    pace: Pace | None = None
    at_a_time: MicrobatchPlan | None = None

    @property
    def num_classes(self) -> int:
        """Of the classifier."""
        return len(self.train.class_names)


def refuse_leaks(dataset: ImageDataset, contents: Ints) -> None:
    """A picture that a search uses is none of those that judge what it found: neither the same file nor a copy.

    Args:
        dataset: split into train and minival, which the search uses, and val and perhaps test, which it must not.
        contents: (N,) ids of its pictures, equal for identical files.

    Raises:
        InputError: nothing is left to judge by, or a picture stands on both sides; it is named with its copy.
    """
    used = np.flatnonzero(np.isin(dataset.split, ("train", "minival")))
    judging = np.flatnonzero(np.isin(dataset.split, ("val", "test")))
    if not len(judging):
        raise InputError(
            f"{dataset.source} leaves no pictures (val or test) to judge by what a search finds. Give a val split, or "
            "let one be held out (--set holdout=0.2)."
        )
    _, mine, other = np.intersect1d(contents[used], contents[judging], return_indices=True)
    if not len(mine):
        return
    row, copy = used[mine[0]], judging[other[0]]
    raise InputError(
        f"{dataset.source}: {pluralize(len(mine), 'picture')} that the search would use also stand in val or test, "
        f"which judge what it finds: '{dataset.paths[row]}' ({dataset.split[row]}) is the same picture as "
        f"'{dataset.paths[copy]}' ({dataset.split[copy]}). Take them out of one of the two."
    )
