"""``evaluate --eval-sizes``: the same pictures answered at several sizes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.clusters import Clusters
from efficientnetv2.evaluation.plots import SizeCurve
from efficientnetv2.evaluation.predictions import PairedDifference, compare_predictions
from efficientnetv2.evaluation.report_sections import predictions_frame
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.inference.resolutions import evaluate_sizes
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.ensemble import remove_calibration
from efficientnetv2.preprocessing import TTA, Preprocessing
from efficientnetv2.progressive.schedule import IMAGE_SIZE, ProgressiveSchedule
from efficientnetv2.utils.errors import InputError, did_you_mean

_logger = logging.getLogger(__name__)

# The family halves a picture five times; the most is what a recipe takes.
_LEAST_PX, _MOST_PX = 32, IMAGE_SIZE[1]
# Of one command. Each takes a pass over the pictures. Ours.
_MOST_SIZES = 32


def one_size(px: int, option: str) -> int:
    """A size that pictures can be seen at.

    Raises:
        InputError: it is too small or too large.
    """
    if not _LEAST_PX <= px <= _MOST_PX:
        raise InputError(
            f"{option} {px}: pictures are seen at no less than {_LEAST_PX} px, the network's stride, and no more than "
            f"{_MOST_PX}. Give a size between."
        )
    return px


def several_sizes(words: str) -> tuple[int, ...]:
    """The sizes of ``--eval-sizes 96,128,160``, growing.

    Raises:
        InputError: no numbers, too many, or one that is too small or too large.
    """
    try:
        given = {int(word) for word in words.split(",")}
    except ValueError as error:
        raise InputError(
            f"--eval-sizes is '{words}', but is whole numbers of pixels with commas between, as 96,128,160."
        ) from error
    if len(given) > _MOST_SIZES:
        raise InputError(
            f"--eval-sizes names {len(given)} sizes, but at most {_MOST_SIZES}: each is a pass over all pictures."
        )
    return tuple(sorted(one_size(px, "--eval-sizes") for px in given))


def size_curve(
    answers: Mapping[int, tuple[Predictions, float]],
    sizes: Sequence[int],
    network: Network,
    *,
    may_choose: bool,
) -> SizeCurve:
    """The figures at each size.

    Args:
        answers: by size, with the seconds that they took.
        sizes: to look at.
        network: that answers.
        may_choose: whether these pictures trained the network, or chose it before.
    """
    points = evaluate_sizes(answers.__getitem__, sizes, network.class_names)
    return SizeCurve(
        points,
        network.preprocessing.image_size,
        _trained_px(network),
        "may choose" if may_choose else "shown",
    )


def _trained_px(network: Network) -> int | None:
    """The size of the last training step, where the model file says it."""
    try:
        plan = TypeAdapter(ProgressiveSchedule).validate_python(network.recipe.get("progressive"))
    except ValidationError:  # of another project, or without a recipe
        return None
    return plan.last.image_size


def tta_or_own(word: str | None, own: TTA) -> TTA:
    """The value of ``--tta``, or the model's own. Raises InputError if it is unknown."""
    if word is None:
        return own
    choices: tuple[TTA, ...] = get_args(TTA)
    if word not in choices:
        raise InputError(
            f"--tta: invalid value '{word}' (choose from {', '.join(choices)}){did_you_mean(word, choices)}"
        )
    return choices[choices.index(word)]


def for_own_views(network: Network, looking: Preprocessing) -> None:
    """Leave a temperature out that was fitted to pictures looked at otherwise, and say so.

    Args:
        network: as loaded; changed in place where it has one.
        looking: how the pictures are looked at.
    """
    own = network.preprocessing
    if (looking.tta, looking.image_size) == (own.tta, own.image_size) or not remove_calibration(network):
        return
    px, tta = looking.image_size, looking.tta
    _logger.info(
        f"The temperature was fitted at {own.image_size} px with views '{own.tta}', and the pictures are looked at at "
        f"{px} px with views '{tta}': it is left out. To fit another to a single model: effnetv2 convert MODEL "
        f"OUT.safetensors --image-size {px} --tta {tta}, and effnetv2 evaluate OUT.safetensors DATA --calibrate "
        "NEW.safetensors"
    )


def over_own(
    predictions: Predictions,
    own: Predictions | None,
    dataset: ImageDataset,
    class_names: Sequence[str],
    whole: Clusters | None = None,
) -> PairedDifference | None:
    """What answers with other views have over those with the model's own, picture by picture.

    Args:
        predictions: with other views, of labeled pictures of one label each.
        own: of the same network with its own; None where they were not looked at so.
        dataset: of both.
        class_names: of the network.
        whole: what hangs together among the pictures with other views; None where nothing does.
    """
    if own is None:
        return None
    mine, theirs = (predictions_frame(one, dataset, class_names) for one in (predictions, own))
    clusters = None if whole is None else whole.by_path(list(mine.index))
    return compare_predictions(mine, theirs, clusters=clusters)
