"""The temperature that a network's logits are divided by, as it stands in the model file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from efficientnetv2.base.errors import InputError

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
    try:
        plain = json.loads(text)
        found = Calibration(float(plain["temperature"]), int(plain["pictures"]), str(plain["fitted_on"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: the metadata '{KEY}' is damaged ({error}). Copy the file again."
        ) from error
    if not 0 < found.temperature < float("inf"):
        raise InputError(
            f"{path}: the metadata '{KEY}' has temperature {found.temperature}. Copy the file again."
        )
    return found
