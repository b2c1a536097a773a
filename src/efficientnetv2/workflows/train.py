"""Train a classifier: `efficientnetv2.train`."""

from __future__ import annotations

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
from efficientnetv2.data.data_module import DataModule, prepare_data, require_images_here
from efficientnetv2.evaluation.compare import PreviousRun
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.evaluation.predictions import load_predictions
from efficientnetv2.inference.linear_probe import ProbeMetrics
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.image_cache import ImageCache, local_reader
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.linear_probe import fit_head, select_weights, wants_probe
from efficientnetv2.training.memory_probe import Hardware
from efficientnetv2.training.overrides import TrainOverrides, validate_label_settings
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resolve import resolve
from efficientnetv2.training.run_config import RunConfig
from efficientnetv2.training.run_dir import RUN_FILES, NullRunDir, RunDir, RunLog
from efficientnetv2.training.run_lock import create_run_dir, lock_run_dir
from efficientnetv2.training.run_request import ResolvedRun, RunOptions, RunRequest, request_run
from efficientnetv2.training.run_summary import length_line
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.training.time_budget import BEFORE_SHARE, StartupBudget
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.device import pick_device, pick_own_device, workers_for
from efficientnetv2.utils.distributed import (
    SINGLE_PROCESS,
    World,
    broadcast_from_main,
    process_group,
    with_tensor_group,
    world_from_env,
)
from efficientnetv2.utils.errors import ReaderKilledError, pluralize
from efficientnetv2.utils.legacy import SCHEMA_VERSION
from efficientnetv2.utils.logs import attached, silenced
from efficientnetv2.utils.memory import limit_memory
from efficientnetv2.utils.shell import command_line, shell_join
from efficientnetv2.workflows.arguments import Overrides, PathLike, api, run_arguments
from efficientnetv2.workflows.output_paths import (
    refuse_inside_data,
    refuse_replacing_data,
    validate_run_paths,
)
from efficientnetv2.workflows.results import Run
from efficientnetv2.workflows.resume import FinishedRun, report_finished, restore_dataset, resume_run
from efficientnetv2.workflows.run_report import save_probe, write_run_report

_logger = logging.getLogger(__name__)


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

    The run is the one of ``effnetv2 train`` with the same options and seed, to the bit. Nothing is printed: the package
    logs to ``logging.getLogger("efficientnetv2")``. With ``workers`` above 0 on macOS or
    Windows, call it under ``if __name__ == "__main__":``.

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
        baseline: Another run to compare with on the same images. None takes the newest that predicted them.
        callbacks: Called at points of the training, see `Callback`.
        overrides: Hyperparameters, and how ``data`` is read: ``model``, ``weights``, ``epochs``, ``minutes``,
            ``image_size``, ``batch_size``, ``lr``, ``crop_mode``, ``seed``, ``cache``, ``memory_gib``, ``strict``,
            ``path_column``, ``label_column``, ``group_column``, ``labels``, ``label_separator``, ``bands``,
            ``nodata``, ``layout``, ``min_images_per_class``. Any other field of the recipe goes into ``settings``,
            a mapping of dotted names: ``settings={"progressive.stages": 1, "patience": 5}``.

    Returns:
        The finished run.

    Raises:
        InputError: An argument, a file or an image that the caller can fix.
    """
    began = time.monotonic()
    changes, source, options = run_arguments(
        train, data, recipe, overrides,
        output=output, device=device, workers=workers, resume=resume, baseline=baseline,
    )  # fmt: skip
    if not resume:
        validate_run_paths(source.data, options.out, "train")
    return Run(train_and_report(changes, source, options, began=began, callbacks=callbacks))


def train_and_report(
    overrides: TrainOverrides,
    source: DataConfig,
    options: RunOptions,
    *,
    began: float | None = None,
    callbacks: Sequence[Callback] = (),
    on_result: Callable[[EvaluationResult | Path], None] = lambda result: None,
) -> Path:
    """Train and report, alone or as one of many processes.

    Args:
        overrides: Changes of the recipe.
        source: Dataset.
        options: Where and how to run.
        began: ``time.monotonic()`` when the command began: ``minutes`` are those from then to the report. None takes
            them from the first step to the last prediction.
        callbacks: Called in the first process.
        on_result: Gets the result; of a run that had finished before, the file of its report.

    Returns:
        The run directory.

    Raises:
        InputError: What the caller can fix.
    """
    world, log = world_from_env(), RunLog()
    with (
        process_group(world, mend="The last checkpoint is whole: go on with --resume."),
        attached(log) if world.is_main_process else silenced(),
    ):
        if not world.is_distributed and (note := _idle_gpus_note(pick_device(options.device))):
            _logger.info(note)
        done = train_run(overrides, source, options, log, world, began=began, callbacks=callbacks)
        if isinstance(done, FinishedRun):
            if world.is_main_process:
                report_finished(done, on_result)
        elif done.result is not None:
            on_result(done.result)
            _logger.info(f"Model: {RunDir(done.path).model_file}")
            _logger.info(f"Report: {done.path / 'report.html'}")
            for line in done.result.next_lines:
                _logger.info(line)
            command = shell_join(["effnetv2", "predict", str(done.path), "IMAGES"])
            _logger.info(f"For new images: {command}")
        return done.path


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """Directory and result of a run that has just ended; the result is None in all processes but the first."""

    path: Path
    result: EvaluationResult | None


def train_run(
    overrides: TrainOverrides,
    source: DataConfig,
    options: RunOptions,
    log: RunLog,
    world: World = SINGLE_PROCESS,
    *,
    began: float | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainedRun | FinishedRun:
    """Train one run and write its report; a finished run stays as it is.

    Args:
        overrides, source, options, began, callbacks: See ``train_and_report``.
        log: Written into the run directory as soon as there is one.
        world: Processes that run it together.

    Raises:
        InputError: What the caller can fix.
        KeyboardInterrupt: Ctrl-C; the message gives the command that resumes the run.
    """
    device = pick_own_device(options.device, world.local_rank, world.local_size)
    if options.memory_gib is not None:
        limit_memory(device, options.memory_gib)
    workers = workers_for(options.workers, device, sharing=world.local_size)
    hardware = Hardware(device, options.memory_gib, with_tensor_group(world, device), workers)
    job = _Job(overrides, source, options, hardware, log, began)
    with ExitStack() as locks:
        try:
            # Of several processes the launcher stops the others.
            with nullcontext() if world.is_distributed else signals_as_ctrl_c():
                run = broadcast_from_main(hardware.world, lambda: _resolve_or_resume(job, locks))
        except KeyboardInterrupt as stop:
            how = "goes on" if options.resume else "begins anew"
            raise KeyboardInterrupt(f"No step had been taken: the same command {how}.") from stop
        return run if isinstance(run, FinishedRun) else _train(job, run, callbacks)


@dataclass(frozen=True, eq=False)
class _Job:
    """What ``train_run`` was given."""

    overrides: TrainOverrides
    source: DataConfig
    options: RunOptions
    hardware: Hardware
    log: RunLog
    began: float | None


def _resolve_or_resume(job: _Job, locks: ExitStack) -> ResolvedRun | FinishedRun:
    """Everything before the first step; the run directory is locked from then on, until ``locks`` is closed."""
    options, hardware = job.options, job.hardware
    request = request_run(job.overrides, options, hardware)
    validate_request(request, job.source, "train")
    if request.resumed:
        if (done := FinishedRun.find(request)) is not None:
            return done
        locks.enter_context(lock_run_dir(request.path))
        if (done := FinishedRun.find(request)) is not None:  # while this process waited
            return done
        job.log.write_to(request.path)
    # Before it looks at every image.
    predictions = None if options.against is None else load_predictions(options.against)
    data = load_run_data(request.recipe, job.source, options)
    if request.resumed:
        RunDir(request.path).set_aside_damaged()
        data = restore_dataset(request.path, data)
        # What can't be read now may leave too few to set aside for minival.
        data = replace(data, chooses=request.recipe.minival is not None)
    for line in _data_lines(job.source, data):
        _logger.info(line)
    data, baseline = replace(data, common=options.common), None
    if options.against is not None and predictions is not None:
        baseline = PreviousRun.named(options.against, predictions, data.val)
    if request.resumed:
        run = resume_run(request, data, hardware, job.began)
        if baseline is not None:
            RunDir(request.path).amend_beginning(**baseline.save(request.path))
        return run
    budget = None
    if job.began is not None and job.overrides.minutes is not None:
        budget = StartupBudget(60 * job.overrides.minutes * BEFORE_SHARE, job.began)
    request = select_weights(request, data, hardware, budget)  # which decide the name of the directory too
    name = request.recipe.name if options.out is None else None
    with create_run_dir(request.path, name=name) as path:
        run = resolve(replace(request, path=path), data, hardware, budget=budget)
        _start_run(run, hardware, baseline)
        job.log.write_to(path)
        locks.enter_context(lock_run_dir(path))
    return run


def validate_request(request: RunRequest, source: DataConfig, command: str) -> None:
    """Refuse what needs no look at an image: settings without effect, and a run directory inside the data.

    Raises:
        InputError: One of these.
    """
    validate_label_settings(request.recipe, request.overrides, source.label_separator)
    if not request.resumed:
        verb = command if request.options.out is None else None
        refuse_inside_data(source.data, request.path, "--output", command=verb)
        refuse_replacing_data(source.data, request.path, RUN_FILES, "--output")


def load_run_data(recipe: Recipe, source: DataConfig, options: RunOptions) -> DataModule:
    """The images of a run: read, validated and split as its recipe says.

    Raises:
        InputError: What is wrong with the images.
    """
    return prepare_data(
        source,
        val_fraction=recipe.val_fraction,
        eval_split=recipe.eval_split,
        minival=recipe.minival,
        expected_dataset=recipe.expected_dataset,
        seed=recipe.seed,
        strict=options.strict,
        detail_level=logging.DEBUG,
    )


def _start_run(run: ResolvedRun, hardware: Hardware, baseline: PreviousRun | None) -> None:
    """Fit the linear probe, and write the run directory, so that what is refused leaves nothing behind."""
    request, data, recipe, path = run.request, run.data, run.recipe, run.request.path
    _logger.info(length_line(recipe, len(data.train), request.overrides.minutes, path))
    facts = _run_facts(run, hardware)
    if wants_probe(recipe, request.options.probe, data, run.probe_images):
        probe = fit_head(run.network, data, run.preprocessing, recipe, hardware, run.probe_images)
        run.network.to("cpu")  # other processes get it from here, each for its own device
        starts_there = recipe.head_init == "linear_probe" and not run.network.class_names
        _logger.debug(_probe_line(probe.metrics, data, starts_there=starts_there))
        if request.options.probe:
            facts |= save_probe(probe, data, recipe, path)
    if baseline is not None:
        facts |= baseline.save(path)
    if run.limit is not None:
        facts["time_limit"] = run.limit.to_json()
    folder = RunDir(path)
    folder.begin(recipe, data.dataset, facts)
    for skipped_path, reason in data.skipped:
        folder.skip(skipped_path, reason)
    if data.skipped:
        _logger.info(f"What could not be read is listed in {folder.skipped_file}.")


def _run_facts(run: ResolvedRun, hardware: Hardware) -> dict[str, Any]:
    """What the run directory says of the start of the run, as plain values."""
    request, network = run.request, run.network
    facts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": command_line(),
        "launch": hardware.world.launch,
        "auto_choices": list(run.notes),
        "preprocessing": run.preprocessing.to_json(),
        "microbatches": run.microbatches.to_json(),
    }
    if run.overlap.flattering:
        facts["seen_before"] = run.overlap.to_json()
    if run.overlap.chooser:
        facts["minival_unused"] = True
    if network.trained_on is not None:  # for a resumed run, whose weights are its checkpoint's
        facts["weights_trained_on"] = network.trained_on.to_json()
    if request.comparison is not None:
        facts["weights_compared"] = request.comparison
    if isinstance(run.cache, ImageCache):
        facts["cache"], facts["cache_px"] = request.overrides.cache, run.cache.image_size
    if run.data.dataset.separator is not None:
        facts["label_separator"] = run.data.dataset.separator
    if run.probe_images is not None:
        facts["probe_images"] = run.probe_images
    return facts


def _train(job: _Job, run: ResolvedRun, callbacks: Sequence[Callback]) -> TrainedRun:
    """Train a resolved run and write its report; every process calls this."""
    world, path, data, recipe = job.hardware.world, run.request.path, run.data, run.recipe
    cache = run.cache if isinstance(run.cache, ImageCache) else None
    config = replace(
        run.config(job.hardware),
        folder=RunDir(path) if world.is_main_process else NullRunDir(path),
        strict=job.options.strict,
        world=world,
        reader=local_reader(cache, recipe, data, job.hardware),
    )
    require_images_here(config.train, world)
    _logger.debug(_training_line(config, is_limited=run.limit is not None))
    try:
        trainer = Trainer(config, callbacks, limit=run.limit)
        result = trainer.fit(resume=run.request.resumed)
        report = write_run_report(config, data, result) if world.is_main_process else None
        return TrainedRun(path, report)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_resume_hint(job.source, job.options, path, world)) from stop
    except ReaderKilledError as error:
        hint = _resume_hint(job.source, job.options, path, world)
        raise ReaderKilledError(f"{error} {hint}") from error


def _data_lines(source: DataConfig, data: DataModule) -> list[str]:
    """The images and their split, a line each."""
    images, classes = (
        pluralize(len(data.dataset), "image"),
        pluralize(len(data.dataset.class_names), "class"),
    )
    note = data.split_note
    return [f"Data: {source.data}, {images} of {classes}", f"Split: {note[:1].lower()}{note[1:]}"]


def _training_line(config: RunConfig, *, is_limited: bool) -> str:
    recipe, world = config.recipe, config.world
    by = f" by {world.size} processes" if world.is_distributed else ""
    planned = ", planned again as the pace of the machine changes" if is_limited else ""
    return (
        f"Training {model_title(recipe.model)} on {pluralize(len(config.train), 'picture')} of "
        f"{pluralize(len(config.train.class_names), 'class')} for "
        f"{pluralize(float(recipe.epochs), 'epoch')} ({pluralize(config.length.steps, 'step')} of "
        f"{recipe.batch_size}{planned}) on {config.device.type}{by}."
    )


def _probe_line(probe: ProbeMetrics, data: DataModule, *, starts_there: bool) -> str:
    learned, total = probe.num_train_images, len(data.train)
    fewer = f", learnt from {learned:,} of {pluralize(total, 'training picture')}" if learned < total else ""
    return (
        f"Linear probe on the given weights as they came: top-1 {probe.top1:.1%}, macro-F1 {probe.macro_f1:.1%} on "
        f"{pluralize(probe.num_images, f'{data.eval_split} picture')}{fewer} ({probe.seconds:.0f} s). Training "
        f"{'begins there, and ' if starts_there else ''}has to beat that."
    )


def _idle_gpus_note(device: torch.device) -> str | None:
    """That one of several GPUs trains if none was named, and the command by which all of them do."""
    gpus = torch.cuda.device_count() if device == torch.device("cuda") else 1
    if gpus == 1:
        return None
    words = ["torchrun", "--nproc-per-node", str(gpus), "-m", "efficientnetv2", *sys.argv[1:]]
    return f"One of the {gpus} GPUs here trains. For all of them: {shell_join(words)}"


def _resume_hint(source: DataConfig, options: RunOptions, path: Path, world: World) -> str:
    """The command that resumes a run; its recipe and cache the run knows itself."""
    words = ["train", *source.words, "--output", str(path), "--resume", *options.words]
    if world.machines > 1:  # what each of them was started with is its own
        return f"Go on by starting it on every machine as before, with: {shell_join(words)}"
    launcher = ["torchrun", "--nproc-per-node", str(world.size), "-m", "efficientnetv2"]
    return f"Go on with: {shell_join([*(launcher if world.is_distributed else ['effnetv2']), *words])}"
