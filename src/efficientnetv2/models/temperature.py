"""The calibration temperature of a model, as stored in the model file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from efficientnetv2.models.provenance import image_count

KEY = "efficientnetv2.calibration"  # metadata entry of a model file; versions that do not know it ignore it


@dataclass(frozen=True)
class Calibration:
    """The temperature that divides a model's logits (arXiv:1706.04599). It changes no predicted class.

    Args:
        temperature: Above 0.
        pictures: Number of images that it was fitted on. None of them trained the model.
        fitted_on: Name of those images: ``minival``, or the dataset.
    """

    temperature: float
    pictures: int
    fitted_on: str

    def to_json(self) -> str:
        """The metadata entry; ``from_json`` reads it."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Calibration:
        """Read a metadata entry. Raises ValueError, KeyError or TypeError if it is damaged."""
        plain = json.loads(text)
        temperature = float(plain["temperature"])
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}, but must be finite and above 0")
        return Calibration(temperature, image_count(plain), str(plain["fitted_on"]))
