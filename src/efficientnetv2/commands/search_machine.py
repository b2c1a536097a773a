"""What a worker of a study has of the machine, and how it tries networks there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from efficientnetv2.base.caches import cache_folder
from efficientnetv2.base.errors import InputError, count_of
from efficientnetv2.base.quiet import system
from efficientnetv2.commands.prepare import Prepared
from efficientnetv2.commands.screen import Screen
from efficientnetv2.commands.search import PlaceOptions
from efficientnetv2.commands.search_asked import Asked
from efficientnetv2.commands.search_folder import StudyFolder
from efficientnetv2.inference.accelerate import pick_device, workers_for
from efficientnetv2.nas.proxy import Proxy
from efficientnetv2.nas.study import Plan
from efficientnetv2.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Machine:
    """What a worker has.

    Args:
        device: to train on.
        workers: processes that read pictures.
        threads: of PyTorch; None on a GPU, where they do not matter.
        training_threads: those that a network trains with; None for all.
        memory_gib: that a trial may take; None is what there is.
        strict: a trial ends at the first picture that can't be read any more.
    """

    device: torch.device
    workers: int
    threads: int | None
    training_threads: int | None
    memory_gib: float | None
    strict: bool

    @classmethod
    def of(cls, place: PlaceOptions, screen: Screen) -> Machine:
        """As the options say.

        Raises:
            InputError: no such device here, or not so many threads.
        """
        device = pick_device(place.device)
        workers = workers_for(place.workers, device, say=screen.say)
        threads = torch.get_num_threads() if device.type == "cpu" else None
        if place.threads is not None and place.threads > (threads or 0):
            there = (
                f"PyTorch has {count_of(threads, 'thread')} here"
                if threads
                else "networks train on a GPU here"
            )
            raise InputError(
                f"--threads {place.threads}: {there}. Give no more of them, or leave --threads out."
            )
        return cls(device, workers, threads, place.threads, place.memory_gib, place.strict)

    def proxy(self, recipe: Recipe, plan: Plan | Asked, prepared: Prepared, folder: StudyFolder) -> Proxy:
        """How networks are tried here."""
        choosing = prepared.minival
        assert choosing is not None, "a search sets pictures aside that choose"
        return Proxy(
            recipe=recipe,
            seeds=plan.seeds,
            train=prepared.train,
            choosing=choosing,
            device=str(self.device),
            workers=self.workers,
            threads=self.threads,
            training_threads=self.training_threads,
            memory_gib=self.memory_gib,
            strict=self.strict,
            step_time=plan.step_time,
            times=folder.times_file,
            quiet=cache_folder("quiet") / system(),
            latency=plan.reward.inference_seconds != 0,
            pace=plan.pace if isinstance(plan, Plan) else None,
        )
