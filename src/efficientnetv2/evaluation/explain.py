"""The galleries of a report: images with Grad-CAM heat maps, from a model and its predictions.

Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017,
arXiv:1610.02391, as in captum. A map shows which regions support a class, not why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.image_io import Pixels, display_channels
from efficientnetv2.data.readers import BestEffortReader, eval_reader
from efficientnetv2.data.records import Ints
from efficientnetv2.evaluation.html import TemplateSection
from efficientnetv2.evaluation.thumbnails import CONTRAST_NOTE, encode_thumbnail, is_low_contrast
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models.efficientnet import EfficientNet, Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.errors import InputError, MemoryShortError
from efficientnetv2.utils.memory import retry_halving_batch
from efficientnetv2.utils.probability import probabilities

# Batch size; less if memory runs out. Ours.
_BATCH = 8
# Opacity of a map at its maximum. Ours.
_OPACITY = 0.6
# Confusions, images of each, and images of the other galleries: well below 1 MB. Ours.
_CONFUSIONS, _IMAGES_OF_CONFUSION, _IMAGES_OF_GALLERY = 3, 4, 8
# Size and JPEG quality of images. Ours.
_PX, _QUALITY = 144, 75

Floats = npt.NDArray[np.float32]
Gallery = tuple[str, Ints]  # a title, and positions of images in the predictions
Example = tuple[Pixels, Floats | None]  # an (H, W, 3) image as the model saw it, and its (H, W) heat map if it has one


def explain_predictions(
    model: Network,
    predictions: Predictions,
    dataset: ImageDataset,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
) -> tuple[TemplateSection, ...]:
    """The section on predictions of a model; none for multi-label or unlabeled images.

    A model of another library has images without maps. ``preprocessing`` is that of the predictions.
    """
    return _section(predictions, dataset, class_names, partial(_examples, model, predictions, dataset, preprocessing))


def explain_folds(
    model_of: Callable[[int], Network],
    fold: npt.NDArray[np.int64],
    predictions: Predictions,
    dataset: ImageDataset,
    *,
    members: int = 1,
) -> tuple[TemplateSection, ...]:
    """The section on out-of-fold predictions: each image is explained by the model that predicted it.

    ``model_of`` loads the first of ``members`` models of a fold; one is in memory at a time. ``fold`` (N,) is the fold
    of each prediction, from 0.
    """

    def examples(places: Sequence[int]) -> dict[int, Example]:
        found: dict[int, Example] = {}
        for number in sorted({int(fold[place]) for place in places}):
            of_fold = [place for place in places if fold[place] == number]
            found |= _examples(model_of(number), predictions, dataset, None, of_fold)
        return found

    note = "" if members == 1 else f"Maps are of the first of the {members} models of a fold."
    return _section(predictions, dataset, dataset.class_names, examples, note)


def _section(
    predictions: Predictions,
    dataset: ImageDataset,
    class_names: Sequence[str],
    examples: Callable[[Sequence[int]], dict[int, Example]],
    note: str = "",
) -> tuple[TemplateSection, ...]:
    labels, scores = predictions.labels, predictions.probabilities
    if labels.ndim != 1 or not len(labels) or (labels < 0).any():
        return ()
    galleries = select_galleries(labels, scores, class_names)
    found = examples(sorted({int(place) for _, places in galleries for place in places}))
    paths = [dataset.paths[int(row)] for row in predictions.samples]
    return (gallery_section(galleries, labels, scores, class_names, paths, found, note=note),)


def _examples(
    model: Network,
    predictions: Predictions,
    dataset: ImageDataset,
    preprocessing: Preprocessing | None,
    places: Sequence[int],
) -> dict[int, Example]:
    """Images at some positions of the predictions as the model saw them, with their maps where possible."""
    preprocessing = preprocessing or model.preprocessing
    # Rasters by the bands of this model; those of folds differ.
    reader = BestEffortReader(eval_reader(replace(dataset, bands=preprocessing.bands or dataset.bands)))
    load = partial(load_eval_image, preprocessing=preprocessing)
    read = {place: reader.read(int(predictions.samples[place]), load) for place in places}
    images = {place: image for place, image in read.items() if image is not None}
    maps: Sequence[Floats | None] = [None] * len(images)
    if images and supports_grad_cam(model):
        classes = probabilities(predictions.logits[list(images)], predictions.activation).argmax(dim=1).numpy()
        with suppress(MemoryShortError):  # no metric depends on the maps
            maps = list(grad_cam(model, np.stack(list(images.values())), classes))
    return {place: (display_channels(image), heat) for (place, image), heat in zip(images.items(), maps, strict=True)}


def supports_grad_cam(model: Network) -> bool:
    """Whether a model is one of this package with a classifier."""
    return isinstance(model, EfficientNet) and model.num_classes > 0


def grad_cam(
    model: Network, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64], *, stage: int | None = None
) -> Floats:
    """Grad-CAM of each image for a class, as (N, H, W) float32 from 0 to 1; all 0 if nothing supports the class.

    ``images`` are (N, H, W, C) as the model's preprocessing makes them. ``stage``, from 1: early ones are fine and know
    edges, late ones coarse and know objects; None is the head, as in the paper. The model keeps its mode.

    Raises:
        InputError: The model is not supported, or there is no such stage.
        MemoryShortError: A single image does not fit into memory.
    """
    if not isinstance(model, EfficientNet) or not supports_grad_cam(model):
        raise InputError("Grad-CAM needs a model of this package with a classifier; this is another model.")
    lasts = np.cumsum([each.layers for each in model.architecture.stages]) - 1
    if stage is not None and not 1 <= stage <= len(lasts):
        raise InputError(f"`stage` must be 1 to {len(lasts)}, not {stage}.")
    layer = model.head if stage is None else model.blocks[int(lasts[stage - 1])]
    from captum.attr import LayerGradCam  # takes a moment to load, and only here

    device = next(model.parameters()).device
    explainer = LayerGradCam(model, layer)
    maps: list[Tensor] = []

    def heat(batch: Tensor) -> Tensor:
        start = sum(len(part) for part in maps)
        inputs = normalize(batch.to(device), mean=model.preprocessing.mean, std=model.preprocessing.std)
        target = torch.from_numpy(classes[start : start + len(batch)]).to(device)
        with torch.enable_grad():
            found = explainer.attribute(inputs, target=target, relu_attributions=True).detach().float()
        large = functional.interpolate(found, images.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
        highest = large.amax(dim=(1, 2), keepdim=True)
        maps.append((large / highest.clamp(min=torch.finfo(torch.float32).tiny)).cpu())
        return maps[-1]

    most = _BATCH
    with _frozen(model):
        for start in range(0, len(images), _BATCH):
            part = np.ascontiguousarray(images[start : start + _BATCH])
            _, most = retry_halving_batch(heat, torch.from_numpy(part).permute(0, 3, 1, 2), most, device)
    return torch.cat(maps).numpy() if maps else np.empty((0, *images.shape[1:3]), np.float32)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients, so that activations are kept from the explained layer on only."""
    training = {module for module in model.modules() if module.training}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad = True


def overlay_heatmap(image: Pixels, heat: Floats) -> Pixels:
    """An (H, W, 3) image in gray under an (H, W) map: yellow where the most supports the class."""
    from matplotlib import colormaps

    gray = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    # Dark images are brightened, so that something is visible under the colors.
    gray *= 255 / max(1.0, float(np.quantile(gray, 0.99)))
    colors = 255 * colormaps["inferno"](heat)[..., :3]
    opacity = _OPACITY * heat[..., None] ** 0.5
    mixed: Pixels = ((1 - opacity) * gray.clip(0, 255) + opacity * colors).round().clip(0, 255).astype(np.uint8)
    return mixed


def select_galleries(
    labels: Ints, probabilities: npt.NDArray[np.floating], class_names: Sequence[str]
) -> list[Gallery]:
    """Galleries of the most frequent confusions, the least confident predictions and the least probable labels."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    galleries: list[Gallery] = []
    wrong = np.flatnonzero(predicted != labels)
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    for pair in np.argsort(-counts, kind="stable")[:_CONFUSIONS]:
        true, called = pairs[pair]
        places = wrong[(labels[wrong] == true) & (predicted[wrong] == called)]
        shown = places[np.argsort(-confidence[places], kind="stable")][:_IMAGES_OF_CONFUSION]
        more = f": the most confident of {counts[pair]}" if counts[pair] > len(shown) else ""
        galleries.append((f"{class_names[true]}, predicted as {class_names[called]}{more}", shown))
    of_label = probabilities[np.arange(len(labels)), labels]
    for title, scores in (("Least confident", confidence), ("Least probable labels", of_label)):
        galleries.append((title, np.argsort(scores, kind="stable")[:_IMAGES_OF_GALLERY]))
    return galleries


def gallery_section(
    galleries: Sequence[Gallery],
    labels: Ints,
    probabilities: npt.NDArray[np.floating],
    class_names: Sequence[str],
    paths: Sequence[str],
    examples: Mapping[int, Example],
    *,
    note: str = "",
) -> TemplateSection:
    """The section, with examples by their position in the predictions and a note on the maps."""
    predicted = probabilities.argmax(axis=1)
    stretched = is_low_contrast(image for image, _ in examples.values())

    def figure(place: int) -> dict[str, object]:
        image, heat = examples.get(place, (None, None))
        overlaid = None if image is None or heat is None else overlay_heatmap(image, heat)
        return {
            "address": encode_thumbnail(image, stretched=stretched, px=_PX, quality=_QUALITY),
            "map": encode_thumbnail(overlaid, px=_PX, quality=_QUALITY),
            "true": class_names[labels[place]],
            "predicted": class_names[predicted[place]],
            "correct": bool(predicted[place] == labels[place]),
            "probability": float(probabilities[place, predicted[place]]),
            "path": paths[place],
        }

    figures = {int(place): figure(int(place)) for _, places in galleries for place in places}
    return TemplateSection(
        "galleries.html.j2",
        {
            "galleries": [(title, [figures[int(place)] for place in places]) for title, places in galleries],
            "mapped": any(each["map"] for each in figures.values()),
            "stretched": CONTRAST_NOTE if stretched else None,
            "note": note,
        },
        {"galleries": [{"title": title, "paths": [paths[int(p)] for p in places]} for title, places in galleries]},
    )
