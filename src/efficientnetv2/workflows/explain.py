"""From a network and its answers to galleries of pictures with maps of where it looked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def explained(
    network: Network,
    predictions: Predictions,
    dataset: ImageDataset,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
) -> tuple[TemplateSection, ...]:
    """The section of a report that shows where the network looked; none where pictures have several labels.

    Args:
        network: that answered; of another library its pictures are shown without maps.
        predictions: its answers, of labelled pictures.
        dataset: that they answer.
        class_names: of the network.
        preprocessing: as the pictures were seen.
    """

    def looked(places: Sequence[int]) -> dict[int, Example]:
        return _seen(network, predictions, dataset, preprocessing, places)

    return _section(predictions, dataset, class_names, looked)


def explained_by_folds(
    network_of: Callable[[int], Network],
    fold: npt.NDArray[np.int64],
    predictions: Predictions,
    dataset: ImageDataset,
    class_names: Sequence[str],
    *,
    members: int = 1,
) -> tuple[TemplateSection, ...]:
    """Likewise of a cross-validation: each picture by the network that answered it, which had not learnt from it.

    Args:
        network_of: loads that of a fold, with its own preprocessing; one is alive at a time.
        fold: (N,) whose answer it is, from 0.
        predictions: (N,) answers, of labelled pictures.
        dataset: that they answer.
        class_names: of the networks.
        members: networks that have answered each picture together; that which is loaded is the first of them.
    """

    def of_one(network: Network, places: Sequence[int]) -> dict[int, Example]:
        return _seen(network, predictions, dataset, network.preprocessing, places)

    def looked(places: Sequence[int]) -> dict[int, Example]:
        seen: dict[int, Example] = {}
        for number in sorted({int(fold[place]) for place in places}):
            own = [place for place in places if fold[place] == number]
            seen |= of_one(network_of(number), own)
        return seen

    whose = (
        "" if members == 1 else f"Of the {members} networks that answered a picture together it is the first."
    )
    return _section(predictions, dataset, class_names, looked, whose)


def _section(
    predictions: Predictions,
    dataset: ImageDataset,
    class_names: Sequence[str],
    looked: Callable[[Sequence[int]], dict[int, Example]],
    whose: str = "",
) -> tuple[TemplateSection, ...]:
    labels, shares = predictions.labels, predictions.probabilities
    if labels.ndim != 1 or not len(labels) or (labels < 0).any():
        return ()
    galleries = select_galleries(labels, shares, class_names)
    seen = looked(sorted({int(place) for one in galleries for place in one.places}))
    paths = [dataset.paths[int(row)] for row in predictions.samples]
    return (
        gallery_section(
            galleries,
            labels,
            shares,
            class_names,
            paths,
            lambda place: seen.get(place, Example(None)),
            whose=whose,
        ),
    )


def _seen(
    network: Network,
    predictions: Predictions,
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    places: Sequence[int],
) -> dict[int, Example]:
    """Pictures of some places in the predictions, as the network saw them, with what spoke for its answers."""
    # Rasters by the rule that was measured with this network, as when it answered; of folds each has its own.
    reader = eval_reader(replace(dataset, bands=preprocessing.bands or dataset.bands))
    pictures, see = BestEffortReader(reader), partial(load_eval_image, preprocessing=preprocessing)
    images: dict[int, Pixels] = {}
    for place in places:
        image = pictures.read(int(predictions.samples[place]), see)
        if image is not None:
            images[place] = image
    if not images or not supports_grad_cam(network):
        return {place: Example(display_channels(image)) for place, image in images.items()}
    called = probabilities(predictions.logits[list(images)], predictions.answer).argmax(dim=1).numpy()
    try:
        maps = grad_cam(network, np.stack(list(images.values())), called)
    except MemoryShortError:  # the pictures are shown without: no figure hangs on them
        return {place: Example(display_channels(image)) for place, image in images.items()}
    return {
        place: Example(display_channels(images[place]), heat)
        for place, heat in zip(images, maps, strict=True)
    }
