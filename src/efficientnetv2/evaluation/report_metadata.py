"""What a report says beside the metrics: the data, the model, how it was trained, and what was noted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from efficientnetv2.preprocessing import Views


@dataclass(frozen=True)
class ReportMetadata:
    """All that a report says beside the metrics. None and empty mean unknown, or not so.

    The fields are keys of ``report.json``.

    Attributes:
        evaluated_on: Split of the evaluated images, or ``out-of-fold``, or ``all pictures``.
        selected_on: Split that chose the epoch or the recipe. None if no metric chose anything.
        trained_on: Number of evaluated images that trained the model. None if unknown.
        chose: Number of the other evaluated images that selected the model.
        kept_model: ``start`` is the model before training. None if nothing chose between models.
        members: Models that predict each image together, in a cross-validation.
        train_lost: Number of training images that became unreadable during training.
        wall_s: Training time in seconds.
        input_wait_share: Fraction of the training time spent waiting for images.
        linear_probe: Top-1 of a linear classifier on the features of the pretrained weights.
        linear_probe_pictures: Number of training images of the probe. The mean over folds in a cross-validation.
        linear_probe_of_pictures: Number of training images that the probe could have used.
        train_support: Class name -> number of training images.
        stored_px: Median shorter side of the training images as stored, in pixels.
        check_notes: Sentences of the check of the files: duplicates, conflicting labels, colors.
        label_conflicts: Number of pairs of identical images with different labels.
        late_gain: Gain of validation top-1 in the last quarter of the training, as a fraction.
        others: Further keys of ``report.json``.
    """

    data: str
    evaluated_on: str
    selected_on: str | None = None
    trained_on: int | None = None
    chose: int = 0
    kept_model: Literal["start", "trained"] | None = None
    kept_reason: str = ""
    views: Views = "one"
    model: str | None = None
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    chosen: Sequence[str] = ()
    notes: Sequence[str] = ()
    recipe: Mapping[str, Any] | None = None
    seed: int | None = None
    epochs: float | None = None
    members: int | None = None
    train_pictures: int | None = None
    train_lost: int = 0
    wall_s: float | None = None
    images_per_s: float | None = None
    input_wait_share: float | None = None
    linear_probe: float | None = None
    linear_probe_macro_f1: float | None = None
    linear_probe_f1: Mapping[str, float] = field(default_factory=dict)
    linear_probe_pictures: int | None = None
    linear_probe_of_pictures: int | None = None
    train_support: Mapping[str, int] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    skipped: int = 0
    stored_px: float | None = None
    check_notes: Sequence[str] = ()
    label_conflicts: int = 0
    late_gain: float | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_training_report(self) -> bool:
        """Whether it is of a run or a cross-validation, not of an evaluation."""
        return self.train_pictures is not None or self.evaluated_on == "out-of-fold"

    @property
    def on_training_split(self) -> bool:
        """Whether the evaluated split is ``train``, unless none of its images trained this model."""
        return self.evaluated_on == "train" and self.trained_on != 0

    @property
    def optimistic(self) -> bool:
        """Whether evaluated images trained or selected the model."""
        selected = self.evaluated_on == self.selected_on or self.chose > 0
        return selected or self.on_training_split or bool(self.trained_on)

    @property
    def training_images(self) -> str:
        """The evaluated images that trained the model, as a phrase; '' for none known."""
        if self.trained_on:
            return f"{self.trained_on:,} of these images"
        return "these images" if self.on_training_split else ""

    @property
    def selection_images(self) -> str:
        """The other evaluated images that selected the model, as a phrase; '' for none known."""
        if self.evaluated_on == self.selected_on:
            return "these images"
        return f"{self.chose:,} of these images" if self.chose else ""

    @property
    def optimism(self) -> str:
        """``These images trained the model``, the start of a warning; '' for none."""
        uses = ((self.training_images, "trained"), (self.selection_images, "selected"))
        text = " and ".join(f"{images} {verb} the model" for images, verb in uses if images)
        return text[:1].upper() + text[1:]
