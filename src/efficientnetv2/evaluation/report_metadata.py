"""What a report says beside the metrics: the data, the model, how it was trained, and what was noted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from efficientnetv2.preprocessing import TTA


@dataclass(frozen=True)
class ReportMetadata:
    """All that a report says beside the metrics. None and empty mean unknown, or not so.

    The fields are keys of ``report.json``.

    Attributes:
        evaluated_on: Split of the evaluated images, or ``out-of-fold``, or ``all pictures``.
        selected_on: Split that chose the epoch or the recipe. None if no metric chose anything.
        num_eval_images_seen_in_training: Number of evaluated images that trained the model. None if unknown.
        num_eval_images_used_for_selection: Number of the other evaluated images that selected the model.
        kept_model: ``start`` is the model before training. None if nothing num_eval_images_used_for_selection between
            models.
        ensemble_size: Models that predict each image together, in a cross-validation.
        num_train_lost: Number of training images that became unreadable during training.
        wall_s: Training time in seconds.
        data_wait_fraction: Fraction of the training time spent waiting for images.
        linear_probe_top1: Top-1 of a linear classifier on the features of the pretrained weights.
        linear_probe_num_images: Number of training images of the probe. The mean over folds in a cross-validation.
        linear_probe_num_available: Number of training images that the probe could have used.
        train_images_per_class: Class name -> number of training images.
        stored_size: Median shorter side of the training images as stored, in pixels.
        check_notes: Sentences of the check of the files: duplicates, conflicting labels, colors.
        label_conflicts: Number of pairs of identical images with different labels.
        late_gain: Gain of validation top-1 in the last quarter of the training, as a fraction.
        extra: Further keys of ``report.json``.
    """

    data: str
    evaluated_on: str
    selected_on: str | None = None
    num_eval_images_seen_in_training: int | None = None
    num_eval_images_used_for_selection: int = 0
    kept_model: Literal["start", "trained"] | None = None
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
    ensemble_size: int | None = None
    num_train_images: int | None = None
    num_train_lost: int = 0
    wall_s: float | None = None
    images_per_s: float | None = None
    data_wait_fraction: float | None = None
    linear_probe_top1: float | None = None
    linear_probe_macro_f1: float | None = None
    linear_probe_f1: Mapping[str, float] = field(default_factory=dict)
    linear_probe_num_images: int | None = None
    linear_probe_num_available: int | None = None
    train_images_per_class: Mapping[str, int] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    num_skipped: int = 0
    stored_size: float | None = None
    check_notes: Sequence[str] = ()
    label_conflicts: int = 0
    late_gain: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

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
        selected = self.evaluated_on == self.selected_on or self.num_eval_images_used_for_selection > 0
        return selected or self.on_training_split or bool(self.num_eval_images_seen_in_training)

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
        return (
            f"{self.num_eval_images_used_for_selection:,} of these images"
            if self.num_eval_images_used_for_selection
            else ""
        )

    @property
    def optimism(self) -> str:
        """``optimism_phrase`` of these images."""
        return optimism_phrase(self.training_images, self.selection_images)


def optimism_phrase(training_images: str, selection_images: str) -> str:
    """``These images trained the model``, the start of a warning; '' for none."""
    uses = ((training_images, "trained"), (selection_images, "selected"))
    text = " and ".join(f"{images} {verb} the model" for images, verb in uses if images)
    return text[:1].upper() + text[1:]
