"""Select the initial weights of a run among candidates, by linear probes on its training images."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import groupings
from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.data.records import Ints
from efficientnetv2.data.sampler import rank_in_class
from efficientnetv2.inference.linear_probe import DEFAULT_STRENGTH, multiply_adds, out_of_fold_predictions
from efficientnetv2.inference.predict import Embeddings, Runtime, embed_dataset
from efficientnetv2.inference.probe_splits import strictest_grouping
from efficientnetv2.metrics.classification import macro_f1
from efficientnetv2.metrics.metric_intervals import paired_difference
from efficientnetv2.metrics.multilabel import METRIC_NAMES
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.training.initial_weights import WeightsCandidate, build_initial_model
from efficientnetv2.training.overrides import requested_recipe, validate_requested_sizes
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.resolve_image_sizes import limit_upscaling
from efficientnetv2.training.run_dir import RUNS, new_run_path
from efficientnetv2.training.run_request import RunRequest
from efficientnetv2.training.run_setup import eval_preprocessing
from efficientnetv2.training.time_limit import StartupBudget
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.logs import as_details, progress, silenced
from efficientnetv2.utils.random_key import Key

_logger = logging.getLogger(__name__)

_FOLDS = 3
# Images and classes to compare on, at most: per candidate about 10 s on two cores, with V2-B0 at 224 px. If more would
# be needed to tell candidates apart, the most promising is taken. Ours.
_MAX_IMAGES, _MAX_CLASSES = 1_000, 60
# Images for each of the given minutes: about a tenth of the time for three candidates. Ours.
_IMAGES_PER_MINUTE = 150
# Multiply-adds of a candidate on a CPU, at most: larger models see fewer images. Ours.
_MAX_MULTIPLY_ADDS = 1.2e12
_MIN_IMAGES, _MIN_CLASS_IMAGES = 100, 4  # Ours.
# Fraction of the time before the first step. Comparing stops if it takes ``_LATE`` times that. Ours.
_TIME_FRACTION, _LATE = 0.25, 1.5
# Images that are embedded to time one. Ours.
_TIMED_IMAGES = 24
_CHOOSE = "To choose yourself: `weights=NAME`."


@dataclass(frozen=True, eq=False)
class _Task:
    """What each candidate predicts."""

    images: ImageDataset  # Some of train
    folds: list[tuple[Ints, Ints]]  # Rows of them to learn from and to predict
    clusters: Ints  # (n,) ids of images that no fold separates; the bootstrap draws clusters
    groups_note: str  # What no fold separates
    metric: str  # ``top1`` or ``macro_f1``
    key: Key

    def score(self, predicted: Ints) -> float:
        """The metric of predictions; -1 stands for none."""
        known = predicted >= 0
        if self.metric == "macro_f1":
            return macro_f1(self.images.labels[known], predicted[known])
        return float((self.images.labels[known] == predicted[known]).mean())

    def is_better(self, predicted: Ints, other: Ints) -> bool:
        """Whether predictions are significantly better than others."""
        known = (predicted >= 0) & (other >= 0)
        if not known.any():
            return False
        difference = paired_difference(
            self.images.labels[known],
            predicted[known],
            other[known],
            self.clusters[known],
            len(self.images.class_names),
            key=self.key.fold("difference"),
        )[self.metric]
        return difference.low > 0


class _LateError(Exception):
    """Comparing takes longer than its part of the time."""


def select_weights(
    request: RunRequest, data: PreparedData, hardware: Hardware, budget: StartupBudget | None = None
) -> RunRequest:
    """The request with the selected weights, and with another recipe and directory if they are "none".

    The features of each candidate on the same training images are classified linearly, cross-validated, with groups,
    locations and identical files kept whole. A candidate gives way to a less promising one only if that is
    significantly better, as of equal features those that have seen more train better. Images of val and test are not
    used. Images with several labels, and too few images, are not compared. With ``budget`` fewer images are compared,
    or the first candidate is taken.
    """
    if len(request.candidates) < 2 or data.dataset.separator is not None:
        return request
    if request.recipe.weights != request.candidates[0].word:
        return request  # a setting has named others
    candidates, unfit = _fitting(request, hardware)
    request = replace(request, candidates=candidates, notes=(*request.notes, *unfit))
    if len(candidates) < 2:
        return request
    began, within_s = time.perf_counter(), None if budget is None else _TIME_FRACTION * budget.left_s
    # Compared at the size of the run, which is smaller where images are stored small.
    recipe, _ = limit_upscaling(request.recipe, data.stored_size if request.recipe.max_upscale else None)
    eval_image_size = recipe.eval_image_size or recipe.progressive.last.image_size
    recipe = recipe.model_copy(update={"eval_image_size": eval_image_size, "tta": "none"})
    uncompared = f"Weights: {candidates[0].word}, not compared with others (too little time). {_CHOOSE}"
    first_only = replace(request, notes=(*request.notes, uncompared))
    within = None
    if within_s is not None:
        image_s = _seconds_per_image(candidates[0], recipe, data, hardware)
        within = int((within_s - (time.perf_counter() - began)) / (len(candidates) * image_s))
        if within < _MIN_IMAGES:
            return first_only
    task = _task(recipe, data, request.overrides.minutes, hardware, within)
    if task is None:
        return request
    ends = None if within_s is None else began + _LATE * within_s
    try:
        predictions = _predictions(candidates, recipe, task, hardware, ends)
    except _LateError:
        return first_only
    scores = [task.score(predicted) for predicted in predictions]
    best = 0
    for number, predicted in enumerate(predictions):
        best = number if task.is_better(predicted, predictions[best]) else best
    why = "" if scores[best] >= max(scores) else "; no other is significantly better"
    pairs = list(zip(candidates, scores, strict=True))
    winner, took_s = candidates[best], time.perf_counter() - began
    lacking = [candidate.lacking.partition(". To get")[0] for candidate in candidates if candidate.lacking]
    missing = f" Not compared: {lacking[0]}." if lacking else ""
    listed = ", ".join(f"{score:.1%} for {candidate.title}" for candidate, score in pairs)
    note = (
        f"Weights: {winner.word}, chosen among {len(scores)} by linear probes inside the training split: "
        f"{METRIC_NAMES[task.metric]} {listed}, on {pluralize(len(task.images), 'image')} in {_FOLDS} folds"
        f"{task.groups_note}{why} ({took_s:.0f} s).{missing} {_CHOOSE}"
    )
    comparison = {
        "metric": task.metric,
        "num_images": len(task.images),
        "folds": _FOLDS,
        "candidates": [{"weights": candidate.word, "value": round(score, 4)} for candidate, score in pairs],
    }
    request = replace(request, comparison=comparison, comparison_s=took_s)
    return _with_weights(request, replace(winner, note=note), unfit, hardware)


def _with_weights(
    request: RunRequest, winner: WeightsCandidate, unfit: Sequence[str], hardware: Hardware
) -> RunRequest:
    """The request with the recipe of the selected weights."""
    is_first = winner.word == request.candidates[0].word
    with silenced() if is_first else as_details():  # the recipe of the first is known
        recipe, notes = requested_recipe(request.overrides, hardware.device, found=winner)
    lacking = [
        f"Not compared, but promising more: {candidate.lacking}"
        for candidate in request.candidates
        if candidate.lacking
    ]
    for field in ("val_fraction", "minival", "seed"):  # by which the images were split
        assert getattr(recipe, field) == getattr(request.recipe, field)
    moved = request.options.out is None and recipe.name != request.recipe.name
    return replace(
        request,
        path=new_run_path(RUNS, recipe.name) if moved else request.path,
        recipe=recipe,
        notes=(*notes, *lacking, *unfit),
    )


def _fitting(request: RunRequest, hardware: Hardware) -> tuple[tuple[WeightsCandidate, ...], list[str]]:
    """The candidates whose recipes fit the overrides, and a note on each other one: it could win, but not be used."""
    fitting, unfit = [], []
    for candidate in request.candidates:
        try:
            with silenced():
                recipe, _ = requested_recipe(request.overrides, hardware.device, found=candidate)
            validate_requested_sizes(recipe, hardware.device, [candidate.word])
            fitting.append(candidate)
        except InputError as error:
            unfit.append(f"Weights: {candidate.title} left out of the comparison. Of its recipe: {error}")
    return tuple(fitting), unfit


def _network(word: str, recipe: Recipe, images: ImageDataset, hardware: Hardware) -> Network:
    """The model of the recipe with other weights."""
    return build_initial_model(
        recipe.model_copy(update={"weights": word}),
        class_names=images.class_names,
        device=hardware.device,
        in_channels=images.channels,
    ).network


def _embed(
    network: Network,
    recipe: Recipe,
    images: ImageDataset,
    hardware: Hardware,
    progress: Callable[[int], object] | None = None,
) -> Embeddings:
    return embed_dataset(
        network,
        images,
        preprocessing=eval_preprocessing(recipe, network, images.bands),
        runtime=Runtime(hardware.device, hardware.workers),
        progress=progress,
    )


def _seconds_per_image(candidate: WeightsCandidate, recipe: Recipe, data: PreparedData, hardware: Hardware) -> float:
    """Seconds to embed a training image, from a few of them."""
    train = data.train
    few = train.select(np.unique(np.linspace(0, len(train) - 1, _TIMED_IMAGES).astype(np.int64)))
    network = _network(candidate.word, recipe, train, hardware)
    _embed(network, recipe, few.select(np.arange(1)), hardware)  # the first images of a device take longer
    began = time.perf_counter()
    _embed(network, recipe, few, hardware)
    return (time.perf_counter() - began) / len(few)


def _task(
    recipe: Recipe, data: PreparedData, minutes: float | None, hardware: Hardware, within: int | None
) -> _Task | None:
    """Images and folds; None if there are too few images. ``within``: as many as there is time for."""
    train, key = data.train, Key.of(recipe.seed).fold("starts")
    most = float(_MAX_IMAGES)
    if minutes is not None:
        most = min(most, _IMAGES_PER_MINUTE * minutes)
    if hardware.device.type == "cpu":
        assert recipe.eval_image_size is not None
        network = _network("none", recipe, train, hardware)
        most = min(most, _MAX_MULTIPLY_ADDS / multiply_adds(network, recipe.eval_image_size))
    most = max(most, _MIN_IMAGES, _MIN_CLASS_IMAGES * min(len(train.class_names), _MAX_CLASSES))
    rows = _draw(train.labels, int(most if within is None else min(most, within)), key)
    images = train.select(rows)
    counts = np.bincount(images.labels)
    if counts.max() < _FOLDS or (counts > 0).sum() < 2:
        return None
    contents = data.contents[data.dataset.split == "train"][rows]
    # Folds keep related images together, as far as each then learns every class.
    level, folds = strictest_grouping(groupings(images, contents), images.labels, parts=_FOLDS, key=key)
    units = [f"places of {level.block:g}°"] if level.block is not None else []
    units += ["groups"] if level.groups else []
    groups_note = f", {' and '.join(units)} kept whole" if units else ""
    return _Task(images, folds, level.clusters, groups_note, recipe.monitor, key)


def _draw(labels: Ints, most: int, key: Key) -> Ints:
    """Ascending rows of ``most`` images: some of each class, the others at random."""
    generator = key.fold("pictures").generator()
    order = generator.permutation(len(labels))
    classes = generator.permutation(np.unique(labels))[:_MAX_CLASSES]
    order = order[np.isin(labels[order], classes)]
    first = np.argsort(rank_in_class(labels[order]) >= _MIN_CLASS_IMAGES, kind="stable")
    rows: Ints = np.sort(order[first][:most]).astype(np.int64)
    return rows


def _predictions(
    candidates: Sequence[WeightsCandidate], recipe: Recipe, task: _Task, hardware: Hardware, ends: float | None
) -> list[Ints]:
    """The predictions of each candidate; ``ends`` is a ``time.perf_counter()`` after which it is too late."""
    count = len(task.images)
    _logger.debug(
        f"Comparing {len(candidates)} weights by linear probes, on {pluralize(count, 'training image')} each. {_CHOOSE}"
    )
    predictions = []
    with progress("comparing weights", len(candidates) * count) as counted:
        for number, candidate in enumerate(candidates):

            def embedded(done: int, before: int = number * count) -> None:
                counted(before + done)
                if ends is not None and time.perf_counter() > ends:
                    raise _LateError

            predictions.append(_predict(candidate, recipe, task, hardware, embedded))
    return predictions


def _predict(
    candidate: WeightsCandidate, recipe: Recipe, task: _Task, hardware: Hardware, progress: Callable[[int], object]
) -> Ints:
    """(n,) classes that linear probes on a candidate's features predict; -1 where there is no prediction."""
    network = _network(candidate.word, recipe, task.images, hardware)
    embeddings = _embed(network, recipe, task.images, hardware, progress)
    predicted, balanced = np.full(len(task.images), -1, dtype=np.int64), recipe.balances_classes
    predicted[embeddings.samples] = out_of_fold_predictions(
        embeddings, task.folds, key=task.key, balanced=balanced, strength=DEFAULT_STRENGTH
    )
    return predicted
