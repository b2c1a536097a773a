"""Which pictures trained a network, as far as it is remembered: a sample of their contents, in the model file."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efficientnetv2.models.header import beside

KEY = "efficientnetv2.trained_on"  # among the metadata of a model file


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """The training pictures of a network, known again by their contents alone.

    Args:
        pictures: how many there were.
        marks: (n,) int64, ascending: ``data.contents.content_marks`` of them, or of a part drawn evenly.
        of_several: whether these are of several networks, each with its part: a picture that trained more than one of
            them is counted as often, and remembered the more surely. So nobody knows of which share the marks are.
    """

    pictures: int
    marks: npt.NDArray[np.int64]
    of_several: bool = False

    @property
    def share(self) -> float:
        """Of the pictures, that are known; 1 means all."""
        return min(1.0, len(self.marks) / max(1, self.pictures))

    def text(self) -> str:
        """As it stands in a file, which is of one network; ``parse`` gives the same."""
        marks = base64.b64encode(self.marks.astype("<i8").tobytes()).decode()
        return json.dumps({"pictures": self.pictures, "marks": marks})


def parse(path: Path, text: str) -> TrainedOn:
    """What ``TrainedOn.text`` made.

    Args:
        path: for the message.
        text: from the file's metadata.

    Raises:
        InputError: it is damaged.
    """
    return beside(path, text, KEY, _made)


def _made(plain: Any) -> TrainedOn:
    marks = np.frombuffer(base64.b64decode(plain["marks"], validate=True), dtype="<i8").astype(np.int64)
    return TrainedOn(int(plain["pictures"]), marks)
