"""Start, join or resume a study, then work for it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.nas.proxy_task import PROXY_OVERRIDES, ProxyTask, require_no_leakage
from efficientnetv2.nas.storage import EmptyDatabaseError
from efficientnetv2.nas.study import (
    OpenStudy,
    RequestedConfig,
    StudyConfig,
    create_study,
    load_config,
    open_study,
    require_same_config,
    version_warning,
)
from efficientnetv2.nas.trial import run_trial, to_measurement
from efficientnetv2.nas.worker import SearchCallback, Worker
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.memory_probe import Hardware
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.resolve import ResolvedRecipe, TrainingSet, resolve_recipe
from efficientnetv2.training.run_dir import RunLog
from efficientnetv2.training.run_request import load_run_data
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.utils.device import device_title, pick_device, workers_for
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import cache_folder
from efficientnetv2.utils.logs import attached
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.utils.timer import boot_id
from efficientnetv2.workflows.output_paths import refuse_inside_data, refuse_replacing_data
from efficientnetv2.workflows.search_config import SearchConfig
from efficientnetv2.workflows.search_options import WorkerOptions
from efficientnetv2.workflows.study_dir import STUDY_FILES, StudyDir

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SearchContext:
    """A worker's machine, dataset and study folder. ``threads`` is None on a GPU."""

    options: WorkerOptions
    device: torch.device
    workers: int
    threads: int | None
    data: DataModule
    folder: StudyDir

    @classmethod
    def load(
        cls, options: WorkerOptions, source: DataConfig, recipe: Recipe, folder: StudyDir
    ) -> SearchContext:
        """Resolve a worker's options, and load its dataset. Raises InputError."""
        device = pick_device(options.device)
        threads = torch.get_num_threads() if device.type == "cpu" else None
        if options.threads is not None and options.threads > (threads or 0):
            reason = f"PyTorch has {pluralize(threads, 'thread')} here" if threads else "this device is a GPU"
            raise InputError(f"--threads {options.threads}: {reason}. Pass fewer, or leave --threads out.")
        workers = workers_for(options.workers, device)
        data = load_search_data(source, recipe, strict=options.strict)
        return cls(options, device, workers, threads, data, folder)

    @property
    def selection(self) -> ImageDataset:
        """The images that the top-1 of a trial is measured on."""
        assert self.data.minival is not None, "a search always has a selection set"
        return self.data.minival

    @property
    def found_here(self) -> dict[str, Any]:
        """The fields of a study's configuration that depend on data and machine."""
        bands = self.data.dataset.bands
        return {
            "pictures": self.data.dataset.digest(),
            "bands": () if bands is None else bands.numbers,
            "hardware": device_title(self.device),
        }

    def resolve(self, recipe: Recipe, *, stored_size: float | None = None) -> ResolvedRecipe:
        """A recipe with no "auto" left, its model and its groups, see ``resolve_recipe``."""
        return resolve_recipe(
            recipe,
            TrainingSet(len(self.data.train), self.data.train.class_names, stored_size=stored_size),
            Hardware(self.device, self.options.memory_gib),
        )

    def task(self, recipe: Recipe, config: StudyConfig | SearchConfig) -> ProxyTask:
        """How architectures are trained here."""
        return ProxyTask(
            recipe=recipe,
            seeds=config.seeds,
            train=self.data.train,
            selection=self.selection,
            device=str(self.device),
            workers=self.workers,
            threads=self.threads,
            training_threads=self.options.threads,
            memory_gib=self.options.memory_gib,
            strict=self.options.strict,
            step_time=config.step_time,
            times=self.folder.times_file,
            quiet=cache_folder("quiet") / boot_id(),
            latency=config.reward.inference_seconds != 0,
            reference=config.reference_timing if isinstance(config, StudyConfig) else None,
        )

    def resume_command(self) -> str:
        """The command that continues the study with the same options."""
        path = str(self.folder.path)
        return shell_join(["effnetv2", "search", "resume", path, *self.options.args])


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The study at a worker's end. ``finished``: all trials have ended. ``command`` continues the study."""

    study: OpenStudy
    folder: StudyDir
    finished: bool
    command: str


def load_search_data(source: DataConfig, recipe: Recipe, *, strict: bool) -> DataModule:
    """The dataset of a search, split. Raises InputError, also for images of train or minival in val or test."""
    data = load_run_data(recipe, source, strict=strict)
    if data.dataset.channels != RGB:
        raise InputError(
            f"search supports images of {RGB} channels, but these rasters have "
            f"{pluralize(data.dataset.channels, 'band')}. Search on three of them (with GDAL, gdal_translate -b), then "
            "train the architecture on all."
        )
    _logger.info(data.split_note.replace("the weights to keep", "among networks"))
    require_no_leakage(data.dataset, data.contents)
    return data


def new_context(config: SearchConfig) -> SearchContext:
    """The context of ``search run``. Nothing is written yet. Raises InputError."""
    folder = StudyDir(config.study)
    if not folder.file.exists():
        refuse_inside_data(config.source.data, folder.path, "STUDY")
        refuse_replacing_data(config.source.data, folder.path, STUDY_FILES, "STUDY")
    context = SearchContext.load(config.worker, config.source, config.recipe, folder)
    folder.check()
    return context


def run_study(config: SearchConfig, callback: SearchCallback | None = None) -> SearchResult:
    """Start or join a study, and work for it. Raises InputError."""
    log = RunLog()
    with attached(log):
        until = _deadline(config.minutes)
        context = new_context(config)
        study = _start_or_join(config, context, log)
        return _work(study, context, until, callback)


def _start_or_join(config: SearchConfig, context: SearchContext, log: RunLog) -> OpenStudy:
    folder, url = context.folder, _storage_url(config, context.folder)
    if url == folder.own_storage:
        folder.make()
    was_started = folder.file.exists()  # Then nothing is created: the database may be lost.
    storage = folder.open_storage(url, timeout_s=60 * config.worker.wait, create=not was_started)
    requested = replace(config.requested, **context.found_here)
    written = load_config(storage, folder.name)
    if written is not None:
        require_same_config(written, requested, folder.describe(url))
    elif was_started:
        raise folder.lost_error(url)
    folder.make()  # Only now: what is refused leaves nothing.
    log.write_to(folder.path)
    if written is None:
        folder.forget_times()
        new = new_study_config(config, context)
        written = create_study(storage, folder.name, new, trials=config.trials)
        require_same_config(written, requested, folder.describe(url))
    study = open_study(storage, folder.name)
    _require_same_trials(config, study, folder.describe(url))
    folder.write(config.source, url, context.data.dataset, written)
    return study


def require_joinable(config: SearchConfig, context: SearchContext) -> None:
    """Refuse what `run_study` would refuse of an existing study; nothing is written."""
    folder, url = context.folder, _storage_url(config, context.folder)
    try:
        storage = folder.open_storage(url, timeout_s=60 * config.worker.wait)
    except EmptyDatabaseError:
        return
    written = load_config(storage, folder.name)
    if written is not None:
        requested = replace(config.requested, **context.found_here)
        require_same_config(written, requested, folder.describe(url))
        _require_same_trials(config, open_study(storage, folder.name), folder.describe(url))


def _storage_url(config: SearchConfig, folder: StudyDir) -> str:
    return folder.storage_url(config.storage or (None if folder.file.exists() else folder.own_storage))


def _require_same_trials(config: SearchConfig, study: OpenStudy, where: str) -> None:
    requested, target = config.requested_trials, study.target
    if requested is None or requested == target:
        return
    extend = shell_join(["effnetv2", "search", "resume", str(config.study), "--trials", str(requested)])
    fix = f"Extend it: {extend}, or leave" if requested > target else "Leave"
    raise InputError(f"--trials {requested}: {where} has {target}. {fix} --trials out.")


def resume_study(
    path: Path,
    storage_url: str | None,
    trials: int | None,
    minutes: float | None,
    worker: WorkerOptions,
    callback: SearchCallback | None = None,
) -> SearchResult:
    """Continue a study of this machine; ``trials`` extends it.

    Raises:
        InputError: There is no such study, or its images or hardware are others by now.
    """
    until = _deadline(minutes)
    folder = StudyDir(path)
    source = folder.source(storage_url)
    url = folder.storage_url(storage_url)
    study = open_study(folder.open_storage(url, timeout_s=60 * worker.wait), folder.name)
    context = SearchContext.load(worker, source, study.config.asked, folder)
    requested = RequestedConfig(**context.found_here)
    require_same_config(study.config, requested, folder.describe(url), resumed=True)
    if trials is not None:
        study.extend(trials)
    log = RunLog()
    with attached(log):
        log.write_to(folder.path)
        return _work(study, context, until, callback)


def _deadline(minutes: float | None) -> float | None:
    return None if minutes is None else time.monotonic() + 60 * minutes


def new_study_config(config: SearchConfig, context: SearchContext) -> StudyConfig:
    """The configuration of a new study, for which the backbone is measured.

    Raises:
        InputError: The backbone cannot be trained with this recipe.
    """
    recipe = resolve_for_backbone(config, context)
    backbone = config.space.backbone
    _logger.info("Measuring the backbone's training step.")
    task = context.task(recipe, config)
    result = run_trial(backbone, replace(task, seeds=()))
    reference = to_measurement(backbone, task, result)
    if result.failed is not None:
        _logger.debug(f"The backbone failed: {reference.failure}")
        raise InputError(
            f"the backbone of the space cannot be trained with this recipe ({reference.failure_line}; log.txt has the "
            "details). Use smaller images (--image-size), a smaller batch (--batch-size), or another space."
        )
    assert reference.step_seconds is not None, "it was measured, and did not fail"
    assert result.step is not None, "as its time was"
    _logger.info(
        f"The backbone: {1000 * reference.step_seconds:.3g} ms a step, {reference.parameters / 1e6:.3g} M parameters."
    )
    return StudyConfig(
        space=config.space,
        reward=config.reward,
        recipe=trial_recipe(recipe, config),
        asked=config.recipe,
        seeds=config.seeds,
        step_time=config.step_time,
        sampler=config.sampler,
        seed=config.proxy.seed,
        prune=config.options.prune,
        class_names=context.data.train.class_names,
        **context.found_here,
        reference=reference,
        reference_group=recipe.ghost_batch_size,
        reference_at_a_time=result.step.groups_per_pass,
        version=version("efficientnetv2"),
    )


def resolve_for_backbone(config: SearchConfig, context: SearchContext) -> Recipe:
    """The recipe of the backbone's trial, with no "auto" left except the model."""
    changes = {"model": config.space.backbone.to_json(), **PROXY_OVERRIDES}
    recipe = validate_recipe(config.recipe.to_json() | changes, where=config.recipe.name)
    stored_size = None if recipe.max_upscale is None else context.data.stored_size
    resolved = context.resolve(recipe, stored_size=stored_size)
    for note in resolved.notes:
        _logger.info(note)
    return resolved.recipe.model_copy(update={"model": "auto"})


def trial_recipe(backbone_recipe: Recipe, config: SearchConfig) -> Recipe:
    """The recipe of every trial, which resolves the groups that fit into memory for each architecture."""
    return backbone_recipe.model_copy(update={"ghost_batch_size": config.recipe.ghost_batch_size})


def _work(
    study: OpenStudy, context: SearchContext, until: float | None, callback: SearchCallback | None
) -> SearchResult:
    config, data = study.config, context.data
    if (warning := version_warning(config.version, version("efficientnetv2"))) is not None:
        _logger.info(warning)
    _logger.info(
        f"The study '{study.name}': {pluralize(study.target, 'trial')} of {config.space.count:,} networks by "
        f"{config.sampler}, for {config.reward}; {pluralize(float(config.recipe.epochs), 'epoch')} of "
        f"{pluralize(len(data.train), 'image')}, {pluralize(len(context.selection), 'image')} for selection."
    )
    worker = Worker(study, context.task(config.recipe, config), callback or SearchCallback())
    try:
        with signals_as_ctrl_c():
            finished = worker.work(until=until)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Go on with: {context.resume_command()}") from stop
    return SearchResult(study, context.folder, finished, context.resume_command())
