"""Linear probe: logistic regression on frozen features, which training has to beat."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch.utils.flop_counter import FlopCounterMode

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.groups import Grouping, groupings, stratified_group_split
from efficientnetv2.data.records import Ints, copy_groups, is_copy
from efficientnetv2.inference.predict import THIS_PROCESS, Embeddings, Runtime, embed_dataset
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
# Fraction of the training images that choose the penalty. With clusters: the number of images and draws at most, since
# a quarter of 400 satellite images is some twenty places, and the best penalty on these is chance. Ours.
_TUNING_FRACTION = 0.25
_TUNING_IMAGES, _TUNING_DRAWS = 500, 4
# Folds that must leave every class in training for a grouping to be used. Ours.
_FOLDS = 4
# Multiply-adds of all fits that choose, at most: a minute on a core, as of 100 classes and 5,000 images in V2-B0. Ours.
_MAX_TUNING_WORK = 5e11
# 50 to 90 iterations suffice on standardized features; more changed no prediction. Ours.
_ITERATIONS = 100
# Images of either part at most; on a CPU as many as take about the multiply-adds of 5,000 images in V2-B0 at 224 px
# (half a minute on two cores), but no fewer than the least. Ours.
MAX_IMAGES = 5_000
_MAX_MULTIPLY_ADDS = 3.6e12
_MIN_IMAGES, _MIN_CLASS_IMAGES = 500, 5


@dataclass(frozen=True, eq=False)
class GroupedData:
    """Which images must stay on one side of a split."""

    clusters: Ints  # (n,) ids; images of a cluster are not separated
    family: Ints  # (n,) ids, equal for an image and its augmented copies (``data.records``)
    made: npt.NDArray[np.bool_]  # (n,) whether an image is an augmented copy

    @classmethod
    def independent(cls, count: int) -> Self:
        """Images without groups and copies."""
        return cls(np.arange(count), np.arange(count), np.zeros(count, dtype=bool))

    @classmethod
    def from_clusters(cls, clusters: Ints, dataset: ImageDataset) -> Self:
        """Known cluster ids, and the copies of the dataset."""
        family = copy_groups(dataset)
        return cls(clusters, np.arange(len(dataset)) if family is None else family, is_copy(dataset))

    @classmethod
    def from_dataset(cls, dataset: ImageDataset, contents: Ints | None, *, key: Key) -> Self:
        """The strictest grouping whose folds leave every class in training. ``contents``: see ``deduplicate``."""
        levels = groupings(dataset, contents)
        level = levels[-1]
        if len(levels) > 1 and np.bincount(dataset.labels).max() >= _FOLDS:
            level, _ = strictest_grouping(levels, dataset.labels, parts=_FOLDS, key=key)
        return cls.from_clusters(level.clusters, dataset)

    def select(self, rows: npt.NDArray[np.generic]) -> Self:
        """Some of the images, by position or mask."""
        return type(self)(self.clusters[rows], self.family[rows], self.made[rows])

    @property
    def originals(self) -> Ints:
        """Ascending positions of one image per family: the original if it is there."""
        order = np.lexsort((self.made, self.family))
        first = np.unique(self.family[order], return_index=True)[1]
        return np.sort(order[first])

    @property
    def has_clusters(self) -> bool:
        """Whether two originals share a cluster."""
        return len(np.unique(self.clusters[self.originals])) < len(self.originals)

    def draw_splits(
        self,
        labels: Ints,
        *,
        key: Key,
        draws: int = 1,
        train_size: int | None = None,
        test_fraction: float | None = None,
    ) -> list[tuple[Ints, Ints]]:
        """Random splits, stratified by (n,) class ids with two originals or more each, that keep clusters whole.

        Either ``train_size`` is the number of originals to train on, as nearly as clusters allow, or ``test_fraction``
        the fraction to test on. Returns the positions to train on, copies last, and to test on, originals only.
        """
        originals = self.originals
        classes = np.unique(labels[originals], return_inverse=True)[1]
        splits: list[tuple[Ints, Ints]] = []
        if self.has_clusters:
            clusters = np.unique(self.clusters[originals], return_inverse=True)[1]
            train = 1 - test_fraction if test_fraction is not None else (train_size or 0) / len(originals)
            target = np.outer([train, 1 - train], np.bincount(classes).astype(np.float64))
            # Of many draws each may be uneven: to balance thousands of clusters takes a second.
            attempts = {} if draws == 1 else {"attempts": 1}
            for draw in range(draws):
                own_key = key.fold("draw", draw)
                side = stratified_group_split(clusters, classes, target=target, key=own_key, **attempts)
                splits.append((np.flatnonzero(side == 0), np.flatnonzero(side == 1)))
        else:
            split = StratifiedShuffleSplit(
                draws, train_size=train_size, test_size=test_fraction, random_state=key.torch_seed() % 2**32
            )
            splits = list(split.split(classes, classes))
        copies = np.setdiff1d(np.arange(len(labels)), originals)
        with_copies = []
        for train_rows, test_rows in splits:
            train_copies = copies[np.isin(self.family[copies], self.family[originals[train_rows]])]
            with_copies.append((np.append(originals[train_rows], train_copies), originals[test_rows]))
        return with_copies


@dataclass(frozen=True)
class ProbeOptions:
    """How a linear probe is computed."""

    key: Key
    balanced: bool = False  # weight classes by the inverse of their number of images
    max_images: int | None = None  # of either part; None takes ``max_probe_images``
    max_val_images: int | None = None  # None takes ``max_images``
    runtime: Runtime = THIS_PROCESS


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
    options: ProbeOptions,
    *,
    contents: Ints | None = None,
) -> ProbeResult:
    """Fit logistic regression on embeddings of labeled images and evaluate it on others; large parts are sampled."""
    started = time.perf_counter()
    key, most = options.key, options.max_images
    if most is None:
        num_classes = len(train.class_names)
        most = max_probe_images(network, preprocessing.image_size, num_classes, options.runtime.device)
    train_rows = sample_training_rows(train.labels, most, key.fold("train"), deduplicate(train, contents))
    most_val = most if options.max_val_images is None else options.max_val_images
    parts = (train.select(train_rows), val.select(_sample_rows(len(val), most_val, key.fold("val"))))
    embed = partial(embed_dataset, network, preprocessing=preprocessing, runtime=options.runtime)
    with progress("linear probe", sum(map(len, parts))) as update:
        train_embeddings = embed(parts[0], progress=update)
        val_embeddings = embed(parts[1], progress=lambda done: update(len(parts[0]) + done))
    _require_two_classes(parts, (train_embeddings, val_embeddings))
    groups = GroupedData.from_dataset(
        parts[0], None if contents is None else contents[train_rows], key=key.fold("together")
    ).select(train_embeddings.samples)
    classifier, strength = fit_probe(train_embeddings, key=key, balanced=options.balanced, groups=groups)
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


def tuning_splits(groups: GroupedData, labels: Ints, *, key: Key) -> list[tuple[Ints, Ints]]:
    """Splits that choose a penalty; none if there are too few images of a class, or a cluster is too large."""
    _, counts = np.unique(labels[groups.originals], return_counts=True)
    num_tuning = _TUNING_FRACTION * counts.sum()
    if counts.min() < 2 or num_tuning < len(counts):
        return []
    draws = max(1, min(_TUNING_DRAWS, math.ceil(_TUNING_IMAGES / num_tuning))) if groups.has_clusters else 1
    splits = groups.draw_splits(labels, key=key, test_fraction=_TUNING_FRACTION, draws=draws)
    usable = all(len(test) and len(np.unique(labels[train])) > 1 for train, test in splits)
    return splits if usable else []


def strictest_grouping(
    levels: Sequence[Grouping], labels: Ints, *, parts: int, key: Key
) -> tuple[Grouping, list[tuple[Ints, Ints]]]:
    """The first of ``levels``, strictest first, whose folds leave every class in training, else the last."""
    for level in levels:
        if len(np.unique(level.clusters)) < parts and level is not levels[-1]:
            continue
        seed = key.fold("folds").torch_seed() % 2**32
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer images than folds
            folds = list(splitter.split(labels, labels, level.clusters))
        if all(len(np.unique(labels[train])) == len(np.unique(labels)) for train, _ in folds):
            break
    return level, folds


def deduplicate(dataset: ImageDataset, contents: Ints | None) -> npt.NDArray[np.bool_]:
    """(N,) whether an image stands for its augmented copies and for files with equal bytes, (N,) ``contents`` ids."""
    originals = GroupedData.from_clusters(np.arange(len(dataset)), dataset).originals
    if contents is not None:
        originals = originals[np.unique(contents[originals], return_index=True)[1]]
    distinct = np.zeros(len(dataset), dtype=bool)
    distinct[originals] = True
    return distinct


def sample_training_rows(labels: Ints, most: int, key: Key, distinct: npt.NDArray[np.bool_] | None = None) -> Ints:
    """About ``most`` ascending rows of (N,) labels to train on, drawn uniformly.

    Of images that are not ``distinct`` (N,), as of ``deduplicate``, some are drawn only where a class has no others
    left. If the draw has a single class, a few images of others are added.
    """
    drawn = _sample_rows(len(labels), most, key)
    if len(drawn) < len(labels) and distinct is not None and not distinct.all():
        order = key.generator().permutation(len(labels))
        order = order[np.lexsort((~distinct[order], labels[order]))]  # by class; copies last
        counts = np.bincount(labels[drawn], minlength=int(labels.max()) + 1)
        first = np.searchsorted(labels[order], np.arange(len(counts)))
        drawn = np.sort(order[np.arange(len(order)) - first[labels[order]] < counts[labels[order]]])
    same_class = labels == labels[drawn[0]]
    if same_class[drawn].all():
        drawn = np.union1d(drawn, np.flatnonzero(~same_class)[:_MIN_CLASS_IMAGES])
    return drawn


def max_probe_images(network: Network, image_size: int, num_classes: int, device: torch.device) -> int:
    """Number of images of either part that a probe embeds within seconds, on a CPU too."""
    if device.type != "cpu":
        return MAX_IMAGES
    least = max(_MIN_IMAGES, _MIN_CLASS_IMAGES * num_classes)
    return int(min(MAX_IMAGES, max(least, _MAX_MULTIPLY_ADDS / multiply_adds(network, image_size))))


def max_fit_work(images: int, num_classes: int, width: int) -> float:
    """Multiply-adds of the fits of a probe on this number of embeddings, at most; one split chooses the penalty."""
    fit = 2.0 * _ITERATIONS * images * min(num_classes, images) * width
    return fit + min((1 - _TUNING_FRACTION) * len(_STRENGTHS) * fit, _MAX_TUNING_WORK)


def multiply_adds(network: Network, image_size: int) -> float:
    """Multiply-adds of one image, counted without computing."""
    with FlopCounterMode(display=False) as counter:
        infer_shapes(network, in_channels=network.in_channels, image_size=image_size, images=2)
    return float(counter.get_total_flops()) / 2 / 2  # two images; two operations each


def macro_f1(truth: Ints, predicted: Ints) -> float:
    """Mean F1 over the classes in ``truth``, as in ``metrics.classification``."""
    return float(f1_score(truth, predicted, labels=np.unique(truth), average="macro"))


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


def _sample_rows(count: int, most: int, key: Key) -> Ints:
    return np.arange(count) if count <= most else np.sort(key.generator().permutation(count)[:most])
