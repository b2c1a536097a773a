"""Notes and lines on a run before its first step: what was resolved, what has no effect, what would be better."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from efficientnetv2.data.sampler import DEFAULT_BETA
from efficientnetv2.models import pretrained
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.models.wrappers import WrappedModel
from efficientnetv2.preprocessing import RGB, Preprocessing
from efficientnetv2.training.initial_weights import WeightsCandidate, better_weights, model_title
from efficientnetv2.training.recipe import Recipe, Schedule
from efficientnetv2.training.train_state import RunLength
from efficientnetv2.transforms.randaugment import operation_names
from efficientnetv2.utils.errors import pluralize
from efficientnetv2.utils.shell import shell_join

_logger = logging.getLogger(__name__)

UNUSED_PREFIX = "Without effect here: "
_WEIGHTS_PREFIX = "Weights: "


def log_notes(notes: Sequence[str], warnings: Collection[str], *, shown: str) -> None:
    """Log notes as details, but warnings, what has no effect and what ``minutes`` changed for the user.

    The note that has been ``shown`` is left out.
    """
    for note in notes:
        if note in warnings or note.startswith(UNUSED_PREFIX) or "`minutes" in note:
            _logger.info(note)
        elif note != shown:
            _logger.debug(note)


def model_lines(recipe: Recipe, notes: Sequence[str], device: torch.device) -> list[str]:
    """Weights and model, a line each."""
    weights = next(
        (note for note in notes if note.startswith(_WEIGHTS_PREFIX)), f"{_WEIGHTS_PREFIX}{recipe.weights}"
    )
    if weights == f"{_WEIGHTS_PREFIX}none":
        weights += " (training from scratch)"
    schedule = recipe.progressive
    first, last = schedule.stage(0).image_size, schedule.last.image_size
    px = f"{last} px" if first == last else f"{first} to {last} px in {pluralize(schedule.stages, 'stage')}"
    how = f"batch size {recipe.batch_size}, {recipe.precision} on {device.type}"
    return [weights, f"Model: {model_title(recipe.model)}, {px} ({how})"]


def length_line(recipe: Recipe, images: int, minutes: float | None, path: Path) -> str:
    """How long a run trains, and where its details are."""
    steps = pluralize(RunLength.of(recipe, images).steps, "step")
    within = "" if minutes is None else f", within {pluralize(minutes, 'minute')}"
    return (
        f"Length: {pluralize(float(recipe.epochs), 'epoch')}, {steps}{within} (details: {path / 'log.txt'})"
    )


def unused_settings(recipe: Recipe, *, scratch: bool, processes: int) -> list[str]:
    """A note on fields of the requested recipe that have no effect.

    Args:
        recipe: Recipe as requested.
        scratch: Whether the model starts without weights.
        processes: Number of processes of the run.
    """
    unused = []
    if scratch and recipe.optimizer.gradual_unfreeze is not None:
        unused.append("optimizer.gradual_unfreeze (from scratch all layers train from the start)")
    if scratch and recipe.head_init == "linear_probe":
        unused.append("head_init=linear_probe (from scratch there is nothing to fit a probe on)")
    if recipe.sync_batch_norm and processes == 1:
        unused.append("sync_batch_norm (there is one process)")
    if recipe.stage_time is not None and recipe.progressive.stages == 1:
        unused.append("stage_time (there is one stage)")
    if recipe.effective_beta != DEFAULT_BETA and "effective" not in (
        recipe.class_sampling,
        recipe.class_weights,
    ):
        unused.append("effective_beta (neither class_sampling nor class_weights is effective)")
    default = Schedule(name=recipe.schedule.name)
    for kind, names in {"staircase": ("gamma", "step_epochs"), "cosine": ("min_lr_ratio",)}.items():
        unused += [
            f"schedule.{name} (for {kind}, and schedule.name is {recipe.schedule.name})"
            for name in names
            if kind != recipe.schedule.name and getattr(recipe.schedule, name) != getattr(default, name)
        ]
    if recipe.compile is True and recipe.progressive.continuous:
        unused.append(
            "compile for most of the run (the settings change at every step; PyTorch compiles a few of them, in the "
            "middle of training)"
        )
    return [f"{UNUSED_PREFIX}{'; '.join(unused)}."] if unused else []


def channel_notes(recipe: Recipe, in_channels: int) -> list[str]:
    """A note on augmentation that is reduced for images that are not RGB."""
    stages = [recipe.progressive.stage(index) for index in range(recipe.progressive.stages)]
    has_randaugment = any(stage.randaugment is not None for stage in stages)
    if in_channels == RGB or not (has_randaugment or recipe.augment.color):
        return []
    operations = (
        f"RandAugment draws from {', '.join(operation_names(in_channels))}" if has_randaugment else ""
    )
    jitter = "the jitter changes brightness alone" if recipe.augment.color else ""
    what = " and ".join(filter(None, (operations, jitter)))
    return [
        f"Augmentation of {pluralize(in_channels, 'channel')}: {what}; other color operations need red, green and blue."
    ]


def regularization_notes(recipe: Recipe, network: Network) -> list[str]:
    """A note on the modules whose dropout and stochastic depth the run sets."""
    last = recipe.progressive.last
    if not (last.dropout or last.drop_path):
        return []
    module = network.module if isinstance(network, WrappedModel) else network  # names as its library has them
    report = apply_regularization(module, dropout=last.dropout or None, drop_path=last.drop_path or None)
    return [f"Regularization: {report}."]


def multilabel_notes(recipe: Recipe, separator: str | None) -> list[str]:
    """A note on how several labels of an image are learned."""
    if separator is None:
        return []
    if recipe.answer(separator) == "sigmoid":
        return [
            "Several labels: each class is a yes or no of its own (sigmoid), given from a probability of 0.5 on; "
            "--set multilabel=softmax has labels share 1."
        ]
    return [
        "Several labels: those of a picture share a probability of 1 (softmax); "
        "--set multilabel=sigmoid answers each class by itself."
    ]


def better_weights_note(recipe: Recipe, candidates: Sequence[WeightsCandidate]) -> list[str]:
    """A note that ImageNet weights promise more than the bundled ones, or than none if none were named."""
    if recipe.weights == "none" and not candidates:
        return []
    name = better_weights(recipe.model, recipe.weights)
    if name is None or any(found.word in pretrained.weight_names() for found in candidates):
        return []
    own = (
        "there are no ImageNet weights on this machine"
        if recipe.weights == "none"
        else "these were trained on aerial images"
    )
    command = shell_join(["effnetv2", "models", "--fetch", name])
    return [
        f"Better weights: {own}. ImageNet weights usually give far better models. Fetch them with: {command}. The "
        "command names one file. Copy that file to a machine without a network, for --weights FILE."
    ]


def preprocessing_note(
    own: Preprocessing, weights: Preprocessing, *, trained_px: int, eval_image_size: int | None
) -> str:
    """Which part of the preprocessing comes from the weights, and which from the recipe.

    Args:
        own: Preprocessing of the run.
        weights: Preprocessing of the weights.
        trained_px: Last training size.
        eval_image_size: Image size that the recipe names for evaluation; None if it names none.
    """
    source = "interpolation, mean and std are"
    if own.channels != RGB:
        source = "mean and std are of the rasters' bands, and interpolation is"
    trained = (
        "as the recipe trains on them"
        if own.image_size == trained_px
        else f"though training ends at {trained_px} px"
    )
    note = (
        f"Pictures: crop mode {_crop_mode(own)} at {own.image_size} px, {trained}; {source} "
        f"{'those' if own.channels == RGB else 'that'} of the weights."
    )
    if (_crop_mode(own), own.image_size) == (_crop_mode(weights), weights.image_size):
        return note
    crop = f" --set crop_pct={weights.crop_pct:.4g}" if weights.crop_pct < 1 else ""
    size = "" if eval_image_size is None else f" --set eval_image_size={weights.image_size}"
    return (
        f"{note} The weights themselves had crop mode {_crop_mode(weights)} at {weights.image_size} px: for that, "
        "--crop-mode "
        f"{weights.crop_mode}{crop} --image-size {weights.image_size}{size}."
    )


def _crop_mode(preprocessing: Preprocessing) -> str:
    fraction = preprocessing.crop_pct
    return preprocessing.crop_mode + (f" ({fraction:.3g} of each side)" if fraction < 1 else "")
