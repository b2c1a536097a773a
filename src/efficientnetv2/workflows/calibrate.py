"""Fit a temperature on evaluated images, and write the model with it: ``evaluate --calibrate``."""

from __future__ import annotations

import logging
from pathlib import Path

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.metrics.calibration import MIN_TEMPERATURE_IMAGES, fit_temperature
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ensemble import Ensemble
from efficientnetv2.models.provenance import Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.train_overlap import TrainOverlap
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.io import check_writable_file

_logger = logging.getLogger(__name__)


def check_calibration(
    out: Path, network: Network, dataset: ImageDataset, split: str, preprocessing: Preprocessing
) -> None:
    """Refuse what cannot be calibrated before any image is predicted.

    Raises:
        InputError: The file exists or cannot be written, the model is an ensemble, views or size are not the model's
            own, or there are too few images.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"--calibrate {out}: a model file ends in .safetensors. Name it so.")
    if out.exists():
        raise InputError(f"--calibrate {out} exists already. Give another name, or remove it.")
    check_writable_file(out, "--calibrate", such_as="calibrated.safetensors")
    if isinstance(network, Ensemble):
        raise InputError(
            f"--calibrate {out}: the model is an ensemble. Give the model file of a single network."
        )
    own = network.preprocessing
    for option, value, own_value in (
        ("--tta", preprocessing.tta, own.tta),
        ("--image-size", preprocessing.image_size, own.image_size),
    ):
        if value != own_value:
            raise InputError(
                f"--calibrate {out}: the temperature is for the model's own {option} {own_value}, not for {value}. "
                f"Leave {option} out; or change the model first: effnetv2 convert MODEL OUT {option} {value}"
            )
    if len(dataset) < MIN_TEMPERATURE_IMAGES:
        raise InputError(
            f"--calibrate {out}: a temperature needs {MIN_TEMPERATURE_IMAGES} images or more, but {split} has "
            f"{pluralize(len(dataset), 'image')}. Give more."
        )


def require_unseen(out: Path, overlap: TrainOverlap, split: str) -> None:
    """Refuse images that trained the model; those of ``train`` did, unless it is known of each that it did not."""
    if overlap.pictures or (split == "train" and not overlap.none):
        raise InputError(
            f"--calibrate {out}: images of {split} trained the model, which is surer of them than of others. Give "
            "images that it has not seen."
        )


def write_calibrated(
    out: Path, network: Network, predictions: Predictions, overlap: TrainOverlap, split: str
) -> None:
    """Write the model with a temperature fitted on these predictions, in which its own temperature is included."""
    require_unseen(out, overlap, split)
    before = 1.0 if network.calibration is None else network.calibration.temperature
    temperature = before * fit_temperature(predictions.labels, predictions.logits.numpy())
    network.calibration = Calibration(temperature, len(predictions.labels), split)
    model_file.save(out, network)
    _logger.info(
        f"Written to {out}: the same model with temperature {temperature:.3g}, fitted on these "
        f"{len(predictions.labels)} images. Its calibration on them would be optimistic: evaluate it on others."
    )
