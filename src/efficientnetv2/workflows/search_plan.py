"""What ``search run --dry-run`` does: say what a study would cost, and leave nothing behind."""

from __future__ import annotations

import logging
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.data.data_module import DataModule
from efficientnetv2.nas.latency import fewest_steps
from efficientnetv2.nas.space import Space
from efficientnetv2.training.auto_batch import Hardware
from efficientnetv2.training.auto_config import TrainingSet, resolve_recipe
from efficientnetv2.training.estimate import RunEstimate, estimate_run
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import ImageCounts, RunConfig, eval_preprocessing
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.timing import measure_timings
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.search_config import Asked
from efficientnetv2.workflows.search_run import Machine, for_all, looked_at, refuse_joining, settled
from efficientnetv2.workflows.study_dir import StudyFolder

_logger = logging.getLogger(__name__)

# Networks that are rehearsed beside the backbone, drawn from the space; starting a trial and timing its step, in
# seconds, where steps are short. Ours.
_DRAWN, _AROUND_S = 2, 10.0


@dataclass(frozen=True)
class StudyCost:
    """What a study would take.

    Args:
        trials: number.
        space: of the networks.
        recipe: of a trial.
        images: to train on.
        trial_s: seconds of a trial of each network that was rehearsed.
        memory_bytes: likewise.
        parameters: likewise.
    """

    trials: int
    space: Space
    recipe: Recipe
    images: int
    trial_s: dict[str, float]
    memory_bytes: dict[str, int]
    parameters: dict[str, int]

    @property
    def seconds(self) -> float:
        """Of the whole study, by one worker."""
        return self.trials * statistics.mean(self.trial_s.values())

    @property
    def most_memory_bytes(self) -> int:
        """Of a trial."""
        return max(self.memory_bytes.values())

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "trials": self.trials,
            "trial_seconds": self.trial_s,
            "seconds": self.seconds,
            "memory_bytes": self.most_memory_bytes,
            "networks": self.space.count,
        }


def dry_run(asked: Asked) -> StudyCost:
    """Foretell a study by rehearsing a few of its networks.

    Raises:
        InputError: anything that ``search run`` would refuse before its first trial.
    """
    machine = Machine.of(asked.place)
    folder = StudyFolder(asked.study)
    prepared = looked_at(asked, folder)
    refuse_joining(asked, prepared, machine, folder)
    recipe = for_all(settled(asked, prepared, machine), asked)
    drawn = {
        f"drawn {number}": asked.space.decode(
            asked.space.sample(Key.of(asked.seed).fold("rehearsal", number))
        )
        for number in range(1, _DRAWN + 1)
    }
    networks = {"the backbone": asked.space.backbone} | drawn
    if machine.training_threads is not None:
        torch.set_num_threads(machine.training_threads)
    _logger.info(f"Measuring a few steps of {pluralize(len(networks), 'network')}.")
    runs = {name: _foretold(network, recipe, prepared, machine) for name, network in networks.items()}
    around = {name: _around_s(run, runs["the backbone"]) for name, run in runs.items()}
    each = {name: around[name] + len(asked.seeds) * run.seconds for name, run in runs.items()}
    classes = len(prepared.train.class_names)
    sizes = {name: count_flops(one, image_px=64, num_classes=classes).total for name, one in networks.items()}
    memory = {name: run.memory_bytes for name, run in runs.items()}
    parameters = {name: size.parameters for name, size in sizes.items()}
    return StudyCost(asked.trials, asked.space, recipe, len(prepared.train), each, memory, parameters)


def _around_s(run: RunEstimate, backbone: RunEstimate) -> float:
    """Seconds until a trial trains: of long steps, those that are timed take most of them."""
    own, paced = (one.stages[-1].seconds / max(1, one.stages[-1].steps) for one in (run, backbone))
    own_steps, paced_steps = fewest_steps()
    return max(_AROUND_S, own_steps * own + paced_steps * paced)


def _foretold(network: Architecture, recipe: Recipe, prepared: DataModule, machine: Machine) -> RunEstimate:
    found = resolve_recipe(
        recipe.model_copy(update={"model": network}),
        TrainingSet(len(prepared.train), prepared.train.class_names),
        Hardware(machine.device, machine.memory_gib),
    )
    choosing = prepared.minival
    assert choosing is not None, "a search sets pictures aside that choose"
    with tempfile.TemporaryDirectory(prefix="effnetv2-rehearsal-") as scratch:
        job = RunConfig(
            recipe=found.recipe,
            network=found.network,
            train=prepared.train,
            val=choosing,
            preprocessing=eval_preprocessing(found.recipe, found.network, prepared.dataset.bands),
            folder=NullRunDir(Path(scratch)),
            device=machine.device,
            workers=machine.workers,
            microbatches=found.microbatches,
        )
        rates = measure_timings(job, Path(scratch))
        return estimate_run(
            found.recipe,
            rates,
            ImageCounts(len(prepared.train), len(choosing)),
            microbatches=found.microbatches,
        )
