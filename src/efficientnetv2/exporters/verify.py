"""Proof that an exported file predicts as its model does, from image file to label."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from efficientnetv2.data.dataset import ImageDataset, resolved_files
from efficientnetv2.data.decode import load_eval_image, load_image
from efficientnetv2.data.image_io import UnreadableImageError
from efficientnetv2.data.readers import eval_reader
from efficientnetv2.exporters import classify
from efficientnetv2.exporters.runtimes import Runtime
from efficientnetv2.inference.predict import predict
from efficientnetv2.metrics.multilabel import assigned_labels
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.probability import probabilities

# Largest difference of a probability on equal pixels that rounding explains, by whether weights are float16. Ours.
_ROUNDING = {False: 1e-3, True: 2e-2}
# A label may differ only where the model itself is undecided: its probabilities are this close. Ours.
_UNDECIDED = 0.05
_TIMED = 10  # images, one at a time


@dataclass(frozen=True)
class Agreement:
    """How an exported file compares with its model.

    Attributes:
        num_images: Images that both predicted.
        max_difference: Largest difference of a probability on equal pixels.
        max_difference_from_file: The same from image file to label; decoders differ by a gray level.
        label_agreement: Share of images with equal labels, from file to label.
        milliseconds: Median time of one image, without reading it.
    """

    num_images: int
    max_difference: float
    max_difference_from_file: float
    label_agreement: float
    milliseconds: float


def verify(network: Network, runtime: Runtime, dataset: ImageDataset, *, half: bool) -> Agreement:
    """Compare a file in its runtime with the model on all images of a dataset.

    Raises:
        InputError: They disagree by more than rounding, or no image can be read.
    """
    raw = runtime.metadata["input"] == "uint8"
    pixels, files = _read(network, dataset)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    logits = predict(network, torch.split(batch, 32), preprocessing=network.preprocessing)
    expected = _probabilities(network, logits)
    own = network.preprocessing
    inputs = _uncropped(pixels, own) if raw else normalize(batch, mean=own.mean, std=own.std).contiguous().numpy()
    found = np.concatenate([runtime.run(inputs[start : start + 32])[1] for start in range(0, len(inputs), 32)])
    difference = float(np.abs(found - expected).max())
    if not difference <= _ROUNDING[half]:
        raise InputError(
            f"the exported model differs from the original by {difference:.2g} in a probability on equal pixels, which "
            "is more than rounding. Nothing was written; please report it with the model's name."
        )
    from_file = found
    if all(files) and own.bands is None:
        from_file = np.concatenate([_from_file(runtime, file, raw=raw) for file in files])
    same = (_labels(network, from_file) == _labels(network, expected)).all(axis=1)
    wrong = ~same & (_margin(network, expected) > _UNDECIDED)
    if wrong.any():
        raise InputError(
            f"the exported model labels {int(wrong.sum())} of {len(same)} images differently from file to label, first "
            f"{dataset.paths[int(wrong.argmax())]}. Nothing was written; please report it with the model's name."
        )
    seconds = []
    for index in range(min(_TIMED, len(inputs))):
        start = time.perf_counter()
        runtime.run(inputs[index : index + 1])
        seconds.append(time.perf_counter() - start)
    return Agreement(
        len(same),
        difference,
        float(np.abs(from_file - expected).max()),
        float(same.mean()),
        1000 * statistics.median(seconds),
    )


def _read(network: Network, dataset: ImageDataset) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """(n, S, S, C) pixels of the readable images, and their files; '' for one inside an archive."""
    reader = eval_reader(dataset)
    pixels, files = [], []
    for row, file in enumerate(resolved_files(dataset)):
        try:
            pixels.append(load_eval_image(reader.source(row), network.preprocessing))
        except UnreadableImageError:
            continue
        files.append(file if Path(file).is_file() else "")
    if not pixels:
        raise InputError(f"no image of {dataset.source} can be read. Give others with `data`.")
    return np.stack(pixels), files


def _uncropped(pixels: npt.NDArray[np.uint8], own: Preprocessing) -> npt.NDArray[np.uint8]:
    """Raw images (n, H, W, C) of which the preprocessing cuts exactly these pixels."""
    px = own.image_size
    fits = [side for side in range(px, 4 * px) if round(side * own.crop_pct) == px and (side - px) % 2 == 0]
    margin = ((fits or [px])[0] - px) // 2
    return np.pad(pixels, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def _from_file(runtime: Runtime, file: str, *, raw: bool) -> npt.NDArray[np.float32]:
    """(1, K) probabilities by the code that travels with the export."""
    if raw:
        return runtime.run(np.asarray(load_image(file))[None])[1]
    pixels = classify.load_pixels(file, runtime.metadata)
    return runtime.run(classify.normalize(pixels[None], runtime.metadata))[1]


def _probabilities(network: Network, logits: torch.Tensor) -> npt.NDArray[np.float32]:
    return probabilities(logits, network.activation).numpy()


def _labels(network: Network, shares: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    if network.activation == "sigmoid":
        return assigned_labels(shares, network.activation).astype(np.intp)
    return np.asarray(np.argmax(shares, axis=1, keepdims=True), np.intp)


def _margin(network: Network, shares: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How decided each row is: distance of the two best, or of the label nearest to 0.5."""
    if network.activation == "sigmoid" or shares.shape[1] == 1:
        return np.asarray(np.abs(shares - 0.5).min(axis=1))
    best = np.sort(shares, axis=1)
    return np.asarray(best[:, -1] - best[:, -2])
