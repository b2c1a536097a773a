"""One run from start to end: drives the loop, keeps its books, saves, resumes, evaluates.

What a step does stands in ``training.loop``; what decides a run in ``training.recipe``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import psutil
import torch

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.keys import Key
from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.data.loader import Batch, TrainingPictures, reading_threads, training_batches
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.sampling import Sampler
from efficientnetv2.inference.accelerate import place
from efficientnetv2.inference.predict import Predictions, predict_manifest
from efficientnetv2.metrics.classification import figures
from efficientnetv2.models import modelfile
from efficientnetv2.models.blocks import calm
from efficientnetv2.models.create import create
from efficientnetv2.models.network import EfficientNet
from efficientnetv2.progressive import Setting
from efficientnetv2.training import resume
from efficientnetv2.training.folder import RunFolder
from efficientnetv2.training.loop import Length, State, StepDone, begin, train
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.weights import start_from

# Rows of training figures in a run: enough for a curve, few enough that reading the loss costs nothing.
_ROWS = 200


class Watch(Protocol):
    """Whoever looks on: a progress bar, say."""

    def progress(
        self, done: int, of: int, setting: Setting, images_per_s: float, seconds_left: float, loss: float
    ) -> None:
        """Called now and then while training."""


@dataclass(frozen=True)
class Job:
    """What to run, on what, where.

    Args:
        recipe: settled.
        train, val: the two parts of the manifest.
        preprocessing: of evaluation, and of the model file.
        folder: the run's.
        device: to train on.
        workers: processes that read pictures.
    """

    recipe: Recipe
    train: Manifest
    val: Manifest
    preprocessing: Preprocessing
    folder: RunFolder
    device: torch.device
    workers: int

    @property
    def length(self) -> Length:
        """Steps, and steps per epoch."""
        return Length.of(self.recipe, len(self.train))

    @property
    def key(self) -> Key:
        """Of everything random in the run."""
        return Key.of(self.recipe.seed)


@dataclass
class Result:
    """What a run gave.

    Args:
        predictions: of the network kept, on ``val``.
        seconds: of wall time in training, over all resumed parts; validation and saving included.
        images: pictures seen in training.
        history: rows of ``metrics.jsonl``.
    """

    predictions: Predictions
    seconds: float
    images: int
    history: list[dict[str, Any]]


@dataclass
class _Books:
    """Time and pictures since the last row, and in all."""

    seconds_before: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    row_started: float = field(default_factory=time.perf_counter)
    row_images: int = 0
    saved: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started


def run(job: Job, *, resumed: bool, watch: Watch) -> Result:
    """Train, or go on training, to the end.

    Args:
        job: what to run.
        resumed: go on from the newest checkpoint, if there is one.
        watch: gets told of progress.

    Raises:
        InputError: the loss is no longer a number, a checkpoint can't be written or read.
    """
    torch.manual_seed(job.key.fold("initialisation").torch_seed())
    network = create(job.recipe.model, num_classes=len(job.train.class_names))
    if job.recipe.initialisation == "calm":
        calm(network)
    if job.recipe.weights != "none" and not resumed:
        job.folder.log(start_from(network, job.recipe.weights, job.train.class_names))
    state = begin(place(network, job.device), job.recipe)
    books = _Books()
    if resumed:
        _go_on(job, state, books)
    for done in _steps(job, state):
        _note_unreadable(job, done)
        books.row_images += done.images
        _keep_books(job, state, books, done, watch)
    predictions = _predict(job, state, job.val)
    seconds = books.seconds
    score = figures(predictions.labels, predictions.probabilities, job.train.class_names)
    modelfile.save(
        job.folder.model_file,
        _kept(state),
        preprocessing=job.preprocessing,
        class_names=job.train.class_names,
        recipe=job.recipe.to_json(),
        metrics={"val_top1": score.top1, "val_macro_f1": score.macro_f1, "val_images": len(job.val)},
    )
    job.folder.close()
    return Result(predictions, seconds, job.length.steps * job.recipe.batch_images, job.folder.history())


def _steps(job: Job, state: State) -> Iterator[StepDone]:
    recipe = job.recipe
    assert recipe.group_images is not None, "settle() comes before run()"
    sampler = Sampler(
        labels=job.train.labels,
        progressive=recipe.progressive,
        steps=job.length.steps,
        batch_images=recipe.batch_images,
        group_images=recipe.group_images,
        balance=recipe.balance,
        key=job.key,
        first_step=state.step,
    )
    pictures = TrainingPictures(
        job.train, job.preprocessing, recipe.crop_area_min, job.key, threads=reading_threads(job.workers)
    )
    on_gpu = job.device.type == "cuda"
    batches: Iterator[Batch] = training_batches(pictures, sampler, workers=job.workers, pin_memory=on_gpu)
    return train(
        state,
        batches,
        recipe=recipe,
        preprocessing=job.preprocessing,
        length=job.length,
        num_classes=len(job.train.class_names),
        key=job.key,
        device=job.device,
    )


def _keep_books(job: Job, state: State, books: _Books, done: StepDone, watch: Watch) -> None:
    """After a step: rows, validation and checkpoints when they are due."""
    steps = job.length.steps
    stage_ends = state.step == steps or job.recipe.progressive.at(state.step, steps=steps) != done.setting
    if state.step % max(1, steps // _ROWS) == 0 or stage_ends:
        _row(job, state, books, done, watch)
    every = max(1, round(job.recipe.validate_epochs * job.length.steps_per_epoch))
    if state.step % every == 0 or (stage_ends and _stepwise(job.recipe)):
        _validate(job, state)
        books.row_started = time.perf_counter()  # a row's speed is that of training alone
    due = time.perf_counter() - books.saved >= job.recipe.checkpoint_minutes * 60
    if due or state.step == steps or (stage_ends and _stepwise(job.recipe)):
        resume.save(job.folder.checkpoints, state.to_dict() | {"seconds": books.seconds}, state.step)
        books.saved = books.row_started = time.perf_counter()


def _stepwise(recipe: Recipe) -> bool:
    """Whether settings change at stage ends alone, not at every step."""
    values = vars(recipe.progressive).values()
    return not any(getattr(value, "continuous", False) for value in values)


def _row(job: Job, state: State, books: _Books, done: StepDone, watch: Watch) -> None:
    loss = float(done.loss)
    if not math.isfinite(loss):
        raise InputError(
            f"The loss at step {done.step} is {loss}: training has diverged. Lower the learning rate "
            f"(--set optimizer.lr={job.recipe.optimizer.lr / 3:.2g}) or lengthen the warm-up "
            f"(--set schedule.warmup_epochs={job.recipe.schedule.warmup_epochs + 2:g})."
        )
    now = time.perf_counter()
    images_per_s = books.row_images / max(1e-9, now - books.row_started)
    books.row_started, books.row_images = now, 0
    job.folder.record(
        {
            "kind": "train",
            "step": state.step,
            "epoch": round(state.step / job.length.steps_per_epoch, 4),
            "loss": loss,
            "lr": done.lr,
            **{name: value for name, value in done.setting.to_json().items() if name != "others"},
            "images_per_s": round(images_per_s, 2),
            "seconds": round(books.seconds, 2),
            "memory_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
        }
    )
    left = _seconds_left(job, state.step, done.setting, images_per_s)
    watch.progress(state.step, job.length.steps, done.setting, images_per_s, left, loss)


def _seconds_left(job: Job, step: int, setting: Setting, images_per_s: float) -> float:
    """Time for the steps to come: as now, but in proportion to each one's pixels."""
    steps = job.length.steps
    ahead = np.linspace(step, steps - 1, num=min(64, max(1, steps - step))).astype(int)
    pixels = [
        job.recipe.progressive.at(int(later), steps=steps).image_px ** 2 for later in ahead if step < steps
    ]
    if not pixels:
        return 0.0
    relative = float(np.mean(pixels)) / setting.image_px**2
    return (steps - step) * job.recipe.batch_images / images_per_s * relative


def _validate(job: Job, state: State) -> None:
    """A point of the validation curve, from a fixed part of ``val``."""
    part = job.val
    if len(part) > job.recipe.validate_images:
        chosen = job.key.fold("validation part").generator().permutation(len(part))
        part = part.select(np.sort(chosen[: job.recipe.validate_images]))
    predictions = _predict(job, state, part)
    score = figures(predictions.labels, predictions.probabilities, job.train.class_names)
    epoch = state.step / job.length.steps_per_epoch
    job.folder.record(
        {
            "kind": "val",
            "step": state.step,
            "epoch": round(epoch, 4),
            "top1": score.top1,
            "macro_f1": score.macro_f1,
            "images": len(predictions.labels),
        }
    )
    job.folder.log(
        f"epoch {epoch:.1f}: top-1 {score.top1:.1%}, macro-F1 {score.macro_f1:.3f} "
        f"on {len(predictions.labels)} val pictures"
    )


def _predict(job: Job, state: State, part: Manifest) -> Predictions:
    predictions = predict_manifest(
        _kept(state),
        part,
        preprocessing=job.preprocessing,
        device=job.device,
        workers=job.workers,
        batch_images=min(64, job.recipe.batch_images * 2),
    )
    state.network.train()
    return predictions


def _kept(state: State) -> EfficientNet:
    """The network that is evaluated and goes into the model file."""
    assert isinstance(state.best, EfficientNet)
    return state.best


def _note_unreadable(job: Job, done: StepDone) -> None:
    for sample, reason in done.unreadable:
        job.folder.skip(job.train.paths[sample], reason)


def _go_on(job: Job, state: State, books: _Books) -> None:
    kept, damaged = resume.load_newest(job.folder.checkpoints, job.device)
    for sentence in damaged:
        job.folder.log(f"{sentence}; going on from the one before it.")
    if kept is None:
        job.folder.log("There is no checkpoint yet: starting at step 0.")
        job.folder.forget_after(-1)
        return
    books.seconds_before = kept.pop("seconds")
    state.load_dict(kept)
    job.folder.forget_after(state.step)
    job.folder.log(f"Going on from step {state.step} of {job.length.steps}.")
