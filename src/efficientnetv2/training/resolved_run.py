"""A run with nothing left to decide."""

from __future__ import annotations

from dataclasses import dataclass, field

from efficientnetv2.data.data_module import DataModule
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.image_cache import CacheEstimate, ImageCache
from efficientnetv2.training.memory_probe import Hardware
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import RunConfig
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.run_request import RunRequest
from efficientnetv2.training.time_budget import TimeLimit
from efficientnetv2.training.timing import StepTimings
from efficientnetv2.training.train_overlap import PretrainOverlap


@dataclass(frozen=True, eq=False)
class ResolvedRun:
    """A run with nothing left to decide."""

    request: RunRequest  # What was requested; its weights are selected
    recipe: Recipe  # Recipe without "auto"
    network: Network  # Initial model, on the CPU
    microbatches: MicrobatchPlan  # Groups per pass
    preprocessing: Preprocessing  # Preprocessing of evaluation, and of the model file
    data: DataModule  # Images. Nothing selects if minival trained the weights.
    notes: tuple[str, ...] = ()  # A sentence for each choice
    warnings: frozenset[str] = frozenset()  # Those of the notes that the user has to see
    # Which images trained, or selected, the weights
    overlap: PretrainOverlap = field(default_factory=PretrainOverlap)
    cache: ImageCache | CacheEstimate | None = None  # Decoded training images. None reads the files.
    timings: StepTimings | None = None  # Measured timings. None if nothing depended on them.
    limit: TimeLimit | None = None  # Time of the run. None if its steps are fixed.
    probe_images: int | None = None  # Images of either part that the linear probe has time for. None is all.
    # Time of parts of the work before the first step, by name
    seconds: dict[str, float] = field(default_factory=dict)

    def config(self, hardware: Hardware) -> RunConfig:
        """The run as one process would run it, except that nothing is written into its directory."""
        return RunConfig(
            recipe=self.recipe,
            network=self.network,
            train=self.data.train,
            val=self.data.val,
            preprocessing=self.preprocessing,
            folder=NullRunDir(self.request.path),
            device=hardware.device,
            workers=hardware.workers,
            microbatches=self.microbatches,
            reader=None if self.cache is None else self.cache.reader,
            minival=self.data.minival,
        )
