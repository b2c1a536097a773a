"""Whether images trained a model, or the weights that its training started from, by contents and by paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.dataset import ImageDataset, resolved_files
from efficientnetv2.data.image_metadata import content_hashes
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.provenance import TrainingFingerprint
from efficientnetv2.training.run_dir import RUN_MARKERS
from efficientnetv2.utils.errors import InputError, pluralize
from efficientnetv2.utils.legacy import run_file


@dataclass(frozen=True, eq=False)
class TrainOverlap:
    """How many of the evaluated images trained or selected a model."""

    pictures: int | None  # Trained it; None if nothing is known about its training images
    exact: bool  # Whether all images were compared; otherwise it is an estimate from a sample
    of: int  # Evaluated images
    unseen: npt.NDArray[np.intp] | None = None  # Rows that did neither; None if not known of each image
    least: bool = False  # Whether ``pictures`` is a lower bound
    before: bool = False  # Whether some trained only the pretrained weights
    chose: int = 0  # Others that selected it, as minival; a lower bound if ``unseen`` is None
    chose_before: int = 0  # Of these, those that selected only the pretrained weights

    @property
    def none(self) -> bool:
        """Whether each image is known not to have trained the model."""
        return self.pictures == 0 and self.unseen is not None

    @property
    def choosing(self) -> str | None:
        """A sentence on the images that selected the model."""
        if not self.chose:
            return None
        least = "At least " if self.unseen is None else ""
        how = "or those that it began with, as minival" if self.chose_before else "as its minival"
        return f"{least}{self.chose} of these {self.of} images chose its weights, {how}."

    @property
    def note(self) -> str | None:
        """A sentence on the images that trained the model."""
        if self.pictures is None:
            return (
                "Whether some of these images trained the model is not known: its file does not record them."
            )
        if not self.pictures:
            return None
        weights = ", or the weights that it began with" if self.before else ""
        count = f"{'' if self.exact else 'At least ' if self.least else 'About '}{self.pictures}"
        by = "" if self.exact else ", judging by a sample of their contents"
        return f"{count} of these {self.of} images trained the model{weights}{by}."


def train_overlap(model: Path, trained_on: TrainingFingerprint | None, dataset: ImageDataset) -> TrainOverlap:
    """Find evaluated images among those that trained or selected a model, or its pretrained weights.

    Images are found by their contents, as ``trained_on`` of the model file remembers them, and by their paths where the
    dataset of the run lies beside the model: an image that was saved again has other contents. Raises InputError if
    remote storage does not answer.
    """
    run = find_run(model)
    if trained_on is None and run is None:
        return TrainOverlap(None, exact=True, of=len(dataset))
    known, chose = np.zeros((2, len(dataset)), dtype=bool) if run is None else _by_path(run, dataset)
    if trained_on is None:
        return TrainOverlap(int(known.sum()), exact=True, of=len(dataset))
    rows, marks = content_hashes(dataset)
    compared, (last, *before) = len(rows) / max(1, len(dataset)), trained_on.parts
    same = np.isin(marks, last.marks)
    known[rows] |= same
    own, estimate = int(known.sum()), _estimate(last, same, compared)
    for earlier in before:
        further = np.isin(marks, earlier.marks) & ~known[rows]
        estimate = max(estimate, own + _estimate(earlier, further, compared))
        known[rows] |= further
    if trained_on.chose is None:  # it did not use the minival of its run
        chose[:] = False
    else:
        chose[rows] |= np.isin(marks, trained_on.chose.marks)
    own_chose = chose & ~known
    if trained_on.earlier is not None and trained_on.earlier.chose is not None:
        chose[rows] |= np.isin(marks, trained_on.earlier.chose.marks)
    chose &= ~known
    found, ensemble = int(known.sum()), any(part.of_several for part in trained_on.parts)
    all_compared = len(rows) == len(dataset) and trained_on.whole
    return TrainOverlap(
        max(found, min(len(dataset), estimate)),
        exact=estimate <= found and not ensemble,
        of=len(dataset),
        unseen=np.flatnonzero(~(known | chose)) if all_compared else None,
        least=ensemble and estimate <= found,
        before=found > own,
        chose=int(chose.sum()),
        chose_before=int((chose & ~own_chose).sum()),
    )


def find_run(model: Path) -> Path | None:
    """The folder of the run or cross-validation that a model file lies in, with its dataset."""
    folder = model if model.is_dir() else model.parent
    # Elsewhere, a dataset.csv is a table of the user's own.
    is_run = any(run_file(folder, name).is_file() for name in RUN_MARKERS)
    return folder if is_run and run_file(folder, "dataset.csv").exists() else None


def _estimate(training: TrainingFingerprint, same: npt.NDArray[np.bool_], compared: float) -> int:
    """Estimated number of images in a training, of which ``same`` were found in its sample; 0 if unknown."""
    share = compared * training.share
    return round(int(same.sum()) / share) if share and not training.of_several else 0


def _by_path(run: Path, dataset: ImageDataset) -> npt.NDArray[np.bool_]:
    """(2, N) whether an image has the path of a training image of the run, and of a minival image."""
    of_run = ImageDataset.from_csv(run_file(run, "dataset.csv"), root=run.absolute(), source=str(run))
    files, of_run_files = resolved_files(dataset), np.array(resolved_files(of_run), dtype=object)
    splits = [set(of_run_files[of_run.split == split]) for split in ("train", "minival")]
    return np.array([[file in split for file in files] for split in splits], dtype=bool)


@dataclass(frozen=True)
class PretrainOverlap:
    """Validation images of a run that trained or selected its pretrained weights."""

    pictures: int = 0  # Trained them
    chose: int = 0  # Others that selected them, as minival of an earlier run
    lines: tuple[str, ...] = ()  # Sentences; the first is on these images
    chooser: bool = False  # Whether minival images trained them, so that these select nothing

    @property
    def flattering(self) -> bool:
        """Whether the metrics of the run are optimistic."""
        return bool(self.pictures or self.chose)

    def to_json(self) -> dict[str, object]:
        """Plain values for the start of the run, and its report."""
        return {"num_images": self.pictures, "chose": self.chose, "note": self.lines[0]}


def pretrain_overlap(
    weights: str, network: Network, prepared: DataModule, *, refuse: bool = True
) -> PretrainOverlap:
    """Find validation and minival images of a run among those that trained or selected its pretrained weights.

    Minival images that trained the weights for the same classes are refused: they would select weights close to the
    given ones, and a temperature that is far too low. Without ``refuse`` such a minival selects nothing. With other
    classes only the features have seen them, which is logged. Images that selected the weights before are fine: their
    labels are in no weights.

    ``weights`` are those of the recipe, and ``network`` has them, adapted to the classes of the run. Raises InputError
    also if remote storage does not answer.
    """
    path = Path(weights)
    if weights == "none" or not path.exists():  # named weights have no fingerprint
        return PretrainOverlap()
    lines, chooser = [], False
    found = train_overlap(path, network.trained_on, prepared.val)
    parts = [_trained(found, prepared.eval_split)] if found.pictures else []
    if found.chose:
        least = "at least " if found.unseen is None else ""
        of = "others" if parts else f"of the {pluralize(found.of, 'image')} of {prepared.eval_split}"
        parts.append(f"{least}{found.chose:,} {of} selected them, as the minival of an earlier run")
    if parts:
        lines.append(
            f"Weights {weights}: {' and '.join(parts)}, so the metrics on them are optimistic. Hold out other images, "
            "by a column split or the `seed` of that training."
        )
    if prepared.minival is not None:
        # The last training only: the classes of earlier ones are not known.
        last = None if network.trained_on is None else network.trained_on.parts[0]
        overlap = train_overlap(path, last, prepared.minival)
        chooser = bool(overlap.pictures and network.class_names)
        trained = f"Weights {weights}: {_trained(overlap, 'minival')}"
        if chooser and refuse:
            raise InputError(
                f"{trained}, for the same classes, so they can't select the model. Give others as minival by a column "
                "split, or set `minival=null`."
            )
        if chooser:
            lines.append(
                f"{trained}, for the same classes, so these images select nothing and fit no temperature."
            )
        elif overlap.pictures:
            lines.append(f"{trained}, for other classes; they select all the same.")
    return PretrainOverlap(found.pictures or 0, found.chose, tuple(lines), chooser)


def _trained(overlap: TrainOverlap, split: str) -> str:
    """How many images of a split trained given weights."""
    about, by = ("", "") if overlap.exact else ("about ", ", judging by a sample of their contents")
    return f"{about}{overlap.pictures or 0:,} of the {pluralize(overlap.of, 'image')} of {split} trained them{by}"
