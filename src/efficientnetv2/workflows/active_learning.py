"""Rank images for labeling: the table and the sheet of ``predict --rank``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image

from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.readers import BestEffortReader, display_reader
from efficientnetv2.evaluation import thumbnails
from efficientnetv2.evaluation.html import render
from efficientnetv2.evaluation.predictions import csv_columns
from efficientnetv2.inference.active_learning import MAX_DIVERSE, Ranking, rank_for_labeling
from efficientnetv2.inference.predict import Predictions, Runtime, embed_dataset, require_single_label
from efficientnetv2.metrics.classification import top_classes
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import check_writable_file, write_text_atomically
from efficientnetv2.utils.probability import probabilities
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.rng import Key
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.batch_predict import PredictionJob
from efficientnetv2.workflows.output_paths import refuse_foreign_file

_logger = logging.getLogger(__name__)

# Seed of the draws: the same model and images give the same order. Ours.
_SEED = 0
# The prediction is not called label: a person fills in that column, and training reads it.
_COLUMNS = ["rank", "path", "predicted", "probability", "second", "second_probability", "entropy", "margin"]
_ON_SHEET = 60  # images: an evening of labeling, about 300 kB. Ours.


@dataclass(frozen=True, eq=False)
class RankedImage:
    """An image on the sheet, with its two most probable classes and the probability of the first."""

    path: str
    label: str
    probability: float
    second: str
    picture: Image.Image | None = None


def check_rank_output(file: Path | None, out: Path | None, data: str) -> None:
    """Refuse a ranking that can't be written, or would replace something else."""
    if file is None:
        return
    if file.suffix.lower() != ".csv":
        raise InputError(
            f"--rank {file}: give a file that ends in .csv; the sheet of images is written beside it as .html."
        )
    check_writable_file(file, "--rank", such_as="next.csv")
    for option, other in (("--output", out), ("DATA", Path(data))):
        if other is not None and file.resolve() == other.resolve():
            raise InputError(f"--rank {file} is {option} too. Give another file.")
    refuse_foreign_file(
        file, "--rank", lambda csv: csv_columns(csv) == _COLUMNS, "is no table of what to label next"
    )
    page = file.with_suffix(".html")
    refuse_foreign_file(page, f"--rank {file}:", lambda page: file.exists(), "is no sheet of such a table")


def require_rankable(network: Network, model: str) -> None:
    """Refuse a network without uncertainty between classes: a multi-label network, or a single class."""
    require_single_label(network, "--rank compares the probabilities of classes", model)
    if network.num_classes < 2:
        raise InputError(f"--rank: {model} has a single class, so it is always sure. Leave --rank out.")


def write_ranking(file: Path, job: PredictionJob, predictions: Predictions, runtime: Runtime) -> None:
    """Embed the predicted images, rank them, and write the table and, as ``.html``, the sheet.

    If only some images have a label, the others are ranked.
    """
    labeled = job.dataset.labels[predictions.samples] >= 0
    places = np.flatnonzero(~labeled) if not labeled.all() else np.arange(len(labeled))
    dataset = job.dataset.select(predictions.samples[places])
    with progress("comparing", len(dataset)) as update:
        embedded = embed_dataset(
            job.network,
            dataset,
            preprocessing=job.network.preprocessing,
            runtime=runtime,
            progress=update,
        )
    rows = embedded.samples  # readable a second time
    logits = predictions.logits[torch.from_numpy(places[rows])]
    shares = probabilities(logits, predictions.answer).numpy()
    key = Key.of(_SEED).fold("label next")
    with progress("choosing", min(MAX_DIVERSE, len(rows))) as update:
        ranking = rank_for_labeling(shares, embedded.vectors, key=key, progress=update)
    table = _ranking_table([dataset.paths[row] for row in rows], shares, ranking, job.network.class_names)
    reader = BestEffortReader(display_reader(dataset))
    columns = table[["path", "predicted", "probability", "second"]].head(_ON_SHEET).itertuples(index=False)
    shown = []
    for row, (path, label, probability, second) in zip(rows[ranking.order].tolist(), columns, strict=False):
        image = reader.read(row, lambda source: thumbnails.shrink(load_image(source)))
        shown.append(RankedImage(path, label, probability, second, image))
    page = file.with_suffix(".html")
    try:
        write_table(file, table)
        sheet = render_sheet(shown, pictures=len(table), diverse=ranking.diverse, command=command_line())
        write_text_atomically(page, sheet)
    except OSError as error:
        raise InputError(
            f"--rank {file}: {error.strerror or error}. Give a place that can be written to."
        ) from error
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


def render_sheet(shown: Sequence[RankedImage], *, pictures: int, diverse: int, command: str) -> str:
    """The HTML page of the first of so many ranked images, of which ``diverse`` were chosen for being unlike."""
    dim = thumbnails.is_low_contrast(each.picture for each in shown)
    return render(
        "to_label.html.j2",
        shown=[(each, thumbnails.encode_thumbnail(each.picture, dim=dim)) for each in shown],
        stretched=thumbnails.CONTRAST_NOTE if dim else None,
        pictures=pictures,
        diverse=diverse,
        command=command,
    )
