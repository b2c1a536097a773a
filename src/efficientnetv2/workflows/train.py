"""Train a classifier: `efficientnetv2.train`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.prepared_data import require_images_here
from efficientnetv2.evaluation.evaluation_result import EvaluationResult
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.image_cache import ImageCache, local_reader
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_dir import NullRunDir, RunDir, RunLog
from efficientnetv2.training.run_request import ResolvedRun, RunOptions
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.training.trainer import Trainer
from efficientnetv2.utils.device import pick_device
from efficientnetv2.utils.distributed import SINGLE_PROCESS, World, broadcast_from_main, process_group, world_from_env
from efficientnetv2.utils.errors import ReaderKilledError
from efficientnetv2.utils.logs import attached, silenced
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.arguments import Overrides, PathLike, api, run_arguments, validate_run_paths
from efficientnetv2.workflows.results import Run
from efficientnetv2.workflows.resume import AlreadyFinished, report_finished
from efficientnetv2.workflows.run_report import write_run_report
from efficientnetv2.workflows.run_start import TrainJob, log_idle_gpus, pick_hardware, resolve_or_resume, resume_hint

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
    logs to ``logging.getLogger("efficientnetv2")``. With ``workers`` above 0 on macOS or Windows, call it under
    ``if __name__ == "__main__":``.

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
    """Train and report, alone or as one of many processes; returns the run directory.

    ``minutes`` count from ``began``, a ``time.monotonic()``; None: from the first step to the last prediction.
    ``on_result`` gets the result, or of a run that had finished before, the file of its report.
    """
    world, log = world_from_env(), RunLog()
    with (
        process_group(world, fix="The last checkpoint is intact: resume with `resume=True`."),
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
            predict = f"For new images: {shell_join(['effnetv2', 'predict', str(trained.path), 'IMAGES'])}"
            for line in (*paths, *trained.result.next_lines, predict):
                _logger.info(line)
        return trained.path


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
) -> TrainedRun | AlreadyFinished:
    """Train one run and write its report; a finished run stays as it is.

    Raises:
        KeyboardInterrupt: Ctrl-C; the message gives the command that resumes the run.
    """
    job = TrainJob(overrides, source, options, pick_hardware(options, world), log, began)
    with ExitStack() as locks:
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
