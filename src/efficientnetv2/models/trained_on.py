"""Which pictures trained a network, as far as it is remembered: a sample of their contents, in the model file."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
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
        chose: likewise the pictures of minival, which chose its weights, its size, its temperature; None without.
    """

    pictures: int
    marks: npt.NDArray[np.int64]
    of_several: bool = False
    chose: TrainedOn | None = None

    @property
    def share(self) -> float:
        """Of the pictures, that are known; 1 means all."""
        return min(1.0, len(self.marks) / max(1, self.pictures))

    @property
    def whole(self) -> bool:
        """Whether all that trained the network are known, and all that chose it."""
        return self.share == 1 and not self.of_several and (self.chose is None or self.chose.whole)

    def with_minival(self) -> TrainedOn:
        """The same of a network that minival chose, whose file may be of a time when it remembered nothing of that."""
        return self if self.chose is not None else replace(self, chose=TrainedOn(1, self.marks[:0]))

    def text(self) -> str:
        """As it stands in a file, which is of one network; ``parse`` gives the same."""
        return json.dumps(self._plain())

    def _plain(self) -> dict[str, Any]:
        marks = base64.b64encode(self.marks.astype("<i8").tobytes()).decode()
        chose = {} if self.chose is None else {"chose": self.chose._plain()}
        return {"pictures": self.pictures, "marks": marks, **chose}


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
    chose = _made(plain["chose"]) if "chose" in plain else None
    return TrainedOn(int(plain["pictures"]), marks, chose=chose)
