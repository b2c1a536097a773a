"""The linear probe of a run: initial weights of the head, and the images that there is time for."""

from __future__ import annotations

import math
import timeit
from bisect import bisect_right
from functools import cache

import numpy as np
from threadpoolctl import threadpool_limits

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.prepared_data import PreparedData
from efficientnetv2.inference.learning_curve import MOST_WORK
from efficientnetv2.inference.linear_probe import MAX_IMAGES, ProbeResult, linear_probe, max_fit_work, to_linear_layer
from efficientnetv2.inference.predict import Runtime
from efficientnetv2.models.adapt import set_classifier_weights
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.device import Hardware
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.random_key import Key

# Speed of fitting as a share of that of a matrix product on the same core, at least. Ours: 0.5 to 2.5 were measured,
# since most fits need fewer iterations than they may take.
_FIT_SHARE = 0.4
# With fewer images per class, on average, the probe of a run is not informative. Ours.
_MIN_PROBE_CLASS_IMAGES = 3
# Images of val for each training image of a probe that has no time for all. Ours: the head learns from the latter.
_VAL_FRACTION = 0.5


def resolve_head_init(recipe: Recipe, data: PreparedData) -> Recipe:
    """Resolve ``head_init: auto``: the linear probe, or random weights.

    There is no probe without weights, for several labels, or for very many classes.
    """
    multilabel = data.dataset.separator is not None
    if multilabel and recipe.head_init == "linear_probe":
        raise InputError("A linear probe predicts one label, but images have several. Use `head_init=random`.")
    if recipe.head_init != "auto":
        return recipe
    is_informative = recipe.weights != "none" and not multilabel and min_probe_images(data) <= MAX_IMAGES
    return recipe.model_copy(update={"head_init": "linear_probe" if is_informative else "random"})


def probe_notes(recipe: Recipe, data: PreparedData) -> tuple[str, ...]:
    """A note if there is no linear probe because of too many classes."""
    excluded = recipe.weights == "none" or data.dataset.separator is not None
    if excluded or recipe.head_init == "linear_probe" or min_probe_images(data) <= MAX_IMAGES:
        return ()
    classes = len(data.train.class_names)
    return (f"No linear probe of the initial weights ({classes:,} classes are too many for {MAX_IMAGES:,} images).",)


def wants_probe(recipe: Recipe, network: Network, probe: bool, data: PreparedData, images: int | None = None) -> bool:
    """Whether to fit a linear probe of the initial weights; there is time for ``images``, None all.

    A network that keeps the classifier of its weights needs one only for a comparison, which ``probe`` asks for.
    """
    if recipe.weights == "none" or images == 0 or data.dataset.separator is not None:
        return False
    if network.class_names and not probe:
        return False
    return recipe.head_init == "linear_probe" or (probe and min_probe_images(data) <= MAX_IMAGES)


def fit_head(
    network: Network,
    data: PreparedData,
    preprocessing: Preprocessing,
    recipe: Recipe,
    hardware: Hardware,
    max_images: int | None = None,
) -> ProbeResult:
    """Fit a linear probe on at most ``max_images`` of train, and half as many of val.

    With ``head_init: linear_probe`` a new classifier gets its weights.
    """
    fit = linear_probe(
        network,
        data.train,
        data.val,
        preprocessing,
        key=Key.of(recipe.seed).fold("probe"),
        balanced=recipe.balances_classes,
        max_images=max_images,
        max_val_images=None if max_images is None else _val_images(max_images),
        runtime=Runtime(hardware.device, hardware.workers),
        contents=data.contents[data.dataset.split == "train"],
    )
    if recipe.head_init == "linear_probe" and not network.class_names:
        set_classifier_weights(network, *to_linear_layer(fit.classifier, len(data.train.class_names)))
    return fit


def images_within(seconds: float, data: PreparedData, network: Network, image_s: float, most: int) -> int | None:
    """Number of training images that a probe has time for; None if it has time for all, at most ``most``.

    ``image_s`` are the seconds to embed an image.
    """
    most = min(most, max(len(data.train), len(data.val)))

    def takes(images: int, val_images: int) -> float:
        return probe_s(images, data.train, val_images, network, image_s)

    if takes(most, min(most, len(data.val))) <= seconds:
        return None
    return bisect_right(range(most), seconds, key=lambda n: takes(n, min(_val_images(n), len(data.val)))) - 1


def _val_images(images: int) -> int:
    return math.ceil(_VAL_FRACTION * images)


def probe_s(most: int, train: ImageDataset, val_images: int, network: Network, image_s: float) -> float:
    """Estimated seconds of a linear probe on at most ``most`` images of train and some of val."""
    learning = min(len(train), most)
    work = max_fit_work(learning, len(train.class_names), network.embed_dim)
    return image_s * (learning + val_images) + (work + min(work, MOST_WORK)) / fit_speed()


@cache
def fit_speed() -> float:
    """Multiply-adds per second of fitting on a core of this machine."""
    rows, classes = np.ones((512, 1280), np.float32), np.ones((1280, 64), np.float32)
    with threadpool_limits(1):
        shortest_s = min(timeit.repeat(lambda: rows @ classes, number=1, repeat=5))
    return _FIT_SHARE * 512 * 1280 * 64 / shortest_s


def min_probe_images(data: PreparedData) -> int:
    """With fewer training images, a probe is not informative."""
    return min(len(data.train), _MIN_PROBE_CLASS_IMAGES * len(data.train.class_names))
