"""``search run --dry-run``: estimate the cost of a study, and leave nothing behind."""

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
from efficientnetv2.nas.latency import min_timed_steps
from efficientnetv2.nas.space import Space
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import ImageCounts, RunConfig, eval_preprocessing
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.time_budget import RunEstimate, estimate_run
from efficientnetv2.training.timing import measure_timings
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.search_config import SearchConfig
from efficientnetv2.workflows.search_run import (
    SearchContext,
    new_context,
    require_joinable,
    resolve_for_backbone,
    trial_recipe,
)

_logger = logging.getLogger(__name__)

# Ours: architectures that are measured besides the backbone, and the least seconds around the training of a trial.
_NUM_SAMPLES, _OVERHEAD_S = 2, 10.0


@dataclass(frozen=True)
class StudyCost:
    """The estimated cost of a study. The dictionaries are by name of the measured architecture."""

    trials: int
    space: Space
    recipe: Recipe
    images: int
    trial_s: dict[str, float]
    memory_bytes: dict[str, int]
    parameters: dict[str, int]

    @property
    def seconds(self) -> float:
        """Time of the whole study with one worker."""
        return self.trials * statistics.mean(self.trial_s.values())

    @property
    def most_memory_bytes(self) -> int:
        """Memory of the largest trial."""
        return max(self.memory_bytes.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "trials": self.trials,
            "trial_seconds": self.trial_s,
            "seconds": self.seconds,
            "memory_bytes": self.most_memory_bytes,
            "networks": self.space.count,
        }


def dry_run(config: SearchConfig) -> StudyCost:
    """Estimate a study from short measurements. Raises InputError for what ``search run`` would refuse."""
    context = new_context(config)
    require_joinable(config, context)
    recipe = trial_recipe(resolve_for_backbone(config, context), config)
    networks = {"the backbone": config.space.backbone}
    for number in range(1, _NUM_SAMPLES + 1):
        point = config.space.sample(Key.of(config.proxy.seed).fold("rehearsal", number))
        networks[f"drawn {number}"] = config.space.decode(point)
    if config.worker.threads is not None:
        torch.set_num_threads(config.worker.threads)
    _logger.info(f"Measuring a few steps of {pluralize(len(networks), 'network')}.")
    runs = {name: _estimate(network, recipe, context) for name, network in networks.items()}
    train = context.data.train
    sizes = {
        name: count_flops(network, image_size=64, num_classes=len(train.class_names)).total
        for name, network in networks.items()
    }
    return StudyCost(
        config.trials,
        config.space,
        recipe,
        len(train),
        {
            name: _overhead_s(run, runs["the backbone"]) + len(config.seeds) * run.seconds
            for name, run in runs.items()
        },
        {name: run.memory_bytes for name, run in runs.items()},
        {name: size.parameters for name, size in sizes.items()},
    )


def _overhead_s(run: RunEstimate, backbone: RunEstimate) -> float:
    """Seconds of a trial before it trains: where steps are long, those that are timed take most of them."""
    own, reference = (one.stages[-1].seconds / max(1, one.stages[-1].steps) for one in (run, backbone))
    own_steps, reference_steps = min_timed_steps()
    return max(_OVERHEAD_S, own_steps * own + reference_steps * reference)


def _estimate(network: Architecture, recipe: Recipe, context: SearchContext) -> RunEstimate:
    resolved = context.resolve(recipe.model_copy(update={"model": network}))
    train, selection = context.data.train, context.selection
    with tempfile.TemporaryDirectory(prefix="effnetv2-rehearsal-") as scratch:
        config = RunConfig(
            recipe=resolved.recipe,
            network=resolved.network,
            train=train,
            val=selection,
            preprocessing=eval_preprocessing(resolved.recipe, resolved.network, context.data.dataset.bands),
            folder=NullRunDir(Path(scratch)),
            device=context.device,
            workers=context.workers,
            microbatches=resolved.microbatches,
        )
        timings = measure_timings(config, Path(scratch))
        counts = ImageCounts(len(train), len(selection))
        return estimate_run(resolved.recipe, timings, counts, microbatches=resolved.microbatches)
