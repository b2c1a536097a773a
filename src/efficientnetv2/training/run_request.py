"""What a run is asked to do, before an image is looked at; and the run with nothing left to decide."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import PreparedData, SharedDataset, prepare_data
from efficientnetv2.data.readers import Reader
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.image_cache import CacheEstimate, ImageCache
from efficientnetv2.training.initial_weights import WeightsCandidate, validate_weights_name
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.overrides import (
    TrainOverrides,
    open_weights,
    requested_recipe,
    resumed_recipe,
    validate_overrides,
    validate_requested_sizes,
)
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import read_recipe, validate_recipe
from efficientnetv2.training.run_dir import (
    RUNS,
    NullRunDir,
    RunDir,
    new_run_path,
    runs_newest_first,
    validate_new_run_dir,
)
from efficientnetv2.training.run_setup import RunSetup
from efficientnetv2.training.seen_images import PretrainOverlap
from efficientnetv2.training.time_limit import TimeLimit
from efficientnetv2.utils.device import Hardware, device_note
from efficientnetv2.utils.distributed import World
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.io import check_writable_dir
from efficientnetv2.utils.logs import as_details
from efficientnetv2.utils.shell import option_args, shell_join

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRequest:
    """A run as requested."""

    path: Path
    recipe: Recipe  # Its "auto" fields may be open
    overrides: TrainOverrides
    options: RunOptions
    notes: tuple[str, ...] = ()  # A sentence for each choice so far
    resumed: bool = False  # Whether the run exists already
    # Weights to choose among, the most promising first; empty if there is no choice
    candidates: tuple[WeightsCandidate, ...] = ()
    # Metrics of the candidates as plain values. None if they were not compared.
    comparison: dict[str, Any] | None = None
    comparison_s: float = 0.0  # Seconds of comparing them
    repeated: bool = False  # Whether an earlier run of the same kind has resolved the recipe


def request_run(overrides: TrainOverrides, options: RunOptions, hardware: Hardware) -> RunRequest:
    """Everything that can be decided without looking at an image.

    A launcher starts and restarts a run with one command, so that there ``resume`` may find no run yet.
    """
    world, device = hardware.world, hardware.device
    if world.launch is not None and not options.resume:
        path = _run_of_launch(world, options.out)
        if path is not None:
            _logger.info(f"Started again by the same launch (restart {world.restarts}).")
            return _resumed(path, overrides, options)
    if options.resume:
        path = options.out or next((recipe.parent for recipe in runs_newest_first(RUNS)), None)
        if path is not None and (path / "recipe.yaml").exists():
            return _resumed(path, overrides, options)
        # A folder may have been made for a run that was stopped before it began.
        never_began = path is not None and path.is_dir() and not runs_newest_first(path)
        if world.launch is None and not never_began:
            raise InputError(f"`resume`: there is no run in {path or RUNS}. {_how_to_resume(path)}")
        _logger.info(f"There is no run in {path or RUNS} yet: starting one.")
    if options.out is not None:
        validate_new_run_dir(options.out)
    check_writable_dir(options.out or RUNS, "`output`")
    if note := device_note(options.device, device):
        _logger.info(note)
    validate_overrides(overrides)
    candidates = open_weights(overrides, device)
    with as_details():
        recipe, notes = requested_recipe(overrides, device, found=candidates[0] if candidates else None)
    validate_weights_name(recipe.weights)
    validate_requested_sizes(recipe, device, [candidate.word for candidate in candidates])
    path = options.out or new_run_path(RUNS, recipe.name)
    return RunRequest(path, recipe, overrides, options, tuple(notes), candidates=candidates)


def load_run_data(recipe: Recipe, source: DataConfig, *, strict: bool) -> PreparedData:
    """The images of a run: read, checked and split by its recipe."""
    return prepare_data(
        source,
        val_fraction=recipe.val_fraction,
        eval_split=recipe.eval_split,
        minival=recipe.minival,
        expected_dataset=recipe.expected_dataset,
        seed=recipe.seed,
        strict=strict,
    )


def repeat_recipe(request: RunRequest) -> RunRequest:
    """The request with the recipe that an earlier run of the same kind has resolved for the same weights, if any.

    Seeds and minival stay; ``minutes`` no longer decide the epochs.
    """
    requested = request.recipe
    for file in () if request.resumed else request.options.settled:
        earlier = read_recipe(file)
        if earlier.weights == requested.weights:
            plain = earlier.to_json() | {"seed": requested.seed, "minival": requested.minival}
            if requested.progressive.seed is None:
                plain["progressive"] = plain["progressive"] | {"seed": None}
            recipe = validate_recipe(plain, where=str(file))
            return replace(request, recipe=recipe, overrides=replace(request.overrides, minutes=None), repeated=True)
    return request


def _resumed(path: Path, overrides: TrainOverrides, options: RunOptions) -> RunRequest:
    return RunRequest(path, resumed_recipe(overrides, RunDir(path)), overrides, options, resumed=True)


def _how_to_resume(path: Path | None) -> str:
    """The command that resumes the run that was most likely meant: the newest unfinished one."""
    places = [RUNS] if path is None else [path, path.parent, RUNS]
    runs = [recipe.parent for place in places for recipe in runs_newest_first(place)]
    if not runs:
        return "To start a run, leave out `resume`."
    run = next((run for run in runs if not RunDir(run).finished), runs[0])
    command = shell_join(["effnetv2", "train", "DATA", "--output", str(run), "--resume"])
    return f"To resume the newest run: {command}"


def _run_of_launch(world: World, out: Path | None) -> Path | None:
    """The run that an earlier start of this launch began; None if there is none."""
    for recipe_file in runs_newest_first(RUNS) if out is None else [out / "recipe.yaml"]:
        if not recipe_file.exists():
            continue
        folder = RunDir(recipe_file.parent)
        if not folder.beginning_file.exists():  # a copy of a part of a run
            continue
        with suppress(InputError):  # a damaged one is not resumed, and bars no other
            # A replaced machine does not know of restarts, so an unfinished run is always resumed. A finished one is
            # only at a restart: else it is of an earlier launch of the same name.
            is_open = world.restarts > 0 or not folder.finished
            if is_open and folder.beginning().get("launch") == world.launch:
                return folder.path
    return None


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that are not in its recipe."""

    out: Path | None = None  # Run directory. None makes a new one under ``runs/``.
    resume: bool = False
    device: str = "auto"
    workers: int | None = None  # Processes that read images. None chooses by the machine.
    memory_gib: float | None = None  # Memory limit of each process
    strict: bool = False  # Whether an unreadable image is an error
    probe: bool = True  # Whether to compare with a linear probe of the initial weights
    # Run to compare with. None takes the one of the resumed run, or else the last one next to it.
    against: Path | None = None
    # Recipe files of earlier runs of the same kind. The first with the same weights is repeated.
    settled: tuple[Path, ...] = ()
    common: SharedDataset | None = None  # Dataset that all runs of a cross-validation share

    @property
    def words(self) -> list[str]:
        """The options that a resumed run needs again, as typed on the command line."""
        return option_args(
            device=None if self.device == "auto" else self.device,
            workers=self.workers,
            memory_gib=self.memory_gib,
            strict=self.strict,
        )


@dataclass(frozen=True, eq=False)
class ResolvedRun:
    """A run with nothing left to decide."""

    request: RunRequest  # Its weights are selected
    recipe: Recipe  # Without "auto"
    network: Network  # Initial model, on the CPU
    microbatches: MicrobatchPlan
    preprocessing: Preprocessing  # Of evaluation, and of the model file
    data: PreparedData  # Nothing selects if minival trained the weights.
    notes: tuple[str, ...] = ()  # A sentence for each choice
    warnings: frozenset[str] = frozenset()  # Those of the notes that the user has to see
    overlap: PretrainOverlap = field(default_factory=PretrainOverlap)
    cache: ImageCache | CacheEstimate | None = None  # Decoded training images. None reads the files.
    limit: TimeLimit | None = None  # Time of the run. None if its steps are fixed.
    probe_images: int | None = None  # Of train and of val that the linear probe has time for. None is all.

    def setup(self, hardware: Hardware, *, folder: RunDir | None = None, reader: Reader | None = None) -> RunSetup:
        """The run on some hardware. Without ``folder`` it writes nothing; without ``reader`` it reads its cache."""
        return RunSetup(
            recipe=self.recipe,
            network=self.network,
            train=self.data.train,
            val=self.data.val,
            preprocessing=self.preprocessing,
            folder=folder or NullRunDir(self.request.path),
            device=hardware.device,
            workers=hardware.workers,
            microbatches=self.microbatches,
            strict=self.request.options.strict,
            world=hardware.world,
            reader=reader or (None if self.cache is None else self.cache.reader),
            minival=self.data.minival,
        )
