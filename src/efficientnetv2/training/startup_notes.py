"""Notes and lines on a run before its first step: what was resolved, what has no effect, what would be better."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from efficientnetv2.data.sampler import DEFAULT_BETA
from efficientnetv2.models import hub, pretrained
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.regularization import apply_regularization
from efficientnetv2.models.wrapped_model import WrappedModel
from efficientnetv2.preprocessing import RGB, Preprocessing
from efficientnetv2.training.initial_weights import WeightsCandidate, better_weights, model_title
from efficientnetv2.training.recipe import Recipe, Schedule
from efficientnetv2.training.run_request import ResolvedRun
from efficientnetv2.training.run_setup import RunLength
from efficientnetv2.transforms.auto_augment import operation_names
from efficientnetv2.transforms.pipeline import AugmentPlan
from efficientnetv2.utils.errors import pluralize

_logger = logging.getLogger(__name__)

_UNUSED_PREFIX = "Without effect here: "
_WEIGHTS_PREFIX = "Weights: "


def log_notes(notes: Sequence[str], warnings: Collection[str], *, shown: str) -> None:
    """Log notes as details, but warnings, what has no effect and what a time limit changed for the user.

    The note that has been ``shown`` is left out.
    """
    for note in notes:
        if note in warnings or note.startswith(_UNUSED_PREFIX) or "`minutes" in note:
            _logger.info(note)
        elif note != shown:
            _logger.debug(note)


def model_lines(recipe: Recipe, notes: Sequence[str], device: torch.device) -> list[str]:
    """Weights and model, a line each."""
    scratch = "none (training from scratch)" if recipe.weights == "none" else recipe.weights
    known = [note for note in notes if note.startswith(_WEIGHTS_PREFIX) and note != f"{_WEIGHTS_PREFIX}none"]
    schedule = recipe.progressive
    first, last = schedule.stage(0).image_size, schedule.last.image_size
    px = f"{last} px" if first == last else f"{first} to {last} px in {pluralize(schedule.stages, 'stage')}"
    how = f"batch size {recipe.batch_size}, {recipe.precision} on {device.type}"
    return [*(known or [f"{_WEIGHTS_PREFIX}{scratch}"])[:1], f"Model: {model_title(recipe.model)}, {px} ({how})"]


def length_line(recipe: Recipe, images: int, minutes: float | None, path: Path) -> str:
    """How long a run trains, and where its details are."""
    steps = pluralize(RunLength.of(recipe, images).steps, "step")
    within = "" if minutes is None else f", within {pluralize(minutes, 'minute')}"
    return f"Length: {pluralize(float(f'{recipe.epochs:.3g}'), 'epoch')}, {steps}{within} (details: {path / 'log.txt'})"


def unused_settings(recipe: Recipe, *, scratch: bool, processes: int) -> list[str]:
    """A note on fields of the requested recipe that have no effect. ``scratch`` is a model without weights."""
    default, continuous = Schedule(name=recipe.schedule.name), recipe.progressive.continuous
    progressive, augment = recipe.progressive, recipe.augment
    effective = "effective" in (recipe.class_sampling, recipe.class_weights)
    unused = {
        "optimizer.gradual_unfreeze (no weights)": scratch and recipe.optimizer.gradual_unfreeze is not None,
        "head_init=linear_probe (no weights)": scratch and recipe.head_init == "linear_probe",
        "freeze_stages (no weights)": scratch and recipe.freeze_stages != 0,
        "sync_batch_norm (there is one process)": recipe.sync_batch_norm and processes == 1,
        "sync_batch_norm (freeze_bn keeps the statistics)": recipe.sync_batch_norm and recipe.freeze_bn and not scratch,
        "stage_time (there is one stage)": recipe.stage_time is not None and recipe.progressive.stages == 1,
        "effective_beta (neither class_sampling nor class_weights is effective)": not effective
        and recipe.effective_beta != DEFAULT_BETA,
        **{
            f"schedule.{name} (for {kind}, and schedule.name is {recipe.schedule.name})": kind != default.name
            and getattr(recipe.schedule, name) != getattr(default, name)
            for name, kind in (("gamma", "staircase"), ("step_epochs", "staircase"), ("min_lr_ratio", "cosine"))
        },
        "augment.randaugment_layers (progressive.randaugment is null)": progressive.randaugment is None
        and augment.randaugment_layers != AugmentPlan().randaugment_layers,
        "augment.randaugment_colors (progressive.randaugment is null)": progressive.randaugment is None
        and augment.randaugment_colors != AugmentPlan().randaugment_colors,
        "augment.cutout_fill (progressive.cutout is 0)": not progressive.last.cutout
        and augment.cutout_fill != AugmentPlan().cutout_fill,
        "compile for most of the run (the hyperparameters change at every step)": recipe.compile is True and continuous,
    }
    names = [name for name, is_unused in unused.items() if is_unused]
    return [f"{_UNUSED_PREFIX}{'; '.join(names)}."] if names else []


def channel_notes(recipe: Recipe, in_channels: int) -> list[str]:
    """A note on augmentation that is reduced for images that are not RGB."""
    if in_channels == RGB:
        return []
    parts = []
    if recipe.progressive.randaugment is not None:
        parts.append(f"RandAugment draws from {', '.join(operation_names(in_channels))}")
    if recipe.augment.color:
        parts.append("the jitter changes brightness alone")
    channels = pluralize(in_channels, "channel")
    return [f"Augmentation of {channels}: {' and '.join(parts)}; other color operations need RGB."] if parts else []


def regularization_notes(recipe: Recipe, network: Network) -> list[str]:
    """A note on the modules of another library's model whose dropout and stochastic depth the run sets."""
    last = recipe.progressive.last
    if not (last.dropout or last.drop_path) or not isinstance(network, WrappedModel):
        return []
    report = apply_regularization(network.module, dropout=last.dropout or None, drop_path=last.drop_path or None)
    return [f"Regularization: {report}."]


def multilabel_notes(recipe: Recipe, separator: str | None) -> list[str]:
    """A note on the loss of several labels of an image."""
    if separator is None:
        return []
    if recipe.activation(separator) == "sigmoid":
        return ["Multi-label: each class is independent (sigmoid), positive from a probability of 0.5."]
    return ["Multi-label: the labels of an image share a probability of 1 (softmax)."]


def better_weights_note(recipe: Recipe, candidates: Sequence[WeightsCandidate]) -> list[str]:
    """A note that ImageNet weights promise more than the bundled ones, or than none if none were named."""
    if recipe.weights == "none" and not candidates:
        return []
    name = better_weights(recipe.model, recipe.weights)
    if name is None or hub.cached(name) is not None:
        return []
    if any(found.word in pretrained.weight_names() for found in candidates):
        return []
    return [
        "Better weights: ImageNet weights usually give much better models, and are not on this machine. To download "
        f"them: effnetv2 models --fetch {name}. Without a network, copy the downloaded file and pass it as `weights`."
    ]


def preprocessing_note(run: ResolvedRun) -> str:
    """Which part of the preprocessing comes from the weights, and which from the recipe."""
    own, weights, trained_px = run.preprocessing, run.network.preprocessing, run.recipe.progressive.last.image_size
    own_bands = own.channels != RGB
    source = "mean and std of the rasters' bands, interpolation" if own_bands else "interpolation, mean and std"
    trained = "as in training" if own.image_size == trained_px else f"though training ends at {trained_px} px"
    note = f"Images: crop mode {_crop_mode(own)} at {own.image_size} px, {trained}; {source} of the weights."
    if (_crop_mode(own), own.image_size) == (_crop_mode(weights), weights.image_size):
        return note
    settings: dict[str, object] = {"crop_mode": weights.crop_mode}
    if weights.crop_pct < 1:
        settings["crop_pct"] = f"{weights.crop_pct:.4g}"
    settings["image_size"] = weights.image_size
    if run.request.recipe.eval_image_size is not None:
        settings["eval_image_size"] = weights.image_size
    fix = " ".join(f"`{name}={value}`" for name, value in settings.items())
    return f"{note} The weights had crop mode {_crop_mode(weights)} at {weights.image_size} px, which is {fix}."


def _crop_mode(preprocessing: Preprocessing) -> str:
    fraction = preprocessing.crop_pct
    return preprocessing.crop_mode + (f" ({fraction:.3g} of each side)" if fraction < 1 else "")
