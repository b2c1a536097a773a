"""The temperature that a network's logits are divided by, as it stands in the model file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficientnetv2.models.model_card import beside, number_of

KEY = "efficientnetv2.calibration"  # among the metadata of a model file; packages that do not know it leave it be


@dataclass(frozen=True)
class Calibration:
    """How sure the network's probabilities are made; no answer is another by it.

    Args:
        temperature: that logits are divided by, > 0 (arXiv:1706.04599).
        pictures: that it was fitted on; they trained nothing.
        fitted_on: what these are called: ``minival``, or the data.
    """

    temperature: float
    pictures: int
    fitted_on: str

    def text(self) -> str:
        """As it stands in a file; ``parse`` gives the same."""
        return json.dumps(asdict(self))


def parse(path: Path, text: str) -> Calibration:
    """What ``Calibration.text`` made.

    Args:
        path: for the message.
        text: from the file's metadata.

    Raises:
        InputError: it is damaged.
    """
    return beside(path, text, KEY, _made)


def _made(plain: Any) -> Calibration:
    found = Calibration(float(plain["temperature"]), number_of(plain, "pictures"), str(plain["fitted_on"]))
    if not 0 < found.temperature < math.inf:
        raise ValueError(f"temperature is {found.temperature}, but is finite and above 0")
    return found
