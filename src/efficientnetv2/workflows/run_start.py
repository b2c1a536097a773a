"""Everything before the first step of a training run: its images, its recipe without "auto", its directory."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficientnetv2.data.config import DataConfig
from efficientnetv2.evaluation.predictions import load_predictions
from efficientnetv2.evaluation.run_comparison import PreviousRun
from efficientnetv2.training.head_init import fit_head, wants_probe
from efficientnetv2.training.image_cache import ImageCache
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.initial_weights_selection import select_weights
from efficientnetv2.training.overrides import TrainOverrides, validate_label_settings
from efficientnetv2.training.resolve import resolve
from efficientnetv2.training.run_creation import create_run_dir, lock_run_dir
from efficientnetv2.training.run_dir import RUN_FILES, RunDir, RunLog
from efficientnetv2.training.run_request import ResolvedRun, RunOptions, RunRequest, load_run_data, request_run
from efficientnetv2.training.startup_notes import length_line
from efficientnetv2.training.time_limit import BEFORE_SHARE, StartupBudget
from efficientnetv2.utils.device import Hardware, pick_own_device, workers_for
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World, with_tensor_group
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.legacy import SCHEMA_VERSION
from efficientnetv2.utils.memory import limit_memory
from efficientnetv2.utils.shell import command_line, shell_join
from efficientnetv2.workflows.arguments import refuse_inside_data, refuse_replacing_data
from efficientnetv2.workflows.resume import AlreadyFinished, restore_dataset, resume_run
from efficientnetv2.workflows.run_report import save_probe

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainJob:
    """What a run is asked for, and what it runs on."""

    overrides: TrainOverrides
    source: DataConfig
    options: RunOptions
    hardware: Hardware
    log: RunLog
    began: float | None


def pick_hardware(options: RunOptions, world: World = SINGLE_PROCESS) -> Hardware:
    """What this process of a run computes on; its memory is limited from now on."""
    device = pick_own_device(options.device, world.local_rank, world.local_size)
    if options.memory_gib is not None:
        limit_memory(device, options.memory_gib)
    workers = workers_for(options.workers, device, sharing=world.local_size)
    return Hardware(device, options.memory_gib, with_tensor_group(world, device), workers)


def resolve_or_resume(job: TrainJob, locks: ExitStack) -> ResolvedRun | AlreadyFinished:
    """Everything before the first step; ``locks`` hold the run directory from then on."""
    options, hardware = job.options, job.hardware
    request = valid_request(job.overrides, job.source, options, hardware)
    if request.resumed:
        if (finished := AlreadyFinished.find(request)) is not None:
            return finished
        locks.enter_context(lock_run_dir(request.path))
        if (finished := AlreadyFinished.find(request)) is not None:  # while this process waited
            return finished
        job.log.write_to(request.path)
    # Before every image is read.
    predictions = None if options.against is None else load_predictions(options.against)
    data = load_run_data(request.recipe, job.source, strict=options.strict)
    if request.resumed:
        data = restore_dataset(request.path, data)
    images = pluralize(len(data.dataset), "image")
    _logger.info(f"Data: {job.source.data}, {images} of {pluralize(len(data.dataset.class_names), 'class')}")
    _logger.info(f"Split: {data.split_note[:1].lower()}{data.split_note[1:]}")
    data, baseline = replace(data, common=options.common), None
    if options.against is not None and predictions is not None:
        baseline = PreviousRun.for_images(options.against, predictions, data.val)
    if request.resumed:
        run = resume_run(request, data, hardware, began=job.began, baseline=baseline)
    else:
        budget = None
        if job.began is not None and job.overrides.minutes is not None:
            budget = StartupBudget(60 * job.overrides.minutes * BEFORE_SHARE, job.began)
        # The weights decide the name of the directory too.
        request = select_weights(request, data, hardware, budget)
        name = request.recipe.name if options.out is None else None
        with create_run_dir(request.path, name=name) as path:
            run = resolve(replace(request, path=path), data, hardware, budget=budget)
            _start_run(run, hardware, baseline)
            job.log.write_to(path)
            locks.enter_context(lock_run_dir(path))
    images, machine = pluralize(len(run.data.train), "image"), f"{hardware.world.size} × {hardware.device.type}"
    _logger.debug(f"Training {model_title(run.recipe.model)} on {images} on {machine}.")
    return run


def valid_request(overrides: TrainOverrides, source: DataConfig, options: RunOptions, hardware: Hardware) -> RunRequest:
    """The run as requested. Before any image is read, this refuses settings without effect and paths in the data."""
    source.validate()
    request = request_run(overrides, options, hardware)
    validate_label_settings(request.recipe, overrides, source.label_separator)
    if not request.resumed:
        command = "train" if options.out is None else None
        refuse_inside_data(source.data, request.path, "`output`", command=command)
        refuse_replacing_data(source.data, request.path, RUN_FILES, "`output`")
    return request


def _start_run(run: ResolvedRun, hardware: Hardware, baseline: PreviousRun | None) -> None:
    """Fit the linear probe, and write the run directory: what is refused before leaves nothing behind."""
    request, data, recipe, path = run.request, run.data, run.recipe, run.request.path
    _logger.info(length_line(recipe, len(data.train), request.overrides.minutes, path))
    facts = _start_facts(run, hardware)
    if wants_probe(recipe, request.options.probe, data, run.probe_images):
        probe = fit_head(run.network, data, run.preprocessing, recipe, hardware, run.probe_images)
        run.network.to("cpu")  # other processes get it from here, each for its own device
        metrics = probe.metrics
        fitted = f"{metrics.num_train_images:,} of {pluralize(len(data.train), 'training image')}"
        scores = f"top-1 {metrics.top1:.1%}, macro-F1 {metrics.macro_f1:.1%} on {data.eval_split}"
        _logger.debug(f"Linear probe on the initial weights, fitted on {fitted}: {scores}.")
        if request.options.probe:
            facts |= save_probe(probe, data, recipe, path)
    if baseline is not None:
        facts |= baseline.save(path)
    folder = RunDir(path)
    folder.begin(recipe, data.dataset, facts)
    for skipped_path, reason in data.skipped:
        folder.skip(skipped_path, reason)
    if data.skipped:
        _logger.info(f"What could not be read is listed in {folder.skipped_file}.")


def _start_facts(run: ResolvedRun, hardware: Hardware) -> dict[str, Any]:
    """The content of ``run.json``."""
    facts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": command_line(),
        "launch": hardware.world.launch,
        "auto_choices": list(run.notes),
        "preprocessing": run.preprocessing.to_json(),
        "microbatches": run.microbatches.to_json(),
    }
    if run.overlap.optimistic:
        facts["seen_before"] = run.overlap.to_json()
    if run.overlap.minival_trained:
        facts["minival_unused"] = True
    if run.network.trained_on is not None:  # for a resumed run, whose weights are its checkpoint's
        facts["weights_trained_on"] = run.network.trained_on.to_json()
    if isinstance(run.cache, ImageCache):
        facts |= {"cache": run.request.overrides.cache, "cache_px": run.cache.image_size}
    optional = {
        "weights_compared": run.request.comparison,
        "label_separator": run.data.dataset.separator,
        "probe_images": run.probe_images,
        "time_limit": None if run.limit is None else run.limit.to_json(),
    }
    return facts | {name: value for name, value in optional.items() if value is not None}


def log_idle_gpus(device: torch.device) -> None:
    """Log that one of several GPUs trains if none was named, and the command that uses all of them."""
    gpus = torch.cuda.device_count() if device == torch.device("cuda") else 1
    if gpus > 1:
        words = ["torchrun", "--nproc-per-node", str(gpus), "-m", "efficientnetv2", *sys.argv[1:]]
        _logger.info(f"One of the {gpus} GPUs here trains. For all of them: {shell_join(words)}")


def resume_hint(source: DataConfig, options: RunOptions, path: Path, world: World) -> str:
    """The command that resumes a run; its recipe and cache the run knows itself."""
    words = ["train", *source.words, "--output", str(path), "--resume", *options.words]
    if world.machines > 1:
        return f"To resume, start it on every machine as before, with: {shell_join(words)}"
    launcher = ["torchrun", "--nproc-per-node", str(world.size), "-m", "efficientnetv2"]
    return f"To resume: {shell_join([*(launcher if world.is_distributed else ['effnetv2']), *words])}"
