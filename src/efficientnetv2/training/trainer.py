"""One run from start to end: begins or goes on, drives the loop, evaluates, writes the model file.

What a step does stands in ``training.loop``; what is written down meanwhile in ``training.callbacks``; what decides a
run in ``training.recipe``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.image_metadata import MAX_HASHED, content_hashes
from efficientnetv2.data.loader import (
    Batch,
    TrainingImages,
    decode_threads,
    training_batches,
    worker_errors,
)
from efficientnetv2.data.sampler import TrainSampler
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.multilabel import compute_metrics, macro_metric
from efficientnetv2.models import model_file as modelfile
from efficientnetv2.models.provenance import TrainingFingerprint
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.progressive.step_plan import StepPlan
from efficientnetv2.training import checkpoint
from efficientnetv2.training.callbacks import Callback, StopRequestedError, TrainingCallbacks
from efficientnetv2.training.ddp import AsyncFlags
from efficientnetv2.training.early_stopping import ModelSelection
from efficientnetv2.training.loop import StepContext, StepOutput, train_steps
from efficientnetv2.training.losses import class_terms
from efficientnetv2.training.post_training import EvalSizeSelection, calibrate, select_eval_size
from efficientnetv2.training.run_config import RunConfig, eval_network
from efficientnetv2.training.signals import GracefulStop
from efficientnetv2.training.time_budget import Pacer, TimeLimit
from efficientnetv2.training.train_state import TrainState, init_state
from efficientnetv2.utils.device import place
from efficientnetv2.utils.distributed import broadcast_from_main, convert_sync_batch_norm
from efficientnetv2.utils.errors import DivergedError, InputError, MemoryShortError, count_of

_logger = logging.getLogger(__name__)


@dataclass
class Result:
    """What a run gave.

    Args:
        predictions: of the network kept, on the job's ``val``.
        seconds: of wall time, over all resumed parts; validation and saving included.
        images: pictures seen in training.
        history: rows of ``metrics.jsonl``.
        selection: what chose the weights, after its last choice; None if the last ones were kept.
        sizes: minival's figures at each size tried, by which that of the model file was chosen; None if none were.
        calibration: of the network kept, fitted on minival; None if there is none.
    """

    predictions: Predictions
    seconds: float
    images: int
    history: list[dict[str, Any]]
    selection: ModelSelection | None = None
    sizes: EvalSizeSelection | None = None
    calibration: Calibration | None = None


def run(
    job: RunConfig, *, resumed: bool, callbacks: Sequence[Callback] = (), limit: TimeLimit | None = None
) -> Result:
    """Train, or go on training, to the end; under many processes each calls it with its own job.

    Args:
        job: what to run.
        resumed: go on from the newest checkpoint, if there is one.
        callbacks: called in the first process.
        limit: Time that the run has. Its steps are then planned under way, and the run folder keeps the plan. None
            takes the steps of the recipe.

    Returns:
        What the run gave; its predictions and history are complete on the first process alone.

    Raises:
        InputError: the loss is no longer a number, a checkpoint can't be written or read, or too many pictures can't be
            read any more.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint of the step then done has been written.
    """
    assert job.recipe.minival == "auto" or (job.minival is None) == (job.recipe.minival is None), (
        "prepare() sets aside what the recipe wants"
    )
    plan = _planned(job, resumed, limit)
    selection = None if job.minival is None else ModelSelection(job.recipe, job.length, plan)
    state, before = _begin(job, resumed, selection, plan)
    pacer = (
        None
        if limit is None
        else Pacer(job, plan, limit, before.get("used_s"), thins=selection is None or selection.ends_only)
    )
    books = TrainingCallbacks(job, state, callbacks, before, selection, plan, pacer)
    try:
        _train(job, state, books, plan)
        books.end()
        if pacer is not None:
            epochs = epochs_trained(job, state.step)
            _logger.info(f"Steps: {state.step:,} ({epochs:g} epochs), as many as the time was enough for.")
        return _ended(job, state, books, selection, plan)
    except StopRequestedError:
        raise KeyboardInterrupt from None
    finally:
        job.folder.close()


def _ended(
    job: RunConfig,
    state: TrainState,
    books: TrainingCallbacks,
    selection: ModelSelection | None,
    plan: StepPlan,
) -> Result:
    """What the run gave, after its last step: chosen, calibrated, evaluated, saved."""
    if selection:
        _choose(job, state, selection, plan)
    if job.world.is_main_process:  # whatever becomes of the evaluation, the model is there
        eval_network(state).trained_on = _remembered(job)
        _save(job, state, selection)
    sizes = None
    try:
        if job.recipe.eval_px_tried is not None and job.minival is not None:
            sizes = select_eval_size(job, state)
            job = sizes.chosen(job)
            _logger.info(str(sizes))
        calibration = calibrate(job, state)
        _logger.info(f"Answering {count_of(len(job.val), f'{job.answered} picture')}.")
        predictions = job.predict(state, job.val)
    except DivergedError as error:
        if job.world.is_main_process:
            job.folder.model_file.unlink(missing_ok=True)
        raise books.diverged_outputs() from error
    except InputError as error:
        raise type(error)(f"{error} The model is saved: {job.folder.model_file}") from error
    books.finish(predictions)
    for note in unread(job, predictions):
        _logger.info(note)
    seconds = books.seconds
    if job.world.is_main_process:
        _save(job, state, selection, predictions)
    images = state.step * job.recipe.batch_images
    return Result(predictions, seconds, images, job.folder.history(), selection, sizes, calibration)


def _planned(job: RunConfig, resumed: bool, limit: TimeLimit | None) -> StepPlan:
    """The steps of the run, with the revisions of earlier parts."""
    if limit is None or not resumed:
        return StepPlan(job.length.steps)
    plain = broadcast_from_main(job.world, lambda: job.folder.beginning().get("revisions", []))
    return StepPlan.from_json(job.length.steps, plain)


def _train(job: RunConfig, state: TrainState, books: TrainingCallbacks, plan: StepPlan) -> None:
    """Step by step, to the end or until waiting for a better figure is over.

    Raises:
        StopAskedError: by a signal, in the middle of a validation; else as ``run``.
    """
    notes = AsyncFlags[tuple[int, str]](job.world)
    steps = _steps(job, state, books.training_begins, plan)
    with GracefulStop(launched=job.world.launch is not None) as interruption:
        books.stopping = lambda: interruption.requested
        done: StepOutput | None = None
        books.begin()
        books.catch_up()
        while not books.over:
            try:
                with worker_errors():
                    done = next(steps)
            except (MemoryShortError, DivergedError):  # in the middle of a step
                raise
            except InputError:  # pictures that can't be read any more: nothing of their step is done yet
                if done is not None:
                    books.save(done)
                raise
            books.after(done)
            stop, unreadable = notes.after_step(
                stop=interruption.requested, noted=done.unreadable, last=books.over
            )
            try:
                books.note_unreadable(unreadable)
            except InputError:
                books.save(done)
                raise
            if stop:
                books.save(done)
                raise KeyboardInterrupt


def _choose(job: RunConfig, state: TrainState, selection: ModelSelection, plan: StepPlan) -> None:
    if state.step < plan.steps:
        _logger.info(selection.why_over())
    selection.apply(eval_network(state))
    _logger.info(str(selection))


def unread(job: RunConfig, predictions: Predictions) -> list[str]:
    """How many images of the last evaluation could not be read, in a sentence; none where all could.

    Args:
        job: the run.
        predictions: on its ``val``, of all processes.
    """
    if not predictions.unreadable:
        return []
    lost, of = len(predictions.unreadable), len(job.val)
    return [
        f"{lost:,} of {of:,} {job.answered} images could not be read. The metrics are of the other {of - lost:,}. "
        f"{job.folder.skipped_file.name} lists what could not be read."
    ]


def _save(
    job: RunConfig,
    state: TrainState,
    selection: ModelSelection | None,
    predictions: Predictions | None = None,
) -> None:
    """Write the model file; before the last evaluation, without ``predictions``, it has no metrics of ``val``."""
    names = job.train.class_names
    metrics: dict[str, Any] = {"epochs": epochs_trained(job, state.step)}
    if predictions is not None:
        score = compute_metrics(predictions.labels, predictions.probabilities, names, predictions.answer)
        name, mean = macro_metric(score)
        metrics[f"{job.answered}_top1"] = score.top1
        metrics[f"{job.answered}_{name}"] = mean
        metrics[f"{job.answered}_images"] = score.num_images
    modelfile.save(
        job.folder.model_file,
        eval_network(state),
        preprocessing=job.preprocessing,
        class_names=names,
        recipe=job.recipe.to_json(),
        metrics=metrics | (selection.to_json() if selection else {}),
    )


def epochs_trained(job: RunConfig, steps: int) -> float:
    """How many epochs a run's steps came to: those of the recipe, or others where the run had a time limit or stopped.

    Args:
        job: the run; its recipe is settled.
        steps: that were taken.
    """
    assert job.recipe.epochs != "auto", "resolve_recipe() comes first"
    if steps != job.length.steps:
        return round(steps * job.recipe.batch_images / len(job.train), 4)
    return job.recipe.epochs


def _remembered(job: RunConfig) -> TrainingFingerprint | None:
    """The pictures that trained and chose by their contents, so that an evaluation on them is known for what it is.

    Beside them what the weights remember that the run began with: they trained this network too.
    """

    def those(part: ImageDataset) -> TrainingFingerprint:
        return TrainingFingerprint(len(part), np.sort(content_hashes(part)[1]))

    try:
        chose = None if job.minival is None else those(job.minival)
        own = replace(those(job.train), chose=chose)
    except InputError as error:  # a store is gone by now, which is no reason to lose the model
        _logger.info(f"The model file does not know the pictures that trained it: {error}")
        return None
    return own.begun_from(job.network.trained_on, most=MAX_HASHED)


def _begin(
    job: RunConfig, resumed: bool, selection: ModelSelection | None, plan: StepPlan
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from, and what the books of the parts before it keep."""
    job.network.answer = job.answer  # whatever the weights answered that it begins with
    state = init_state(place(job.network, job.device), job.recipe)

    def fits(kept: dict[str, Any]) -> bool:
        return state.matches(kept) and (selection is None or "selection" in kept)

    newest, damaged = (
        broadcast_from_main(job.world, lambda: checkpoint.load_latest(job.folder.checkpoints, fits))
        if resumed
        else (None, [])
    )
    for sentence in damaged:
        _logger.info(f"{sentence}; going on from the one before it.")
    if job.recipe.sync_batch_norm and job.world.is_distributed:
        convert_sync_batch_norm(
            state.network, job.world
        )  # not the moving average, which is evaluated and kept
    if newest is None:
        if resumed:
            _logger.info("There is no checkpoint yet: starting at step 0.")
        job.folder.forget_after(-1)
        return state, {}
    books = TrainingCallbacks.taken(newest)
    if selection:
        selection.load_state_dict(newest.pop("selection"))
    state.load_state_dict(newest)
    job.folder.forget_after(state.step)
    if state.step >= plan.steps or (selection and selection.over):
        _logger.info(f"The last step ({state.step:,}) is done: what is left is the evaluation.")
    else:
        _logger.info(f"Going on from step {state.step} of {plan.steps}.")
    return state, books


def _steps(
    job: RunConfig, state: TrainState, begins: Callable[[], None], plan: StepPlan
) -> Iterator[StepOutput]:
    """The steps to come; ``begins`` is called when the network is compiled, before the first pictures are read."""
    recipe = job.recipe
    assert recipe.group_images is not None, "resolve_recipe() comes first"
    if state.step >= plan.steps:
        return iter(())
    sampler = TrainSampler(
        labels=job.train.labels,
        progressive=recipe.progressive,
        steps=job.length.steps,
        batch_images=recipe.batch_images,
        group_images=recipe.group_images,
        balance=recipe.balance,
        key=job.key,
        first_step=state.step,
        rank=job.world.rank,
        world=job.world.size,
        beta=recipe.effective_beta,
        plan=plan,
    )
    pictures = TrainingImages(
        job.train,
        replace(job.preprocessing, framing=recipe.train_framing),
        recipe.crop_area_min,
        job.key,
        threads=decode_threads(job.workers),
        reader=job.reader,
    )
    pinned = job.device.type == "cuda"

    def batches() -> Iterator[Batch]:
        begins()
        yield from training_batches(pictures, sampler, workers=job.workers, pin_memory=pinned)

    return train_steps(
        state,
        batches(),
        StepContext(
            recipe,
            job.preprocessing,
            num_classes=len(job.train.class_names),
            key=job.key,
            device=job.device,
            class_terms=class_terms(job.train.targets, len(job.train.class_names), recipe),
            activation=job.answer,
        ),
        length=job.length,
        microbatches=job.microbatches,
        world=job.world,
        plan=plan,
    )
