"""Train a classifier: `efficientnetv2.train`.

``resolve_or_resume`` is all before the first step: the images, the recipe without "auto", the run directory.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.prepared_data import require_images_here
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.predictions import load_predictions
from efficientnetv2.evaluation.run_comparison import PreviousRun
from efficientnetv2.training.callbacks import Callback, ProgressLog, checked_callbacks
from efficientnetv2.training.head_init import fit_head, wants_probe
from efficientnetv2.training.image_cache import ImageCache, local_reader
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.initial_weights_selection import select_weights
from efficientnetv2.training.overrides import TrainOverrides, validate_label_settings
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resolve import resolve
from efficientnetv2.training.run_dir import RUN_FILES, NullRunDir, RunDir, create_run_dir, lock_run_dir
from efficientnetv2.training.run_request import ResolvedRun, RunOptions, RunRequest, load_run_data, request_run
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.training.startup_notes import length_line
from efficientnetv2.training.time_limit import BEFORE_SHARE, StartupBudget
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.device import Hardware, pick_device, pick_own_device, workers_for
from efficientnetv2.utils.distributed import (
    SINGLE_PROCESS,
    World,
    all_gather_object,
    broadcast_from_main,
    process_group,
    with_tensor_group,
    world_from_env,
)
from efficientnetv2.utils.errors import ReaderKilledError, pluralize, shorten
from efficientnetv2.utils.legacy import SCHEMA_VERSION
from efficientnetv2.utils.logs import RunLog, attached, shown_by_default, silenced
from efficientnetv2.utils.memory import limit_memory
from efficientnetv2.utils.shell import CALL, command_line, shell_join
from efficientnetv2.workflows.arguments import (
    Overrides,
    PathLike,
    api,
    refuse_inside_data,
    refuse_replacing_data,
    run_arguments,
    validate_run_paths,
)
from efficientnetv2.workflows.results import Run
from efficientnetv2.workflows.resume import (
    AlreadyFinished,
    report_finished,
    require_same_separator,
    restore_dataset,
    resume_run,
)
from efficientnetv2.workflows.run_report import save_probe, write_run_report

_logger = logging.getLogger(__name__)
_calls = itertools.count(1)  # numbers the runs of a launched script without a given folder


@api
def train(
    data: PathLike,
    *,
    output: PathLike | None = None,
    recipe: PathLike | Recipe | None = None,
    resume: bool = False,
    device: str | torch.device = "auto",
    workers: int | None = None,
    baseline: PathLike | None = None,
    callbacks: Sequence[Callback] = (),
    **overrides: Unpack[Overrides],
) -> Run:
    """Train a classifier and write its report.

    The run is the one of ``effnetv2 train`` with the same options and seed, to the bit. It logs its progress to
    ``logging.getLogger("efficientnetv2")``. If the program has not set up logging, the progress is printed to stderr;
    ``logging.getLogger("efficientnetv2").setLevel("WARNING")`` turns this off.

    Example::

        import efficientnetv2 as ev2

        run = ev2.train(
            "photos/", output="runs/mine", model="efficientnetv2_b0", weights="none", epochs=2, image_size=64
        )
        print(run.metrics["top1"], run.intervals["top1"], run.report_path)

    Args:
        data: Folder with a sub-folder per class, a table (CSV, TSV, Parquet) of paths and labels, shards, or the name
            of a standard dataset.
        output: Folder of the run. None makes a new one under ``runs/``.
        recipe: Name of a recipe, a ``recipe.yaml``, a run, or a recipe. None chooses by the weights.
        resume: Resume the run in ``output``, or the newest under ``runs/``.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        workers: Processes that read images; 0 reads in this one. None chooses by the machine.
        baseline: A run, or the folder of an evaluation, to compare with on the same images. None takes the newest
            finished run in the same parent folder that predicted exactly these images.
        callbacks: Called at points of the training, see `Callback`.
        overrides: Hyperparameters: ``model`` (a name, `Architecture` or file), ``weights`` ("auto", "none", a name, a
            file or a run), ``epochs`` or ``minutes`` (of the whole run, report included), ``image_size`` (px, of the
            last stage), ``batch_size`` (the learning rate follows), ``lr`` (peak), ``crop_mode`` ("squash", "center",
            "border"), ``seed``, and ``settings`` for other fields of the recipe, by dotted names:
            ``settings={"progressive.stages": 1, "patience": 5}``. The machine: ``cache`` ("ram" or "disk": decode each
            image once), ``memory_gib`` (limit in GiB, of the GPU, or of the process on a CPU), ``strict`` (stop at
            the first unreadable image; otherwise it is skipped). How ``data`` is read: ``path_column``,
            ``label_column``, ``group_column`` (equal values stay on one side of a split), ``labels`` ("exact", or
            "casefold" to merge spellings), ``label_separator`` (text between several labels), ``bands`` (of rasters,
            from 1, or "all"), ``nodata`` (values of missing data besides the declared one, or "none"), ``layout``
            ("auto", "classes" or "splits": meaning of the sub-folders), ``min_images_per_class`` (smaller classes are
            left out).

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    began = time.monotonic()
    everyone = [*checked_callbacks(callbacks), ProgressLog()]
    changes, source, options = run_arguments(
        train, data, recipe, overrides,
        output=output, device=device, workers=workers, resume=resume, baseline=baseline,
    )  # fmt: skip
    if not resume:
        validate_run_paths(source.data, options.out, "train")
    with shown_by_default():
        return Run(train_and_report(changes, source, options, began=began, callbacks=everyone, on_result=log_summary))


def log_summary(result: EvaluationResult | Path) -> None:
    """Log the accuracy and the comparisons with the baselines."""
    if isinstance(result, EvaluationResult):
        for line in result.summary_lines:
            _logger.info(line)


def train_and_report(
    overrides: TrainOverrides,
    source: DataConfig,
    options: RunOptions,
    *,
    began: float | None = None,
    callbacks: Sequence[Callback] = (),
    on_result: Callable[[EvaluationResult | Path], None] = lambda result: None,
) -> Path:
    """Train and report, alone or as one of many processes; returns the run directory.

    ``minutes`` count from ``began``, a ``time.monotonic()``; None: from the first step to the last prediction.
    ``on_result`` gets the result, or of a run that had finished before, the file of its report.
    """
    world, log = world_from_env(), RunLog()
    if world.launch is not None and options.out is None and (call := next(_calls)) > 1:
        world = replace(world, launch=f"{world.launch}#{call}")
    with (
        process_group(world, fix="The last checkpoint, if there is one, is intact: resume with `resume=True`."),
        attached(log) if world.is_main_process else silenced(),
    ):
        if not world.is_distributed:
            log_idle_gpus(pick_device(options.device))
        trained = train_run(overrides, source, options, log, world, began=began, callbacks=callbacks)
        if isinstance(trained, AlreadyFinished):
            if world.is_main_process:
                report_finished(trained, on_result)
        elif trained.result is not None:
            on_result(trained.result)
            paths = f"Model: {RunDir(trained.path).model_file}", f"Report: {trained.path / 'report.html'}"
            separator = trained.result.dataset.separator
            several = [] if separator is None else ["--label-separator", separator]
            predict = f"For new images: {shell_join(['effnetv2', 'predict', str(trained.path), 'IMAGES', *several])}"
            for line in (*paths, *trained.result.next_lines, predict):
                _logger.info(line)
        all_gather_object(world, None)  # the report is there when any process goes on
        return trained.path


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """Directory and result of a run that has just ended; the result is None in all processes but the first."""

    path: Path
    result: EvaluationResult | None


@dataclass(frozen=True, eq=False)
class TrainJob:
    """What a run is asked for, and what it runs on."""

    overrides: TrainOverrides
    source: DataConfig
    options: RunOptions
    hardware: Hardware
    log: RunLog
    began: float | None


def train_run(
    overrides: TrainOverrides,
    source: DataConfig,
    options: RunOptions,
    log: RunLog,
    world: World = SINGLE_PROCESS,
    *,
    began: float | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainedRun | AlreadyFinished:
    """Train one run and write its report; a finished run stays as it is.

    Raises:
        KeyboardInterrupt: Ctrl-C; the message gives the command that resumes the run.
    """
    job = TrainJob(overrides, source, options, pick_hardware(options, world), log, began)
    with ExitStack() as locks:
        locks.callback(limit_memory, job.hardware.device, None)  # for what else this process does
        try:
            # Of several processes the launcher stops the others.
            with nullcontext() if world.is_distributed else signals_as_ctrl_c():
                resolved = broadcast_from_main(job.hardware.world, lambda: resolve_or_resume(job, locks))
        except KeyboardInterrupt as stop:
            effect = "resumes" if options.resume else "starts again"
            raise KeyboardInterrupt(f"No step had been taken: the same command {effect}.") from stop
        return resolved if isinstance(resolved, AlreadyFinished) else _train(job, resolved, callbacks)


def _train(job: TrainJob, run: ResolvedRun, callbacks: Sequence[Callback]) -> TrainedRun:
    """Train a resolved run and write its report; every process calls this."""
    world, path = job.hardware.world, run.request.path
    cache = run.cache if isinstance(run.cache, ImageCache) else None
    folder = RunDir(path) if world.is_main_process else NullRunDir(path)
    setup = run.setup(job.hardware, folder=folder, reader=local_reader(cache, run.recipe, run.data, job.hardware))
    require_images_here(setup.train, world)
    try:
        result = Trainer(setup, callbacks, limit=run.limit).fit(resume=run.request.resumed)
        report = write_run_report(setup, run.data, result) if world.is_main_process else None
        return TrainedRun(path, report)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(resume_hint(job.source, job.options, path, world)) from stop
    except ReaderKilledError as error:
        if job.options.common is not None:  # a cross-validation has a command of its own
            raise
        raise ReaderKilledError(f"{error} {resume_hint(job.source, job.options, path, world)}") from error


def pick_hardware(options: RunOptions, world: World = SINGLE_PROCESS) -> Hardware:
    """What this process of a run computes on; its memory is limited until ``limit_memory(device, None)``."""
    device = pick_own_device(options.device, world.local_rank, world.local_size)
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
        require_same_separator(request.path, job.source.label_separator)
    # Before every image is read.
    predictions = None if options.against is None else load_predictions(options.against)
    data = load_run_data(request.recipe, job.source, strict=options.strict)
    if request.resumed:
        data = restore_dataset(request.path, data)
    _logger.info(data_line(data.dataset))
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
            _start_run(run, hardware, baseline, job.source)
            job.log.write_to(path)
            locks.enter_context(lock_run_dir(path))
    images, machine = pluralize(len(run.data.train), "image"), f"{hardware.world.size} × {hardware.device.type}"
    _logger.debug(f"Training {model_title(run.recipe.model)} on {images} on {machine}.")
    return run


def data_line(dataset: ImageDataset) -> str:
    """The images of a run: where they are, how many, and their classes."""
    names = dataset.class_names
    images, classes = pluralize(len(dataset), "image"), pluralize(len(names), "class")
    return f"Data: {dataset.source}, {images} of {classes} ({shorten(names)})"


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


def _start_run(run: ResolvedRun, hardware: Hardware, baseline: PreviousRun | None, source: DataConfig) -> None:
    """Fit the linear probe, and write the run directory: what is refused before leaves nothing behind."""
    request, data, recipe, path = run.request, run.data, run.recipe, run.request.path
    _logger.info(length_line(recipe, len(data.train), request.overrides.minutes, path))
    facts = _start_facts(run, hardware, source)
    if wants_probe(recipe, run.network, request.options.probe, data, run.probe_images):
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


def _start_facts(run: ResolvedRun, hardware: Hardware, source: DataConfig) -> dict[str, Any]:
    """The content of ``run.json``."""
    command = command_line()
    if run.request.options.common is not None:  # that of the cross-validation has the options of another table
        recipe = str(run.request.path / "recipe.yaml")
        command = shell_join(["effnetv2", "train", *source.words, "--recipe", recipe])
    facts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "launch": hardware.world.launch,
        "options": run.request.overrides.to_json(),
        "auto_choices": list(run.notes),
        "preprocessing": run.preprocessing.to_json(),
        "microbatches": run.microbatches.by_px,
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
        program = ["SCRIPT"] if CALL.get() else ["-m", "efficientnetv2", *sys.argv[1:]]
        words = ["torchrun", "--nproc-per-node", str(gpus), *program]
        _logger.info(f"One of the {gpus} GPUs here trains. For all of them: {shell_join(words)}")


def resume_hint(source: DataConfig, options: RunOptions, path: Path, world: World) -> str:
    """The command that resumes a run; its recipe and cache the run knows itself."""
    words = ["train", *source.words, "--output", str(path), "--resume", *options.words]
    if world.machines > 1:
        return f"To resume, start it on every machine as before, with: {shell_join(words)}"
    launcher = ["torchrun", "--nproc-per-node", str(world.size), "-m", "efficientnetv2"]
    return f"To resume: {shell_join([*(launcher if world.is_distributed else ['effnetv2']), *words])}"
