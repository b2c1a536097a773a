"""The linear probe of a run: its head initialization, and how many images it has time for."""

from __future__ import annotations

from bisect import bisect_right

from efficientnetv2.data.data_module import DataModule
from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.inference.linear_probe import ProbeOptions, ProbeResult, linear_probe, to_linear_layer
from efficientnetv2.inference.predict import Runtime
from efficientnetv2.models.adapt import set_classifier_weights
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.training.memory_probe import Hardware
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.utils.errors import InputError
from efficientnetv2.utils.rng import Key

# Seconds of fitting and of the learning curve per image, class and feature, on a slow core. Ours.
_FIT_S = 1e-6
# With fewer images per class, on average, a probe says nothing. Ours.
_MIN_CLASS_IMAGES = 3


def resolve_head_init(recipe: Recipe, data: DataModule) -> Recipe:
    """Resolve ``head_init: auto``: the probe's, unless images have several labels.

    Raises:
        InputError: The probe's is requested for images with several labels.
    """
    multilabel = data.dataset.separator is not None
    if multilabel and recipe.head_init == "linear_probe":
        raise InputError(
            "classifier is probe, but a linear probe answers one label, and these pictures have several. Leave it out."
        )
    if recipe.head_init != "auto":
        return recipe
    return recipe.model_copy(update={"head_init": "random" if multilabel else "linear_probe"})


def wants_probe(recipe: Recipe, probe: bool, data: DataModule, images: int | None = None) -> bool:
    """Whether to fit a linear probe of the given weights.

    Args:
        recipe: Recipe of the run.
        probe: Whether the run is to be compared with a probe.
        data: Images of the run.
        images: Number of images of either part that there is time for. None is all.
    """
    wanted = recipe.weights != "none" and (probe or recipe.head_init == "linear_probe")
    return images != 0 and wanted and data.dataset.separator is None


def fit_head(
    network: Network,
    data: DataModule,
    preprocessing: Preprocessing,
    recipe: Recipe,
    hardware: Hardware,
    max_images: int | None = None,
) -> ProbeResult:
    """Fit a linear probe. With ``head_init: linear_probe`` a fresh classifier of the network gets its weights.

    ``max_images`` limits the number of images of either part; None takes as many as take seconds.
    """
    options = ProbeOptions(
        Key.of(recipe.seed).fold("probe"),
        balanced=recipe.class_sampling is not None,
        max_images=max_images,
        runtime=Runtime(hardware.device, hardware.workers),
    )
    contents = data.contents[data.dataset.split == "train"]
    fit = linear_probe(network, data.train, data.val, preprocessing, options, contents=contents)
    if recipe.head_init == "linear_probe" and not network.class_names:
        set_classifier_weights(network, *to_linear_layer(fit.classifier, len(data.train.class_names)))
    return fit


def images_within(
    seconds: float, data: DataModule, network: Network, image_s: float, most: int
) -> int | None:
    """Number of images of either part that a probe has time for; None if it has time for all, at most ``most``.

    ``image_s`` are the seconds to embed an image.
    """
    most = min(most, max(len(data.train), len(data.val)))

    def takes(images: int) -> float:
        return probe_s(images, data.train, data.val, network, image_s)

    return None if takes(most) <= seconds else bisect_right(range(most), seconds, key=takes) - 1


def probe_s(most: int, train: ImageDataset, val: ImageDataset, network: Network, image_s: float) -> float:
    """Estimated seconds of a linear probe on ``most`` images of either part: embedding, fitting, learning curve."""
    learning = min(len(train), most)
    fit_s = _FIT_S * len(train.class_names) * network.embed_dim
    return image_s * (learning + min(len(val), most)) + fit_s * learning


def min_probe_images(data: DataModule) -> int:
    """With fewer training images, a probe says nothing."""
    return min(len(data.train), _MIN_CLASS_IMAGES * len(data.train.class_names))
