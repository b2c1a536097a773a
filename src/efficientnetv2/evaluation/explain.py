"""Grad-CAM heat maps, and the galleries of a report.

Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017,
arXiv:1610.02391, as in captum. A map shows which regions support a class, not why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientnetv2.evaluation import thumbnails
from efficientnetv2.evaluation.html import thumbnail
from efficientnetv2.evaluation.sections import TemplateSection
from efficientnetv2.inference.predict import as_many_as_fit
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.transforms.normalize import normalise
from efficientnetv2.utils.errors import InputError

# Pictures at a time; fewer where memory runs out. Ours.
_BATCH = 8
# How strongly the colours of a map cover the picture where it is highest. Ours.
_COVER = 0.6

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def supports_grad_cam(network: Network) -> bool:
    """Whether a model is one of this package with a classifier."""
    return isinstance(network, EfficientNet) and network.num_classes > 0


def grad_cam(
    network: Network,
    images: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.int64],
    *,
    stage: int | None = None,
) -> Floats:
    """Grad-CAM of each image for a class, as (N, H, W) float32 from 0 to 1; all 0 if nothing supports the class.

    The model runs in evaluation mode without parameter gradients and keeps its own mode.

    Args:
        images: (N, H, W, C) uint8 as the model's preprocessing makes them.
        classes: (N,) class ids.
        stage: From 1: early stages are fine and know edges, late ones coarse and know objects. None is the head, as in
            the paper.

    Raises:
        InputError: The model is not supported, or there is no such stage.
        MemoryShortError: A single image does not fit into memory.
    """
    layer = _layer(network, stage)
    from captum.attr import LayerGradCam  # takes a moment to load, and only here

    device = next(network.parameters()).device
    looking = LayerGradCam(network, layer)
    maps: list[Tensor] = []

    def heat(batch: Tensor) -> Tensor:
        start = sum(len(part) for part in maps)
        inputs = normalise(batch.to(device), mean=network.preprocessing.mean, std=network.preprocessing.std)
        target = torch.from_numpy(classes[start : start + len(batch)]).to(device)
        with torch.enable_grad():
            found = looking.attribute(inputs, target=target, relu_attributions=True)
        maps.append(_spread(found.detach().float(), images.shape[1], images.shape[2]).cpu())
        return maps[-1]

    most = _BATCH
    with _only_looked_at(network):
        for start in range(0, len(images), _BATCH):
            part = np.ascontiguousarray(images[start : start + _BATCH])
            _, most = as_many_as_fit(heat, torch.from_numpy(part).permute(0, 3, 1, 2), most, device)
    return torch.cat(maps).numpy() if maps else np.empty((0, *images.shape[1:3]), np.float32)


@contextmanager
def _only_looked_at(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no parameter wants a gradient: what is kept for gradients begins at the layer looked at."""
    training = {module for module in network.modules() if module.training}
    wanting = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in wanting:
            parameter.requires_grad = True


def _layer(network: Network, stage: int | None) -> nn.Module:
    if not isinstance(network, EfficientNet) or network.num_classes == 0:
        raise InputError(
            "Grad-CAM is drawn of the networks of this package that have a classifier; this is another one."
        )
    if stage is None:
        return network.head
    lasts = np.cumsum([one.layers for one in network.architecture.stages]) - 1
    if not 1 <= stage <= len(lasts):
        raise InputError(f"stage is {stage}, but the network has stages 1 to {len(lasts)}.")
    return network.blocks[int(lasts[stage - 1])]


def _spread(maps: Tensor, height: int, width: int) -> Tensor:
    """(N, 1, h, w) maps resized to (N, H, W), with a maximum of 1 each."""
    large = functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)[:, 0]
    highest = large.amax(dim=(1, 2), keepdim=True)
    return large / highest.clamp(min=torch.finfo(torch.float32).tiny)


def overlay_heatmap(image: Pixels, heat: Floats) -> Pixels:
    """An (H, W, 3) image in gray under an (H, W) map: yellow where the most supports the class."""
    from matplotlib import colormaps

    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    # Dark pictures are brightened, or there is nothing to see beneath the colours.
    grey *= 255 / max(1.0, float(np.quantile(grey, 0.99)))
    colours = 255 * colormaps["inferno"](heat)[..., :3]
    cover = _COVER * heat[..., None] ** 0.5
    mixed: Pixels = ((1 - cover) * grey.clip(0, 255) + cover * colours).round().clip(0, 255).astype(np.uint8)
    return mixed


# Pairs of classes, pictures of each, and of the other galleries: with two copies of each well below 1 MB. Ours.
_PAIRS, _OF_A_PAIR, _OF_OTHERS = 3, 4, 8
_PX, _QUALITY = 144, 75

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Gallery:
    """A titled group of images, by their positions in the predictions."""

    title: str
    places: Ints


@dataclass(frozen=True, eq=False)
class Example:
    """An (H, W, 3) image as the model saw it, and its (H, W) heat map; None if unavailable."""

    image: npt.NDArray[np.uint8] | None
    heat: npt.NDArray[np.float32] | None = None


def select_galleries(
    labels: Ints, probabilities: npt.NDArray[np.floating], class_names: Sequence[str]
) -> list[Gallery]:
    """Galleries of the most frequent confusions, the least confident predictions and the least probable labels."""
    best = probabilities.argmax(axis=1)
    sure = probabilities.max(axis=1)
    galleries = []
    wrong = np.flatnonzero(best != labels)
    pairs, counts = np.unique(np.stack([labels[wrong], best[wrong]], axis=1), axis=0, return_counts=True)
    for at in np.argsort(-counts, kind="stable")[:_PAIRS]:
        true, called = pairs[at]
        places = wrong[(labels[wrong] == true) & (best[wrong] == called)]
        surest = places[np.argsort(-sure[places], kind="stable")][:_OF_A_PAIR]
        more = f": the most confident of {counts[at]}" if counts[at] > len(surest) else ""
        galleries.append(Gallery(f"{class_names[true]}, predicted as {class_names[called]}{more}", surest))
    galleries.append(Gallery("Least confident", np.argsort(sure, kind="stable")[:_OF_OTHERS]))
    of_label = probabilities[np.arange(len(labels)), labels]
    surprising = np.argsort(of_label, kind="stable")[:_OF_OTHERS]
    galleries.append(Gallery("Least probable labels", surprising))
    return galleries


def gallery_section(
    galleries: Sequence[Gallery],
    labels: Ints,
    probabilities: npt.NDArray[np.floating],
    class_names: Sequence[str],
    paths: Sequence[str],
    seen: Callable[[int], Example],
    *,
    whose: str = "",
) -> TemplateSection:
    """The section; ``seen`` gives the example at a position of the predictions, ``whose`` a note on the model."""
    best = probabilities.argmax(axis=1)
    looked = {int(place): seen(int(place)) for one in galleries for place in one.places}
    dim = thumbnails.is_low_contrast(one.image for one in looked.values())
    addresses: dict[int, tuple[str | None, str | None]] = {}

    def picture(place: int) -> dict[str, object]:
        if place not in addresses:
            one = looked[place]
            heat = None if one.image is None or one.heat is None else overlay_heatmap(one.image, one.heat)
            plain = thumbnails.encode_thumbnail(one.image, dim=dim, px=_PX, quality=_QUALITY)
            addresses[place] = (plain, thumbnail(heat, _PX, _QUALITY))
        address, map_address = addresses[place]
        return {
            "address": address,
            "map": map_address,
            "true": class_names[labels[place]],
            "called": class_names[best[place]],
            "right": bool(best[place] == labels[place]),
            "probability": float(probabilities[place, best[place]]),
            "path": paths[place],
        }

    values = [(one.title, [picture(int(place)) for place in one.places]) for one in galleries]
    mapped = any(each["map"] for _, pictures in values for each in pictures)
    told = {
        "galleries": [
            {"title": one.title, "paths": [paths[int(place)] for place in one.places]} for one in galleries
        ]
    }
    return TemplateSection(
        "galleries.html.j2",
        {
            "galleries": values,
            "mapped": mapped,
            "stretched": thumbnails.CONTRAST_NOTE if dim else None,
            "whose": whose,
        },
        told,
    )
