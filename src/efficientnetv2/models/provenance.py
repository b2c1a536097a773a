"""Metadata of a model file: which images trained the model (a sample of their hashes), and its temperature."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from efficientnetv2.utils.errors import short_repr
from efficientnetv2.utils.random_key import Key

# Metadata entries of a model file. Versions that do not know one ignore it.
KEY = "efficientnetv2.trained_on"
CALIBRATION_KEY = "efficientnetv2.calibration"
_OLD_NAMES = {"pictures": "num_images", "marks": "hashes", "chose": "selection"}  # of version 0.1


@dataclass(frozen=True, eq=False)
class TrainingFingerprint:
    """The training images of a model, recognizable by their content."""

    num_images: int  # training images
    hashes: npt.NDArray[np.int64]  # (n,), ascending: content hashes of all images, or of an even sample
    # Merges several trainings. An image in two of them is more likely to be sampled, so the fraction is unknown.
    of_several: bool = False
    earlier: TrainingFingerprint | None = None  # all trainings before this one, merged; None if none are known
    selection: TrainingFingerprint | None = None  # the images (minival) that selected weights, size or temperature

    @property
    def stored_fraction(self) -> float:
        """Fraction of the training images whose hashes are stored."""
        return min(1.0, len(self.hashes) / max(1, self.num_images))

    @property
    def parts(self) -> tuple[TrainingFingerprint, ...]:
        """The last training, and all trainings before it if there were any."""
        last = replace(self, earlier=None)
        return (last,) if self.earlier is None else (last, self.earlier)

    @property
    def selections(self) -> tuple[TrainingFingerprint, ...]:
        """The images that selected this model, and those that selected its initial weights."""
        found = [self.selection, None if self.earlier is None else self.earlier.selection]
        return tuple(fingerprint for fingerprint in found if fingerprint is not None)

    @property
    def complete(self) -> bool:
        """Whether every image that trained or selected this model is known."""
        others = (self.earlier, self.selection)
        is_whole = self.stored_fraction == 1 and not self.of_several
        return is_whole and all(other is None or other.complete for other in others)

    def started_from(self, weights: TrainingFingerprint | None, *, most: int) -> Self:
        """This training, started from weights with a fingerprint; at most ``most`` hashes are kept of each kind."""
        if weights is None:
            return self
        selection = merge_fingerprints(weights.selections)._sample(most) if weights.selections else None
        return replace(self, earlier=replace(merge_fingerprints(weights.parts)._sample(most), selection=selection))

    def _sample(self, most: int) -> TrainingFingerprint:
        if len(self.hashes) <= most:
            return self
        drawn = Key.of(0).fold("earlier").generator().choice(len(self.hashes), most, replace=False)
        return replace(self, hashes=self.hashes[np.sort(drawn)])

    def with_minival(self) -> TrainingFingerprint:
        """Note that minival selected the model; older files did not record it."""
        return self if self.selection is not None else replace(self, selection=TrainingFingerprint(1, self.hashes[:0]))

    def to_json(self) -> str:
        """The metadata entry; ``from_json`` reads it."""
        return json.dumps(self._plain())

    @classmethod
    def from_json(cls, text: str) -> TrainingFingerprint:
        """Read a metadata entry. Raises ValueError, KeyError or TypeError if it is damaged."""
        return cls._from_plain(json.loads(text))

    def _plain(self) -> dict[str, Any]:
        hashes = base64.b64encode(self.hashes.astype("<i8").tobytes()).decode()
        plain: dict[str, Any] = {"num_images": self.num_images, "hashes": hashes}
        if self.of_several:
            plain["of_several"] = True
        for name, other in (("earlier", self.earlier), ("selection", self.selection)):
            if other is not None:
                plain[name] = other._plain()
        return plain

    @classmethod
    def _from_plain(cls, plain: Any) -> TrainingFingerprint:
        plain = _with_new_names(plain)
        count = _image_count(plain)
        hashes = np.frombuffer(base64.b64decode(plain["hashes"], validate=True), dtype="<i8").astype(np.int64)
        earlier, selection = (
            cls._from_plain(plain[name]) if name in plain else None for name in ("earlier", "selection")
        )
        return cls(count, hashes, bool(plain.get("of_several", False)), earlier, selection)


def _with_new_names(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A metadata entry with the names of today."""
    return {_OLD_NAMES.get(name, name): value for name, value in dict(plain).items()}


def _image_count(plain: Mapping[str, Any]) -> int:
    """The number of images in a metadata entry. Raises ValueError or KeyError."""
    count = plain["num_images"]
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < 2**63:
        raise ValueError(f"num_images is {short_repr(count)}, but must be a whole number from 0 to 2^63")
    return count


def merge_fingerprints(parts: Sequence[TrainingFingerprint]) -> TrainingFingerprint:
    """The union of at least one training without ``earlier`` ones. What selected them is left out."""
    hashes = np.unique(np.concatenate([part.hashes for part in parts]))
    # If every hash is stored, the union is exact. Otherwise the sum is an upper bound.
    if all(part.stored_fraction == 1 and not part.of_several for part in parts):
        return TrainingFingerprint(len(hashes), hashes)
    several = len(parts) > 1 or parts[0].of_several
    return TrainingFingerprint(sum(part.num_images for part in parts), hashes, of_several=several)


@dataclass(frozen=True)
class Calibration:
    """The temperature that divides a model's logits (arXiv:1706.04599). It changes no predicted class."""

    temperature: float
    num_images: int  # that it was fitted on; none of them trained the model
    fitted_on: str  # name of those images: ``minival``, or the dataset

    def to_json(self) -> str:
        """The metadata entry; ``from_json`` reads it."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Calibration:
        """Read a metadata entry. Raises ValueError, KeyError or TypeError if it is damaged."""
        plain = _with_new_names(json.loads(text))
        temperature = float(plain["temperature"])
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}, but must be finite and above 0")
        return Calibration(temperature, _image_count(plain), str(plain["fitted_on"]))
