"""The linear probe of given weights, before they train: its figure, and where the recipe wants it its classifier."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import TypeAdapter

from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.evaluation.label_efficiency import label_efficiency_verdict, learning_curve_section
from efficientnetv2.evaluation.predictions import PREDICTIONS_CSV as ANSWERS
from efficientnetv2.evaluation.predictions import load_predictions, save_predictions
from efficientnetv2.inference.learning_curve import LearningCurve, learning_curve
from efficientnetv2.inference.linear_probe import (
    ProbeOptions,
    ProbeResult,
    fit_classifier,
    linear_probe,
    to_linear_layer,
)
from efficientnetv2.models.adapt import set_classifier_weights
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key
from efficientnetv2.workflows.report_sections import Known

_logger = logging.getLogger(__name__)

PROBE = "probe"  # in a run folder: what the probe answered
# Seconds of fitting and of the label curve for each image, class and feature, on a slow core. Ours.
_FIT_S = 1e-6
# With fewer images of a class, on average, a probe says nothing. Ours.
_LEAST_OF_A_CLASS = 3


def with_classifier(recipe: Recipe, prepared: DataModule) -> Recipe:
    """Settle ``classifier: auto``: the probe's, where there is a probe.

    Args:
        recipe: of the run; from scratch ``settle`` takes a fresh classifier in any case.
        prepared: the pictures.

    Raises:
        InputError: the probe's is asked for, but these pictures have several labels.
    """
    several = prepared.dataset.separator is not None
    if several and recipe.classifier == "probe":
        raise InputError(
            "classifier is probe, but a linear probe answers one label, and these pictures have several. Leave it out."
        )
    if recipe.classifier != "auto":
        return recipe
    return recipe.model_copy(update={"classifier": "fresh" if several else "probe"})


def probed(
    network: Network,
    prepared: DataModule,
    preprocessing: Preprocessing,
    recipe: Recipe,
    device: torch.device,
    workers: int,
    most: int | None = None,
) -> ProbeResult:
    """Fit a linear probe for a run. With ``classifier: probe`` a fresh classifier of the network gets its weights.

    ``most`` limits the number of images of either part; None takes as many as take seconds.
    """
    train, val = prepared.train, prepared.val
    options = ProbeOptions(
        Key.of(recipe.seed).fold("probe"),
        balanced=recipe.balance is not None,
        max_images=most,
        device=device,
        workers=workers,
    )
    contents = prepared.contents[prepared.dataset.split == "train"]
    fit = linear_probe(network, train, val, preprocessing, options, contents=contents)
    if recipe.classifier == "probe" and not network.class_names:
        set_classifier_weights(network, *to_linear_layer(fit.classifier, len(train.class_names)))
    return fit


def images_within(
    seconds: float, prepared: DataModule, network: Network, image_s: float, most: int
) -> int | None:
    """How many images of either part a probe can look at in a time; None where it has time for as many as ever.

    Args:
        seconds: Time for embedding, fitting and the label curve.
        prepared: The images.
        network: Network whose features are classified.
        image_s: Seconds to embed one image.
        most: Number of images that a probe looks at where it has time, see ``max_probe_images``.
    """
    most = min(most, max(len(prepared.train), len(prepared.val)))

    def takes(images: int) -> float:
        return probe_s(images, prepared.train, prepared.val, network, image_s)

    return None if takes(most) <= seconds else bisect_right(range(most), seconds, key=takes) - 1


def probe_s(most: int, train: ImageDataset, val: ImageDataset, network: Network, image_s: float) -> float:
    """Estimated seconds of a linear probe: embedding, fitting, and the label curve.

    Args:
        most: Number of images of either part, at most.
        train: Training images.
        val: Images to evaluate on.
        network: Network whose features are classified.
        image_s: Seconds to embed one image.
    """
    learning = min(len(train), most)
    fit_s = _FIT_S * len(train.class_names) * network.embed_dim
    return image_s * (learning + min(len(val), most)) + fit_s * learning


def least_images(prepared: DataModule) -> int:
    """With fewer training images, a probe says nothing."""
    return min(len(prepared.train), _LEAST_OF_A_CLASS * len(prepared.train.class_names))


def keep(found: ProbeResult, folder: Path, *, labelled: int, balanced: bool, seed: int) -> dict[str, Any]:
    """Keep the probe's answers, and see what it reaches with fewer labels.

    Args:
        found: the probe.
        folder: of the run; the answers lie in ``probe/`` there.
        labelled: how many training pictures there are, not counting copies; the probe may have learnt from a sample of
            them. Those that it could not read are no labels.
        balanced: as the probe was fitted.
        seed: of the run.

    Returns:
        Plain values for the run's beginning: the probe's figures and, where it could be measured, the label curve.
    """
    names = found.val_dataset.class_names
    shown = found.val_dataset.select(found.val.samples)
    answers = pd.DataFrame(
        {
            "path": shown.paths,
            "label": [names[one] for one in found.predicted],
            "true_label": [names[one] for one in found.val.labels],
        }
    )
    save_predictions(folder / PROBE, answers)
    curve = learning_curve(
        found.train,
        found.val,
        found.predicted,
        fit=partial(fit_classifier, strength=found.metrics.strength, balanced=balanced),
        num_labeled=labelled - found.num_unreadable,
        key=Key.of(seed).fold("label curve"),
        groups=found.groups,
    )
    kept: dict[str, Any] = {"linear_probe": asdict(found.metrics)}
    return kept if curve is None else kept | {"label_curve": asdict(curve)}


def known_of_run(
    folder: Path,
    beginning: Mapping[str, Any],
    calibration: Calibration | None,
) -> Known:
    """What a run knows beside its answers: those of the probe, the label curve, its temperature.

    Args:
        folder: of the run.
        beginning: as the run folder keeps it.
        calibration: of the network kept.
    """
    answers = None
    if (folder / PROBE / ANSWERS).is_file() and "linear_probe" in beginning:
        try:
            answers = load_predictions(folder / PROBE)
        except InputError:
            _logger.info(
                f"{folder / PROBE / ANSWERS} is damaged. The report leaves the linear probe's classes out."
            )
    labels, sections = None, []
    if "label_curve" in beginning:
        curve = TypeAdapter(LearningCurve).validate_python(beginning["label_curve"])
        labels, sections = label_efficiency_verdict(curve), [learning_curve_section(curve)]
    return Known(
        calibration=calibration,
        probe=answers,
        labels=labels,
        sections=tuple(sections),
    )
