"""Active learning: rank unlabeled images by BADGE, uncertain and unlike each other first.

Source: Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds", ICLR 2020,
arXiv:1906.03671. An image stands for the gradient of the classifier if the predicted class were its label: long where
the network is unsure. The first image has the longest gradient; the next ones are drawn as k-means++ draws its centers,
by squared distance to the nearest chosen one. Ours: the zero gradient counts as chosen from the beginning, else a sure
prediction far from all others would be drawn early.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.readers import BestEffortReader, display_reader
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation import thumbnails
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.predictions import csv_columns, write_predictions
from efficientnetv2.inference.predict import Predictions, Runtime, embed_dataset
from efficientnetv2.metrics.classification import top_classes
from efficientnetv2.models.efficientnet import Network, require_single_label
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import check_writable_file, write_text_atomically
from efficientnetv2.utils.logs import progress
from efficientnetv2.utils.probability import probabilities
from efficientnetv2.utils.random_key import Floats, Key
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.arguments import refuse_foreign_file
from efficientnetv2.workflows.batch_predict import PredictionJob

_logger = logging.getLogger(__name__)

# Images ranked by gradients; the rest follow by uncertainty. Nobody labels more before training again, and the work is
# n times this. Ours.
MAX_DIVERSE = 1_000
# Numbers in float64 at a time, 2 MB: the embeddings of 100,000 images by five networks are 2.6 GB in float32. Ours.
_CHUNK = 2**18
# Seed of the draws: the same model and images give the same order. Ours.
_SEED = 0
# The prediction is not called label: a person fills in that column, and training reads it.
_COLUMNS = ["rank", "path", "predicted", "probability", "second", "second_probability", "entropy", "margin"]
_ON_SHEET = 60  # images: an evening of labeling, about 300 kB. Ours.


@dataclass(frozen=True, eq=False)
class Ranking:
    """Images in the order in which labels would help most."""

    order: Ints  # (n,) positions, the most useful first
    diverse: int  # how many of the first were chosen by gradients; the others follow by entropy
    entropy: Floats  # (n,) of the predictions, in the given order; 0 is certain, 1 uniform
    margin: Floats  # (n,) probability of the best class minus that of the second


def rank_for_labeling(
    probabilities: npt.NDArray[np.floating],
    vectors: npt.NDArray[np.floating],
    *,
    key: Key,
    most: int = MAX_DIVERSE,
    progress: Callable[[int], object] = lambda number: None,
) -> Ranking:
    """Rank images by how much their labels would help, from (n, K) probabilities and (n, d) embeddings.

    At ``most`` so many are chosen by gradients, fewer if the rest are copies. Neither array is copied as a whole.
    """
    count = len(probabilities)
    entropy, margin = np.empty(count), np.empty(count)
    for rows, part in _chunks(probabilities):
        logarithms = np.log(np.maximum(part, np.finfo(np.float64).tiny))
        entropy[rows] = (-(part * logarithms).sum(axis=1) / np.log(part.shape[1])).clip(0, 1)
        best = np.partition(part, -2, axis=1)
        margin[rows] = best[:, -1] - best[:, -2]
    chosen = _choose_diverse(probabilities, vectors, min(most, count), key, progress)
    rest = np.setdiff1d(np.arange(count), chosen)
    rest = rest[np.argsort(-entropy[rest], kind="stable")]
    return Ranking(np.concatenate([np.array(chosen, dtype=np.int64), rest]), len(chosen), entropy, margin)


def _choose_diverse(
    probabilities: npt.NDArray[np.floating],
    vectors: npt.NDArray[np.floating],
    count: int,
    key: Key,
    progress: Callable[[int], object],
) -> list[int]:
    """Positions chosen by k-means++ among gradients, the longest first.

    A gradient is the outer product of a residual (K), the probabilities minus 1 at the predicted class, and an
    embedding (d), so distances need neither in full.
    """
    if not count:
        return []
    predicted = probabilities.argmax(axis=1)
    lengths = _squared_norms(probabilities, predicted) * _squared_norms(vectors)
    generator = key.fold("rank").generator()
    chosen = [int(lengths.argmax())]
    nearest = lengths.copy()  # squared distances to the nearest chosen gradient; to zero at first
    while True:
        progress(len(chosen))
        last = chosen[-1]
        products = _products(probabilities, last, predicted) * _products(vectors, last)
        distances = lengths + lengths[last] - 2 * products
        distances[distances < 1e-9 * (lengths + lengths[last])] = 0  # rounding errors between equal gradients
        nearest = np.minimum(nearest, distances)
        nearest[last] = 0
        total = nearest.sum()
        if len(chosen) == count or total <= 0:
            return chosen
        place = int(np.searchsorted(np.cumsum(nearest), generator.random() * total, side="right"))
        chosen.append(min(place, int(np.flatnonzero(nearest)[-1])))


def _chunks(numbers: npt.NDArray[np.floating], predicted: Ints | None = None) -> Iterator[tuple[slice, Floats]]:
    """Rows of (n, d) numbers in float64, for exact distances, all in one memory; minus 1 at ``predicted`` (n,)."""
    count, width = numbers.shape
    rows = max(1, _CHUNK // max(1, width))
    memory = np.empty((min(rows, count), width))
    for start in range(0, count, rows):
        part = memory[: min(rows, count - start)]
        part[:] = numbers[start : start + rows]
        if predicted is not None:
            part[np.arange(len(part)), predicted[start : start + rows]] -= 1
        yield slice(start, start + len(part)), part


def _squared_norms(numbers: npt.NDArray[np.floating], predicted: Ints | None = None) -> Floats:
    """(n,) of the rows of ``_chunks``."""
    return np.concatenate([np.einsum("nd,nd->n", part, part) for _, part in _chunks(numbers, predicted)])


def _products(numbers: npt.NDArray[np.floating], index: int, predicted: Ints | None = None) -> Floats:
    """(n,) inner products of each row of ``_chunks`` with row ``index``."""
    residual_of = None if predicted is None else predicted[index : index + 1]
    ((_, row),) = _chunks(numbers[index : index + 1], residual_of)
    return np.concatenate([part @ row[0] for _, part in _chunks(numbers, predicted)])


def check_rank_output(file: Path | None, out: Path | None, data: str) -> None:
    """Refuse a ranking that can't be written, or would replace something else."""
    if file is None:
        return
    if file.suffix.lower() != ".csv":
        raise InputError(f"`rank` {file} must end in .csv: the sheet of images is written as .html.")
    check_writable_file(file, "`rank`", such_as="next.csv")
    for option, other in (("`output`", out), ("DATA", Path(data))):
        if other is not None and file.resolve() == other.resolve():
            raise InputError(f"`rank` {file} is {option} too. Give another file.")
    refuse_foreign_file(file, "`rank`", lambda csv: csv_columns(csv) == _COLUMNS, "is not a table of images to label")
    page = file.with_suffix(".html")
    refuse_foreign_file(page, f"`rank` {file}:", lambda page: file.exists(), "is not a sheet of such a table")


def require_rankable(network: Network, model: str) -> None:
    """Refuse a network without uncertainty between classes: a multi-label network, or a single class."""
    require_single_label(network, "`rank` compares the probabilities of classes", model)
    if network.num_classes < 2:
        raise InputError(f"`rank`: {model} has a single class, so it is always sure. Leave `rank` out.")


def _trainable_paths(dataset: ImageDataset, file: Path) -> list[str]:
    """Paths that a table has in the folder of DATA. For shards at a URL they are whole, so it may have any folder."""
    if dataset.shards is None or (dataset.rows is None and not isinstance(dataset.root, str)):
        return list(dataset.paths)
    beside = file if dataset.rows is None else Path(os.path.expanduser(dataset.source))
    return list(dataset.relative_to(beside.absolute())["path"])


def write_ranking(file: Path, job: PredictionJob, predictions: Predictions, runtime: Runtime) -> None:
    """Rank the predicted images, those without a label if some have one, and write the table and the sheet (.html)."""
    network = job.network
    labeled = job.dataset.labels[predictions.samples] >= 0
    num_unlabeled = int((job.dataset.labels < 0).sum())
    places = np.flatnonzero(~labeled) if num_unlabeled else np.arange(len(labeled))
    if not len(places):
        raise InputError(f"`rank`: none of the {pluralize(num_unlabeled, 'image')} without a label can be read.")
    dataset = job.dataset.select(predictions.samples[places])
    with progress("comparing", len(dataset)) as update:
        embedded = embed_dataset(
            network, dataset, preprocessing=network.preprocessing, runtime=runtime, progress=update
        )
    rows = embedded.samples  # readable a second time
    logits = predictions.logits[torch.from_numpy(places[rows])]
    shares = probabilities(logits, predictions.activation).numpy()
    key = Key.of(_SEED).fold("label next")
    with progress("choosing", min(MAX_DIVERSE, len(rows))) as update:
        ranking = rank_for_labeling(shares, embedded.vectors, key=key, progress=update)
    paths = _trainable_paths(dataset, file)
    table = _ranking_table([paths[row] for row in rows], shares, ranking, network.class_names)
    sheet, shown = table.head(_ON_SHEET), rows[ranking.order][:_ON_SHEET].tolist()
    reader = BestEffortReader(display_reader(dataset))
    images = [reader.read(row, lambda source: thumbnails.shrink(load_image(source))) for row in shown]
    dim = thumbnails.is_low_contrast(images)
    addresses = [thumbnails.encode_thumbnail(image, stretched=dim) for image in images]
    html = render(
        "to_label.html.j2",
        shown=list(zip(sheet.itertuples(), addresses, strict=True)),
        stretched=thumbnails.CONTRAST_NOTE if dim else None,
        num_images=len(table),
        diverse=ranking.diverse,
        command=command_line(),
    )
    page = file.with_suffix(".html")
    try:
        write_text_atomically(page, html)
    except OSError as error:
        raise InputError(f"`rank` {page}: {error.strerror or error}. Give a place that can be written to.") from error
    finally:
        write_predictions(file, table)
    left_out = ""
    if len(places) < len(labeled):
        left_out = f" Left out: {pluralize(int(labeled.sum()), 'image')} with a label."
    _logger.info(f"What to label next: {file}, the first {len(shown)} as images in {page}.{left_out}")


def _ranking_table(
    paths: Sequence[str], probabilities: npt.NDArray[np.float32], ranking: Ranking, class_names: Sequence[str]
) -> pd.DataFrame:
    names = np.array(class_names, dtype=object)
    first, second = top_classes(probabilities, 2).T
    each = np.arange(len(paths))
    table = pd.DataFrame(
        {
            "path": list(paths),
            "predicted": names[first],
            "probability": probabilities[each, first].round(6),
            "second": names[second],
            "second_probability": probabilities[each, second].round(6),
            "entropy": ranking.entropy.round(6),
            "margin": ranking.margin.round(6),
        }
    ).iloc[ranking.order]
    return table.assign(rank=np.arange(1, len(table) + 1))[_COLUMNS]
