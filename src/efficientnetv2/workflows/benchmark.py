"""Compare the formats that a model can be exported to: `efficientnetv2.benchmark`."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt
import pandas as pd
import torch

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.exporters.formats import NAMES, Session, installed, open_session, write
from efficientnetv2.exporters.graph import Encoding, ExportGraph, Floats, metadata, model_input, to_batch
from efficientnetv2.exporters.verify import Compared, check, compare, read_pixels
from efficientnetv2.inference.predict import none_readable_error, predict_dataset
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.factory import load_classifier
from efficientnetv2.utils.benchmark import interleave
from efficientnetv2.utils.device import place
from efficientnetv2.utils.errors import InputError
from efficientnetv2.workflows import arguments
from efficientnetv2.workflows.arguments import PathLike, api, path_text
from efficientnetv2.workflows.export import (
    calibration_images,
    comparison_images,
    note_unknown_labels,
    paired_accuracy,
    size_of,
)

_logger = logging.getLogger(__name__)

# Rounds in which the formats are timed in turn, and the most images of a batch. Ours.
_ROUNDS, _BATCH = 7, 32
# Images to compare on, by each format. Ours.
_IMAGES = 500


@api
def benchmark(
    model: PathLike,
    data: PathLike | None = None,
    *,
    calibration: PathLike | None = None,
    num_images: int | None = None,
    path_column: str = "path",
    label_column: str = "label",
) -> pd.DataFrame:
    """Export a model to each format that is installed, and compare size, accuracy and speed. Writes no file.

    Example::

        import efficientnetv2 as ev2

        table = ev2.benchmark("runs/mine")
        print(table[["format", "precision", "megabytes", "difference", "milliseconds", "images_per_s"]])

    Args:
        model: A run, a cross-validation, the path of one or of a model file, or a name of pretrained weights.
        data: Images to compare on. Default: the validation images of the run, see `export`.
        calibration: Images for int8, see `export`.
        num_images: Number of images to compare on, at most. Default: 500.
        path_column, label_column: Columns of a table in ``data`` or ``calibration``, see `predict`.

    Returns:
        A row per format and precision; the first is the model in PyTorch. ``megabytes`` (10^6 bytes) is the size of its
        files. ``accuracy`` is on the labeled validation images, or if there are none on all labeled ones;
        ``difference``, from ``low`` to ``high``, its paired difference to the model with the 95 % interval;
        ``label_agreement`` the fraction of all images with the model's label; ``max_difference`` the largest difference
        of a probability to PyTorch on equal pixels. ``milliseconds`` is the median of a single image, ``images_per_s``
        that of a batch, both without reading images, with as many threads as PyTorch uses. ``error`` has why a format
        could not be exported, and is empty otherwise.

    Raises:
        InputError: An argument that the caller can fix.
    """
    path = Path(path_text("model", model))
    arguments.number("num_images", num_images, 1)
    network = load_classifier(path)
    named = {"path_column": path_column, "label_column": label_column}
    dataset = comparison_images(network, path, data, num_images or _IMAGES, **named)
    note_unknown_labels(network, dataset)
    sessions = {0: _in_pytorch(network)}
    predicted = predict_dataset(network, dataset, preprocessing=network.preprocessing)
    if not len(predicted.samples):
        raise none_readable_error(dataset, *predicted.unreadable[0])
    expected = predicted.probabilities
    own = Compared(predicted.samples, expected, expected, expected, math.nan)
    rows: list[dict[str, Any]] = [{"format": "PyTorch", "precision": "float32", "runtime": sessions[0].name}]
    rows[0]["megabytes"] = sum(weight.nbytes for weight in network.state_dict().values()) / 1e6
    rows[0] |= {"label_agreement": 1.0, "max_difference": 0.0, **_accuracy(network, path, dataset, own)}
    calibrate = cache(lambda: calibration_images(network, path, calibration, path_column))
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for format, precision in installed():
            target = Path(folder) / precision / NAMES[format]
            row: dict[str, Any] = {"format": format, "precision": precision}
            rows.append(row)
            _logger.info(f"Exporting: {format}, {precision}.")
            try:
                encoding = Encoding("float", precision, calibrate() if precision == "int8" else None)
                file, _ = write(network, target, format, encoding)
                session = open_session(format, file)
                row |= {"runtime": session.name, "megabytes": size_of(target) / 1e6}
                found = compare(network, session, dataset, expected)
                agreement = check(found, network, dataset, precision)
            except InputError as error:
                row["error"] = str(error)
                continue
            row |= {"label_agreement": agreement.label_agreement, "max_difference": agreement.max_difference}
            row |= _accuracy(network, path, dataset, found)
            sessions[len(rows) - 1] = session
        for number, timings in _timings(sessions, _sample(network, dataset)).items():
            rows[number] |= timings
        sessions.clear()
    columns = (
        "format", "precision", "runtime", "megabytes", "accuracy", "difference", "low", "high", "label_agreement",
        "max_difference", "milliseconds", "images_per_s", "error",
    )  # fmt: skip
    return pd.DataFrame([{"runtime": "", "error": "", **row} for row in rows], columns=pd.Index(columns))


def _in_pytorch(network: Network) -> Session:
    """The model itself, run as an exported file would be."""
    graph = ExportGraph(network)
    place(graph, torch.device("cpu"))

    def run(images: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            logits, shares = graph(torch.from_numpy(images).contiguous(memory_format=torch.channels_last))
        return logits.numpy(), shares.numpy()

    return Session(f"torch {torch.__version__}", run, metadata(network, "float"))


def _accuracy(network: Network, model: Path, dataset: ImageDataset, compared: Compared) -> dict[str, float]:
    found = paired_accuracy(network, model, dataset, compared)
    if found is None:
        return {}
    difference = found.difference
    ends = {"difference": difference.value, "low": difference.low, "high": difference.high}
    return {"accuracy": found.accuracy, **ends}


def _sample(network: Network, dataset: ImageDataset) -> Floats:
    """A batch of images to time with."""
    _, pixels = next(read_pixels(network, dataset))
    return model_input(to_batch(pixels[:_BATCH]), network.preprocessing)


def _timings(sessions: Mapping[int, Session], images: Floats) -> dict[int, dict[str, float]]:
    """Milliseconds of an image and images per second, of sessions that take turns."""
    sides: dict[str, Callable[[], object]] = {}
    for key, session in sessions.items():
        sides |= {f"image {key}": partial(session.run, images[:1]), f"batch {key}": partial(session.run, images)}
    median = {name: statistics.median(seconds) for name, seconds in interleave(sides, rounds=_ROUNDS).items()}
    return {
        key: {"milliseconds": 1000 * median[f"image {key}"], "images_per_s": len(images) / median[f"batch {key}"]}
        for key in sessions
    }
