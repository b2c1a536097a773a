"""Which pictures trained a network, as far as it is remembered: a sample of their contents, in the model file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from efficientnetv2.models.model_card import beside, number_of
from efficientnetv2.utils.rng import Key

KEY = "efficientnetv2.trained_on"  # among the metadata of a model file


@dataclass(frozen=True, eq=False)
class TrainingFingerprint:
    """The training pictures of a network, known again by their contents alone.

    Args:
        pictures: how many there were.
        marks: (n,) int64, ascending: ``data.image_metadata.content_marks`` of them, or of a part drawn evenly.
        of_several: whether these are of several trainings, each with its part: a picture that was in more than one of
            them is counted as often, and remembered the more surely. So nobody knows of which share the marks are.
        earlier: likewise of what trained, and what chose, the weights that the training began with, and those before
            them; None where it began without, or nothing is known of it. It has none of its own.
        chose: likewise the pictures of minival, which chose its weights, its size, its temperature; None without.
    """

    pictures: int
    marks: npt.NDArray[np.int64]
    of_several: bool = False
    earlier: TrainingFingerprint | None = None
    chose: TrainingFingerprint | None = None

    @property
    def share(self) -> float:
        """Of the pictures, that are known; 1 means all."""
        return min(1.0, len(self.marks) / max(1, self.pictures))

    @property
    def parts(self) -> tuple[TrainingFingerprint, ...]:
        """Of the last training, and of all before it where there were any."""
        last = replace(self, earlier=None)
        return (last,) if self.earlier is None else (last, self.earlier)

    @property
    def choosing(self) -> tuple[TrainingFingerprint, ...]:
        """What chose the network, and what chose the weights that its training began with; empty where nothing did."""
        found = [self.chose, None if self.earlier is None else self.earlier.chose]
        return tuple(one for one in found if one is not None)

    @property
    def whole(self) -> bool:
        """Whether all that trained the network, or the weights it began with, are known, and all that chose it."""
        others = [one for one in (self.earlier, self.chose) if one is not None]
        return self.share == 1 and not self.of_several and all(one.whole for one in others)

    def begun_from(self, weights: TrainingFingerprint | None, *, most: int) -> Self:
        """The same, of a training that began with weights.

        Args:
            weights: what these remember; None where they remember nothing.
            most: marks that are kept of all that trained them, and of all that chose them; of more an even part.
        """
        if weights is None:
            return self
        chose = merge_fingerprints(weights.choosing)._thinned(most) if weights.choosing else None
        return replace(self, earlier=replace(merge_fingerprints(weights.parts)._thinned(most), chose=chose))

    def _thinned(self, most: int) -> TrainingFingerprint:
        if len(self.marks) <= most:
            return self
        drawn = Key.of(0).fold("earlier").generator().choice(len(self.marks), most, replace=False)
        return replace(self, marks=self.marks[np.sort(drawn)])

    def with_minival(self) -> TrainingFingerprint:
        """The same of a network that minival chose, whose file may be of a time when it remembered nothing of that."""
        return self if self.chose is not None else replace(self, chose=TrainingFingerprint(1, self.marks[:0]))

    def text(self) -> str:
        """As it stands in a file, which is of one network; ``parse`` gives the same."""
        return json.dumps(self._plain())

    def _plain(self) -> dict[str, Any]:
        marks = base64.b64encode(self.marks.astype("<i8").tobytes()).decode()
        plain: dict[str, Any] = {"pictures": self.pictures, "marks": marks}
        if self.of_several:
            plain["of_several"] = True
        for name, other in (("earlier", self.earlier), ("chose", self.chose)):
            if other is not None:
                plain[name] = other._plain()
        return plain


def merge_fingerprints(parts: Sequence[TrainingFingerprint]) -> TrainingFingerprint:
    """What was in any of several trainings, as one memory; of what chose them nothing.

    Args:
        parts: of each, at least one; none with an ``earlier`` of its own.
    """
    marks = np.unique(np.concatenate([part.marks for part in parts]))
    # Trainings that remember all of their pictures: then these are all. Else no more than all have had together.
    if all(part.share == 1 and not part.of_several for part in parts):
        return TrainingFingerprint(len(marks), marks)
    several = len(parts) > 1 or parts[0].of_several
    return TrainingFingerprint(sum(part.pictures for part in parts), marks, of_several=several)


def parse(path: Path, text: str) -> TrainingFingerprint:
    """What ``TrainingFingerprint.text`` made.

    Args:
        path: for the message.
        text: from the file's metadata.

    Raises:
        InputError: it is damaged.
    """
    return beside(path, text, KEY, _made)


def _made(plain: Any) -> TrainingFingerprint:
    marks = np.frombuffer(base64.b64decode(plain["marks"], validate=True), dtype="<i8").astype(np.int64)
    earlier, chose = (_made(plain[name]) if name in plain else None for name in ("earlier", "chose"))
    return TrainingFingerprint(
        number_of(plain, "pictures"), marks, bool(plain.get("of_several", False)), earlier, chose
    )
