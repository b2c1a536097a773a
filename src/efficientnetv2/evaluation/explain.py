"""Where a network looks: Grad-CAM on the maps of its stages, laid over the picture.

Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017,
arXiv:1610.02391, as captum has it. A map says which parts of the picture speak for a class; not why, nor whether they
should. It depends on the network's weights, as the test of Adebayo et al. (arXiv:1810.03292) asks of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientnetv2.augment.normalise import normalise
from efficientnetv2.base.errors import InputError
from efficientnetv2.inference.halving import as_many_as_fit
from efficientnetv2.models.network import EfficientNet, Network

# Pictures at a time; fewer where memory runs out. Ours.
_BATCH = 8
# How strongly the colours of a map cover the picture where it is highest. Ours.
_COVER = 0.6

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def explainable(network: Network) -> bool:
    """Whether the stages of a network are known: of ours."""
    return isinstance(network, EfficientNet) and network.num_classes > 0


def grad_cam(
    network: Network,
    images: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.int64],
    *,
    stage: int | None = None,
) -> Floats:
    """How much each part of a picture speaks for a class.

    The network answers in evaluation mode, and is left in the mode that it was in, without gradients.

    Args:
        network: of ours, with a classifier, on any device.
        images: (N, H, W, C) uint8, as the network's preprocessing makes them.
        classes: (N,) class ids: what each map is to speak for.
        stage: whose last map is looked at, from 1: an early one is fine but knows edges, a late one is coarse but knows
            things. None is the last map of all, after the head, as in the paper.

    Returns:
        (N, H, W) float32, 0 to 1: the highest part of each picture is 1; all 0 where nothing speaks for the class.

    Raises:
        InputError: the network is not ours or has no classifier, or there is no such stage.
        MemoryShortError: a single picture does not fit into memory.
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
    """(N, 1, h, w) at the size of the pictures, (N, H, W), the highest value of each being 1."""
    large = functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)[:, 0]
    highest = large.amax(dim=(1, 2), keepdim=True)
    return large / highest.clamp(min=torch.finfo(torch.float32).tiny)


def overlaid(image: Pixels, heat: Floats) -> Pixels:
    """A picture with its map over it: grey where nothing speaks for the class, yellow where the most does.

    Args:
        image: (H, W, 3) uint8.
        heat: (H, W), 0 to 1.
    """
    from matplotlib import colormaps

    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    # Dark pictures are brightened, or there is nothing to see beneath the colours.
    grey *= 255 / max(1.0, float(np.quantile(grey, 0.99)))
    colours = 255 * colormaps["inferno"](heat)[..., :3]
    cover = _COVER * heat[..., None] ** 0.5
    mixed: Pixels = ((1 - cover) * grey.clip(0, 255) + cover * colours).round().clip(0, 255).astype(np.uint8)
    return mixed
