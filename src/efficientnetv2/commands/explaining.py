"""From a network and its answers to galleries of pictures with maps of where it looked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from efficientnetv2.base.preprocessing import Preprocessing
from efficientnetv2.data.decode import eval_picture
from efficientnetv2.data.manifest import Manifest
from efficientnetv2.data.pictures import Pixels, UnreadablePicture, first_three
from efficientnetv2.data.readers import originals
from efficientnetv2.evaluation.explain import explainable, grad_cam
from efficientnetv2.evaluation.galleries import Seen, chosen, shown
from efficientnetv2.evaluation.sections import Part
from efficientnetv2.inference.predict import Predictions
from efficientnetv2.models.network import Network


def explained(
    network: Network,
    predictions: Predictions,
    manifest: Manifest,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
) -> tuple[Part, ...]:
    """The section of a report that shows where the network looked; none where pictures have several labels.

    Args:
        network: that answered; of another library its pictures are shown without maps.
        predictions: its answers, of labelled pictures.
        manifest: that they answer.
        class_names: of the network.
        preprocessing: as the pictures were seen.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    if labels.ndim != 1 or not len(labels) or (labels < 0).any():
        return ()
    galleries = chosen(labels, probabilities, class_names)
    places = sorted({int(place) for one in galleries for place in one.places})
    reader = originals(manifest)
    images: dict[int, Pixels] = {}
    for place in places:
        try:
            source = reader.source(int(predictions.samples[place]))
            images[place] = eval_picture(source, preprocessing)
        except UnreadablePicture:  # it could be read a moment ago; a report can do without it
            continue
    seen = {place: Seen(first_three(image)) for place, image in images.items()}
    if explainable(network) and images:
        called = probabilities[list(images)].argmax(axis=1).astype(np.int64)
        maps = grad_cam(network, np.stack(list(images.values())), called)
        seen = {
            place: Seen(first_three(images[place]), heat) for place, heat in zip(images, maps, strict=True)
        }
    paths = [manifest.paths[int(row)] for row in predictions.samples]
    return (
        shown(
            galleries, labels, probabilities, class_names, paths, lambda place: seen.get(place, Seen(None))
        ),
    )
