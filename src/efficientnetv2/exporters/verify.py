"""Proof that an exported file predicts as its model does, from image file to label."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from efficientnetv2.data.dataset import ImageDataset, resolved_files
from efficientnetv2.data.image_io import Pixels
from efficientnetv2.data.loader import evaluation_batches
from efficientnetv2.data.records import Ints
from efficientnetv2.exporters import classify
from efficientnetv2.exporters.formats import Session
from efficientnetv2.exporters.graph import Floats, Precision, model_input, to_batch
from efficientnetv2.inference.predict import none_readable_error, predict
from efficientnetv2.metrics.confidence_intervals import Difference
from efficientnetv2.metrics.metric_intervals import paired_difference
from efficientnetv2.metrics.multilabel import assigned_labels
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import InputError, pluralize, shorten
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.probability import probabilities
from efficientnetv2.utils.random_key import Key

_logger = logging.getLogger(__name__)

_BATCH = 32
_TIMED = 10  # images, one at a time


@dataclass(frozen=True)
class _Limits:
    probability: float  # largest difference of a probability on equal pixels
    undecided: float  # a label may differ where the model's best two probabilities are this close
    other_labels: float  # fraction of the images whose label may differ although the model is decided


# float32 and float16 differ by rounding, and decoders by a gray level; int8 changes the model. Ours.
_LIMITS: dict[Precision, _Limits] = {
    "float32": _Limits(1e-3, 0.05, 0.0),
    "float16": _Limits(2e-2, 0.05, 0.0),
    "int8": _Limits(1.0, 0.2, 0.05),
}


@dataclass(frozen=True)
class Agreement:
    """How an exported file compares with its model.

    Attributes:
        num_images: Images that both predicted.
        max_difference: Largest difference of a probability on equal pixels.
        max_difference_from_file: The same from image file to label; decoders differ by a gray level.
        label_agreement: Fraction of images with equal labels, from file to label.
        milliseconds: Median time of one image, without reading it.
    """

    num_images: int
    max_difference: float
    max_difference_from_file: float
    label_agreement: float
    milliseconds: float


@dataclass(frozen=True, eq=False)
class Compared:
    """Probabilities (n, K) of the model and of its exported file on the readable images of a dataset."""

    rows: Ints  # (n,) of the dataset
    expected: Floats  # by the model
    found: Floats  # by the file, on the model's pixels
    # By the file, from the image file; on the model's pixels where there is none, or Pillow alone cannot read it.
    from_file: Floats
    milliseconds: float  # of the file, median of one image

    def select(self, places: Ints) -> Compared:
        """The comparison of some of the images."""
        arrays = {name: getattr(self, name)[places] for name in ("rows", "expected", "found", "from_file")}
        return replace(self, **arrays)


def compare(network: Network, session: Session, dataset: ImageDataset, expected: Floats | None = None) -> Compared:
    """Predict a dataset with a model and its exported file; ``expected``: the model's, if known. Raises InputError."""
    own, raw = network.preprocessing, session.metadata["input"] == "uint8"
    files = [""] * len(dataset) if own.bands is not None else resolved_files(dataset)
    rows: list[int] = []
    by_model: list[Floats] = []
    found: list[Floats] = []
    from_file: list[Floats] = []
    seconds: list[float] = []
    unread: list[str] = []
    with progress("comparing", len(dataset)) as update:
        # With expected results, the images were read before.
        for part, pixels in read_pixels(network, dataset, reports=expected is None):
            batch = to_batch(pixels)
            if expected is None:
                logits = predict(network, [batch], preprocessing=own)
                by_model.append(probabilities(logits, network.activation).numpy())
            inputs = _uncropped(pixels, own) if raw else model_input(batch, own)
            found.append(session.run(inputs)[1])
            for row, shares in zip(part, found[-1], strict=True):
                by_script = _from_file(session, files[row]) if Path(files[row]).is_file() else shares[None]
                if by_script is None:
                    unread.append(files[row])
                from_file.append(shares[None] if by_script is None else by_script)
            for image in range(min(_TIMED - len(seconds), len(inputs))):
                start = time.perf_counter()
                session.run(inputs[image : image + 1])
                seconds.append(time.perf_counter() - start)
            rows += part
            update(len(rows))
    if unread:
        _logger.warning(
            f"Comparison from file to label: without {pluralize(len(unread), 'image')} (Pillow alone cannot read "
            f"{shorten(unread)})"
        )
    expected = np.concatenate(by_model) if expected is None else expected
    milliseconds = 1000 * statistics.median(seconds)
    return Compared(np.array(rows), expected, np.concatenate(found), np.concatenate(from_file), milliseconds)


def read_pixels(network: Network, dataset: ImageDataset, *, reports: bool = True) -> Iterator[tuple[list[int], Pixels]]:
    """Batches of the readable images of a dataset: their rows, and (n, S, S, C) pixels as the model sees them.

    Where it ``reports``, it logs how many cannot be read, and raises InputError if none can.
    """
    unreadable: list[tuple[int, str]] = []
    for batch in evaluation_batches(dataset, network.preprocessing, batch_size=_BATCH, workers=0):
        unreadable += batch.unreadable
        if len(batch.samples):
            yield batch.samples.tolist(), batch.images.permute(0, 2, 3, 1).numpy()
    if not (unreadable and reports):
        return
    row, reason = unreadable[0]
    if len(unreadable) == len(dataset):
        raise none_readable_error(dataset, row, reason)
    images = f"{len(unreadable)} of {pluralize(len(dataset), 'image')} of {dataset.source}"
    _logger.warning(f"Skipped {images}. The first, {dataset.where(row)}: {reason.removesuffix('.')}.")


def check(compared: Compared, network: Network, dataset: ImageDataset, precision: Precision) -> Agreement:
    """Summarize a comparison; raises InputError if the file disagrees by more than its precision explains."""
    limits, expected = _LIMITS[precision], compared.expected
    difference = float(np.abs(compared.found - expected).max())
    if not difference <= limits.probability:
        raise InputError(
            f"the exported model differs from the original by {difference:.2g} in a probability on equal pixels, which "
            "is more than rounding. Nothing was written. Use another `format`, and please report the model's name."
        )
    same = (_labels(network, compared.from_file) == _labels(network, expected)).all(axis=1)
    wrong = ~same & (_margin(network, expected) > limits.undecided)
    if wrong.mean() > limits.other_labels:
        first = dataset.paths[compared.rows[int(wrong.argmax())]]
        fix = (
            "Use `half` instead" if precision == "int8" else "Use another `format`, and please report the model's name"
        )
        raise InputError(
            f"the exported model and the original give different labels to {int(wrong.sum())} of {len(same)} image "
            f"files, first {first}. Nothing was written. {fix}."
        )
    largest = float(np.abs(compared.from_file - expected).max())
    return Agreement(len(same), difference, largest, float(same.mean()), compared.milliseconds)


@dataclass(frozen=True)
class AccuracyDifference:
    """Accuracy of an exported file on labeled images, and its difference to the model's: export minus model.

    Attributes:
        num_images: Labeled images.
        accuracy: Fraction of them that the exported file labels correctly; of a multi-label image all its labels.
        difference: Difference of the accuracy, with its 95 % interval.
        f1: Difference of the F1 of each class with images.
    """

    num_images: int
    accuracy: float
    difference: Difference
    f1: dict[str, Difference]


def accuracy_difference(
    compared: Compared, network: Network, targets: Ints, clusters: Ints | None = None
) -> AccuracyDifference | None:
    """The difference that an exported file makes on images with (n,) or (n, M) class ids; None without labels.

    ``clusters`` are (n,) ids of images that belong together. Unlabeled images, of id -1, do not count.
    """
    known = targets >= 0 if targets.ndim == 1 else (targets >= 0).any(axis=1)
    if not known.any():
        return None
    labels, names = targets[known], network.class_names
    units = (np.arange(len(targets)) if clusters is None else clusters)[known]
    key = Key.of(0).fold("export")
    shares = compared.from_file[known], compared.expected[known]
    if labels.ndim == 1:
        one, other = (each.argmax(axis=1) for each in shares)
        found = paired_difference(labels, one, other, units, len(names), key=key)
        f1 = {names[k]: found[f"f1:{k}"] for k in np.unique(labels).tolist()}
        return AccuracyDifference(len(labels), float((one == labels).mean()), found["top1"], f1)
    true = np.zeros((len(labels), len(names)), np.int64)
    images, columns = np.nonzero(labels >= 0)
    true[images, labels[images, columns]] = 1
    one, other = (assigned_labels(each, network.activation).astype(np.int64) for each in shares)
    # Whether all labels are right is a class of two, of which every image has the second.
    exact, other_exact = ((each == true).all(axis=1).astype(np.int64) for each in (one, other))
    difference = paired_difference(np.ones_like(exact), exact, other_exact, units, 2, key=key)["top1"]
    f1 = {}
    for k in np.flatnonzero(true.any(axis=0)).tolist():
        found = paired_difference(true[:, k], one[:, k], other[:, k], units, 2, key=key.fold("class", k))
        f1[names[k]] = found["f1:1"]
    return AccuracyDifference(len(labels), float(exact.mean()), difference, f1)


def _uncropped(pixels: Pixels, own: Preprocessing) -> Pixels:
    """Raw images (n, H, W, C) of which the preprocessing cuts exactly these pixels."""
    crop_pct = 1.0 if own.crop_mode == "border" else own.crop_pct  # border keeps the whole image
    spare = round(own.image_size / crop_pct) - own.image_size
    margins = (spare // 2, spare - spare // 2)
    return np.pad(pixels, ((0, 0), margins, margins, (0, 0)))


def _from_file(session: Session, file: str) -> Floats | None:
    """(1, K) probabilities by the code that travels with the export; None if it cannot read the file."""
    try:
        image = classify.load_input(file, session.metadata)
    except Exception:  # Pillow raises nearly everything, also on some files that this package reads
        return None
    return session.run(image)[1]


def _labels(network: Network, shares: Floats) -> Ints:
    """(n, 1) the most probable class; of a multi-label model (n, K) whether each class is assigned."""
    if network.activation == "sigmoid":
        return assigned_labels(shares, network.activation).astype(np.int64)
    return np.asarray(shares.argmax(axis=1)[:, None], np.int64)


def _margin(network: Network, shares: Floats) -> Floats:
    """How decided each row is: distance of the two best, or of the label nearest to 0.5."""
    if network.activation == "sigmoid" or shares.shape[1] == 1:
        return np.asarray(np.abs(shares - 0.5).min(axis=1))
    best = np.sort(shares, axis=1)
    return np.asarray(best[:, -1] - best[:, -2])
