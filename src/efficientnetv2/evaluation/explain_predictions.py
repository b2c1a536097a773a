"""The report section with galleries of images and Grad-CAM maps, from a model and its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from efficientnetv2.data.dataset import ImageDataset
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.data.image_io import Pixels, display_channels
from efficientnetv2.data.readers import BestEffortReader, eval_reader
from efficientnetv2.evaluation.explain import (
    Example,
    gallery_section,
    grad_cam,
    select_galleries,
    supports_grad_cam,
)
from efficientnetv2.evaluation.sections import TemplateSection
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.preprocessing import Preprocessing
from efficientnetv2.utils.errors import MemoryShortError
from efficientnetv2.utils.probability import probabilities


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
    examples = partial(_examples, model, predictions, dataset, preprocessing)
    return _section(predictions, dataset, class_names, examples)


def explain_folds(
    model_of: Callable[[int], Network],
    fold: npt.NDArray[np.int64],
    predictions: Predictions,
    dataset: ImageDataset,
    *,
    members: int = 1,
) -> tuple[TemplateSection, ...]:
    """The section on out-of-fold predictions: each image is explained by the model that predicted it.

    Args:
        model_of: Loads the model of a fold, the first of ``members``. One is in memory at a time.
        fold: (N,) fold of each prediction, from 0.
    """

    def examples(places: Sequence[int]) -> dict[int, Example]:
        found: dict[int, Example] = {}
        for number in sorted({int(fold[place]) for place in places}):
            own = [place for place in places if fold[place] == number]
            found |= _examples(model_of(number), predictions, dataset, None, own)
        return found

    note = (
        ""
        if members == 1
        else f"The maps are of the first of the {members} models that predicted an image together."
    )
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
    found = examples(sorted({int(place) for gallery in galleries for place in gallery.places}))
    paths = [dataset.paths[int(row)] for row in predictions.samples]

    def example(place: int) -> Example:
        return found.get(place, Example(None))

    return (gallery_section(galleries, labels, scores, class_names, paths, example, note=note),)


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
    images: dict[int, Pixels] = {}
    for place in places:
        image = reader.read(
            int(predictions.samples[place]), partial(load_eval_image, preprocessing=preprocessing)
        )
        if image is not None:
            images[place] = image
    maps: Sequence[npt.NDArray[np.float32] | None] = [None] * len(images)
    if images and supports_grad_cam(model):
        classes = probabilities(predictions.logits[list(images)], predictions.answer).argmax(dim=1).numpy()
        with suppress(MemoryShortError):  # no metric depends on the maps
            maps = list(grad_cam(model, np.stack(list(images.values())), classes))
    return {
        place: Example(display_channels(image), heat)
        for (place, image), heat in zip(images.items(), maps, strict=True)
    }
