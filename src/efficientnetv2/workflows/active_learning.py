"""What ``predict --rank`` adds: the pictures in the order in which they are worth labelling, as a table and a sheet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from efficientnetv2.data.csv_dialect import write_table
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_image
from efficientnetv2.data.readers import BestEffortReader, display_reader
from efficientnetv2.evaluation import thumbnails
from efficientnetv2.evaluation.html import render
from efficientnetv2.inference.active_learning import MAX_DIVERSE, rank_for_labeling
from efficientnetv2.inference.predict import Predictions, embed_dataset, require_single_label
from efficientnetv2.metrics.classification import top_classes
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import check_writable_file, write_text_atomically
from efficientnetv2.utils.progress import progress
from efficientnetv2.utils.rng import Key
from efficientnetv2.utils.shell import command_line
from efficientnetv2.workflows.batch_predict import PredictionJob
from efficientnetv2.workflows.outputs import refuse_others
from efficientnetv2.workflows.predictions_io import read_header

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RankedImage:
    """A picture on the sheet.

    Args:
        path: as in the dataset.
        label: what it is taken for.
        probability: of that.
        second: what it is taken for next.
        picture: of any size; None shows none.
    """

    path: str
    label: str
    probability: float
    second: str
    picture: Image.Image | None = None


def render_sheet(shown: Sequence[RankedImage], *, pictures: int, diverse: int, command: str) -> str:
    """The page.

    Args:
        shown: the first pictures of the ranking.
        pictures: that were ranked.
        diverse: how many of the first were chosen for being unlike each other too.
        command: that gives it again.
    """
    dim = thumbnails.is_low_contrast(one.picture for one in shown)
    return render(
        "to_label.html.j2",
        shown=[(one, thumbnails.encode_thumbnail(one.picture, dim=dim)) for one in shown],
        stretched=thumbnails.CONTRAST_NOTE if dim else None,
        pictures=pictures,
        diverse=diverse,
        command=command,
    )


# Of the draws: the same model and pictures are to give the same order. Ours.
_SEED = 0
# What it is taken for is not called label: that is the column that a person fills in, and that train reads.
_COLUMNS = ["rank", "path", "predicted", "probability", "second", "second_probability", "entropy", "margin"]
_ON_SHEET = 60  # pictures: an evening's labelling, some 300 kB. Ours.


def check_rank_output(file: Path | None, out: Path | None, data: str) -> None:
    """Refuse a place for the ranking before the pictures are answered.

    Args:
        file: as ``--rank`` gives it; None where it is not asked for.
        out: of the predictions; None where they are not written.
        data: as the user gave it.

    Raises:
        InputError: it is no CSV, it can't be written there, it is another file of the same command, or something else
            is there.
    """
    if file is None:
        return
    if file.suffix.lower() != ".csv":
        raise InputError(
            f"--rank {file}: give a file that ends in .csv; the sheet of pictures is written beside it as .html."
        )
    check_writable_file(file, "--rank", such_as="next.csv")
    for name, place in (("--out", out), ("DATA", Path(data))):
        if place is not None and file.resolve() == place.resolve():
            raise InputError(f"--rank {file} is {name} too.")
    refuse_others(file, "--rank", _is_ranking, "is no table of what to label next")
    refuse_others(
        file.with_suffix(".html"),
        f"--rank {file}:",
        lambda page: file.exists(),
        "is no sheet of such a table",
    )


def _is_ranking(file: Path) -> bool:
    return read_header(file) == _COLUMNS


def require_rankable(network: Network, model: str) -> None:
    """Refuse a network that is never unsure, or whose classes do not share one doubt.

    Raises:
        InputError: it has one class, or answers each by itself.
    """
    require_single_label(network, "--rank asks how unsure it is between them", model)
    if network.num_classes < 2:
        raise InputError(f"--rank: {model} knows one class only, so it is always sure. Leave --rank out.")


def write_ranking(
    file: Path, asked: PredictionJob, predictions: Predictions, *, device: torch.device, workers: int
) -> None:
    """Look at the pictures once more, for what the classifier reads of them; then write the table and the sheet.

    Where some of them have a label and others none, it is of those without.

    Args:
        file: of the table; the sheet has its name, ending in ``.html``.
        asked: the network and its pictures.
        predictions: its answers.
        device: to compute on.
        workers: processes that read pictures.

    Raises:
        InputError: it can't be written.
    """
    predictions, labelled = _without_labels(asked.dataset, predictions)
    answered = asked.dataset.select(predictions.samples)
    with progress("comparing", len(answered)) as counted:
        embedded = embed_dataset(
            asked.network, answered, preprocessing=asked.network.preprocessing, device=device, workers=workers,
            progress=counted,
        )  # fmt: skip
    rows = embedded.samples  # what could be read twice
    probabilities = predictions.probabilities[rows]
    key = Key.of(_SEED).fold("label next")
    with progress("choosing", min(MAX_DIVERSE, len(rows))) as chosen:
        found = rank_for_labeling(probabilities, embedded.vectors, key=key, progress=chosen)
    names = np.array(asked.network.class_names, dtype=object)
    best = top_classes(probabilities, 2)
    places = np.arange(len(rows))
    table = pd.DataFrame(
        {
            "path": [answered.paths[row] for row in rows],
            "predicted": names[best[:, 0]],
            "probability": probabilities[places, best[:, 0]].round(6),
            "second": names[best[:, 1]],
            "second_probability": probabilities[places, best[:, 1]].round(6),
            "entropy": found.entropy.round(6),
            "margin": found.margin.round(6),
        }
    ).iloc[found.order]
    table = table.assign(rank=np.arange(1, len(table) + 1))[_COLUMNS]
    pictures = BestEffortReader(display_reader(answered))

    def picture(row: int) -> Image.Image | None:
        return pictures.read(row, lambda source: thumbnails.shrink(load_image(source)))

    shown = [
        RankedImage(
            str(one["path"]), str(one["predicted"]), float(one["probability"]), str(one["second"]),
            picture(int(rows[place])),
        )
        for place, (_, one) in zip(found.order, table.head(_ON_SHEET).iterrows(), strict=False)
    ]  # fmt: skip
    page = file.with_suffix(".html")
    try:
        write_table(file, table)
        write_text_atomically(
            page, render_sheet(shown, pictures=len(table), diverse=found.diverse, command=command_line())
        )
    except OSError as error:
        raise InputError(
            f"--rank {file}: {error.strerror or error}. Give a place that can be written to."
        ) from error
    left = (
        f" {pluralize(labelled, 'picture')} with a label {'is' if labelled == 1 else 'are'} left out of it."
        if labelled
        else ""
    )
    _logger.info(f"What to label next: {file}, its first {len(shown)} as pictures in {page}.{left}")


def _without_labels(dataset: ImageDataset, predictions: Predictions) -> tuple[Predictions, int]:
    """The answers to pictures that have no label yet, and how many others there are; all where all have one."""
    known = dataset.labels[predictions.samples] >= 0
    if known.all():
        return predictions, 0
    rest = np.flatnonzero(~known)
    samples, labels, logits = predictions.samples, predictions.labels, predictions.logits
    left = Predictions(samples[rest], labels[rest], logits[torch.from_numpy(rest)], answer=predictions.answer)
    return left, int(known.sum())
