"""Suspected label errors, by a classifier on embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold

from efficientnetv2.checks.issues import CheckSection, Issue, connected_groups, issue, share_text, single_rows
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.records import Ints
from efficientnetv2.data.splits import image_labels
from efficientnetv2.inference.linear_probe import DEFAULT_STRENGTH, fit_classifier
from efficientnetv2.inference.predict import Embeddings
from efficientnetv2.inference.probe_splits import GroupedData, tuning_splits
from efficientnetv2.utils.errors import shorten
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.random_key import Key

# Cross-validation folds. Ours, a common choice.
FOLDS = 5
# Minimum number of images of a class to check its labels. Ours.
_MIN_CLASS_IMAGES = 10
# Candidates of the inverse L2 penalty; iterations of the fit. Ours.
_STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)
_ITERATIONS = 100
# Multiply-adds of all fits that predict, and of all that choose the penalty: an hour on a core, or less. Ours.
_MAX_PREDICTION_WORK, _MAX_TUNING_WORK = 3e13, 5e12

Floats = npt.NDArray[np.float32]


def label_error_section(
    dataset: ImageDataset, embeddings: Embeddings, together: Sequence[Sequence[int]], *, key: Key
) -> CheckSection:
    """Labels that a linear classifier contradicts out of fold.

    The rule is confident learning, in cleanlab: off-diagonal entries of the confident joint (Northcutt et al., JAIR
    2021, arXiv:1911.00068). An image of several labels counts with its rarest, and its other labels do not contradict
    it. Classes with fewer than 10 images, or with fewer distinct things than folds, are not checked and are named.
    ``together`` are rows of one thing or group, which no fold separates.
    """
    groups = connected_groups(len(dataset), together)[embeddings.samples]
    labeled = np.stack([embeddings.labels, groups], axis=1)[embeddings.labels >= 0]
    counted, distinct = (
        np.bincount(ids, minlength=len(dataset.class_names))
        for ids in (labeled[:, 0], np.unique(labeled, axis=0)[:, 0])
    )
    classes = np.flatnonzero((counted >= _MIN_CLASS_IMAGES) & (distinct >= FOLDS))
    most = _affordable_images(_MAX_PREDICTION_WORK, FOLDS, len(classes), embeddings.vectors.shape[1])
    notes = _unchecked(dataset, counted, distinct, classes, most)
    if len(classes) < 2 or most < _MIN_CLASS_IMAGES * len(classes):
        return CheckSection({}, notes)
    usable = np.flatnonzero(np.isin(embeddings.labels, classes))
    labels = np.searchsorted(classes, embeddings.labels[usable])
    probabilities = out_of_fold_probabilities(embeddings.vectors[usable], labels, groups[usable], key=key)
    facts, issues = _contradicted(dataset, embeddings.samples[usable], labels, classes, probabilities, most)
    return CheckSection(facts, [*issues, *notes])


def _contradicted(
    dataset: ImageDataset, rows: Ints, labels: Ints, classes: Ints, probabilities: npt.NDArray[np.float64], most: int
) -> tuple[dict[str, Any], list[Issue]]:
    """Facts and issue of contradicted labels, by (n, K) probabilities of classifiers of at most ``most`` images."""
    from cleanlab.filter import find_label_issues  # takes a second to load

    order = find_label_issues(
        labels, probabilities, filter_by="confident_learning", return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    targets = dataset.targets[rows].reshape(len(rows), -1)
    predicted = classes[probabilities.argmax(axis=1)]
    agrees = (targets == predicted[:, None]).any(axis=1)
    order, accuracy = order[~agrees[order]], float(agrees.mean())
    names = dataset.class_names
    suspected = [
        {
            "path": dataset.paths[rows[at]],
            "label": (dataset.separator or "").join(names[label] for label in targets[at] if label >= 0),
            "suggested": names[predicted[at]],
            "probability": round(float(probabilities[at].max()), 3),
            "probability_of_label": round(float(probabilities[at, labels[at]]), 3),
        }
        for at in order
    ]
    facts = {"num_checked": len(labels), "out_of_fold_accuracy": accuracy, "suspected_labels": suspected}
    if not suspected:
        return facts, []
    some_of = f"{most:,} of " if most < len(labels) * (FOLDS - 1) // FOLDS else ""
    found = issue(
        "label",
        f"{share_text(len(order), len(labels))} may have a wrong label, the most likely first.",
        single_rows(rows[order]),
        [f"looks like {each['suggested']}, {100 * each['probability']:.0f} %" for each in suspected],
        advice=f"A linear classifier trained on {some_of}the other images predicts another class. It agrees with "
        f"{100 * accuracy:.1f} % of all labels. Inspect each: hard images with a correct label are among them.",
    )
    return facts, [found]


def _unchecked(dataset: ImageDataset, counted: Ints, distinct: Ints, classes: Ints, most: int) -> list[Issue]:
    """Which classes are not checked, and why."""
    names, used, rarest = dataset.class_names, counted > 0, ""
    if dataset.separator is not None:  # of classes that are nowhere the rarest label, no image counts
        used, rarest = np.bincount(image_labels(dataset)[1], minlength=len(names)) > 0, "the rarest label of "
    present = int(used.sum())
    if present < 2:
        return []
    if most < _MIN_CLASS_IMAGES * len(classes):
        sentence = f"No label was checked: a classifier of {len(classes):,} classes takes hours to train."
        return [issue("unchecked_labels", sentence, advice="Check the images of some classes at a time.")]
    enough = counted >= _MIN_CLASS_IMAGES
    reasons = {
        f"{rarest}fewer than {_MIN_CLASS_IMAGES} images": np.flatnonzero(used & ~enough),
        f"{rarest}fewer than {FOLDS} different things": np.flatnonzero(enough & (distinct < FOLDS)),
        "no other class is left": classes if len(classes) == 1 else classes[:0],
    }
    parts = [f"{shorten([names[k] for k in ids])} ({why})" for why, ids in reasons.items() if len(ids)]
    if not parts:
        return []
    subject = "No label was checked"
    if len(classes) > 1:
        subject = f"The labels of {present - len(classes):,} of {present:,} classes were not checked"
    return [issue("unchecked_labels", f"{subject}: {', '.join(parts)}.")]


def _affordable_images(work: float, fits: int, classes: int, width: int) -> int:
    """Number of images that classifiers can be trained on with so many multiply-adds in total."""
    return int(work / (fits * 2 * _ITERATIONS * max(1, classes) * width))


def _stratified_sample(labels: Ints, most: int, key: Key) -> Ints:
    """Ascending positions of about ``most`` images, stratified by class with a minimum each; all if there are fewer."""
    if len(labels) <= most:
        return np.arange(len(labels))
    counts = np.bincount(labels)
    taken = np.maximum(_MIN_CLASS_IMAGES, counts * most // len(labels))
    order = key.generator().permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(len(order)) - (np.cumsum(counts) - counts)[labels[order]]  # within its class
    return np.sort(order[place < taken[labels[order]]])


def out_of_fold_probabilities(vectors: Floats, labels: Ints, groups: Ints, *, key: Key) -> npt.NDArray[np.float64]:
    """(n, K) probabilities of a linear classifier trained on other folds, or on a sample of them if there are too many.

    ``vectors`` are (n, d); ``labels`` (n,) from 0 to K - 1, each often enough to be in every fold; ``groups`` (n,)
    equal for images that no fold separates.
    """
    strength = _choose_strength(vectors, labels, groups, key)
    classes = int(labels.max()) + 1
    most = _affordable_images(_MAX_PREDICTION_WORK, FOLDS, classes, vectors.shape[1])
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=key.fold("folds").torch_seed() % 2**32)
    parts = [
        (train_part[_stratified_sample(labels[train_part], most, key.fold("lesson", number))], test_rows)
        for number, (train_part, test_rows) in enumerate(folds.split(vectors, labels, groups))
        if len(test_rows)  # not where there are few groups, and they are large
    ]
    probabilities, done = np.zeros((len(labels), classes)), 0
    with progress("checking labels", sum(len(train_rows) for train_rows, _ in parts)) as update:
        for train_rows, test_rows in parts:
            probabilities[test_rows] = _predict(vectors, labels, train_rows, test_rows, strength, classes)
            done += len(train_rows)
            update(done)
    return probabilities


def _predict(
    vectors: Floats, labels: Ints, train_rows: Ints, test_rows: Ints, strength: float, classes: int
) -> npt.NDArray[np.float64]:
    """(test rows, K) probabilities; 0 for a class without training rows, such as one large group."""
    classifier = fit_classifier(vectors[train_rows], labels[train_rows], strength, balanced=False)
    found = classifier.predict_proba(vectors[test_rows])
    probabilities = np.zeros((len(test_rows), classes), dtype=found.dtype)
    probabilities[:, classifier.classes_] = found
    return probabilities


def _choose_strength(vectors: Floats, labels: Ints, groups: Ints, key: Key) -> float:
    """The inverse L2 penalty of lowest log-loss; the usual one if there is too much or too little to choose by."""
    classes = int(labels.max()) + 1
    most = _affordable_images(_MAX_TUNING_WORK, len(_STRENGTHS), classes, vectors.shape[1])
    if most < _MIN_CLASS_IMAGES * classes:
        return DEFAULT_STRENGTH
    sample = _stratified_sample(labels, most, key.fold("sample"))
    vectors, labels, groups = vectors[sample], labels[sample], groups[sample]
    together = replace(GroupedData.independent(len(labels)), clusters=groups)
    parts = tuning_splits(together, labels, key=key.fold("choosing"))
    if not parts:
        return DEFAULT_STRENGTH
    true = np.concatenate([labels[test_rows] for _, test_rows in parts])
    losses: dict[float, float] = {}
    work = sum(len(train_rows) for train_rows, _ in parts)
    with progress("choosing the label classifier", work * len(_STRENGTHS)) as update:
        for strength in _STRENGTHS:
            probabilities = np.concatenate([_predict(vectors, labels, *part, strength, classes) for part in parts])
            losses[strength] = float(log_loss(true, probabilities.astype(vectors.dtype), labels=np.arange(classes)))
            update(work * len(losses))
    return min(losses, key=lambda strength: losses[strength])
