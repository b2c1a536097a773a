"""Facts of a report besides the metrics: the data, the model, its training, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from efficientnetv2.evaluation.distribution_shift import NewPlaceEstimate
from efficientnetv2.evaluation.predictions import PairedDifference
from efficientnetv2.preprocessing import TTA
from efficientnetv2.utils.errors import pluralize

#: A verdict of a few words, and the sentences behind it.
Verdict = tuple[str, str]


@dataclass(frozen=True)
class ReportMetadata:
    """Facts of a report besides the metrics. The fields are keys of ``report.json``.

    None and empty mean unknown, or false.
    """

    data: str
    evaluated_on: str  # a split, or "out-of-fold", or "all images"
    selected_on: str | None = None  # the split that chose the epoch or the recipe
    num_eval_images_seen_in_training: int | None = None
    num_eval_images_used_for_selection: int = 0  # of those not seen in training
    kept_model: Literal["start", "trained"] | None = None  # "start" is the model before training
    kept_reason: str = ""
    tta: TTA = "none"
    model: str | None = None
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    auto_choices: Sequence[str] = ()
    notes: Sequence[str] = ()
    recipe: Mapping[str, Any] | None = None
    seed: int | None = None
    epochs: float | None = None
    ensemble_size: int | None = None  # models that predict each image together, in a cross-validation
    num_train_images: int | None = None
    num_train_lost: int = 0  # training images that became unreadable during training
    wall_s: float | None = None
    images_per_s: float | None = None
    data_wait_fraction: float | None = None
    linear_probe_top1: float | None = None
    linear_probe_macro_f1: float | None = None
    linear_probe_f1: Mapping[str, float] = field(default_factory=dict)
    linear_probe_num_images: int | None = None  # training images of the probe; the mean over folds
    linear_probe_num_available: int | None = None
    train_images_per_class: Mapping[str, int] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    num_skipped: int = 0
    stored_size: float | None = None  # median shorter side of the training images as stored, in pixels
    check_notes: Sequence[str] = ()  # on duplicates, conflicting labels, colors
    label_conflicts: int = 0  # pairs of identical images with different labels
    late_gain: float | None = None  # of validation top-1 in the last quarter of the training, interpolated
    extra: Mapping[str, Any] = field(default_factory=dict)  # further keys of report.json

    @property
    def is_training_report(self) -> bool:
        """Whether it is of a run or a cross-validation, not of an evaluation."""
        return self.num_train_images is not None or self.evaluated_on == "out-of-fold"

    @property
    def on_training_split(self) -> bool:
        """Whether the evaluated split is ``train``, unless none of its images trained this model."""
        return self.evaluated_on == "train" and self.num_eval_images_seen_in_training != 0

    @property
    def optimistic(self) -> bool:
        """Whether evaluated images trained or selected the model."""
        return bool(self.optimism)

    @property
    def training_images(self) -> str:
        """The evaluated images that trained the model, as a phrase; '' for none known."""
        if self.num_eval_images_seen_in_training:
            return f"{self.num_eval_images_seen_in_training:,} of these images"
        return "these images" if self.on_training_split else ""

    @property
    def selection_images(self) -> str:
        """The other evaluated images that selected the model, as a phrase; '' for none known."""
        if self.evaluated_on == self.selected_on:
            return "these images"
        count = self.num_eval_images_used_for_selection
        return f"{count:,} of these images" if count else ""

    @property
    def optimism(self) -> str:
        """``These images trained the model``, the start of a warning; '' for none."""
        uses = ((self.training_images, "trained"), (self.selection_images, "selected"))
        text = " and ".join(f"{images} {verb} the model" for images, verb in uses if images)
        return text[:1].upper() + text[1:]

    @property
    def split_phrase(self) -> str:
        """The evaluated images: ``validation images (val), kept out of training``."""
        held_out = "" if self.num_train_images is None else ", kept out of training"
        models = f"{self.ensemble_size} models together" if (self.ensemble_size or 1) > 1 else "a model"
        splits = {
            "val": f"validation images (val){held_out}",
            "test": "test images",
            "minival": "selection images (minival)",
            "all images": "all images",
            "out-of-fold": f"images of all folds, each predicted by {models} not trained on it (out-of-fold)",
        }
        if self.on_training_split:
            return "training images"
        return splits.get(self.evaluated_on, f"images of split {self.evaluated_on}")

    @property
    def probe_training_images(self) -> str | None:
        """``5,000 of 40,000 training images``, if the linear probe was trained on fewer than there are."""
        used, available = self.linear_probe_num_images, self.linear_probe_num_available
        if used is None or available is None or used >= available:
            return None
        mean = " (means over the folds)" if self.evaluated_on == "out-of-fold" else ""
        return f"{used:,} of {pluralize(available, 'training image')}{mean}"

    @property
    def probe_note(self) -> str | None:
        """The automatic choice to leave the linear probe out, if it was left out."""
        return next((choice for choice in self.auto_choices if choice.startswith("No linear probe")), None)


@dataclass(frozen=True)
class ReportContext:
    """What the questions need besides metrics and metadata. None: not known, or not requested."""

    probe: PairedDifference | None = None  # model minus linear probe
    last: tuple[str, PairedDifference] | None = None  # name of another run, and model minus that run
    new_places: NewPlaceEstimate | None = None
    bootstrap_unit: str | None = None  # what intervals draw whole: "places", "groups"; None for images
    tta: PairedDifference | None = None  # with test-time augmentation minus without
    is_ensemble: bool = False  # has no model file to convert
    unseen: str | None = None  # metrics without the images that trained the model, as a sentence
    more_labels: Verdict | None = None
    calibration: Verdict | None = None
    subgroups: Verdict | None = None
    requested: tuple[str, ...] = ()  # results of costs and of the threshold of abstention, as sentences
