"""Linear probe: logistic regression on frozen features, which training has to beat."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch.utils.flop_counter import FlopCounterMode

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints, is_copy
from efficientnetv2.inference.predict import THIS_PROCESS, Embeddings, Runtime, embed_dataset
from efficientnetv2.inference.probe_splits import (
    MIN_CLASS_IMAGES,
    TUNING_FRACTION,
    GroupedData,
    deduplicate,
    sample_rows,
    sample_training_rows,
    tuning_splits,
)
from efficientnetv2.metrics.classification import macro_f1
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.output_shapes import infer_shapes
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.random_key import Key

# Candidates of the inverse L2 penalty. Ours: wide enough that neither end is chosen on satellite images and
# photographs, which want 0.001 to 0.01. The default is used where nothing chooses.
_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03)
DEFAULT_STRENGTH = 0.003
# Multiply-adds of all fits that choose, at most: a minute on a core, as of 100 classes and 5,000 images in V2-B0. Ours.
_MAX_TUNING_WORK = 5e11
# 50 to 90 iterations suffice on standardized features; more changed no prediction. Ours.
_ITERATIONS = 100
# Images of either part at most; on a CPU as many as take about the multiply-adds of 5,000 images in V2-B0 at 224 px
# (half a minute on two cores), but no fewer than the least. Ours.
MAX_IMAGES = 5_000
_MAX_MULTIPLY_ADDS = 3.6e12
_MIN_IMAGES = 500


@dataclass(frozen=True)
class ProbeMetrics:
    """Metrics of a linear probe, and the numbers of images that it was evaluated and trained on."""

    top1: float
    macro_f1: float
    num_images: int
    num_train_images: int
    strength: float  # inverse of the L2 penalty, chosen within the training images
    seconds: float  # reading included


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """A fitted linear probe, with the embeddings that it was trained and evaluated on."""

    metrics: ProbeMetrics
    classifier: Pipeline
    train: Embeddings
    val: Embeddings
    val_dataset: ImageDataset  # that ``val.samples`` refers to
    predicted: Ints  # (n,) classes of ``val``
    groups: GroupedData  # of ``train``
    num_unreadable: int  # training images, without copies


def linear_probe(
    network: Network,
    train: ImageDataset,
    val: ImageDataset,
    preprocessing: Preprocessing,
    *,
    key: Key,
    balanced: bool = False,
    max_images: int | None = None,
    max_val_images: int | None = None,
    runtime: Runtime = THIS_PROCESS,
    contents: Ints | None = None,
) -> ProbeResult:
    """Fit logistic regression on embeddings of labeled images and evaluate it on others; large parts are sampled.

    ``balanced`` weights classes by the inverse of their number of images. ``max_images`` None takes
    ``max_probe_images``, and ``max_val_images`` None takes ``max_images``.
    """
    started = time.perf_counter()
    if max_images is None:
        max_images = max_probe_images(network, preprocessing.image_size, len(train.class_names), runtime.device)
    train_rows = sample_training_rows(train.labels, max_images, key.fold("train"), deduplicate(train, contents))
    most_val = max_images if max_val_images is None else max_val_images
    parts = (train.select(train_rows), val.select(sample_rows(len(val), most_val, key.fold("val"))))
    embed = partial(embed_dataset, network, preprocessing=preprocessing, runtime=runtime)
    with progress("linear probe", sum(map(len, parts))) as update:
        train_embeddings = embed(parts[0], progress=update)
        val_embeddings = embed(parts[1], progress=lambda done: update(len(parts[0]) + done))
    _require_two_classes(parts, (train_embeddings, val_embeddings))
    groups = GroupedData.from_dataset(
        parts[0], None if contents is None else contents[train_rows], key=key.fold("together")
    ).select(train_embeddings.samples)
    classifier, strength = fit_probe(train_embeddings, key=key, balanced=balanced, groups=groups)
    truth, predicted = val_embeddings.labels, classifier.predict(val_embeddings.vectors)
    metrics = ProbeMetrics(
        top1=float((truth == predicted).mean()),
        macro_f1=macro_f1(truth, predicted),
        num_images=len(truth),
        num_train_images=len(train_embeddings.labels),
        strength=strength,
        seconds=round(time.perf_counter() - started, 2),
    )
    unreadable = [row for row, _ in train_embeddings.unreadable]
    num_unreadable = int((~is_copy(parts[0])[unreadable]).sum())
    return ProbeResult(
        metrics, classifier, train_embeddings, val_embeddings, parts[1], predicted, groups, num_unreadable
    )


def fit_probe(
    embeddings: Embeddings, *, key: Key, balanced: bool, groups: GroupedData | None = None
) -> tuple[Pipeline, float]:
    """Fit the classifier, its L2 penalty chosen on a quarter of the images, by whole clusters of ``groups``.

    Returns it and the strength. ``embeddings`` have labels of two classes or more.
    """
    vectors, labels = embeddings.vectors, embeddings.labels
    groups = GroupedData.independent(len(labels)) if groups is None else groups
    splits = tuning_splits(groups, labels, key=key.fold("choosing"))
    strength = DEFAULT_STRENGTH
    work = sum(len(train) for train, _ in splits) * len(np.unique(labels)) * vectors.shape[1]
    if splits and 2 * work * _ITERATIONS * len(_STRENGTHS) <= _MAX_TUNING_WORK:
        truth = np.concatenate([labels[test] for _, test in splits])

        def score(strength: float) -> float:
            fits = (fit_classifier(vectors[train], labels[train], strength, balanced) for train, _ in splits)
            parts = [fit.predict(vectors[test]) for fit, (_, test) in zip(fits, splits, strict=True)]
            predicted = np.concatenate(parts)
            return macro_f1(truth, predicted) if balanced else float((predicted == truth).mean())

        strength = max(_STRENGTHS, key=score)
    return fit_classifier(vectors, labels, strength, balanced), strength


def fit_classifier(vectors: npt.NDArray[np.float32], labels: Ints, strength: float, balanced: bool) -> Pipeline:
    """Logistic regression on standardized features, with inverse L2 penalty ``strength``."""
    classifier = LogisticRegression(C=strength, class_weight="balanced" if balanced else None, max_iter=_ITERATIONS)
    pipeline = make_pipeline(StandardScaler(), classifier)
    # The matrices are small: with another process on two cores, threads made it ten times slower.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly converged is good enough
        pipeline.fit(vectors, labels)
    return pipeline


def out_of_fold_predictions(
    embeddings: Embeddings,
    folds: Sequence[tuple[Ints, Ints]],
    *,
    key: Key,
    balanced: bool,
    groups: GroupedData | None = None,
    strength: float | None = None,
) -> Ints:
    """(n,) classes predicted by linear probes of the other folds; -1 for images in no test fold.

    ``strength`` is the inverse L2 penalty. None chooses one for each fold.
    """
    predicted = np.full(len(embeddings.labels), -1, dtype=np.int64)
    for number, fold in enumerate(folds):
        train, test = (np.isin(embeddings.samples, rows) for rows in fold)
        part = Embeddings(embeddings.samples[train], embeddings.labels[train], embeddings.vectors[train])
        if not test.any() or len(np.unique(part.labels)) < 2:
            continue  # a small sample of a large dataset
        if strength is None:
            own_groups = None if groups is None else groups.select(train)
            classifier, _ = fit_probe(part, key=key.fold("fold", number), balanced=balanced, groups=own_groups)
        else:
            classifier = fit_classifier(part.vectors, part.labels, strength, balanced)
        predicted[test] = classifier.predict(embeddings.vectors[test])
    return predicted


def to_linear_layer(classifier: Pipeline, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (K, D) and bias (K,) of the layer of ``fit_classifier``; a class without images gets the least bias."""
    scaler, regression = classifier[0], classifier[1]
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn has a single row, of the second class
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    rows = coefficients / scaler.scale_
    biases = intercepts - rows @ scaler.mean_
    weight = np.tile(rows[biases.argmin()], (num_classes, 1))
    bias = np.full(num_classes, biases.min())
    weight[regression.classes_], bias[regression.classes_] = rows, biases
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def max_probe_images(network: Network, image_size: int, num_classes: int, device: torch.device) -> int:
    """Number of images of either part that a probe embeds within seconds, on a CPU too."""
    if device.type != "cpu":
        return MAX_IMAGES
    least = max(_MIN_IMAGES, MIN_CLASS_IMAGES * num_classes)
    return int(min(MAX_IMAGES, max(least, _MAX_MULTIPLY_ADDS / multiply_adds(network, image_size))))


def max_fit_work(images: int, num_classes: int, width: int) -> float:
    """Multiply-adds of the fits of a probe on this number of embeddings, at most; one split chooses the penalty."""
    fit = 2.0 * _ITERATIONS * images * min(num_classes, images) * width
    return fit + min((1 - TUNING_FRACTION) * len(_STRENGTHS) * fit, _MAX_TUNING_WORK)


def multiply_adds(network: Network, image_size: int) -> float:
    """Multiply-adds of one image, counted without computing."""
    with FlopCounterMode(display=False) as counter:
        infer_shapes(network, in_channels=network.in_channels, image_size=image_size, images=2)
    return float(counter.get_total_flops()) / 2 / 2  # two images; two operations each


def _require_two_classes(parts: Sequence[ImageDataset], embedded: Sequence[Embeddings]) -> None:
    """Refuse parts without readable images; of shards that shows only when they are read."""
    for part, read, purpose in zip(parts, embedded, ("train on", "evaluate on"), strict=True):
        if len(read.samples) == 0 < len(part):
            row, reason = read.unreadable[0]
            raise InputError(
                f"none of the {pluralize(len(part), 'image')} to {purpose} can be read. The first, {part.where(row)}: "
                f"{reason.removesuffix('.')}. Restore or replace them."
            )
    if len(classes := np.unique(embedded[0].labels)) < 2:
        raise InputError(
            f"of the images to train on, only those of '{parts[0].class_names[classes[0]]}' can be read. Two "
            f"classes are needed: restore or replace the {pluralize(len(embedded[0].unreadable), 'other')}."
        )
