"""Image sizes and test-time augmentation of ``evaluate`` and ``predict``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import cast, get_args

from pydantic import TypeAdapter, ValidationError

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.clusters import Clusters
from efficientnetv2.evaluation.plots import SizeCurve
from efficientnetv2.evaluation.predictions import PairedDifference, compare_predictions
from efficientnetv2.evaluation.report_sections import predictions_frame
from efficientnetv2.inference.predict import Predictions, evaluate_sizes
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ensemble import remove_calibration
from efficientnetv2.preprocessing import TTA, Preprocessing
from efficientnetv2.progressive.schedule import IMAGE_SIZE, ProgressiveSchedule
from efficientnetv2.utils.errors import InputError, did_you_mean

_logger = logging.getLogger(__name__)

# The stride of the models, and the largest size of a recipe.
_SIZES = (32, IMAGE_SIZE[1])
# Sizes of one command, each a pass over the images. Ours.
_MAX_SIZES = 32


def validate_size(px: int, option: str) -> int:
    """The size, if images can be evaluated at it."""
    if not _SIZES[0] <= px <= _SIZES[1]:
        raise InputError(f"{option}: invalid value '{px}' (choose {_SIZES[0]} to {_SIZES[1]} pixels).")
    return px


def parse_sizes(text: str) -> tuple[int, ...]:
    """The sizes of ``--eval-sizes 96,128,160``, ascending."""
    try:
        sizes = {int(word) for word in text.split(",")}
    except ValueError as error:
        raise InputError(
            f"--eval-sizes: invalid value '{text}'. Give numbers of pixels with commas, as 96,128,160."
        ) from error
    if len(sizes) > _MAX_SIZES:
        raise InputError(
            f"--eval-sizes has {len(sizes)} sizes, and at most {_MAX_SIZES} are allowed: each is a pass over all "
            "images."
        )
    return tuple(sorted(validate_size(px, "--eval-sizes") for px in sizes))


def size_curve(
    predictions: Mapping[int, tuple[Predictions, float]],
    sizes: Sequence[int],
    model: Network,
    *,
    may_choose: bool,
) -> SizeCurve:
    """Metrics at each size, from predictions with their seconds.

    ``may_choose``: the images trained or selected the model, so that their metrics may choose its size too.
    """
    try:
        trained_px = (
            TypeAdapter(ProgressiveSchedule).validate_python(model.recipe.get("progressive")).last.image_size
        )
    except ValidationError:  # of another project, or without a recipe
        trained_px = None
    points = evaluate_sizes(predictions.__getitem__, sizes, model.class_names)
    return SizeCurve(
        points, model.preprocessing.image_size, trained_px, "may choose" if may_choose else "shown"
    )


def tta_or_own(text: str | None, own: TTA) -> TTA:
    """The views of ``--tta``; None takes the model's own."""
    if text is None:
        return own
    if text not in get_args(TTA):
        raise InputError(
            f"--tta: invalid value '{text}' (choose from {', '.join(get_args(TTA))})"
            f"{did_you_mean(text, get_args(TTA))}"
        )
    return cast(TTA, text)


def remove_unfit_calibration(model: Network, preprocessing: Preprocessing) -> None:
    """Remove the model's temperature, in place, if it was fitted at another size or with other views."""
    own, px, tta = model.preprocessing, preprocessing.image_size, preprocessing.tta
    if (tta, px) == (own.tta, own.image_size) or not remove_calibration(model):
        return
    _logger.info(
        f"Temperature: removed, because it was fitted at {own.image_size} px with views '{own.tta}', and images are "
        f"evaluated at {px} px with views '{tta}'. To fit another to a single model: effnetv2 convert MODEL "
        f"OUT.safetensors --image-size {px} --tta {tta}, and effnetv2 evaluate OUT.safetensors DATA --calibrate "
        "NEW.safetensors"
    )


def compare_views(
    predictions: Predictions,
    own: Predictions | None,
    dataset: ImageDataset,
    class_names: Sequence[str],
    clusters: Clusters | None = None,
) -> PairedDifference | None:
    """Predictions with other views minus those with the model's ``own``; None without the latter."""
    if own is None:
        return None
    first, second = (predictions_frame(each, dataset, class_names) for each in (predictions, own))
    return compare_predictions(
        first, second, clusters=None if clusters is None else clusters.by_path(list(first.index))
    )
