"""Whether the pictures that a model is evaluated on have trained it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientnetv2.commands.earlier import KINDS
from efficientnetv2.data.contents import content_marks
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.models.trained_on import TrainedOn


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known about that.

    Args:
        pictures: how many of those evaluated trained the model; None where nothing is known about what did.
        exact: whether all were compared with all; else it was judged by a sample.
        of: how many are evaluated.
        unseen: places of those that did not; None where it is not known of each.
    """

    pictures: int | None
    exact: bool
    of: int
    unseen: npt.NDArray[np.intp] | None = None

    @property
    def note(self) -> str | None:
        """A sentence for the user; None where there is nothing to say."""
        if self.pictures is None:
            return "Whether some of these pictures trained the model is not known: its file does not say which did."
        if not self.pictures:
            return None
        if self.exact:
            return f"{self.pictures} of these {self.of} pictures trained the model."
        return (
            f"About {self.pictures} of these {self.of} pictures trained the model, judging by a sample of their "
            "contents."
        )


def seen(model: Path, trained_on: TrainedOn | None, part: Manifest) -> Seen:
    """How many pictures trained a model: by their contents, as its file remembers them, and by their paths.

    A picture that was changed since, were it only saved anew, is another one by its content; it is known by its path
    where the manifest of the run lies beside the model.

    Args:
        model: its file, or the run folder.
        trained_on: what its file remembers; None for nothing.
        part: the pictures that it was evaluated on.

    Raises:
        InputError: a store of another machine does not answer.
    """
    folder = model if model.is_dir() else model.parent
    # Else it is a table of the user's own, which says nothing of this model.
    is_run = any((folder / name).is_file() for name in KINDS) and (folder / "manifest.csv").exists()
    if trained_on is None and not is_run:
        return Seen(None, exact=True, of=len(part))
    known = _by_path(folder, part) if is_run else np.zeros(len(part), dtype=bool)
    if trained_on is None:
        return Seen(int(known.sum()), exact=True, of=len(part))
    rows, marks = content_marks(part)
    same = np.isin(marks, trained_on.marks)
    known[rows] |= same
    found = int(known.sum())
    looked_at = len(rows) / max(1, len(part)) * trained_on.share
    estimate = min(len(part), round(int(same.sum()) / looked_at)) if looked_at else 0
    unseen = np.flatnonzero(~known) if len(rows) == len(part) and trained_on.share == 1 else None
    # Where all was compared with all, the estimate is the count itself.
    return Seen(max(found, estimate), exact=estimate <= found, of=len(part), unseen=unseen)


def _by_path(run: Path, part: Manifest) -> npt.NDArray[np.bool_]:
    """(N,) whether a picture lies where one lay that the run trained on."""
    there = Manifest.from_csv(run / "manifest.csv", root=run.absolute(), source=str(run))
    # A folder's links are followed once, not for each of its pictures: a million would take tens of seconds.
    folder_of = lru_cache(maxsize=None)(os.path.realpath)

    def resolved(path: str) -> str:
        folder, name = os.path.split(path)
        place = os.path.join(folder_of(folder), name)
        return os.path.realpath(place) if os.path.islink(place) else place

    trained = {resolved(there.file(int(row))) for row in np.flatnonzero(there.split == "train")}
    return np.array([resolved(part.file(row)) in trained for row in range(len(part))], dtype=bool)
