"""Whether images trained a model, or the weights that its training started from, by contents and by paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.dataset import ImageDataset, resolved_files
from efficientnetv2.data.image_metadata import content_hashes
from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.provenance import TrainingFingerprint
from efficientnetv2.training.run_dir import RUN_MARKERS
from efficientnetv2.utils.errors import InputError, pluralize


@dataclass(frozen=True, eq=False)
class TrainOverlap:
    """How many of the evaluated images trained or selected a model."""

    num_trained: int | None  # Trained it; None if nothing is known about its training images
    exact: bool  # Whether all images were compared; otherwise it is an estimate from a sample
    num_images: int  # Evaluated images
    unseen: npt.NDArray[np.intp] | None = None  # Rows that did neither; None if not known of each image
    lower_bound: bool = False  # Whether ``num_trained`` is a lower bound
    pretraining: bool = False  # Whether some trained only the pretrained weights
    num_selected: int = 0  # Others that selected it, as minival; a lower bound if ``unseen`` is None
    num_selected_before: int = 0  # Of these, those that selected only the pretrained weights

    @property
    def none_trained(self) -> bool:
        """Whether each image is known not to have trained the model."""
        return self.num_trained == 0 and self.unseen is not None

    @property
    def selection_note(self) -> str | None:
        """A sentence on the images that selected the model."""
        if not self.num_selected:
            return None
        least = "At least " if self.unseen is None else ""
        how = "or those that it began with, as minival" if self.num_selected_before else "as its minival"
        return f"{least}{self.num_selected} of these {self.num_images} images chose its weights, {how}."

    @property
    def training_note(self) -> str | None:
        """A sentence on the images that trained the model."""
        if self.num_trained is None:
            return "It is not known whether these images trained the model, as its file does not record that."
        if not self.num_trained:
            return None
        weights = ", or the weights that it began with" if self.pretraining else ""
        count = f"{'' if self.exact else 'At least ' if self.lower_bound else 'About '}{self.num_trained}"
        by = "" if self.exact else ", judging by a sample of their contents"
        return f"{count} of these {self.num_images} images trained the model{weights}{by}."


def train_overlap(model: Path, trained_on: TrainingFingerprint | None, dataset: ImageDataset) -> TrainOverlap:
    """Find evaluated images among those that trained or selected a model, or its pretrained weights.

    Images are found by their contents, as ``trained_on`` of the model file remembers them, and by their paths where the
    dataset of the run lies next to the model: an image that was saved again has other contents. Raises InputError if
    remote storage does not respond.
    """
    run = find_run(model)
    if trained_on is None and run is None:
        return TrainOverlap(None, exact=True, num_images=len(dataset))
    trained, selected = np.zeros((2, len(dataset)), dtype=bool) if run is None else _by_path(run, dataset)
    if trained_on is None:
        return TrainOverlap(int(trained.sum()), exact=True, num_images=len(dataset))
    rows, hashes = content_hashes(dataset)
    compared, (last, *others) = len(rows) / max(1, len(dataset)), trained_on.parts
    same = np.isin(hashes, last.hashes)
    trained[rows] |= same
    num_last, estimate = int(trained.sum()), _estimate(last, same, compared)
    for earlier in others:
        further = np.isin(hashes, earlier.hashes) & ~trained[rows]
        estimate = max(estimate, num_last + _estimate(earlier, further, compared))
        trained[rows] |= further
    if trained_on.selection is None:  # it did not use the minival of its run
        selected[:] = False
    else:
        selected[rows] |= np.isin(hashes, trained_on.selection.hashes)
    by_last = selected & ~trained
    if trained_on.earlier is not None and trained_on.earlier.selection is not None:
        selected[rows] |= np.isin(hashes, trained_on.earlier.selection.hashes)
    selected &= ~trained
    num_trained, ensemble = int(trained.sum()), any(part.of_several for part in trained_on.parts)
    all_compared = len(rows) == len(dataset) and trained_on.complete
    return TrainOverlap(
        max(num_trained, min(len(dataset), estimate)),
        exact=estimate <= num_trained and not ensemble,
        num_images=len(dataset),
        unseen=np.flatnonzero(~(trained | selected)) if all_compared else None,
        lower_bound=ensemble and estimate <= num_trained,
        pretraining=num_trained > num_last,
        num_selected=int(selected.sum()),
        num_selected_before=int((selected & ~by_last).sum()),
    )


def find_run(model: Path) -> Path | None:
    """The folder of the run or cross-validation that a model file lies in, with its dataset."""
    if len(model.parts) == 1 and not model.exists():  # a name of pretrained weights
        return None
    folder = model if model.is_dir() else model.parent
    # Elsewhere, a dataset.csv is a table of the user's own.
    is_run = any((folder / name).is_file() for name in RUN_MARKERS)
    return folder if is_run and (folder / "dataset.csv").exists() else None


def _estimate(training: TrainingFingerprint, same: npt.NDArray[np.bool_], compared: float) -> int:
    """Estimated number of images in a training, of which ``same`` were found in its sample; 0 if unknown."""
    share = compared * training.stored_fraction
    return round(int(same.sum()) / share) if share and not training.of_several else 0


def _by_path(run: Path, dataset: ImageDataset) -> npt.NDArray[np.bool_]:
    """(2, N) whether an image has the path of a training image of the run, and of a minival image."""
    of_run = ImageDataset.from_csv(run / "dataset.csv", root=run.absolute(), source=str(run))
    files, of_run_files = resolved_files(dataset), np.array(resolved_files(of_run), dtype=object)
    splits = [set(of_run_files[of_run.split == split]) for split in ("train", "minival")]
    return np.array([[file in split for file in files] for split in splits], dtype=bool)


@dataclass(frozen=True)
class PretrainOverlap:
    """Validation images of a run that trained or selected its pretrained weights."""

    num_trained: int = 0  # Trained them
    num_selected: int = 0  # Others that selected them, as minival of an earlier run
    notes: tuple[str, ...] = ()  # Sentences; the first is on these images
    minival_trained: bool = False  # Whether minival images trained them, so that these select nothing

    @property
    def optimistic(self) -> bool:
        """Whether the metrics of the run are optimistic."""
        return bool(self.num_trained or self.num_selected)

    def to_json(self) -> dict[str, object]:
        """Plain values for the start of the run, and its report."""
        return {"num_images": self.num_trained, "num_selected": self.num_selected, "note": self.notes[0]}


def pretrain_overlap(
    weights: str, network: Network, prepared: PreparedData, *, classes: Sequence[str], refuse: bool = True
) -> PretrainOverlap:
    """Find validation and minival images of a run among those that trained or selected its pretrained weights.

    Minival images that trained the weights for some of the same ``classes`` are refused: they would select weights
    close to the given ones, and a temperature that is far too low. Without ``refuse`` such a minival selects nothing.
    With other classes only the features have seen them, which is logged. Images that selected the weights before are
    fine: their labels are in no weights.

    ``weights`` are those of the recipe, and ``network`` has them, adapted to the classes of the run. Raises InputError
    also if remote storage does not respond.
    """
    path = Path(weights)
    if weights == "none" or not path.exists():  # named weights have no fingerprint
        return PretrainOverlap()
    notes, minival_trained = [], False
    found = train_overlap(path, network.trained_on, prepared.val)
    parts = [_trained(found, prepared.eval_split)] if found.num_trained else []
    if found.num_selected:
        least = "at least " if found.unseen is None else ""
        of = "others" if parts else f"of the {pluralize(found.num_images, 'image')} of {prepared.eval_split}"
        parts.append(f"{least}{found.num_selected:,} {of} selected them, as the minival of an earlier run")
    if parts:
        run = find_run(path)
        there = "" if run is None else f": {run}/dataset.csv has the splits of that training"
        notes.append(
            f"Weights {weights}: {' and '.join(parts)}, so the metrics on them are optimistic. Hold out other images "
            f"by a column split{there}."
        )
    if prepared.minival is not None:
        # The last training only: the classes of earlier ones are not known.
        last = None if network.trained_on is None else network.trained_on.parts[0]
        overlap = train_overlap(path, last, prepared.minival)
        minival_trained = bool(overlap.num_trained and set(classes) & set(prepared.train.class_names))
        trained = f"Weights {weights}: {_trained(overlap, 'minival')}"
        if minival_trained and refuse:
            raise InputError(
                f"{trained}, for classes of this run, so they can't select the model. Give others as minival by a "
                "column split, or set `minival=null`."
            )
        if minival_trained:
            notes.append(f"{trained}, for classes of this run, so these images select nothing and fit no temperature.")
        elif overlap.num_trained:
            notes.append(f"{trained}, for other classes; they select all the same.")
    return PretrainOverlap(found.num_trained or 0, found.num_selected, tuple(notes), minival_trained)


def _trained(overlap: TrainOverlap, split: str) -> str:
    """How many images of a split trained given weights."""
    about, by = ("", "") if overlap.exact else ("about ", ", judging by a sample of their contents")
    images = pluralize(overlap.num_images, "image")
    return f"{about}{overlap.num_trained or 0:,} of the {images} of {split} trained them{by}"
