"""Train a classifier: `efficientnetv2.train`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch

from efficientnetv2.data.config import DataConfig
from efficientnetv2.data.data_module import DataModule, require_images_here
from efficientnetv2.evaluation.predictions import load_predictions
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.callbacks import Callback
from efficientnetv2.training.initial_weights import model_title
from efficientnetv2.training.microbatch import MicrobatchPlan
from efficientnetv2.training.overrides import TrainOverrides
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import RunConfig
from efficientnetv2.training.run_dir import NullRunDir, RunDir, RunLog
from efficientnetv2.training.run_lock import create_run_dir, lock_run_dir
from efficientnetv2.training.run_options import RunOptions
from efficientnetv2.training.signals import signals_as_ctrl_c
from efficientnetv2.training.time_budget import BEFORE_SHARE, StartupBudget, TimeLimit
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
from efficientnetv2.utils.logs import attached, silenced
from efficientnetv2.utils.memory import limit_memory
from efficientnetv2.utils.shell import shell_join
from efficientnetv2.workflows.arguments import Overrides, PathLike, api, run_arguments
from efficientnetv2.workflows.auto_config import looked_at, refuse_words
from efficientnetv2.workflows.evaluation_result import EvaluationResult
from efficientnetv2.workflows.image_cache import Cached, reader_here
from efficientnetv2.workflows.output_paths import refuse_run_within
from efficientnetv2.workflows.previous_runs import Other
from efficientnetv2.workflows.results import Run
from efficientnetv2.workflows.resume import Finished, as_begun, go_on, tell_finished
from efficientnetv2.workflows.run_options import Decided, decided, repeating
from efficientnetv2.workflows.run_report import report_of
from efficientnetv2.workflows.start_run import begin, data_lines
from efficientnetv2.workflows.weights_selection import chosen

_logger = logging.getLogger(__name__)


def train_and_report(
    words: TrainOverrides,
    source: DataConfig,
    place: RunOptions,
    *,
    began: float | None = None,
    callbacks: Sequence[Callback] = (),
    on_result: Callable[[EvaluationResult | Path], None] = lambda result: None,
) -> Path:
    """Train and report, alone or as one of many processes.

    Args:
        words: about the recipe.
        source: of the pictures.
        place: where and how to run.
        began: ``time.monotonic()`` when the command began: the minutes are those from then to the report. None takes
            them from the first step to the last prediction.
        callbacks: called in the first process.
        on_result: gets what the run came to; of a run that had finished before, the file of its report.

    Returns:
        The run folder.

    Raises:
        InputError: anything a user can mend.
    """
    world, log = world_from_env(), RunLog()
    with (
        process_group(world, mend="The last checkpoint is whole: go on with --resume."),
        attached(log) if world.is_main_process else silenced(),
    ):
        if not world.is_distributed and (note := _others_idle(pick_device(place.device))):
            _logger.info(note)
        done = trained(words, source, place, log, world, began=began, callbacks=callbacks)
        if isinstance(done, Finished):
            if world.is_main_process:
                tell_finished(done, on_result)
        elif done.outcome is not None:
            on_result(done.outcome)
            for line in _closing_lines(done.path, done.outcome):
                _logger.info(line)
        return done.path


def _others_idle(device: torch.device) -> str | None:
    """That one of several GPUs trains, where nobody has said which, and the command by which all of them do.

    Args:
        device: as ``pick_device`` gives it: one that was named has a number.
    """
    gpus = torch.cuda.device_count() if device == torch.device("cuda") else 1
    if gpus == 1:
        return None
    words = ["torchrun", "--nproc-per-node", str(gpus), "-m", "efficientnetv2", *sys.argv[1:]]
    return f"One of the {gpus} GPUs here trains. For all of them: {shell_join(words)}"


@dataclass(frozen=True, eq=False)
class Trained:
    """A run that has just come to its end.

    Args:
        path: of its folder.
        outcome: what it came to; None on every process but the first.
    """

    path: Path
    outcome: EvaluationResult | None


def _closing_lines(path: Path, outcome: EvaluationResult) -> list[str]:
    """Where the result of a run lies, and how it is used."""
    return [
        f"Model: {RunDir(path).model_file}",
        f"Report: {path / 'report.html'}",
        *outcome.next_lines,
        f"For new pictures: {shell_join(['effnetv2', 'predict', str(path), 'PICTURES'])}",
    ]


def trained(
    words: TrainOverrides,
    source: DataConfig,
    place: RunOptions,
    log: RunLog,
    world: World = SINGLE_PROCESS,
    *,
    began: float | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trained | Finished:
    """Train, and write the report, without showing what it says; what is finished already is left as it is.

    Args:
        words: about the recipe.
        source: of the pictures.
        place: where and how to run.
        log: written into the run's folder from when there is one.
        world: the processes that do it together.
        began: As of ``train_and_report``.
        callbacks: called in the first process.

    Raises:
        InputError: anything a user can mend.
        KeyboardInterrupt: Ctrl-C; says how ``train`` goes on.
    """
    device = pick_own_device(place.device, world.local_rank, world.local_size)
    if place.memory_gib is not None:
        limit_memory(device, place.memory_gib)
    world = with_tensor_group(world, device)
    workers = workers_for(place.workers, device, sharing=world.local_size)
    with ExitStack() as kept:
        try:
            # Of several processes the launcher stops the others.
            with nullcontext() if world.is_distributed else signals_as_ctrl_c():
                ready = broadcast_from_main(
                    world, lambda: _readied(words, source, place, device, workers, log, world, kept, began)
                )
        except KeyboardInterrupt as stop:
            how = "goes on" if place.resume else "begins anew"
            raise KeyboardInterrupt(f"No step had been taken: the same command {how}.") from stop
        if isinstance(ready, Finished):
            return ready
        return Trained(ready.path, _run(ready, source, place, device, workers, world, callbacks))


@dataclass(frozen=True, eq=False)
class _Ready:
    """What the first process has decided, for all.

    Args:
        path: of the run folder.
        recipe: settled.
        network: to begin with, on the CPU.
        prepared: the pictures.
        preprocessing: of evaluation, and of the model file.
        microbatches: how many groups run in one pass.
        resumed: whether the run goes on.
        pictures: those to train on, if they are kept decoded.
        limit: Time of the run. None where its steps are fixed.
    """

    path: Path
    recipe: Recipe
    network: Network
    prepared: DataModule
    preprocessing: Preprocessing
    microbatches: MicrobatchPlan
    resumed: bool
    pictures: Cached | None
    limit: TimeLimit | None


def _readied(
    words: TrainOverrides,
    source: DataConfig,
    place: RunOptions,
    device: torch.device,
    workers: int,
    log: RunLog,
    world: World,
    kept: ExitStack,
    began: float | None,
) -> _Ready | Finished:
    """What is decided before the first step; the run's folder is locked from then on, until ``kept`` is closed."""
    known = decided(words, place, device, world)
    recipe, resumed = known.recipe, known.resumed
    refuse_words(known, words, source, place, "train")
    if resumed:
        if (done := _finished(known, place)) is not None:
            return done
        kept.enter_context(lock_run_dir(known.path))
        if (done := _finished(known, place)) is not None:  # while this one waited
            return done
        log.write_to(known.path)
    # Before it looks at every picture.
    theirs = None if place.against is None else load_predictions(place.against)
    prepared = looked_at(recipe, source, place)
    if resumed:
        RunDir(known.path).set_aside_damaged()
        prepared = replace(
            as_begun(known.path, prepared), chooses=recipe.minival is not None
        )  # what can't be read now may leave too few to set aside
    for line in data_lines(source, prepared):
        _logger.info(line)
    prepared = replace(prepared, common=place.common)
    if place.against is not None and theirs is not None:
        known = replace(known, against=Other.named(place.against, theirs, prepared.val))
    budget = None
    if began is not None and words.minutes is not None:
        budget = StartupBudget(60 * words.minutes * BEFORE_SHARE, began)
    known = chosen(known, words, prepared, device, workers, place, budget)
    known, words = repeating(known, words, place)
    if resumed:
        folder, recipe, network, pictures = go_on(
            known.path, recipe, words, prepared, device, place.memory_gib, world
        )
        if known.against is not None:
            folder.amend_beginning(**known.against.keep(folder.path))
    else:
        with create_run_dir(known.path, name=known.recipe.name if place.out is None else None) as path:
            known = replace(known, path=path)
            folder, recipe, network, pictures = begin(
                known, words, prepared, device, workers, place, world, budget
            )
            log.write_to(folder.path)
            kept.enter_context(lock_run_dir(folder.path))
    beginning = folder.beginning()
    if beginning.get("minival_unused"):
        prepared = replace(prepared, chooses=False)
    preprocessing = Preprocessing.from_json(beginning["preprocessing"])
    microbatches = MicrobatchPlan.from_json(beginning["groups_at_a_time"])
    limit = None
    if "time_limit" in beginning:
        now = time.monotonic() if began is None else began
        limit = TimeLimit.from_json(beginning["time_limit"], began=now, resumed=resumed)
    return _Ready(
        folder.path, recipe, network, prepared, preprocessing, microbatches, resumed, pictures, limit
    )


def _finished(known: Decided, place: RunOptions) -> Finished | None:
    """The run, if nothing is left to do; None if something is."""
    if not RunDir(known.path).finished:
        return None
    if place.against is None:
        return Finished(known.path, known.recipe)
    return Finished.compared(known.path, known.recipe, place.against)


def _run(
    ready: _Ready,
    source: DataConfig,
    place: RunOptions,
    device: torch.device,
    workers: int,
    world: World,
    callbacks: Sequence[Callback],
) -> EvaluationResult | None:
    recipe, path = ready.recipe, ready.path
    job = RunConfig(
        recipe=recipe,
        network=ready.network,
        train=ready.prepared.train,
        val=ready.prepared.val,
        preprocessing=ready.preprocessing,
        folder=RunDir(path) if world.is_main_process else NullRunDir(path),
        device=device,
        workers=workers,
        microbatches=ready.microbatches,
        strict=place.strict,
        world=world,
        reader=reader_here(ready.pictures, recipe, ready.prepared, device, world),
        minival=ready.prepared.minival,
    )
    by = f" by {world.size} processes" if world.is_distributed else ""
    planned = "" if ready.limit is None else ", planned again as the pace of the machine changes"
    require_images_here(job.train, world)
    summary = (
        f"Training {model_title(recipe.model)} on {pluralize(len(job.train), 'picture')} of "
        f"{pluralize(len(job.train.class_names), 'class')} for "
        f"{pluralize(float(recipe.epochs), 'epoch')} ({pluralize(job.length.steps, 'step')} of "
        f"{recipe.batch_images}{planned}) on {device.type}{by}."
    )
    _logger.debug(summary)
    try:
        result = Trainer(job, callbacks, limit=ready.limit).fit(resume=ready.resumed)
        return report_of(job, ready.prepared, result) if world.is_main_process else None
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_again(source, place, path, world)) from stop
    except ReaderKilledError as error:
        raise ReaderKilledError(f"{error} {_again(source, place, path, world)}") from error


def _again(source: DataConfig, place: RunOptions, path: Path, world: World = SINGLE_PROCESS) -> str:
    """How a run is gone on with, in the same way, as a sentence; its recipe and cache the run knows itself."""
    words = ["train", *source.words, "--out", str(path), "--resume", *place.words]
    if world.machines > 1:  # what each of them was started with is its own
        return f"Go on by starting it on every machine as before, with: {shell_join(words)}"
    launcher = ["torchrun", "--nproc-per-node", str(world.size), "-m", "efficientnetv2"]
    return f"Go on with: {shell_join([*(launcher if world.is_distributed else ['effnetv2']), *words])}"


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
    words, source, place = run_arguments(
        train, data, recipe, overrides,
        output=output, device=device, workers=workers, resume=resume, baseline=baseline,
    )  # fmt: skip
    if not resume:
        refuse_run_within(source.data, place.out, "train")
    return Run(train_and_report(words, source, place, began=began, callbacks=callbacks))
