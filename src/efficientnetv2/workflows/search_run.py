"""Start, join or resume a study and work for it, or estimate its cost."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientnetv2.architectures.flops import count_flops
from efficientnetv2.architectures.spec import Architecture
from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.imagenet_check import recognized
from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.data.splits import MinivalError
from efficientnetv2.nas.proxy_task import PROXY_OVERRIDES, ProxyTask, require_no_leakage
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.step_time import min_timed_steps
from efficientnetv2.nas.storage import EmptyDatabaseError, Storage
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
from efficientnetv2.nas.trial import resolve_task, to_measurement, trial_setup
from efficientnetv2.nas.trial_process import run_trial
from efficientnetv2.nas.worker import SearchCallback, Worker
from efficientnetv2.preprocessing import RGB
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.recipe_io import validate_recipe
from efficientnetv2.training.resolve import TrainingSet, resolve_recipe
from efficientnetv2.training.run_dir import NullRunDir
from efficientnetv2.training.run_estimate import RunEstimate, estimate_run
from efficientnetv2.training.run_request import load_run_data
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.training.timing import measure_timings
from efficientnetv2.utils.benchmark import boot_id
from efficientnetv2.utils.device import Hardware, device_title, pick_device, workers_for
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import cache_folder
from efficientnetv2.utils.logs import RunLog, attached
from efficientnetv2.utils.random_key import Key
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.arguments import refuse_inside_data, refuse_replacing_data
from efficientnetv2.workflows.search_config import SearchConfig, WorkerOptions
from efficientnetv2.workflows.study_dir import STUDY_FILES, StudyDir

_logger = logging.getLogger(__name__)

# Ours: architectures that are measured besides the backbone, and the least seconds around the training of a trial.
_NUM_SAMPLES, _OVERHEAD_S = 2, 10.0


@dataclass(frozen=True, eq=False)
class SearchContext:
    """A worker's machine, dataset and study folder. ``threads`` is None on a GPU."""

    options: WorkerOptions
    device: torch.device
    workers: int
    threads: int | None
    data: PreparedData
    folder: StudyDir

    @classmethod
    def load(cls, options: WorkerOptions, source: DataConfig, recipe: Recipe, folder: StudyDir) -> SearchContext:
        """Resolve a worker's options, and load its dataset. Raises InputError."""
        device = pick_device(options.device)
        threads = torch.get_num_threads() if device.type == "cpu" else None
        if options.threads is not None and options.threads > (threads or 0):
            reason = f"PyTorch has {pluralize(threads, 'thread')} here" if threads else "this device is a GPU"
            raise InputError(f"`threads` {options.threads}: {reason}. Pass fewer, or leave `threads` out.")
        workers = workers_for(options.workers, device)
        data = load_search_data(source, recipe, strict=options.strict)
        return cls(options, device, workers, threads, data, folder)

    @property
    def selection(self) -> ImageDataset:
        """The images that the top-1 of a trial is measured on."""
        assert self.data.minival is not None, "a search always has a selection set"
        return self.data.minival

    def requested(self, config: RequestedConfig) -> RequestedConfig:
        """A configuration with the fields that depend on data and machine."""
        dataset, hardware = self.data.dataset, device_title(self.device)
        rule = dataset.bands
        bands, nodata = ((), ()) if rule is None else (rule.numbers, rule.nodata)
        return replace(config, dataset_digest=dataset.digest(), bands=bands, nodata=nodata, hardware=hardware)

    def task(self, recipe: Recipe, config: StudyConfig | SearchConfig) -> ProxyTask:
        """How architectures are trained here. Without a study, only the step is timed."""
        study = config if isinstance(config, StudyConfig) else None
        return ProxyTask(
            recipe=recipe,
            seeds=() if study is None else study.seeds,
            train=self.data.train,
            selection=self.selection,
            device=str(self.device),
            workers=self.workers,
            threads=self.threads,
            training_threads=self.options.threads,
            memory_gib=self.options.memory_gib,
            strict=self.options.strict,
            step_time=config.options.step_time if isinstance(config, SearchConfig) else config.step_time,
            times=self.folder.times_file,
            quiet=cache_folder("quiet") / boot_id(),
            latency=config.reward.inference_seconds != 0,
            reference=None if study is None else study.reference_timing,
        )


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The study at a worker's end. ``finished``: all trials have ended. ``command`` continues the study."""

    study: OpenStudy
    folder: StudyDir
    finished: bool
    command: str


def load_search_data(source: DataConfig, recipe: Recipe, *, strict: bool) -> PreparedData:
    """The dataset of a search, split. Raises InputError, also for images of train or minival in val or test."""
    try:
        data = load_run_data(recipe, source, strict=strict)
    except MinivalError as error:
        raise InputError(error.reason) from error  # a search needs minival
    if (channels := data.dataset.channels) != RGB:
        raise InputError(
            f"{source.data}: search supports images of {RGB} channels, but these have {channels}. Search on three of "
            "the bands (`bands`), then train the architecture on all."
        )
    usual, here = "fit the temperature and can select the weights", "select among architectures"
    _logger.info(data.split_note.replace(usual, here))
    if data.dataset.published or recognized(data.dataset):  # its splits stay, but no held-out image is for the search
        held_out = np.isin(data.dataset.split, ("val", "test"))
        kept = held_out | ~np.isin(data.contents, data.contents[held_out])
        if num_left_out := int((~kept).sum()):
            _logger.info(f"Left out {pluralize(num_left_out, 'image')} of train or minival, also in val or test.")
        data = replace(data, dataset=data.dataset.select(np.flatnonzero(kept)), contents=data.contents[kept])
    require_no_leakage(data.dataset, data.contents)
    return data


def run_study(config: SearchConfig, callback: SearchCallback | None = None) -> SearchResult:
    """Start or join a study, and work for it. Raises InputError."""
    log = RunLog()
    with attached(log):
        until = _deadline(config.minutes)
        context = _new_context(config)
        study = _start_or_join(config, context, log)
        return _work(study, context, until, callback)


def resume_study(
    path: Path,
    storage_url: str | None,
    trials: int | None,
    minutes: float | None,
    worker: WorkerOptions,
    callback: SearchCallback | None = None,
) -> SearchResult:
    """Continue a study of this machine; ``trials`` extends it."""
    until = _deadline(minutes)
    folder = StudyDir(path)
    source = folder.source(storage_url)
    url = folder.storage_url(storage_url)
    study = open_study(folder.open_storage(url, wait=worker.wait), folder.name)
    context = SearchContext.load(worker, source, study.config.requested_recipe, folder)
    require_same_config(study.config, context.requested(RequestedConfig()), folder.describe(url), resumed=True)
    if trials is not None:
        study.extend(trials)
    log = RunLog()
    with attached(log):
        log.write_to(folder.path)
        return _work(study, context, until, callback)


def _deadline(minutes: float | None) -> float | None:
    return None if minutes is None else time.monotonic() + 60 * minutes


def _new_context(config: SearchConfig) -> SearchContext:
    """The context of a study to start or join. Nothing is written yet."""
    folder = StudyDir(config.study)
    if not folder.file.exists():
        refuse_inside_data(config.source.data, folder.path, "STUDY")
        refuse_replacing_data(config.source.data, folder.path, STUDY_FILES, "STUDY")
    context = SearchContext.load(config.worker, config.source, config.recipe, folder)
    folder.check()
    return context


def _start_or_join(config: SearchConfig, context: SearchContext, log: RunLog) -> OpenStudy:
    folder, url = context.folder, _storage_url(config)
    if url == folder.default_storage:
        folder.make()
    was_started = folder.file.exists()  # Then nothing is created: the database may be lost.
    storage = folder.open_storage(url, wait=config.worker.wait, create=not was_started)
    study = _find_study(config, context, storage)
    if study is None and was_started:
        raise folder.lost_error(url)
    folder.make()  # Only now: what is refused leaves nothing.
    log.write_to(folder.path)
    if study is None:
        folder.times_file.unlink(missing_ok=True)
        create_study(storage, folder.name, _new_study_config(config, context), trials=config.trials)
        study = _find_study(config, context, storage)  # Perhaps that of another worker, begun meanwhile.
        assert study is not None, "it has just been created"
    folder.write(config.source, url, context.data.dataset, study.config)
    return study


def _storage_url(config: SearchConfig) -> str:
    folder = StudyDir(config.study)
    return folder.storage_url(config.storage or (None if folder.file.exists() else folder.default_storage))


def _find_study(config: SearchConfig, context: SearchContext, storage: Storage) -> OpenStudy | None:
    """The study in its database, None where it is not there. Raises InputError if it is not the requested one."""
    folder = context.folder
    if load_config(storage, folder.name) is None:
        return None
    study = open_study(storage, folder.name)
    where = folder.describe(storage.url)
    joined = folder.file.exists()  # `search resume` works here
    require_same_config(study.config, context.requested(config.requested), where, joined=joined)
    requested, target = config.requested_trials, study.target
    if requested not in (None, target):
        extend = shell_join(["effnetv2", "search", "resume", str(config.study), "--trials", str(requested)])
        can_extend = joined and requested is not None and requested > target
        fix = f"Extend it ({extend}), or leave" if can_extend else "Leave"
        raise InputError(f"`trials` {requested}: {where} has {target}. {fix} `trials` out.")
    return study


def _new_study_config(config: SearchConfig, context: SearchContext) -> StudyConfig:
    """The configuration of a new study, for which the backbone is measured."""
    recipe = _backbone_recipe(config, context)
    backbone = config.space.backbone
    _logger.info("Measuring the backbone's training step.")
    task = context.task(recipe, config)
    result = run_trial(backbone, task)
    reference = to_measurement(backbone, task, result)
    if result.failed is not None:
        _logger.debug(f"The backbone failed: {reference.failure}")
        raise InputError(
            f"the backbone of the space cannot be trained with this recipe ({reference.failure_line}; log.txt has the "
            "details). Use a smaller `image_size` or `batch_size`, or another `space`."
        )
    assert reference.step_seconds is not None, "it was measured, and did not fail"
    assert result.step is not None, "as its time was"
    _logger.info(
        f"The backbone: {1000 * reference.step_seconds:.3g} ms a step, {reference.parameters / 1e6:.3g} M parameters."
    )
    resolved: dict[str, Any] = {
        "recipe": _trial_recipe(recipe, config),
        "requested_recipe": config.recipe,
        "class_names": context.data.train.class_names,
        "reference": reference,
        "reference_group": recipe.ghost_batch_size,
        "reference_at_a_time": result.step.groups_per_pass,
        "version": version("efficientnetv2"),
    }
    return StudyConfig(**vars(context.requested(config.requested)) | resolved)


def _backbone_recipe(config: SearchConfig, context: SearchContext) -> Recipe:
    """The recipe of the backbone's trial, with no "auto" left except the model."""
    changes = {"model": config.space.backbone.to_json(), **PROXY_OVERRIDES}
    recipe = validate_recipe(config.recipe.to_json() | changes, where=config.recipe.name)
    train, stored_size = context.data.train, None if recipe.max_upscale is None else context.data.stored_size
    training_set = TrainingSet(len(train), train.class_names, stored_size=stored_size)
    resolved = resolve_recipe(recipe, training_set, Hardware(context.device, context.options.memory_gib))
    for note in resolved.notes:
        _logger.info(note)
    progressive = replace(resolved.recipe.progressive, seed=recipe.progressive.seed)  # or that of each run
    return resolved.recipe.model_copy(update={"model": "auto", "progressive": progressive})


def _trial_recipe(backbone_recipe: Recipe, config: SearchConfig) -> Recipe:
    """The recipe of every trial, which resolves the groups that fit into memory for each architecture."""
    return backbone_recipe.model_copy(update={"ghost_batch_size": config.recipe.ghost_batch_size})


def _work(
    study: OpenStudy, context: SearchContext, until: float | None, callback: SearchCallback | None
) -> SearchResult:
    config, data = study.config, context.data
    if (warning := version_warning(config.version, version("efficientnetv2"))) is not None:
        _logger.info(warning)
    _logger.info(
        f"The study '{study.name}': {pluralize(study.target, 'trial')} of {config.space.count:,} architectures by "
        f"{config.sampler}, for {config.reward}; {pluralize(float(config.recipe.epochs), 'epoch')} of "
        f"{pluralize(len(data.train), 'image')}, {pluralize(len(context.selection), 'image')} for selection."
    )
    worker = Worker(study, context.task(config.recipe, config), callback or SearchCallback())
    command = context.options.resume_command(context.folder.path)
    try:
        with signals_as_ctrl_c():
            finished = worker.work(until=until)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Continue with: {command}") from stop
    return SearchResult(study, context.folder, finished, command)


@dataclass(frozen=True)
class StudyCost:
    """The estimated cost of a study. The dictionaries are by name of the measured architecture."""

    trials: int  # Of a study that exists: those that are left.
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
        cost = {"trials": self.trials, "trial_seconds": self.trial_s, "seconds": self.seconds}
        return cost | {"memory_bytes": self.most_memory_bytes, "networks": self.space.count}


def dry_run(config: SearchConfig) -> StudyCost:
    """Estimate a study from short measurements. Raises InputError for what `run_study` would refuse."""
    context, num_trials = _new_context(config), config.trials
    with suppress(EmptyDatabaseError):  # There is no study yet.
        storage = context.folder.open_storage(_storage_url(config), wait=config.worker.wait)
        if (study := _find_study(config, context, storage)) is not None:
            num_trials = max(0, study.target - sum(trial.state.is_finished() for trial in study.trials()))
    recipe = _trial_recipe(_backbone_recipe(config, context), config)
    networks = {"the backbone": config.space.backbone}
    for number in range(1, _NUM_SAMPLES + 1):
        point = config.space.sample(Key.of(config.options.seed).fold("rehearsal", number))
        networks[f"drawn {number}"] = config.space.decode(point)
    if config.worker.threads is not None:
        torch.set_num_threads(config.worker.threads)
    _logger.info(f"Measuring a few steps of {pluralize(len(networks), 'network')}.")
    runs = {name: _estimate(network, recipe, config, context) for name, network in networks.items()}
    step_s = {name: run.stages[-1].seconds / max(1, run.stages[-1].steps) for name, run in runs.items()}
    timed, reference_timed = min_timed_steps()
    reference_s = reference_timed * step_s["the backbone"]
    train = context.data.train
    return StudyCost(
        num_trials,
        config.space,
        recipe,
        len(train),
        {
            # Where steps are long, those that are timed take most of the time before a trial trains.
            name: max(_OVERHEAD_S, timed * step_s[name] + reference_s) + len(config.seeds) * run.seconds
            for name, run in runs.items()
        },
        {name: run.memory_bytes for name, run in runs.items()},
        {
            name: count_flops(network, image_size=64, num_classes=len(train.class_names)).total.parameters
            for name, network in networks.items()
        },
    )


def _estimate(network: Architecture, recipe: Recipe, config: SearchConfig, context: SearchContext) -> RunEstimate:
    task = resolve_task(network, context.task(recipe, config), context.device)
    with tempfile.TemporaryDirectory(prefix="effnetv2-rehearsal-") as scratch:
        run = trial_setup(network, task, recipe.seed, context.device, NullRunDir(Path(scratch)))
        timings = measure_timings(run, Path(scratch))
        return estimate_run(run.recipe, timings, run.image_counts, microbatches=run.microbatches)
